"""Real schedulers as child processes, and what a test can see of who leads."""

import json
import signal
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Self

from tests.support import processes

_CODE = """
import sys
from scheduler.service import SchedulerSettings, main
from shared.connection import ConnectionSettings
url, cluster, name, metrics, replicas = sys.argv[1:]
sys.exit(main(SchedulerSettings(
    connection=ConnectionSettings(servers=tuple(url.split(","))), cluster=cluster, name=name, lint=False,
    metrics=metrics, replicas=int(replicas) or None, strict_audit=True, log_form="json",
)))
"""


class SchedulerProcess:
    """`shoal scheduler --no-lint`, as a process of its own that ends with the test run."""

    def __init__(self, directory: Path, url: str, cluster: str, name: str, *, replicas: int = 0) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        self.port = processes.free_port()
        command = [sys.executable, "-c", _CODE, url, cluster, name, f"127.0.0.1:{self.port}", str(replicas)]
        self.process = processes.spawn([str(part) for part in command], self.log)

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def health(self) -> dict[str, Any]:
        """What /healthz says; {} while nothing answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=2) as answer:
                found: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            found = json.load(error)
        except OSError:
            return {}
        return found

    @property
    def role(self) -> str:
        return str(self.health().get("role", ""))

    def wait_role(self, role: str, deadline_s: float = 30.0) -> None:
        """Until it is leading, or a standby that could lead."""
        deadline = time.monotonic() + deadline_s
        while True:
            found = self.health()
            if found.get("role") == role and found.get("watches_fresh"):
                return
            if not self.running or time.monotonic() > deadline:
                raise AssertionError(f"{self.name} is not {role} but {found}:\n{processes.log_tail(self.log)}")
            time.sleep(0.02)

    def send(self, number: signal.Signals) -> None:
        processes.send(self.process, number)

    def kill(self) -> None:
        processes.kill(self.process)

    def terminate(self) -> int:
        """SIGTERM; the exit code."""
        processes.terminate(self.process)
        return int(self.process.returncode)

    def wait_exit(self, deadline_s: float = 30.0) -> int:
        """The exit code of one that was told to end. A second signal could meet it when it listens no more."""
        return self.process.wait(deadline_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        processes.kill(self.process)
