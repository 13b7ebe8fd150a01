"""A whole cluster on one machine, as child processes: what `shoal up` and the demo run.

<data>/lock            held while it runs: two clusters on one directory would fight
<data>/nats/           the store
<data>/hosts/<name>/   state of each agent
<data>/logs/<name>.log what each process says
<run>/<name>/          leases and running executions of each agent (tmpfs)
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from shared.errors import Refused

STOP_S = 45.0  # an agent that stops on exit waits for its executions, whose own grace is 22 s by default
_PR_SET_PDEATHSIG = 1


def program(name: str) -> str:
    """The path of a program that is installed beside this Python, or on PATH. Refused if there is none."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise Refused(f"'{name}' is not installed: `make setup` puts it beside shoal, or put it on PATH")
    return found


def free_port() -> int:
    """A TCP port on loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class LocalCluster:
    """Child processes of this one, by name. Not for threads."""

    data: Path
    port: int
    cluster: str = "shoal"
    executor: str = "process"
    agent_options: Sequence[str] = ()
    say: Callable[[str], None] = print
    children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _lock: IO[str] | None = None
    _started: bool = False

    @property
    def url(self) -> str:
        """Where the store listens."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def run_dir(self) -> Path:
        """A short-lived directory on tmpfs that belongs to this data directory and this user."""
        base = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else Path(tempfile.gettempdir())
        mark = hashlib.sha256(str(self.data.resolve()).encode()).hexdigest()[:12]
        return base / f"shoal-{os.getuid()}-{mark}"

    def start_store(self) -> None:
        """Start the NATS server and wait until it answers. Refused if the directory or the port cannot be used."""
        try:
            self.data.mkdir(parents=True, exist_ok=True)
            lock = (self.data / "lock").open("w")
        except OSError as error:
            raise Refused(f"nothing can be kept in {self.data} ({error.strerror}); give another --data") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise Refused(f"another `shoal up` runs on {self.data}; stop it or give another --data") from error
        self._lock = lock
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                raise Refused(f"port {self.port} is taken; give another --port, or stop what listens there")
        store = self.data / "nats"
        command = [program("nats-server"), "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(store)]
        self._spawn("nats", command)
        self._await_port()

    def start_scheduler(self, name: str) -> None:
        """Start one scheduler."""
        self._spawn(name, self._shoal("scheduler", "--name", name))

    def start_agent(self, name: str, labels: Mapping[str, str]) -> None:
        """Start the agent of one host."""
        options = [f"--label={key}={value}" for key, value in labels.items()]
        options += ["--state-dir", str(self.data / "hosts" / name), "--run-dir", str(self.run_dir / name)]
        options += ["--executor", self.executor, "--stop-on-exit", *self.agent_options]
        self._spawn(name, self._shoal("agent", "--host", name, *options))

    def kill(self, name: str) -> None:
        """SIGKILL one process and wait for it."""
        child = self.children.pop(name)
        child.kill()
        child.wait()

    def ended(self) -> list[str]:
        """Names of processes that ended by themselves."""
        return [name for name, child in self.children.items() if child.poll() is not None]

    def stop(self) -> None:
        """Stop everything in order: agents with their executions, schedulers, the store last.

        Where nothing was started, the run directory may be another cluster's on the same data: it is left alone.
        """
        if not self._started:
            return
        store = {"nats": self.children.pop("nats")} if "nats" in self.children else {}
        for group in (self.children, store):
            for child in group.values():
                if child.poll() is None:
                    child.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + STOP_S
            for name, child in group.items():
                try:
                    child.wait(max(deadline - time.monotonic(), 0.1))
                except subprocess.TimeoutExpired:
                    self.say(f"{name} did not stop in {STOP_S:g} s and is killed")
                    child.kill()
                    child.wait()
        self.children.clear()
        shutil.rmtree(self.run_dir, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def log(self, name: str) -> Path:
        """Where a process writes."""
        return self.data / "logs" / f"{name}.log"

    def last_lines(self, name: str, count: int = 5) -> str:
        """The last lines that a process wrote."""
        try:
            lines = self.log(name).read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return ""
        return "\n".join(f"  {name} | {line}" for line in lines[-count:])

    def _shoal(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "cli.main", "--server", self.url, "--cluster", self.cluster, *arguments]

    def _spawn(self, name: str, command: Sequence[str]) -> None:
        self._started = True
        self.log(name).parent.mkdir(parents=True, exist_ok=True)
        parent = os.getpid()
        with self.log(name).open("ab") as log:
            self.children[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us: we stop the others in order
                preexec_fn=lambda: _die_with(parent),  # noqa: PLW1509 -- no threads run when children are started
            )

    def _await_port(self) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if self.children["nats"].poll() is not None:
                raise Refused(f"nats-server ended at once:\n{self.last_lines('nats')}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise Refused(f"nats-server does not listen on port {self.port}:\n{self.last_lines('nats')}")


def _die_with(parent: int) -> None:
    """Between fork and exec: ask for SIGTERM when the parent dies, so that a killed `up` leaves nothing behind."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)
