"""Child processes of the tests that must never outlive them."""

import atexit
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path

# Below Linux' range of ephemeral ports (32768-60999): while a server is down between stop and restart, no outgoing
# connection of somebody else can take its port. Of those each worker of a test run has a part of its own, because what
# one of them has handed out may be listened on only later.
_WORKERS_MAX = 16
_PORTS = range(15000 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % _WORKERS_MAX, 32000, _WORKERS_MAX)
_handed_out: set[int] = set()
_ports_lock = threading.Lock()

_alive: dict[int, "subprocess.Popen[bytes]"] = {}


def free_port() -> int:
    """A loopback TCP port that nothing listens on and that this process has not handed out before."""
    with _ports_lock:
        for _ in range(2000):
            port = random.choice(_PORTS)
            if port in _handed_out:
                continue
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
            _handed_out.add(port)
            return port
    raise RuntimeError("no free loopback port was found")


def spawn(
    command: list[str | Path], log: Path, *, env: dict[str, str] | None = None, cwd: Path | None = None
) -> "subprocess.Popen[bytes]":
    """Start a daemon with its output appended to `log`. It ends with this process, however that ends.

    Its own session, so that Ctrl-C reaches pytest alone and the teardown decides the order. At the interpreter's exit
    it is killed; and the kernel kills it when pytest itself was killed (only if called in the main thread, because the
    kernel's parent-death signal follows the thread that forked).
    """
    argv = [str(part) for part in command]
    setpriv = shutil.which("setpriv")
    if setpriv is not None and threading.current_thread() is threading.main_thread():
        argv = [setpriv, "--pdeathsig", "KILL", *argv]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, env=env, cwd=cwd
        )
    _alive[process.pid] = process
    return process


def send(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    """Signal our own child; one that has ended is not an error."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def kill(process: "subprocess.Popen[bytes]") -> None:
    """SIGKILL, also when it is stopped by SIGSTOP, and reap."""
    send(process, signal.SIGKILL)
    process.wait(timeout=30)
    _alive.pop(process.pid, None)


def terminate(process: "subprocess.Popen[bytes]", grace_s: float = 10.0) -> None:
    """SIGTERM, and SIGKILL when the grace has passed. A process that is paused is resumed first."""
    send(process, signal.SIGCONT)
    send(process, signal.SIGTERM)
    try:
        process.wait(timeout=grace_s)
    except subprocess.TimeoutExpired:
        kill(process)
    _alive.pop(process.pid, None)


def log_tail(log: Path, lines: int = 20) -> str:
    """The last lines of a log, for error messages."""
    if not log.exists():
        return "(no log)"
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


@atexit.register
def _kill_all() -> None:
    for process in list(_alive.values()):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            kill(process)
