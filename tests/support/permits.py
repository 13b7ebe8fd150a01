"""An agent as far as runners see it: it writes grants, and a lease that a thread renews. The format is the real one."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, Self

from runner.permits import GRANTS_DIR, LEASE_FILE, Grant, Lease, grant_text, lease_text
from runner.value import replace

RENEW_S = 0.2


def boot_clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Permits:
    """The lease directory of one host, and one session. Everything is replaced by rename."""

    def __init__(self, directory: Path, *, lease_s: float = 8.0) -> None:
        self.directory = directory
        (directory / GRANTS_DIR).mkdir(parents=True, exist_ok=True)
        self.lease_s = lease_s
        self.boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._ended = threading.Event()
        self._renewing: threading.Thread | None = None

    @property
    def lease(self) -> Lease:
        """As an agent would write it now."""
        return Lease(agent="a1", boot=self.boot, number=1, deadline_s=boot_clock() + self.lease_s, lease_s=self.lease_s)

    def grant(self, execution: str, *, bound: bool = True, **changes: Any) -> None:
        granted = Grant(agent="a1", boot=self.boot, number=1, execution=execution, bound=bound)
        self.write(f"{GRANTS_DIR}/{execution}", grant_text(replace(granted, **changes)))

    def revoke(self, execution: str) -> None:
        (self.directory / GRANTS_DIR / execution).unlink()

    def extend(self, **changes: Any) -> Lease:
        """Write the lease once; what was written."""
        lease: Lease = replace(self.lease, **changes)
        self.write(LEASE_FILE, lease_text(lease))
        return lease

    def write(self, name: str, text: str) -> None:
        fresh = self.directory / f"{name}.new"
        fresh.write_text(text)
        fresh.rename(self.directory / name)

    def renew(self) -> None:
        """Extend the lease again and again, from now until `freeze`."""
        self._ended.clear()
        self.extend()
        self._renewing = threading.Thread(target=self._renew, name="renews the lease")
        self._renewing.start()

    def freeze(self) -> None:
        """No renewal after this one."""
        if self._renewing is not None:
            self._ended.set()
            self._renewing.join()
            self._renewing = None

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_S):
            self.extend()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.freeze()
