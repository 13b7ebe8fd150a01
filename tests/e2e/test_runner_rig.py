"""What the end-to-end tests of the runner share: one execution as the process executor starts it. No tests here."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from runner import contract
from shared.archive import write_archive
from tests.support.components import ROOT, require

T = TypeVar("T")

DEADLINE_S = 60.0  # generous: the machine may be busy with other tests
STEADY = """
input: {generate: {interval: 20ms, mapping: 'root = "x"'}}
output: {drop: {}}
"""


def eventually(look: Callable[[], T | None], what: str, deadline_s: float = DEADLINE_S) -> T:
    """The first answer of `look` that is not None or False."""
    deadline = time.monotonic() + deadline_s
    while True:
        found = look()
        if found is not None and found is not False:
            return found
        assert time.monotonic() < deadline, f"not within {deadline_s:g} s: {what}"
        time.sleep(0.01)


def start_time(pid: int) -> str | None:
    """When a process was started, in ticks: with the pid its identity. None if it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


class Execution:
    """One execution directory, its bundle, and the runners started on it. Kills what it started."""

    def __init__(self, directory: Path, config: str = STEADY, **files: str) -> None:
        self.directory = directory / "execution"
        self.directory.mkdir(parents=True)
        named = [(name.replace("__", "."), text.encode()) for name, text in files.items()]
        self.data = write_archive([("runtime.json", b"{}"), ("pipeline.yaml", config.encode()), *named])
        self.digest = hashlib.sha256(self.data).hexdigest()
        self.bundle = directory / "bundle.tar"
        self.bundle.write_bytes(self.data)
        self.log = directory / "log" / "output.log"
        self.env = {
            "PATH": os.environ["PATH"],
            "SHOAL_SLOT": "3",
            contract.DIGEST: self.digest,
            contract.BUNDLE: str(self.bundle),
            contract.DIR: str(self.directory),
            contract.BENTO: str(require("bento")),
            contract.STOP_GRACE_S: "25",
            contract.LOG: str(self.log),
        }
        self.runners: list[subprocess.Popen[bytes]] = []

    def start(self, prefix: Sequence[str] = (), **options: Any) -> subprocess.Popen[bytes]:
        """Start a runner as the process executor does; `prefix`: what its command line begins with."""
        command = [*prefix, sys.executable, "-I", "-S", str(ROOT / "runner")]
        runner = subprocess.Popen(
            command, env=self.env, stdin=subprocess.DEVNULL, start_new_session=True, **{"stderr": None, **options}
        )
        self.runners.append(runner)
        return runner

    def start_ready(self) -> subprocess.Popen[bytes]:
        """Start a runner and wait until it says that Bento is ready."""
        runner = self.start()
        self.wait(lambda health: bool(health["ready"]))
        return runner

    @property
    def health(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads((self.directory / contract.HEALTH_FILE).read_bytes())
        except FileNotFoundError:
            return None
        return found

    def wait(self, until: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first health document for which `until` holds."""
        last: list[dict[str, Any] | None] = [None]

        def look() -> dict[str, Any] | None:
            last[0] = self.health
            return last[0] if last[0] is not None and until(last[0]) else None

        try:
            return eventually(look, "health")
        except AssertionError as error:
            words = self.log.read_text()[-2000:] if self.log.exists() else "(no log)"
            raise AssertionError(f"{error}; health: {last[0]}; log: {words}") from None

    def ended(self, runner: subprocess.Popen[bytes]) -> tuple[int, dict[str, Any]]:
        """Wait for the end; exit code and last health document."""
        code = runner.wait(DEADLINE_S)
        health = self.health
        assert health is not None
        return code, health

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for runner in self.runners:
            # Our own sessions, so the groups hold only what we started; a runner that was reaped has no number any more
            # that we could be sure of, but its Bento died with it.
            if runner.poll() is None:
                os.killpg(runner.pid, signal.SIGKILL)
                runner.wait()
