"""A runner whose log lies on a disk that hangs: it cannot look at its lease while it waits, and its Bento ends in time
all the same. A pipe that nobody reads stands for the disk; a write to it waits as long as the test likes."""

import os
import select
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runner import contract
from tests.e2e.test_runner_lease import LEASE_S, NAME, Leased
from tests.e2e.test_runner_rig import eventually, start_time
from tests.support.permits import boot_clock

# Fills a pipe within a moment of its start.
TALKATIVE = """
input: {generate: {interval: 1ms, mapping: 'root = "x".repeat(4000)'}}
output: {stdout: {}}
"""


class Hanging(Leased):
    """An execution whose log is a pipe."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, TALKATIVE)
        self.log.parent.mkdir()
        os.mkfifo(self.log)
        self.permits.grant(NAME)
        self.permits.renew()

    def start_blocked(self, reader: int) -> "subprocess.Popen[bytes]":
        """Start it, and wait until the runner waits for the disk."""
        runner = self.start()
        self.born = self.bento()
        eventually(lambda: _full(reader), "the pipe is full")
        return runner


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Hanging]:
    with Hanging(tmp_path) as execution:
        yield execution


@pytest.fixture
def reader(hanging: Hanging) -> Iterator[int]:
    """Whoever could read the log, and does not."""
    descriptor = os.open(hanging.log, os.O_RDONLY | os.O_NONBLOCK)
    yield descriptor
    os.close(descriptor)


def _full(reader: int) -> bool:
    """Whether a write to this pipe would wait."""
    writer = os.open(f"/proc/self/fd/{reader}", os.O_WRONLY | os.O_NONBLOCK)
    try:
        return not select.select([], [writer], [], 0)[1]
    finally:
        os.close(writer)


@contextmanager
def _read_on(reader: int) -> Iterator[None]:
    """The disk answers again."""
    ended = threading.Event()

    def read() -> None:
        while not ended.wait(0.01):
            try:
                while os.read(reader, 1 << 16):
                    pass
            except BlockingIOError:
                continue

    thread = threading.Thread(target=read, name="reads the log")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_bento_ends_in_time_while_its_runner_cannot_write_the_log(hanging: Hanging, reader: int) -> None:
    runner = hanging.start_blocked(reader)
    pid, started = hanging.born
    hanging.permits.freeze()
    until_s = hanging.permits.extend().deadline_s
    eventually(lambda: start_time(pid) != started, "Bento is gone")
    assert boot_clock() >= until_s, "not before its time"
    assert runner.poll() is None, "the runner itself still waits for the disk"
    with _read_on(reader):
        hanging.fenced(runner)


def test_bento_ends_in_time_while_its_runner_cannot_open_the_log(hanging: Hanging) -> None:
    runner = hanging.start()
    child = eventually(lambda: _child(runner.pid), "Bento was started")
    identity = child, start_time(child)
    hanging.permits.freeze()
    eventually(lambda: start_time(child) != identity[1], "Bento is gone")
    assert runner.poll() is None
    reader = os.open(hanging.log, os.O_RDONLY | os.O_NONBLOCK)
    try:
        hanging.born = child, str(identity[1])
        with _read_on(reader):
            hanging.fenced(runner)
    finally:
        os.close(reader)


def test_a_lease_that_was_renewed_all_the_while_is_what_counts_afterwards(hanging: Hanging, reader: int) -> None:
    runner = hanging.start_blocked(reader)
    until_s = boot_clock() + 2 * (LEASE_S + contract.FENCE_KILL_S)
    eventually(lambda: boot_clock() > until_s, "what the runner has read last is long over")
    with _read_on(reader):
        hanging.wait(lambda health: bool(health["ready"]))
        until_s = boot_clock() + LEASE_S + contract.FENCE_KILL_S
        eventually(lambda: boot_clock() > until_s, "it would have ended by now")
        assert runner.poll() is None
        assert hanging.bento() == hanging.born


def _child(pid: int) -> int | None:
    """The child of a process, once it is another program."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children and "bento" in Path(f"/proc/{children[0]}/exe").readlink().name else None
