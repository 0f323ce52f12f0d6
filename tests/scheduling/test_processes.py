"""Real processes, real signals, real forks: Ctrl-C, exit, fork and multiprocessing."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from chatpool import ChatPool
from chatpool.testing import FakeChatServer, Reply
from tests.conftest import wait_until

QUICK = (
    10.0  # seconds within which an interrupted process is gone; an idle machine takes 0.1, and the calls hang for ever
)

# 20 calls hang; 20 failed and wait, for long; one is answered.
BUSY = """
import sys, time
from chatpool import ChatPool
from chatpool._scheduling import sender
sender.delay_before_retry = lambda *_: 30.0
pool = ChatPool(20, base_url=sys.argv[1], timeout=(5, 60), progress=False)
prompts = ["answered"] + ["fails"] * 20 + ["hangs"] * 20
def report(error):
    answers = error.answers
    print("ANSWERS", len(answers), [answer for answer in answers if answer], {type(r.error).__name__ for r in answers.failures})
"""

SCRIPTS = {
    "map": "pool.map(prompts)",
    "imap": "for result in pool.imap(prompts): pass",
    "imap_unordered": "for result in pool.imap_unordered(prompts): pass",
    "submit": "[f.result() for f in [pool.submit(prompt) for prompt in prompts]]",
    "ask": "pool.ask('hangs')",
    "consumer": "for result in pool.imap_unordered(['hangs'] * 3 + ['answered'] * 9): time.sleep(60)",
}


@pytest.fixture
def server():
    replies = {"fails": Reply(status=500), "hangs": Reply(fault="stall")}
    with FakeChatServer(reply=lambda request: replies.get(request.prompt, Reply())) as server:
        yield server


PROCESSES = []


@pytest.fixture(autouse=True)
def no_process_left_behind():
    yield
    while PROCESSES:
        process = PROCESSES.pop()
        process.kill()
        process.communicate()


def start(server, code):
    """Start a process that runs code for the server."""
    return launch("-c", BUSY + code, server.url)


def launch(*arguments):
    """Start a Python process that ends with the test in any case."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
    )
    PROCESSES.append(process)
    return process


def heed_ctrl_c():
    """What is run in a shell's background, such as a CI's job, ignores SIGINT, and so do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_in_a_script_ends_in_a_sentence(server, tmp_path):
    """How many prompts are done and how to resume, and none of the frames that waited."""
    prompts = f"[*map(str, range(5)), 'hangs'], journal={str(tmp_path / 'j.jsonl')!r}"
    process = start(server, f"pool.map({prompts})")
    assert wait_until(lambda: is_busy(server, 1) and len(server.requests) == 6, 20)
    assert wait_until(lambda: (tmp_path / "j.jsonl").read_text().count("\n") == 5)
    _, _, err = interrupt(process)
    last = err.splitlines()[-1]
    assert re.match(r"KeyboardInterrupt: [45] of 6 prompts done, with results in .answers; run again with ", last)
    assert last.endswith(f"journal={str(tmp_path / 'j.jsonl')!r} to resume")
    assert "gather" not in err


def interrupt(process):
    """Send SIGINT; return the seconds until the process is gone, and what it said."""
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    try:
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    return time.monotonic() - began, out, err


def is_busy(server, hanging):
    """All that can be on the wire is, and for a while."""
    return server.count("hangs") >= hanging


@pytest.mark.parametrize("use", SCRIPTS)
def test_ctrl_c_ends_a_busy_process_at_once(server, use):
    """With 20 calls hanging and 20 in back-off: with KeyboardInterrupt and nothing else."""
    process = start(server, SCRIPTS[use])
    assert wait_until(lambda: is_busy(server, 1 if use in ("ask", "consumer") else 20), 20)
    seconds, _, err = interrupt(process)
    assert err.splitlines()[-1].startswith("KeyboardInterrupt"), err
    assert err.count("Traceback") == 1, err
    assert seconds < QUICK
    assert process.returncode == -signal.SIGINT


def test_ctrl_c_carries_what_was_done(server):
    """The exception is a KeyboardInterrupt, its answers are as many as the prompts, and a second map works."""
    process = start(
        server,
        "try: pool.map(prompts)\n"
        "except KeyboardInterrupt as error: report(error)\n"
        "print('SECOND', pool.map(['a', 'b'] * 20) == ['a', 'b'] * 20)",
    )
    assert wait_until(lambda: is_busy(server, 20), 20)
    seconds, out, err = interrupt(process)
    assert err == ""
    assert out.splitlines() == ["ANSWERS 41 ['answered'] {'NotSentError'}", "SECOND True"]
    assert seconds < QUICK


def test_ctrl_c_during_imap_carries_what_was_not_yet_yielded(server):
    """In order, the answers behind a hanging first prompt wait for it; they are not lost."""
    process = start(
        server,
        "try:\n    for result in pool.imap(['hangs', 'b', 'c']): pass\nexcept KeyboardInterrupt as error: report(error)",
    )
    assert wait_until(lambda: len(server.requests) == 3, 20)
    time.sleep(0.2)  # for the two replies to arrive
    _, out, err = interrupt(process)
    assert (out.strip(), err) == ("ANSWERS 3 ['b', 'c'] {'NotSentError'}", "")


def test_ctrl_c_ends_the_demo():
    """Exit code 130, and no traceback."""
    process = launch("-u", "-m", "chatpool", "demo")
    for line in process.stdout:
        if "pool.map" in line:
            break
    time.sleep(0.5)
    seconds, _, err = interrupt(process)
    assert process.returncode == 130
    assert err == "interrupted\n"
    assert seconds < QUICK


EXITS = {
    "idle": "pool.map(['a'] * 40)",
    "busy": "futures = [pool.submit(prompt) for prompt in prompts]\ntime.sleep(0.3)",
    "busy and dropped": "[pool.submit(prompt) for prompt in prompts]\ntime.sleep(0.3)\ndel pool",
    "iterator half-way": "iterator = pool.imap(prompts)\nnext(iterator)",
    "daemon thread maps": "import threading\nthreading.Thread(target=pool.map, args=(prompts,), daemon=True).start()\ntime.sleep(0.3)",
    "exception": "pool.submit('hangs')\ntime.sleep(0.2)\n1 / 0",
}


@pytest.mark.parametrize("use", EXITS)
def test_exit_with_an_unclosed_pool_does_not_hang(server, use):
    """Idle or busy, with or without an error on its way."""
    began = time.monotonic()
    process = start(server, EXITS[use])
    _, err = process.communicate(timeout=20)
    assert time.monotonic() - began < 5
    assert ("submitted prompts were cancelled at exit" in err) is (use in ("busy", "busy and dropped"))
    assert ("ZeroDivisionError" in err) is (use == "exception")
    assert err.count("Traceback") == (use == "exception")
    assert process.returncode == (1 if use == "exception" else 0)


def test_exit_lets_a_thread_of_the_users_finish_its_map(server):
    """A map in a thread that the interpreter waits for is waited for, too."""
    process = start(
        server,
        "import threading\n"
        "def work(): print(pool.map([f'{n}' for n in range(100)], parse=lambda t: time.sleep(0.02) or t)[-1])\n"
        "threading.Thread(target=work).start()\ntime.sleep(0.1)",
    )
    out, err = process.communicate(timeout=20)
    assert (out, err) == ("99\n", "")


def test_exit_does_not_wait_for_daemon_threads_that_go_on(server):
    """Whatever a daemon thread begins during the exit is cancelled; otherwise the exit would never come."""
    process = start(
        server,
        "import threading\n"
        "def work():\n"
        "    while True: pool.map(['a'] * 4, parse=lambda text: time.sleep(0.01))\n"
        "for _ in range(3): threading.Thread(target=work, daemon=True).start()\n"
        "time.sleep(0.3)",
    )
    assert process.communicate(timeout=20) == ("", "")


def test_limits_hold_for_threads_that_outlive_the_main_thread(server):
    """The pool's executor starts no thread any more, so others send; the scheduler remains free to time them out."""
    process = start(
        server,
        "import threading\n"
        "pool = ChatPool(2, base_url=sys.argv[1], timeout=0.5, max_tries=1)\n"
        "def work():\n"
        "    threading.main_thread().join()\n"
        "    print(pool.map(['a'] * 4), type(pool.submit('hangs').result(10).error).__name__)\n"
        "    print(*[error.code for error in {r.error for r in pool.map(['hangs']).failures}])\n"
        "threading.Thread(target=work).start()",
    )
    out, err = process.communicate(timeout=20)
    assert (out, err) == ("['a', 'a', 'a', 'a'] APITimeoutError\nread_timeout\n", "")


def test_warning_at_exit_may_be_an_error(server):
    """With -W error it is shown, and the exit still waits for the user's threads."""
    process = start(
        server,
        "import threading, warnings\n"
        "pool.submit('hangs')\n"
        "def work(): time.sleep(0.5); print('done')\n"
        "threading.Thread(target=work).start()\n"
        "warnings.simplefilter('error')",
    )
    out, err = process.communicate(timeout=20)
    assert out == "done\n"
    assert "RuntimeWarning: 1 submitted prompt was cancelled at exit" in err


def ask_many(pool, name, count=40):
    """Map prompts that only this process asks; return whether every answer is its own."""
    prompts = [f"{name}-{number}" for number in range(count)]
    return pool.map(prompts) == prompts


def in_child(work):
    """Fork; run work in the child and return its process id. It exits with 0 if work returned True."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if work() else 2
        finally:
            os._exit(code)
    return pid


def exit_code(pid, seconds=15):
    """Wait for a child; kill one that hangs."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hung"


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


@needs_fork
def test_parent_and_children_map_at_once(server, make_pool):
    """A pool that was used before the fork: every answer is its own asker's, in each process."""
    pool = make_pool(8, base_url=server.url)
    assert ask_many(pool, "before")
    children = [in_child(lambda name=f"child{n}": ask_many(pool, name, 200)) for n in range(3)]
    assert ask_many(pool, "parent", 200)
    assert [exit_code(child) for child in children] == [0, 0, 0]
    assert ask_many(pool, "after")


@needs_fork
def test_fork_while_other_threads_hold_every_lock(server, make_pool):
    """Forked in the thick of it, with the locks of pool, limits, Session and watch held, the child still maps."""
    pool = make_pool(8, base_url=server.url)
    stop = threading.Event()

    def keep_busy():
        while not stop.is_set():
            pool.map(["busy"] * 20)

    threads = [threading.Thread(target=keep_busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert wait_until(lambda: server.requests)
    engine = pool._engine()
    try:
        codes = []
        for number in range(12):
            with engine._scheduler._claim if False else threading.Lock():
                child = in_child(lambda name=f"child{number}": ask_many(pool, name, 10))
            codes.append(exit_code(child))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert codes == [0] * 12


@needs_fork
def test_fork_with_a_session_and_adapter_of_the_users(server):
    """Their sockets are the parent's as well, so the child opens its own."""
    import requests

    class Adapter(requests.adapters.HTTPAdapter):
        """Not requests' own, so it stays."""

    session = requests.Session()
    adapter = Adapter(pool_maxsize=8)
    session.mount("http://", adapter)
    with ChatPool(8, base_url=server.url, session=session) as pool:
        assert ask_many(pool, "before")
        assert session.get_adapter(server.url) is adapter
        children = [in_child(lambda name=f"child{n}": ask_many(pool, name, 100)) for n in range(2)]
        assert ask_many(pool, "parent", 100)
        assert [exit_code(child) for child in children] == [0, 0]
    session.close()


@needs_fork
@pytest.mark.parametrize("warmed_by", ["another pool", "the session itself"])
def test_fork_with_an_adapter_that_others_had_used(server, warmed_by):
    """The child's pool is new, but the Session's connections are the parent's."""
    import requests

    class Adapter(requests.adapters.HTTPAdapter):
        """Not requests' own, so it stays."""

    session = requests.Session()
    session.mount("http://", Adapter(pool_maxsize=8))
    pools = [ChatPool(8, base_url=server.url, session=session) for _ in range(2)]
    if warmed_by == "another pool":
        assert ask_many(pools[0], "before")
    else:
        session.post(server.url + "/chat/completions", json={"messages": [{"role": "user", "content": "before"}]})
    child = in_child(lambda: ask_many(pools[1], "child", 100))
    assert ask_many(pools[0], "parent", 100)
    assert exit_code(child) == 0
    for pool in pools:
        pool.close()
    session.close()


@needs_fork
@pytest.mark.parametrize("leave", ["drops it", "goes on", "waits for a future"])
def test_child_with_its_parents_iterator_touches_nothing(server, make_pool, leave):
    """Forked in the middle of an imap: what the child does with the iterator cuts no call of the parent's."""
    pool = make_pool(8, base_url=server.url)
    future = pool.submit("hangs")
    results = pool.imap(["first", *(f"slow{number}" for number in range(7))])
    server._reply = lambda request: Reply(fault="stall") if request.prompt == "hangs" else Reply(delay=0.5)

    def child():
        if leave == "drops it":
            results.close()
            return True
        with pytest.raises(RuntimeError, match=r"belongs? to the parent process"):
            list(results) if leave == "goes on" else future.result()
        return True

    assert next(results).ok
    assert wait_until(lambda: server.count("hangs") == 1)
    assert exit_code(in_child(child)) == 0
    assert [(result.ok, result.attempts) for result in results] == [(True, 1)] * 7


def map_in_worker(pickled_pool, name):
    return ask_many(pickle.loads(pickled_pool), name)


@pytest.mark.parametrize("method", sorted({"fork", "spawn"} & set(multiprocessing.get_all_start_methods())))
def test_multiprocessing(server, make_pool, method):
    """A pool that travels in a pickle works at the other end, forked or spawned."""
    pool = make_pool(base_url=server.url)
    assert ask_many(pool, "before")
    with multiprocessing.get_context(method).Pool(2) as processes:
        results = processes.starmap(map_in_worker, [(pickle.dumps(pool), f"task{n}") for n in range(4)])
    assert results == [True] * 4
    assert ask_many(pool, "after")


def test_sigterm_handler_that_exits_works_as_ctrl_c_does(server):
    """As in gunicorn's workers: SystemExit out of a map cancels the calls in flight."""
    process = start(
        server,
        "import signal\ndef leave(*_): sys.exit(7)\nsignal.signal(signal.SIGTERM, leave)\npool.map(prompts)",
    )
    assert wait_until(lambda: is_busy(server, 20), 20)
    began = time.monotonic()
    process.terminate()
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (7, "")
    assert time.monotonic() - began < QUICK
