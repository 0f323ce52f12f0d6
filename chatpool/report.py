"""The HTML report of a journal (extra ``report``)."""

from ._cli.report import write_report

__all__ = ["write_report"]
