"""The end of a run leaves one line for each custom_id in the journal, or the journal as it was."""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import subprocess
import sys
import time

import pytest

from chatpool import ChatPool
from chatpool._cli.main import main
from chatpool._files.compaction import replace_file
from chatpool.journal import Journal
from chatpool.testing import FakeChatServer, Reply
from tests.conftest import wait_until

WAYS = {
    "map": lambda pool, prompts, path, **how: pool.map(prompts, journal=path, **how),
    "imap": lambda pool, prompts, path, **how: list(pool.imap(prompts, journal=path, **how)),
    "imap_unordered": lambda pool, prompts, path, **how: list(pool.imap_unordered(prompts, journal=path, **how)),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "answers.jsonl"


def names(path):
    return [json.loads(line)["custom_id"] for line in path.read_bytes().splitlines()]


@pytest.fixture
def fail_first(server, pool, path):
    """Leave a journal in which one of three prompts failed."""
    server.script("b", Reply(status=400), Reply("better"))
    pool.map(["a", "b", "c"], journal=path)
    assert len(names(path)) == 3


@pytest.mark.parametrize("way", WAYS)
def test_answer_replaces_the_failure(fail_first, pool, path, way):
    """After each kind of run; nothing else changes."""
    before = path.read_bytes().splitlines()
    WAYS[way](pool, ["a", "b", "c"], path)
    after = path.read_bytes().splitlines()
    assert len(after) == len(set(names(path))) == 3
    assert [line for line in before if b'"error": "' not in line] == after[:2]
    assert b"better" in after[2]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == [path.name]


def test_journal_without_replaced_lines_is_not_written_again(pool, path):
    pool.map(["a", "b"], journal=path)
    inode = path.stat().st_ino
    pool.map(["a", "b", "c"], journal=path)
    assert path.stat().st_ino == inode


def test_symbolic_link_stays(fail_first, pool, path, tmp_path):
    link = tmp_path / "link.jsonl"
    link.symlink_to(path.name)
    pool.map(["a", "b", "c"], journal=link)
    assert link.is_symlink()
    assert len(names(path)) == 3


def test_process_may_change_its_directory(fail_first, pool, path, monkeypatch):
    monkeypatch.chdir(path.parent)
    results = pool.imap(["a", "b", "c"], journal=path.name)
    next(results)
    monkeypatch.chdir("/")
    assert len(list(results)) == 2
    assert len(names(path)) == 3


def test_lines_of_a_killed_run_are_replaced_by_the_next(fail_first, pool, path):
    """Also if that sends nothing."""
    good = path.read_bytes().splitlines(keepends=True)[0]
    with path.open("ab") as file:
        file.write(good)
    pool.map(["a"], journal=path)
    assert len(names(path)) == 3


def test_interrupted_run_leaves_it_to_the_next(fail_first, pool, path):
    with pytest.raises(KeyboardInterrupt):
        for result in pool.imap(["a", "b", "c"], journal=path):
            if result.index == 2:
                raise KeyboardInterrupt
    pool.map(["a", "b", "c"], journal=path)
    assert len(names(path)) == 3


def test_deadline_leaves_no_time_for_a_large_file(fail_first, pool, path, monkeypatch):
    monkeypatch.setattr("chatpool._files.journal._COMPACTION_RATE", 1.0)
    assert pool.map(["a", "b", "c"], journal=path, deadline=30) == ["a", "better", "c"]
    assert len(names(path)) == 4
    pool.map(["a", "b", "c"], journal=path)
    assert len(names(path)) == 3


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_failure_leaves_the_journal_as_it_is(fail_first, pool, path, monkeypatch, caplog, step):
    """A full disk, a disk that fails, a folder that cannot be written: a warning is logged, no answer is lost."""

    def fail(*_):
        raise OSError(28, "No space left on device")

    real = os.fsync
    monkeypatch.setattr("chatpool._files.compaction.os.replace", fail) if step == "replace" else None
    if step == "write":
        monkeypatch.setattr("chatpool._files.compaction._lines_at", lambda *_, **__: iter(fail, None))
    if step == "fsync":
        newest = os.path.join(path.parent, f".{path.name}.new")
        monkeypatch.setattr(
            "chatpool._files.compaction.os.fsync", lambda fd: fail() if os.path.exists(newest) else real(fd)
        )
    assert pool.map(["a", "b", "c"], journal=path) == ["a", "better", "c"]
    assert f"{path} was not compacted: [Errno 28] No space left on device" in caplog.text
    monkeypatch.undo()
    assert len(names(path)) == 4
    assert os.listdir(path.parent) == [path.name]
    assert pool.map(["a", "b", "c"], journal=path) == ["a", "better", "c"]
    assert len(names(path)) == 3


def test_full_disk_for_real(fail_first, pool, path, monkeypatch, caplog):
    """A limit on the size of files fails as a full disk does, in the middle of the new file."""
    resource = pytest.importorskip("resource")
    code = (
        "import logging, resource, signal, sys\n"
        "from chatpool.journal import Journal\n"
        "logging.basicConfig()\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "with Journal(sys.argv[1]) as journal:\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))\n"
    )
    assert resource
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[0])
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert "was not compacted: [Errno 27]" in done.stderr
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_second_run_is_refused_until_the_end(fail_first, path, monkeypatch):
    """The lock is held while the file is written again, and a run that opened the old file cannot lock it later."""
    pytest.importorskip("fcntl")
    problems = []

    def replace(source, target):
        try:
            Journal(path)
        except Exception as problem:
            problems.append(str(problem))
        os.rename(source, target)

    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[0])
    monkeypatch.setattr("chatpool._files.compaction.os.replace", replace)
    Journal(path).close()
    (problem,) = problems
    assert "is in use by another run" in problem
    assert len(names(path)) == 3


@pytest.mark.skipif(not hasattr(os, "fchown") or os.geteuid() != 0, reason="only root can change a file's owner")
def test_owner_stays(tmp_path):
    """A run as root does not take the file away from its user."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    os.chown(path, 1234, 2345)
    replace_file(str(path), [b"new"])
    assert (path.stat().st_uid, path.stat().st_gid, path.read_bytes()) == (1234, 2345, b"new")


def test_remains_of_a_killed_run_are_removed(pool, path):
    remains = path.parent / f".{path.name}.new"
    remains.write_bytes(b"half a li")
    pool.map(["a"], journal=path)
    assert os.listdir(path.parent) == [path.name]


def test_link_under_the_temporary_name_is_not_followed(fail_first, pool, path, tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / f".{path.name}.new").symlink_to(victim)
    pool.map(["a", "b", "c"], journal=path)
    assert victim.read_bytes() == b"precious"
    assert len(names(path)) == 3


KILL_AT = {
    "the first line": "compaction._keep_owner = kill",
    "the sync": "compaction.os.fsync = lambda fd: kill() if os.path.exists(new) else fsync(fd)",
    "the move": "compaction.os.replace = kill",
    "the end": "compaction._sync_folder = kill",
}


@pytest.mark.parametrize("step", KILL_AT)
def test_kill_during_the_compaction(fail_first, pool, path, step):
    """The journal is the old one or the new one, and the next run removes what is left."""
    code = (
        "import os, signal, sys\n"
        "from chatpool._files import compaction\n"
        "from chatpool.journal import Journal\n"
        "path = sys.argv[1]\n"
        "folder, name = os.path.split(path)\n"
        "new, fsync = os.path.join(folder, f'.{name}.new'), os.fsync\n"
        "kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"{KILL_AT[step]}\n"
        "Journal(path).close()\n"
    )
    old = path.read_bytes() + path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(old)
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -signal.SIGKILL
    assert (path.read_bytes() == old) == (step != "the end")
    assert pool.map(["a", "b", "c"], journal=path) == ["a", "better", "c"]
    assert len(names(path)) == 3
    assert os.listdir(path.parent) == [path.name]


KILLS = 12
RUN = "import sys; from chatpool._cli.main import main; sys.exit(main(sys.argv[1:]))"


def test_kill_at_random_moments_loses_no_answer(tmp_path):
    """Runs that are killed anywhere, compaction included, and at last one that is not: an answer a prompt, one line each.

    Each answer that was in the file before a kill is there after it.
    """
    rng = random.Random(7)
    prompts = [f"p{number}" for number in range(60)]
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"custom_id": f"r-{prompt}", "prompt": prompt}) + "\n" for prompt in prompts))

    def reply(request):
        return Reply(status=400) if rng.random() < 0.5 else Reply(f"<{request.prompt}>" + "x" * 20_000)

    answered = set()
    with FakeChatServer(reply=reply) as server:
        command = [sys.executable, "-c", RUN, "run", str(source), "-o", str(out), "--base-url", server.url]
        for number in range(KILLS):
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            size = out.stat().st_size if out.exists() else 0
            wait_until(lambda: process.poll() is not None or (out.exists() and out.stat().st_size != size), 20)  # noqa: B023
            time.sleep(rng.random() * 0.2)
            process.send_signal(signal.SIGKILL)
            process.wait()
            now = good_names(out)
            assert answered <= now, number
            answered = now
        server.reply = None
        while main([*command[3:], "--no-progress"]) != 0:
            pass
    assert good_names(out) == {f"r-{prompt}" for prompt in prompts}
    assert sorted(names(out)) == sorted(f"r-{prompt}" for prompt in prompts)
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl"]


def good_names(path):
    """Return the custom_ids of the complete good lines."""
    found = set()
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            document = json.loads(line)
        except ValueError:
            continue
        if document["response"]["status_code"] == 200:
            found.add(document["custom_id"])
    return found


def test_file_is_replaced_in_one_move(tmp_path):
    """An error on the way leaves the old file, and no temporary one."""

    def pieces():
        yield b"new"
        raise KeyboardInterrupt

    path = tmp_path / "out.csv"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        replace_file(str(path), pieces())
    assert path.read_bytes() == b"old"
    replace_file(str(path), iter([b"n", b"ew"]))
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["out.csv"]


def test_memory_does_not_grow_with_the_answers(server, tmp_path):
    """A pool's second map of a journal with long answers keeps none of them."""
    import tracemalloc

    path = tmp_path / "answers.jsonl"
    with ChatPool(2, base_url=server.url) as pool:
        pool.map(["a"], journal=path)
    line = path.read_bytes()
    path.write_bytes(
        b"".join(line.replace(b'"content": "a"', b'"content": "' + b"x" * 10_000 + b'"') for _ in range(2000))
    )
    tracemalloc.start()
    Journal(path).close()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(names(path)) == 1
    assert peak < 6_000_000
