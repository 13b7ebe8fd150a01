"""Processes by identity: zombies are over, numbers that are used again are strangers, sessions are found whole."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent import process_table
from agent.layout import boot_id
from agent.process_table import Identity, ProcessFile

EXIT = {"x86_64": 60, "aarch64": 93}[os.uname().machine]  # the system call that ends one thread

FILE = ProcessFile(
    cluster="shoal",
    host="h1",
    store_id="s",
    execution="orders-0-1",
    pipeline="orders",
    slot=0,
    version="1",
    digest="d",
    process=Identity(17, 1234, "boot"),
)


@contextlib.contextmanager
def sleeping(
    *, env: dict[str, str] | None = None, script: str = "exec sleep 100"
) -> Iterator["subprocess.Popen[bytes]"]:
    """A session of its own; everything in it is killed at the end."""
    process = subprocess.Popen(
        ["/bin/sh", "-c", script], start_new_session=True, env={"PATH": "/usr/bin:/bin", **(env or {})}
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=10)


def wait_for(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def identity(pid: int) -> Identity:
    found = process_table.identify(pid)
    assert found is not None
    return found


def test_process_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert process_table.read(tmp_path) is None
    process_table.write(tmp_path, FILE)
    assert process_table.read(tmp_path) == FILE
    process_table.write(tmp_path, replace(FILE, process=None))
    assert process_table.read(tmp_path) == replace(FILE, process=None)
    assert [path.name for path in tmp_path.iterdir()] == [process_table.PROCESS_FILE]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"cluster": "shoal"}', b"x" * 1_000_000])
def test_broken_process_file_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / process_table.PROCESS_FILE).write_bytes(content)
    assert process_table.read(tmp_path) is None


def test_process_is_known_by_number_start_and_boot() -> None:
    with sleeping() as process:
        known = identity(process.pid)
        assert process_table.alive(known)
        for stranger in (replace(known, ticks=known.ticks + 1), replace(known, boot="another")):
            assert not process_table.alive(stranger)
            assert process_table.open_pidfd(stranger) is None
            assert not process_table.send(stranger, signal.SIGKILL)
        assert process.poll() is None
        # The kernel's own clock, as a duration since boot.
        started_s = known.ticks / process_table.TICKS_PER_S
        assert abs(time.clock_gettime(time.CLOCK_BOOTTIME) - started_s) < 60


def test_zombie_is_over_and_reaped_with_its_code() -> None:
    with sleeping(script="exit 3") as process:
        stat = Path(f"/proc/{process.pid}/stat")
        wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z")
        assert process_table.identify(process.pid) is None
        os.kill(process.pid, 0)  # it still answers signals
        assert process_table.reap(process.pid) == 3
        assert process_table.reap(process.pid) is None
        process.returncode = 3


def test_signal_as_exit_code() -> None:
    with sleeping() as process:
        known = identity(process.pid)
        assert process_table.reap(process.pid) is None
        assert process_table.send(known, signal.SIGKILL)
        codes: list[int] = []

        def reaped() -> bool:
            code = process_table.reap(process.pid)
            if code is not None:
                codes.append(code)
            return bool(codes)

        wait_for(reaped)
        assert codes == [137]
        assert not process_table.send(known, signal.SIGTERM)
        process.returncode = -9


def test_reaping_what_is_not_our_child_is_nothing() -> None:
    assert process_table.reap(1) is None
    assert process_table.reap(4194305) is None


def test_session_is_found_whole_while_its_leader_is_there() -> None:
    script = "sleep 100 & env -i sleep 100 & wait"
    with sleeping(script=script, env={"SHOAL_EXECUTION": "a-0-1"}) as process:
        leader = identity(process.pid)
        wait_for(lambda: len(process_table.session_of(leader, b"")) == 3)
        assert process_table.session_of(replace(leader, boot="another"), b"") == []
        # Its leader gone (and nobody else in its place), only those with the mark are surely its own.
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        mark = b"SHOAL_EXECUTION=a-0-1"
        wait_for(lambda: len(process_table.session_of(leader, mark)) == 1)
        assert process_table.session_of(leader, b"SHOAL_EXECUTION=a-0-2") == []
        (left,) = process_table.session_of(leader, mark)
        assert process_table.send(left, signal.SIGKILL)


def test_process_whose_main_thread_alone_has_ended_is_not_over() -> None:
    # Between a SIGKILL and the end of the last of its threads, a Bento looks like this; here for as long as wanted.
    code = "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(100,)).start(); "
    code += f"ctypes.CDLL(None).syscall({EXIT}, 0)"
    mark = f"SHOAL_RUNNER_DIR=/run/{secrets.token_hex(8)}"
    name, _, value = mark.partition("=")
    with sleeping(script=f"exec {sys.executable} -I -c '{code}'", env={name: value}) as process:
        stat = Path(f"/proc/{process.pid}/stat")
        wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z")
        known = identity(process.pid)
        assert process_table.alive(known)
        assert process_table.session_of(known, b"") == [known]
        assert process_table.find_leader(mark.encode()) == known
        assert process_table.send(known, signal.SIGKILL)
        wait_for(lambda: not process_table.alive(known))
        assert process_table.session_of(known, b"") == []


def test_zombie_leader_still_vouches_for_its_session() -> None:
    with sleeping(script="env -i sleep 100 & exit 0") as process:
        leader = Identity(process.pid, process_table._stat(process.pid).ticks, boot_id())  # type: ignore[union-attr]
        stat = Path(f"/proc/{process.pid}/stat")
        wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z")
        assert len(process_table.session_of(leader, b"no such mark")) == 1


def test_leader_is_found_by_its_environment() -> None:
    mark = f"SHOAL_RUNNER_DIR=/run/{secrets.token_hex(8)}"
    name, _, value = mark.partition("=")
    assert process_table.find_leader(mark.encode()) is None
    with sleeping(env={name: value}, script="sleep 100 & wait") as process:
        wait_for(lambda: process_table.find_leader(mark.encode()) == identity(process.pid))
        assert process_table.find_leader(mark.encode()[:-1]) is None


def test_names_with_parentheses_do_not_confuse(tmp_path: Path) -> None:
    program = tmp_path / "a) S 1 (b"
    program.symlink_to("/bin/sleep")
    process = subprocess.Popen([program, "100"], start_new_session=True)
    try:
        wait_for(lambda: process_table.session_of(identity(process.pid), b""))
    finally:
        process.kill()
        process.wait()
