"""The host lease as a file: until when, on the boot clock, this host's session is valid.

It lies on tmpfs and is replaced by rename after each acknowledged heartbeat, so a reader sees one whole lease and a
reboot loses it. It is mounted as a directory: a single file in a mount would stay the old one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import structlog

from agent.core.session import LeaseFile
from shared.documents import decode, encode
from shared.errors import BadInput

LEASE_FILE = "lease.json"

log = structlog.get_logger()


class LeaseKeeper(Protocol):
    """Where the host lease is kept. The simulation has its own."""

    def read(self) -> LeaseFile | None: ...

    def write(self, lease: LeaseFile) -> None: ...


class LeaseDirectory:
    """A `LeaseKeeper` in a directory of tmpfs. Calls are short enough for the event loop: nothing is synced."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._file = directory / LEASE_FILE

    def read(self) -> LeaseFile | None:
        """The lease, or None if there is none that can be read: it then counts as lapsed."""
        try:
            return decode(LeaseFile, self._file.read_bytes())
        except FileNotFoundError:
            return None
        except BadInput as error:
            log.warning("The lease file cannot be read; the lease counts as lapsed.", problem=str(error))
            return None

    def write(self, lease: LeaseFile) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.write_bytes(encode(lease))
        fresh.replace(self._file)
