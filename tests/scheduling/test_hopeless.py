"""Runs in which no prompt can succeed: noticed early, and never mistaken. No clock, no threads."""

from __future__ import annotations

import pytest

from chatpool import (
    APIConnectionError,
    AuthenticationError,
    BadRequestError,
    InternalServerError,
    InvalidResponseError,
    NotFoundError,
    ParseError,
    PermissionDeniedError,
    RateLimitError,
)
from chatpool._scheduling.hopeless import HopelessRun, advice, signature


def unknown_model(name="x"):
    return NotFoundError(f"404: no model {name}", status_code=404, code="model_not_found")


def too_long():
    return BadRequestError("400: too long", status_code=400, code="context_length_exceeded")


def login_page():
    return InvalidResponseError("a web page answers", status_code=200, code="no_json")


def blank():
    return InvalidResponseError("blank", status_code=200, code="blank")


def failed_run(errors, max_workers=10):
    """Return a run whose first prompts ended so."""
    run = HopelessRun(max_workers)
    for index, error in enumerate(errors):
        run.observe(index, error)
    return run


@pytest.mark.parametrize(("max_workers", "prompts"), [(1, 20), (10, 20), (20, 40), (100, 200)])
def test_it_holds_after_twice_as_many_prompts_as_workers_but_twenty_at_least(max_workers, prompts):
    run = failed_run([unknown_model()] * (prompts - 1), max_workers)
    assert not run.should_hold()
    run.observe(prompts, unknown_model())
    assert run.should_hold()
    assert run.verdict() is None


def test_it_ends_when_the_probes_end_in_the_same_way():
    run = failed_run([unknown_model()] * 20)
    probes = run.choose_probes(dict.fromkeys(range(20, 1000), 100))
    for index in probes:
        assert run.verdict() is None
        run.observe(index, unknown_model())
    error = run.verdict()
    assert isinstance(error.__cause__, NotFoundError)
    assert error.code == "model_not_found"
    assert "404: no model x; check model=" in str(error)


def test_probes_come_from_different_places_and_the_shortest_is_among_them():
    lengths = dict.fromkeys(range(60, 300), 1000)
    lengths[213] = 3
    probes = failed_run([too_long()] * 20).choose_probes(lengths)
    assert 213 in probes
    assert probes[0] < 100
    assert probes[-1] > 260
    assert 4 <= len(probes) <= 5


@pytest.mark.parametrize("left", [{}, {7: 3}, {7: 3, 8: 2}])
def test_few_prompts_left(left):
    assert failed_run([unknown_model()] * 20).choose_probes(left) == sorted(left)


def test_probes_are_chosen_once():
    run = failed_run([unknown_model()] * 20)
    assert run.choose_probes({30: 1, 31: 1})
    assert run.choose_probes({32: 1}) == []


def test_sixty_prompts_too_long_at_the_head_of_three_hundred_stop_nothing():
    """The probes from elsewhere are answered, and that is the end of it."""
    run = failed_run([too_long()] * 60)
    first, *_ = run.choose_probes(dict.fromkeys(range(60, 300), 10))
    run.observe(first, None)
    assert not run.should_hold()
    for index in range(300):
        run.observe(index, too_long())
    assert not run.should_hold()
    assert run.verdict() is None


def test_a_run_that_was_answered_once_is_never_hopeless():
    run = HopelessRun(10)
    run.observe(0, None)
    for index in range(1, 100):
        run.observe(index, unknown_model())
    assert not run.should_hold()


def test_a_probe_that_ends_in_another_way_lets_the_run_go_on_for_twice_as_long():
    run = failed_run([too_long()] * 20)
    probes = run.choose_probes(dict.fromkeys(range(20, 300), 1))
    run.observe(probes[0], BadRequestError("400: bad picture", status_code=400, code="invalid_image"))
    assert not run.should_hold()
    for index in range(100, 139):
        run.observe(index, too_long())
    assert not run.should_hold()
    run.observe(139, too_long())
    assert run.should_hold()
    assert run.choose_probes({200: 1}) == [200]


def test_a_probe_that_met_an_outage_says_nothing():
    run = failed_run([unknown_model()] * 20)
    (probe,) = run.choose_probes({50: 1})
    run.observe(probe, InternalServerError("500", status_code=500), is_final=False)
    assert run.should_hold()
    run.observe(probe, InternalServerError("500", status_code=500))
    assert not run.should_hold()


def test_only_prompts_that_end_alike_in_a_row_count():
    run = failed_run([unknown_model()] * 19 + [too_long()] + [unknown_model()] * 19)
    assert not run.should_hold()


def test_retries_of_a_few_prompts_count_too():
    """Ten workers are busy with ten prompts: their retries may come before any other prompt."""
    run = HopelessRun(10)
    for _ in range(2):
        assert not run.should_hold()
        for index in range(10):
            run.observe(index, login_page(), is_final=False)
    assert run.should_hold()


def test_retries_of_one_prompt_are_not_enough():
    run = HopelessRun(10)
    for _ in range(100):
        run.observe(0, login_page(), is_final=False)
    assert not run.should_hold()


def test_a_login_page_counts_before_its_tries_are_used_up():
    """Otherwise each of the first prompts would fetch it six times."""
    run = HopelessRun(10)
    for index in range(20):
        run.observe(index, login_page(), is_final=False)
    assert run.should_hold()


def test_a_blank_answer_may_be_chance_until_its_tries_are_used_up():
    run = HopelessRun(10)
    for index in range(50):
        run.observe(index, blank(), is_final=False)
    assert not run.should_hold()
    for index in range(20):
        run.observe(index, blank())
    assert run.should_hold()


OTHERS = {
    "a rate limit": RateLimitError("429", status_code=429),
    "overload": InternalServerError("503", status_code=503),
    "an outage": InternalServerError("500", status_code=500),
    "nobody listens": APIConnectionError("x", code="connection_refused"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_limits_and_outages_are_others_business(name):
    assert not failed_run([OTHERS[name]] * 100).should_hold()


CONTACT = {
    "parse refused the answer": ParseError("x", code="ValueError"),
    "the model refused": InvalidResponseError("x", status_code=200, code="refusal"),
    "the filter withheld it": InvalidResponseError("x", status_code=200, code="content_filter"),
}


@pytest.mark.parametrize("name", CONTACT)
def test_a_verdict_on_one_prompts_content_shows_that_the_model_is_reached(name):
    """A hundred refusals are what a list of unfit prompts deserves."""
    assert not failed_run([CONTACT[name]] * 100).should_hold()


ALIKE = [
    (unknown_model("a"), unknown_model("b")),
    (BadRequestError("400: wrong key 123", status_code=400), BadRequestError("400: wrong key 456", status_code=400)),
    (
        BadRequestError("400: bad 'a'", status_code=400, code="invalid_request_error"),
        BadRequestError("400: bad 'b'", status_code=400, code="invalid_request_error"),
    ),
]
DIFFERENT = [
    (unknown_model(), too_long()),
    (BadRequestError("400: bad key", status_code=400), BadRequestError("400: no balance", status_code=400)),
    (
        BadRequestError("400: too long", status_code=400, code="invalid_request_error"),
        BadRequestError("400: bad picture", status_code=400, code="invalid_request_error"),
    ),
    (NotFoundError("404", status_code=404), BadRequestError("400", status_code=400)),
]


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_errors_that_are_alike(one, other):
    """By status and code, or by their words, with numbers and quotations left out."""
    assert signature(one) == signature(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_errors_that_are_different(one, other):
    assert signature(one) != signature(other)


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (AuthenticationError("401", status_code=401), "api_key="),
        (PermissionDeniedError("403", status_code=403), "api_key="),
        (unknown_model(), "model="),
        (NotFoundError("404: no chat API", status_code=404), "base_url="),
        (BadRequestError("400: unknown parameter temperature", status_code=400), "params="),
        (BadRequestError("400: the model x does not exist", status_code=400), "model="),
        (login_page(), "base_url="),
        (InvalidResponseError("limit", status_code=200, code="length"), "max_tokens"),
    ],
)
def test_the_error_names_what_to_look_at(error, word):
    assert word in advice(error)
