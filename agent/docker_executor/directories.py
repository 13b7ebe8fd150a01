"""The directories of containers on tmpfs: made before a container starts, swept when it is gone.

They are made and swept in threads: never while the other is at it, and none that was claimed since the engine was asked
what exists.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from agent.layout import Layout, forget_health
from runner import contract

FIRST_WORD_S = 5.0  # from a start until its runner has said something; 50 ms on a machine with nothing else to do
WORD_POLL_S = 0.01


class Directories:
    """The execution directories of one host, by name. Every method may be called in any thread."""

    def __init__(self, layout: Layout, owner: tuple[int, int]) -> None:
        """`owner`: user and group that containers run as."""
        self._layout = layout
        self._owner = owner
        self._lock = threading.Lock()
        self._claims: dict[str, float] = {}  # name -> when it was started last, counted in claims; inf = right now
        self._claimed = 0
        self._started: dict[str, float] = {}  # name -> when, on our own clock
        layout.executions_dir.mkdir(parents=True, exist_ok=True)

    @property
    def claimed(self) -> int:
        """A moment, to be taken before the engine is asked what exists: see `sweep`."""
        return self._claimed

    def names(self, prefixes: tuple[str, ...]) -> set[str]:
        """Those that are there. None is, where somebody deleted them all: what runs is known from the engine."""
        self._layout.executions_dir.mkdir(parents=True, exist_ok=True)
        return {path.name for path in self._layout.executions_dir.iterdir() if path.name.startswith(prefixes)}

    @contextlib.contextmanager
    def claim(self, name: str) -> Iterator[None]:
        """Keep the directories of this name from being swept: by a look that began before this ends, too."""
        with self._lock:
            self._claimed += 1
            self._claims[name] = math.inf
        try:
            yield
        finally:
            with self._lock:
                self._claimed += 1
                self._claims[name] = self._claimed
                self._started[name] = time.monotonic()

    def prepare(self, name: str, bundle_dir: Path) -> None:
        """Make what is mounted, with the right owner; without the health of an earlier run."""
        with self._lock:
            directory = self._layout.execution_dir(name)
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._layout.lease_dir.mkdir(parents=True, exist_ok=True)
            bundle_dir.mkdir(parents=True, exist_ok=True)
            found = directory.stat()
            if (found.st_uid, found.st_gid) != self._owner:
                os.chown(directory, *self._owner)
            forget_health(directory)

    def await_first_word(self, name: str) -> None:
        """Wait until the runner that was started last has said something, or has had its time."""
        listens_by = self._started.get(name, -math.inf) + FIRST_WORD_S
        health = self._layout.execution_dir(name) / contract.HEALTH_FILE
        while time.monotonic() < listens_by and not health.exists():
            time.sleep(WORD_POLL_S)

    def delete(self, name: str) -> None:
        """Delete a directory, if it is there."""
        with self._lock:
            self._delete(name)

    def sweep(self, names: set[str], claimed: int) -> None:
        """Delete directories that had no container when the engine was asked, unless somebody claimed them since."""
        with self._lock:
            for name in sorted(names):
                if self._claims.get(name, 0) <= claimed:
                    self._delete(name)
                    self.forget(name)

    def forget(self, name: str) -> None:
        """This execution is no more."""
        self._claims.pop(name, None)
        self._started.pop(name, None)

    def _delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._layout.execution_dir(name))
