"""Settings, values, the output pump, and who listens where."""

import fcntl
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from runner import contract
from runner.probe import find_listener, listens_nowhere
from runner.pump import BUFFER_BYTES_MAX, LogFile, Pump, Stream
from runner.settings import Failure, bento_environment, read_settings, resolve
from runner.spawn import take_lock
from runner.value import replace, value

GOOD = {contract.DIGEST: "a" * 64, contract.DIR: "/run/x", contract.BUNDLE: "/b.tar", contract.STOP_GRACE_S: "22.0"}


# --- the lock


def test_who_only_looks_at_the_lock_is_no_other_runner(tmp_path: Path) -> None:
    """An agent learns whether the lock is held by taking it for an instant: a runner that starts then must not end."""
    path = tmp_path / contract.LOCK_FILE
    looking = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(looking, fcntl.LOCK_EX)
    over = threading.Timer(0.02, os.close, (looking,))
    over.start()
    os.close(take_lock(str(path)))
    over.join()


def test_a_lock_that_stays_held_is_another_runner(tmp_path: Path) -> None:
    path = str(tmp_path / contract.LOCK_FILE)
    held = take_lock(path)
    with pytest.raises(Failure, match="another runner") as refused:
        take_lock(path)
    assert refused.value.kind == "already-running"
    os.close(held)


# --- settings


def test_defaults() -> None:
    settings = read_settings(GOOD)
    assert (settings.bento, settings.http, settings.log, settings.log_bytes_max) == ("bento", "auto", "", 10 << 20)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (contract.DIGEST, "A" * 64),
        (contract.DIGEST, "a" * 63),
        (contract.DIR, "relative"),
        (contract.BUNDLE, ""),
        (contract.STOP_GRACE_S, ""),
        (contract.STOP_GRACE_S, "soon"),
        (contract.STOP_GRACE_S, "nan"),
        (contract.STOP_GRACE_S, "-1"),
        (contract.LOG, "relative.log"),
        (contract.LOG_BYTES_MAX, "10"),
    ],
)
def test_a_wrong_setting_is_named(name: str, text: str) -> None:
    with pytest.raises(Failure, match=name) as caught:
        read_settings({**GOOD, name: text})
    assert caught.value.exit_code == contract.EXIT_SETTINGS


def test_bento_sees_all_but_the_runners_own() -> None:
    environ = {**GOOD, contract.FETCH: '{"password": "x"}', "SHOAL_SLOT": "1", "NATS_URL": "nats://x"}
    assert bento_environment(environ) == {"SHOAL_SLOT": "1", "NATS_URL": "nats://x"}


@pytest.mark.parametrize(
    ("text", "resolved"),
    [
        ("127.0.0.1:4196", "127.0.0.1:4196"),
        ("${HOST}:${PORT:4195}", "h:4195"),
        ("0.0.0.0:${EMPTY:80}", "0.0.0.0:80"),
        ("x${NONE}y", "xy"),
        ("${open", "${open"),
    ],
)
def test_references_in_an_address(text: str, resolved: str) -> None:
    assert resolve(text, {"HOST": "h", "EMPTY": ""}) == resolved


# --- values


def test_values_are_frozen_compared_and_complete() -> None:
    @value
    class Point:
        x: int
        y: int = 0

    assert Point(x=1) == Point(x=1, y=0) != Point(x=2)
    assert (replace(Point(x=1), y=5).y, repr(Point(x=1))) == (5, "Point(x=1, y=0)")
    for wrong in ({}, {"x": 1, "z": 2}):
        with pytest.raises(TypeError):
            Point(**wrong)
    with pytest.raises(AttributeError, match="frozen"):
        Point(x=1).x = 2  # type: ignore[misc]


# --- output


def attached(pump: Pump) -> int:
    read, write = os.pipe()
    os.set_blocking(read, False)
    pump.attach(read)
    return write


def test_the_log_rotates_between_lines_and_keeps_one_generation(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "sub/out.log"), 100)
    for number in range(30):
        log.take(b"line %02d\n" % number)  # 8 bytes
    newest, older = (tmp_path / "sub/out.log").read_bytes(), (tmp_path / "sub/out.log.1").read_bytes()
    assert (older + newest).splitlines() == [b"line %02d" % number for number in range(12, 30)]
    assert len(older) <= 100
    assert len(newest) <= 100
    assert sorted(path.name for path in (tmp_path / "sub").iterdir()) == ["out.log", "out.log.1"]


def test_a_portion_across_the_limit_is_cut_at_a_line(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "out.log"), 20)
    log.take(b"aaaa\nbbbb\n")
    log.take(b"cccc\ndddddddd\neeee\n")
    assert (tmp_path / "out.log.1").read_bytes() == b"aaaa\nbbbb\ncccc\n"
    assert (tmp_path / "out.log").read_bytes() == b"dddddddd\neeee\n"


def test_the_log_goes_on_after_a_restart(tmp_path: Path) -> None:
    LogFile(str(tmp_path / "out.log"), 100).take(b"one\n")
    LogFile(str(tmp_path / "out.log"), 100).take(b"two\n")
    assert (tmp_path / "out.log").read_bytes() == b"one\ntwo\n"


def test_a_full_disk_costs_lines_and_says_so_later() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    log = LogFile("/dev/full", 10_000_000)
    log.take(b"lost\n")
    read, write = os.pipe()
    log._fd = write
    log.take(b"kept\n")
    assert os.read(read, 1000) == b"[runner] 5 bytes of output were lost: no space for the log\nkept\n"


def test_a_slow_reader_stops_the_reading_and_loses_nothing() -> None:
    out_read, out_write = os.pipe()
    fcntl.fcntl(out_write, fcntl.F_SETPIPE_SZ, 4096)
    pump = Pump(Stream(out_write))
    source = attached(pump)
    os.set_blocking(source, False)
    sent = received = b""
    number = 0
    while pump.reads is not None or number < 100:
        number += 1
        try:
            sent += (line := b"%07d\n" % number * 512)[: os.write(source, line)]
        except BlockingIOError:
            break
        if pump.reads is not None:
            pump.pump()
    assert pump.reads is None, "the buffer is full, so Bento waits"
    assert pump.sink.pending < 2 * BUFFER_BYTES_MAX
    os.close(source)
    os.set_blocking(out_read, False)
    while len(received) < len(sent):
        received += os.read(out_read, 65536)
        pump.drain(0.0)
    assert received == sent


def test_a_reader_that_went_away_does_not_hold_the_pipeline_up() -> None:
    read, write = os.pipe()
    os.close(read)
    stream = Stream(write)
    stream.take(b"x" * 100)
    stream.take(b"y" * 100)
    assert stream.pending == 0


def test_last_words(tmp_path: Path) -> None:
    pump = Pump(LogFile(str(tmp_path / "log"), 1 << 20))
    source = attached(pump)
    os.write(source, b"".join(b"line %03d\n" % number for number in range(100)))
    os.close(source)
    pump.drain(1.0)
    assert pump.words() == tuple(f"line {number:03d}" for number in range(80, 100))
    source = attached(pump)
    assert pump.words() == (), "the next child's words are its own"
    os.write(source, b"x" * 5000 + b"\nlast \xff\n")
    pump.drain(1.0)
    assert pump.words() == ("last \ufffd",), "what was cut is left out"


# --- who listens


@pytest.mark.parametrize(("bind", "ask"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1")])
def test_a_listener_is_told_from_a_strangers(bind: str, ask: str) -> None:
    with socket.create_server((bind, 0)) as server:
        port = server.getsockname()[1]
        own = find_listener(os.getpid(), port)
        assert own is not None
        assert (own.host, own.port, own.ours) == (ask, port, True)
        sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        try:
            stranger = find_listener(sleeper.pid, port, "127.0.0.1")
            assert stranger is not None
            assert not stranger.ours
        finally:
            sleeper.communicate(b"\n")
    assert find_listener(os.getpid(), port) is None


def test_who_has_no_socket_listens_nowhere() -> None:
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        try:
            assert listens_nowhere(sleeper.pid)
        finally:
            sleeper.kill()
    assert not listens_nowhere(sleeper.pid), "it is over: not for this to say"
    with socket.create_server(("127.0.0.1", 0)):
        assert not listens_nowhere(os.getpid())
