"""One run, one writer."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time

import psutil
import pytest

from lorarlhf import lock
from lorarlhf.errors import UserError
from lorarlhf.lock import LOCK, one_writer


def held(folder, process, host=None, started=None):
    folder.mkdir(exist_ok=True)
    holder = {"process": process, "host": host or socket.gethostname(), "started": started or 0.0}
    (folder / LOCK).write_text(json.dumps(holder))


@pytest.fixture
def other():
    """A process that lives, and is not this one."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield psutil.Process(process.pid)
    process.communicate(b"\n")


def test_a_folder_made_for_the_lock_goes_with_it(tmp_path):
    with one_writer(tmp_path / "runs" / "run"):
        assert json.loads((tmp_path / "runs" / "run" / LOCK).read_text())["process"] == os.getpid()
    assert not (tmp_path / "runs").exists()
    with one_writer(tmp_path / "run"):
        (tmp_path / "run" / "recipe.yaml").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["recipe.yaml"]


def test_it_goes_when_the_block_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), one_writer(tmp_path / "run"):
        raise ZeroDivisionError
    assert not (tmp_path / "run").exists()


def test_the_process_that_holds_it_enters_again(tmp_path):
    with one_writer(tmp_path):
        with one_writer(tmp_path):
            pass
        assert (tmp_path / LOCK).exists(), "the outer block still holds it"


def test_a_live_process_is_named(tmp_path, other):
    held(tmp_path, other.pid, started=other.create_time())
    with pytest.raises(UserError, match=rf"process {other.pid} on {socket.gethostname()} writes there, since 20\d\d-"):
        one_writer(tmp_path).__enter__()
    assert json.loads((tmp_path / LOCK).read_text())["process"] == other.pid


def test_one_that_was_killed_and_that_nobody_has_taken_note_of_holds_nothing(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    other = psutil.Process(process.pid)
    held(tmp_path, other.pid, started=other.create_time())
    other.kill()
    while other.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    with one_writer(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
    process.communicate()


def test_another_process_with_the_number_of_one_that_has_ended_holds_nothing(tmp_path, other):
    held(tmp_path, other.pid, started=other.create_time() - 3600)
    with one_writer(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()


@pytest.mark.parametrize("content", ["", "{", '{"process": 999999999, "host": "HERE", "started": 1.0}'])
def test_a_stale_lock_is_taken_over(tmp_path, content):
    (tmp_path / LOCK).write_text(content.replace("HERE", socket.gethostname()))
    with one_writer(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()


def _enter(folder, entered, ready):
    ready.wait()
    try:
        with one_writer(folder):
            entered.put(True)
            time.sleep(1)
    except UserError:
        entered.put(False)


def test_of_several_that_find_a_stale_lock_at_once_one_takes_it_over(tmp_path, monkeypatch):
    def check_slowly(path, check=lock._check_stale):
        check(path)
        time.sleep(0.1)  # the others have judged it by now, too

    monkeypatch.setattr(lock, "_check_stale", check_slowly)
    held(tmp_path, 999999999)
    forks = multiprocessing.get_context("fork")
    entered, ready = forks.SimpleQueue(), forks.Barrier(4)
    processes = [forks.Process(target=_enter, args=(tmp_path, entered, ready)) for _ in range(4)]
    for process in processes:
        process.start()
    assert sorted(entered.get() for _ in processes) == [False, False, False, True]
    for process in processes:
        process.join()


def test_of_another_machine_nothing_is_known_and_it_is_left(tmp_path):
    held(tmp_path, 1, host="elsewhere")
    with pytest.raises(UserError, match=r"process 1 on elsewhere writes there.*if it has ended, remove .*run\.lock"):
        one_writer(tmp_path).__enter__()


def test_of_several_processes_the_first_holds_it_for_all(tmp_path, monkeypatch):
    held(tmp_path, 1, host="elsewhere")
    monkeypatch.setenv("RANK", "1")
    with one_writer(tmp_path):
        pass
    assert (tmp_path / LOCK).exists()


@pytest.mark.parametrize("target", ["/dev/zero", "elsewhere"])
def test_a_link_is_no_lock_and_is_neither_read_nor_followed(tmp_path, target):
    theirs = tmp_path / target
    if target == "elsewhere":
        holder = {"process": 1, "host": "elsewhere", "started": 1.0}
        theirs.write_text(json.dumps(holder))
    run = tmp_path / "run"
    run.mkdir()
    (run / LOCK).symlink_to(theirs)
    with one_writer(run):
        assert not (run / LOCK).is_symlink()
        assert json.loads((run / LOCK).read_text())["process"] == os.getpid()
    assert theirs.exists()


def test_a_pipe_is_no_lock(tmp_path):
    os.mkfifo(tmp_path / LOCK)
    with one_writer(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_its_place_is_told_and_left_with_all_that_is_in_it(tmp_path):
    (tmp_path / LOCK).mkdir()
    (tmp_path / LOCK / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"run\.lock: is a folder, and a lock is a file; move it away"):
        one_writer(tmp_path).__enter__()
    assert (tmp_path / LOCK / "notes.txt").read_text() == "mine"
