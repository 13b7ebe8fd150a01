"""The host lease as a file: until when, on the boot clock, this host's session is valid. Format: `runner.permits`.

It lies on tmpfs and is replaced by rename after each acknowledged heartbeat, so a reader sees one whole lease and a
reboot loses it. It is mounted as a directory: a single file in a mount would stay the old one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import structlog

from agent.core.session import LeaseFile
from runner import permits
from shared.documents import Session

READABLE = 0o644  # by the user of a container, whatever the agent's umask is
SEARCHABLE = 0o755

log = structlog.get_logger()


class LeaseKeeper(Protocol):
    """Where the host lease is kept. The simulation has its own."""

    def read(self) -> LeaseFile | None: ...

    def write(self, lease: LeaseFile) -> None: ...


class LeaseDirectory:
    """A `LeaseKeeper` in a directory of tmpfs. Calls are short enough for the event loop: nothing is synced."""

    def __init__(self, directory: Path) -> None:
        make_searchable(directory)
        self._file = directory / permits.LEASE_FILE

    def read(self) -> LeaseFile | None:
        """The lease, or None if there is none that can be read: it then counts as lapsed."""
        text = read_text(self._file)
        if text is None:
            return None
        found = permits.parse_lease(text)
        if found is None:
            log.warning("The lease file cannot be read; the lease counts as lapsed.", file=str(self._file))
            return None
        return LeaseFile(Session(found.agent, found.boot, found.number), found.deadline_s, found.lease_s)

    def write(self, lease: LeaseFile) -> None:
        """Replace the lease. OSError: the old one stays."""
        session = lease.session
        content = permits.Lease(
            agent=session.agent,
            boot=session.boot,
            number=session.number,
            deadline_s=lease.deadline_s,
            lease_s=lease.lease_s,
        )
        replace_text(self._file, permits.lease_text(content))


def make_searchable(directory: Path) -> None:
    """Make a directory that runners can look into."""
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(SEARCHABLE)


def read_text(file: Path) -> str | None:
    """What a small file holds; None if it is not there or cannot be read."""
    try:
        with file.open("rb") as stream:
            return stream.read(permits.BYTES_MAX + 1).decode(errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("A file of the lease directory cannot be read.", file=str(file), problem=str(error))
        return None


def replace_text(file: Path, text: str) -> None:
    """Replace a file by one that runners can read: they see the old or the new one, whole."""
    fresh = file.with_name(file.name + ".new")
    with fresh.open("w") as stream:
        os.fchmod(stream.fileno(), READABLE)
        stream.write(text)
    fresh.replace(file)
