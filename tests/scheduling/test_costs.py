"""What a run costs: prices, the server's own word, and a budget that is never exceeded."""

from __future__ import annotations

import json
import pickle
import random

import pytest

from chatpool import ChatPool, ConfigurationError, Price, SpendLimitError, Usage
from chatpool._scheduling.budgets import RunBudget
from chatpool.testing import FakeChatServer, Reply
from tests.snippets import ROOT, snippets

PRICES = {"m": (1.0, 2.0)}  # dollars a million tokens
USAGE = {"prompt_tokens": 100_000, "completion_tokens": 200_000, "total_tokens": 300_000}  # 0.1 + 0.4 dollars


@pytest.fixture
def server():
    with FakeChatServer(reply=lambda request: Reply(usage=USAGE)) as server:
        yield server


def make_pool(server, max_workers=4, **settings):
    return ChatPool(
        max_workers, **{"base_url": server.url, "model": "m", "prices": PRICES, "max_wait": 0.01, **settings}
    )


def test_cost_is_that_of_the_tokens(server):
    with make_pool(server) as pool:
        answers = pool.map(["a", "b"])
    assert [result.cost for result in answers.results] == pytest.approx([0.5, 0.5])
    assert answers.cost == pytest.approx(1.0)
    assert "cost: $1.00" in answers.summary()
    assert pickle.loads(pickle.dumps(answers)).cost == answers.cost


def test_cached_tokens_have_their_own_price():
    usage = Usage(1_000_000, 0, 1_000_000, cached_tokens=600_000)
    assert Price(1.0, 2.0, 0.1).cost(usage) == pytest.approx(0.4 + 0.06)
    assert Price(1.0, 2.0).cost(usage) == pytest.approx(1.0)


def test_reasoning_that_only_the_total_counts_is_charged():
    assert Price(1.0, 2.0).cost(Usage(500_000, 100_000, 1_000_000)) == pytest.approx(0.5 + 1.0)


def test_every_attempt_costs(server):
    """An answer that parse refuses was paid for; an error without usage was not."""
    server.script("a", Reply("x", usage=USAGE), Reply(status=500), Reply("1", usage=USAGE))
    with make_pool(server) as pool:
        (result,) = pool.map(["a"], parse=int).results
    assert (result.attempts, result.cost) == (3, pytest.approx(1.0))


def test_servers_own_cost_is_used_instead(server):
    """As OpenRouter reports it; with or without a price."""
    server.script("a", Reply("x", usage={**USAGE, "cost": 0.125}))
    for prices in (PRICES, None):
        with make_pool(server, prices=prices) as pool:
            assert pool.map(["a"]).cost == 0.125


@pytest.mark.parametrize("cost", ["1", -1, True, None, float("nan")])
def test_invalid_cost_of_a_server_is_ignored(server, cost):
    server.script("a", Reply("x", usage={**USAGE, "cost": cost}))
    with make_pool(server) as pool:
        assert pool.map(["a"]).cost == pytest.approx(0.5)


def test_without_a_price_the_cost_is_unknown(server):
    with make_pool(server, model="another") as pool:
        answers = pool.map(["a"])
    assert (answers.cost, answers.results[0].cost) == (None, None)
    assert "cost" not in answers.summary()


def test_resumed_answers_and_copies(server, tmp_path):
    """A resumed answer has its cost, which is not in the summary of this run; a copy costs nothing."""
    with make_pool(server) as pool:
        pool.map(["a"], journal=tmp_path / "j.jsonl")
        answers = pool.map(["a", "b", "b"], journal=tmp_path / "j.jsonl", dedupe=True)
    assert [result.cost for result in answers.results] == pytest.approx([0.5, 0.5, 0.0])
    assert "cost: $0.5000" in answers.summary()


def test_records_have_costs_tokens_and_errors(server):
    server.script("bad", Reply(status=400, code="bad_input"))
    server.script("a", Reply("A", usage={**USAGE, "prompt_tokens_details": {"cached_tokens": 7}}))
    with make_pool(server) as pool:
        good, bad = pool.map(["a", "bad"]).to_records()
    assert {**good, "elapsed": 0} == {
        "index": 0, "prompt": "a", "answer": "A", "error": None, "finish_reason": "stop", "prompt_tokens": 100_000,
        "completion_tokens": 200_000, "cached_tokens": 7, "reasoning_tokens": 0, "cost": pytest.approx(0.5),
        "attempts": 1, "elapsed": 0,
    }  # fmt: skip
    assert bad["error"].startswith("BadRequestError: ")
    assert bad["answer"] is bad["cost"] is None
    json.dumps([good, bad])


def test_records_fit_a_data_frame(server, tmp_path):
    pandas = pytest.importorskip("pandas")
    server.script("bad", Reply(status=400))
    with make_pool(server) as pool:
        frame = pandas.DataFrame(pool.map(["a", "bad"]).to_records())
    frame.to_csv(tmp_path / "answers.csv")
    assert frame["cost"].sum() == pytest.approx(0.5)
    assert frame["error"].notna().tolist() == [False, True]


def test_usage_sums_cached_and_reasoning_tokens(server):
    details = {"prompt_tokens_details": {"cached_tokens": 7}, "completion_tokens_details": {"reasoning_tokens": 5}}
    server.script("a", Reply("A", usage={**USAGE, **details}))
    with make_pool(server) as pool:
        usage = pool.map(["a", "a"]).usage
    assert (usage.cached_tokens, usage.reasoning_tokens) == (14, 10)


# The estimate.


def test_estimate_has_the_most_cost(server):
    with make_pool(server, params={"max_tokens": 1000}) as pool:
        estimate = pool.estimate(["x" * 4_000_000] * 2)
    assert estimate.most_cost == pytest.approx(2 * (1.0 + 0.002), rel=1e-3)


def test_most_cost_is_unknown_without_a_limit_or_a_price(server):
    with make_pool(server) as pool:
        assert pool.estimate(["a"]).most_cost is None
        assert pool.estimate(["a"], params={"max_tokens": 10, "model": "another"}).most_cost is None
        assert pool.estimate([]).most_cost == 0


# The budget.


def test_a_thousand_random_runs_never_exceed_their_budget():
    """Requests of random sizes, in flight in random order, some of them without an answer; all that fits is sent."""
    for seed in range(1000):
        rng = random.Random(seed)
        limit = rng.uniform(0.5, 20)
        budget, spent, in_flight = RunBudget(cost_budget=limit), 0.0, []
        todo = [rng.uniform(0.01, 1.0) for _ in range(rng.randrange(1, 60))]
        while todo or in_flight:
            if todo and len(in_flight) < 8 and not budget.must_wait(todo[-1]):
                try:
                    budget.reserve(None, todo[-1])
                except SpendLimitError:
                    assert not in_flight
                    assert spent + todo[-1] > limit
                    break
                in_flight.append(todo.pop())
            else:
                most = in_flight.pop(rng.randrange(len(in_flight)))
                cost = rng.choice([None, 0.0, most, rng.uniform(0, most)])
                spent += most if cost is None else cost
                budget.settle(most, cost)
            assert spent <= limit * (1 + 1e-8)


@pytest.mark.parametrize("seed", range(20))
def test_runs_never_exceed_their_budget(seed):
    """Real runs with random answers up to max_tokens, bad answers and failures."""
    rng = random.Random(seed)
    paid = []

    def reply(request):
        if rng.random() < 0.2:
            return Reply(status=rng.choice([500, 503]))
        tokens_in, tokens_out = len(request.prompt) // 4, rng.randrange(1, request.body["max_tokens"] + 1)
        paid.append(tokens_in * 1e-6 + tokens_out * 2e-6)
        usage = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}
        return Reply(rng.choice(["1", "x"]), usage=usage)

    budget = rng.uniform(0.0005, 0.02)
    with FakeChatServer(reply=reply, latency=0.001) as server, make_pool(server, 8, max_tries=3) as pool:
        prompts = ["x" * rng.randrange(1, 2000) for _ in range(60)]
        answers = pool.map(prompts, parse=int, params={"max_tokens": 200}, cost_budget=budget)
    assert sum(paid) <= budget
    assert answers.cost == pytest.approx(sum(paid))
    for failure in answers.failures:
        if isinstance(failure.error, SpendLimitError):
            assert failure.error.code == "cost_budget"
            assert sum(paid) > budget - 0.004  # one request, asked again with two bad answers, may cost less than that


def test_budget_waits_for_requests_in_flight_rather_than_end_the_run(server):
    """Each may cost a dollar, and costs half: nearly two dollars are spent, one request after another at the end."""
    server._latency = 0.02
    with make_pool(server, 4) as pool:
        answers = pool.map(["a"] * 10, params={"max_tokens": 500_000}, cost_budget=2.01)
    assert answers.cost == pytest.approx(1.5)
    assert len(server.requests) == 3
    assert {type(failure.error) for failure in answers.failures} == {SpendLimitError}
    assert "cost_budget=2.01 of this run is spent" in str(answers.failures[0].error)


@pytest.mark.parametrize("way", ["imap", "imap_unordered"])
def test_iterators_have_the_budget_too(server, way):
    with make_pool(server) as pool:
        results = list(getattr(pool, way)(iter(["a"] * 30), params={"max_tokens": 200_000}, cost_budget=1.6))
    assert len(results) == 30
    assert sum(result.cost or 0 for result in results) == pytest.approx(1.5)


def test_request_without_an_answer_counts_as_its_most(server):
    server.script("stalls", Reply(fault="stall"))
    with make_pool(server, 1, timeout=(5, 0.2), max_tries=1) as pool:
        answers = pool.map(["stalls", "a"], params={"max_tokens": 500_000}, cost_budget=1.5)
    assert len(answers.failures) == 2
    assert server.count("a") == 0


def test_budget_needs_a_price(server):
    """Before anything is sent; the message says what to pass."""
    with make_pool(server) as pool:
        message = r"prompt 1: cost_budget needs a price for the model 'x'; pass prices=\{'x': "
        prompts = ["a", {"model": "x", "messages": [{"role": "user", "content": "b"}]}]
        with pytest.raises(ConfigurationError, match=message):
            pool.map(prompts, cost_budget=1)
    assert server.requests == []


@pytest.mark.parametrize("budget", [0, -1, True, "1", float("nan")])
def test_budget_is_a_number_of_dollars(server, budget):
    with make_pool(server) as pool, pytest.raises(ConfigurationError, match="cost_budget must be a number of dollars"):
        pool.map(["a"], cost_budget=budget)


@pytest.mark.parametrize("price", [5, (1,), (1, 2, 3, 4), ("1", 2), (-1, 2), {"in": 1}, (True, 1), None])
def test_price_is_two_or_three_numbers(price):
    with pytest.raises(ConfigurationError, match=r"prices: 'm' needs \(input, output\) or Price"):
        ChatPool(base_url="http://127.0.0.1:9", prices={"m": price})


def test_prices_are_a_dict():
    with pytest.raises(ConfigurationError, match="prices must be a dict"):
        ChatPool(base_url="http://127.0.0.1:9", prices=[1, 2])


def test_prices_from_litellms_file(tmp_path, monkeypatch):
    """The line of the page on budgets; models without a price for tokens are left out."""
    entries = {
        "gpt": {"input_cost_per_token": 1e-7, "output_cost_per_token": 5e-7},
        "image": {"output_cost_per_image": 0.02},
        "embedding": {"input_cost_per_token": 1e-7, "output_cost_per_token": 0.0},
    }
    (tmp_path / "model_prices_and_context_window.json").write_text(json.dumps(entries))
    monkeypatch.chdir(tmp_path)
    (snippet,) = [snippet for snippet in snippets(ROOT / "docs/budgets.md") if "cost_per_token" in snippet.code]
    space = {}
    snippet.run(space)
    assert space["prices"] == {"gpt": pytest.approx((0.1, 0.5))}
