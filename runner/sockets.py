"""Bento's own TCP connections, out of /proc: who is at the other end of each."""

from __future__ import annotations

import os

from runner.probe import address_of, sockets_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from runner.links import Peer

_ESTABLISHED, _LISTEN = b"01", b"0A"


class Sockets:
    """Connections of one process. The tables of the kernel (4 ms) are read only when its set of sockets is another than
    at the last two looks: one that was being connected at the first has been by the second."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())
        self._found: Mapping[str, Peer] = {}

    def look(self) -> Mapping[str, Peer]:
        """Connections that the process has made (not those made to it), by inode; none if it has ended."""
        try:
            own = frozenset(sockets_of(self._pid))
        except OSError:
            return {}
        if self._before != (own, own):
            self._found = _connections(own)
        self._before = (self._before[1], own)
        return self._found


def _connections(own: frozenset[str]) -> Mapping[str, Peer]:
    rows = [row for family in ("tcp", "tcp6") for row in _rows(f"/proc/net/{family}") if row[9].decode() in own]
    served = {_port(row[1]) for row in rows if row[3] == _LISTEN}
    made = [row for row in rows if row[3] == _ESTABLISHED and _port(row[1]) not in served]
    return {row[9].decode(): (_host(row[2]), _port(row[2])) for row in made}


def _rows(table: str) -> Iterator[list[bytes]]:
    try:
        fd = os.open(table, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # no IPv6 here
    try:
        rest = os.read(fd, 65536).partition(b"\n")[2]
        while True:
            *lines, rest = rest.split(b"\n")
            yield from (line.split() for line in lines)
            more = os.read(fd, 65536)
            if not more:
                return
            rest += more
    finally:
        os.close(fd)


def _port(field: bytes) -> int:
    return int(field.rpartition(b":")[2], 16)


def _host(field: bytes) -> str:
    return address_of(field.rpartition(b":")[0].decode()).removeprefix("::ffff:")
