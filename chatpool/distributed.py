"""chatpool on a Dask cluster (extra ``dask``): ``map`` and ``imap_unordered`` through its workers."""

from ._cluster.client import imap_unordered, map

__all__ = ["imap_unordered", "map"]
