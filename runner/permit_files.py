"""Reading grant and lease. Both lie on tmpfs and are replaced by rename, so a look is cheap and sees whole files: one
that is not there, or cannot be understood, was taken away."""

from __future__ import annotations

import os

from runner.fence import Permits, Place
from runner.permits import BYTES_MAX, GRANTS_DIR, LEASE_FILE, Grant, Lease, parse_grant, parse_lease

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe or a link in its place must not hold us


class PermitFiles:
    """The files of one execution. A look parses only what has changed."""

    def __init__(self, directory: str, execution: str) -> None:
        self.place = Place(execution=execution, boot=boot_id(), shifted=_shifted())
        self._paths = f"{directory}/{GRANTS_DIR}/{execution}", f"{directory}/{LEASE_FILE}"
        self._seen: tuple[bytes | str, bytes | str] = ("", "")
        self._permits = Permits(grant="", lease="")

    def look(self) -> Permits:
        """What both hold now."""
        grant, lease = seen = _content(self._paths[0]), _content(self._paths[1])
        if seen != self._seen:
            self._seen = seen
            self._permits = Permits(grant=_grant(grant), lease=_lease(lease))
        return self._permits


def _grant(content: bytes | str) -> Grant | str:
    if isinstance(content, str):
        return f"it has no grant: {content}"
    return parse_grant(content.decode("utf-8", "replace")) or "its grant is unreadable"


def _lease(content: bytes | str) -> Lease | str:
    if isinstance(content, str):
        return f"there is no lease of this host: {content}"
    return parse_lease(content.decode("utf-8", "replace")) or "the host's lease is unreadable"


def _content(path: str) -> bytes | str:
    """What is in a file, or why that cannot be read."""
    try:
        fd = os.open(path, _READ)
        try:
            return os.read(fd, BYTES_MAX)
        finally:
            os.close(fd)
    except OSError as error:
        return f"{path}: {error.strerror}"


def boot_id() -> str:
    """Of the running kernel."""
    content = _content("/proc/sys/kernel/random/boot_id")
    assert isinstance(content, bytes), content
    return content.decode().strip()


def _shifted() -> bool:
    """Whether CLOCK_BOOTTIME is another here than on the host. A kernel without the file has no time namespaces."""
    content = _content("/proc/self/timens_offsets")
    lines = content.decode().splitlines() if isinstance(content, bytes) else []
    return any(line.split()[0] == "boottime" and line.split()[1:] != ["0", "0"] for line in lines if line)
