"""The paper cluster of benchmarks/cluster.py, on cases that can be solved by hand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "cluster.py"


@pytest.fixture(scope="module")
def model():
    """The script as a module; it is in no package."""
    spec = importlib.util.spec_from_file_location("cluster_model", PATH)
    module = sys.modules["cluster_model"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["cluster_model"]


def test_littles_law(model):
    """10,000 in flight at 2 seconds an answer are 5,000 calls a second."""
    assert model.rate_of(10_000, 2) == 5_000


def test_tier_is_bounded_by_requests_or_by_tokens(model):
    """Tier 5 has tokens for 1,923 calls of 1,300 a second, and requests for 500; tier 1 has tokens for 2.6 only."""
    assert model.allowed("tier 5", 1_000) == 500
    assert model.allowed("tier 1", 1_000) == pytest.approx(200_000 / 1_300 / 60)


@pytest.mark.parametrize("processes", [1, 4])
def test_without_a_limit_all_run_at_full_speed(model, processes):
    """20 places in each process and 0.5 seconds an answer: 40 calls a second each, and nothing is refused."""
    cluster = model.Cluster(processes, 20, 0.5, spread=0).run(30)
    assert model.share_of(cluster, 40 * processes, 5, 25) == (pytest.approx(1), 0)
    assert cluster.most_tries == 1


def test_limit_above_the_demand_costs_nothing(model):
    cluster = model.Cluster(2, 10, 1.0, limit=40, spread=0).run(30)
    assert model.share_of(cluster, 20, 5, 25) == (pytest.approx(1), 0)


def test_one_process_does_what_its_governor_does(model):
    """5 of 10 are taken; a pause of a second; then one by one, at 0.85 of 5 in 1.05 seconds."""
    cluster = model.Cluster(1, 10, 0.1, limit=5, spread=0).run(1.0)
    assert (cluster.sent[0], cluster.taken[0]) == (10, 5)
    pace = cluster.processes[0].pace
    cluster.run(pace.not_before + 0.001)
    assert pace.rate == pytest.approx(0.85 * 5 / 1.05, rel=0.01)
    assert cluster.sent[1] == 1


def test_provider_takes_no_more_than_its_limit(model):
    """In the long run it takes its rate, and the second that its bucket holds, whoever asks."""
    cluster = model.Cluster(5, 40, 0.5, limit=50).run(60)
    assert sum(cluster.taken.values()) <= 50 * 61
    assert sum(cluster.sent.values()) > sum(cluster.taken.values())


def test_refused_requests_that_count_cost_throughput(model):
    limited = [model.Cluster(10, 20, 0.5, limit=50, counts_refused=counts).run(60) for counts in (False, True)]
    without, counted = (model.share_of(cluster, 50, 0, 60)[0] for cluster in limited)
    assert counted < without


def test_budget_is_shared_evenly_and_kept(model):
    """10 calls a second over two processes: after the second's worth at the start, 10 leave in each second."""
    cluster = model.Cluster(2, 100, 0.1, limit=10, budget=10).run(40)
    assert model.share_of(cluster, 10, 5, 35) == (pytest.approx(1, abs=0.02), 0)
    assert [process.budget.delay(cluster.now, 5) <= 1 for process in cluster.processes] == [True, True]


def test_budget_is_shared_out_anew(model):
    """When one of two leaves, the other keeps to its half until it is told, and then has it all."""
    cluster = model.Cluster(2, 100, 0.1, budget=10, spread=0).run(20)
    cluster.leave(1)
    cluster.run(30).share_out(is_empty=True)
    cluster.run(40)
    assert model.share_of(cluster, 5, 21, 29)[0] == pytest.approx(1, abs=0.05)
    assert model.share_of(cluster, 10, 31, 39)[0] == pytest.approx(1, abs=0.05)


def test_overshoot_while_the_old_do_not_know_of_the_new(model):
    """10 old ones with a tenth of the budget each and 10 new ones with a twentieth: one and a half times the budget."""
    cluster = model.churn(10, is_empty=True, limit=200, latency=1)
    assert max(cluster.sent[second] for second in range(120, 130)) / 200 == pytest.approx(1.5, abs=0.1)
    prompt = model.churn(0, is_empty=True, limit=200, latency=1)
    assert max(prompt.sent[second] for second in range(120, 130)) / 200 == pytest.approx(1, abs=0.1)


def test_same_seed_same_figures(model):
    first, second, other = (model.Cluster(5, 40, 0.5, limit=50, seed=seed).run(20) for seed in (1, 1, 2))
    assert first.sent == second.sent
    assert first.sent != other.sent


def test_what_breaks_is_told_in_order(model):
    """A caller that spends 100 µs on a result takes 10,000 a second, and stands after the tiers and a task a prompt."""
    cost = model.Measured(unpickle=40e-6, line=30e-6, append=30e-6, resume=5e-6, pickled=0, lines=1_000)
    measured = {200: model.Measured(**{**vars(cost), "pickled": 1e-9})}
    found = model.breaks(measured, 200)
    assert dict(found)["the caller, with journal"] == pytest.approx(10_000)
    assert [rate for _, rate in found] == sorted(rate for _, rate in found)
    assert found[0][0] == "provider, tier 1"


def test_measured_lines_are_chatpools(model):
    """What is measured is a real journal: a line of 200 tokens holds 800 bytes of text and what is around it."""
    cost = model.measure(200, results=20)
    assert 1_200 < cost.lines < 1_700
    assert min(cost.unpickle, cost.line, cost.append, cost.resume) > 0
