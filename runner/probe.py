"""Asking Bento's HTTP server, without blocking and without ever believing a stranger.

Bento goes on without its HTTP server when the port is taken (it logs one line), so whoever answers on that port need
not be our Bento: several executions share the host's network. Where we choose the address, a secret path tells. Where
the configuration states it, and when anything but Bento answers, the kernel is asked who listens there; that is not
done each time, because reading /proc/net/tcp costs 4 ms (it walks the whole table of connections, however empty).
"""

from __future__ import annotations

import _socket
import errno
import os
import sys

from runner.links import Greeting
from runner.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runner.links import Peer

TIMEOUT_S = 2.0  # from connecting to the last byte
HAIL_S = 1.0  # for the first words of whom we connect to
_NATS = b"INFO "
_HEAD_BYTES_MAX = 16 * 1024
_LISTEN = b"0A"  # in /proc/net/tcp
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # where one asks somebody who listens everywhere


@value
class Listener:
    """A listening TCP socket on the wanted port: `host` is where to ask it, `ours` that it belongs to our Bento."""

    host: str
    port: int
    ours: bool


def listens_nowhere(pid: int) -> bool:
    """Whether our Bento surely does not listen yet: it has no socket at all. 0.1 ms, against the 4 ms of who does."""
    try:
        return not any(sockets_of(pid))
    except OSError:
        return False  # hidden from us, or it has just ended: that is for `find_listener` to say


def find_listener(pid: int, port: int, at: str = "") -> Listener | None:
    """Who listens on `port`: our Bento if it does, else another process that is in its way, else None. `at` = Bento's
    IPv4 address if it is known: who listens on another one is in nobody's way.

    Where the descriptors of our own child cannot be seen (a hardened /proc), whoever listens is taken for ours.
    """
    listening = _all_listening(port, at)
    if not listening:
        return None
    try:
        own = sockets_of(pid)
    except PermissionError:
        own = {inode for _, inode in listening}
    except OSError:
        return None  # it has just ended
    for host, inode in listening:
        if inode in own:
            return Listener(host=_WILDCARDS.get(host, host), port=port, ours=True)
    # Not ours? Bento closes its listener when it shuts down, and it may have done so between the two looks: only what
    # listens still is another's. (Taking the first look for the truth restarted one of six short pipelines.)
    strangers = [row for row in _all_listening(port, at) if row in listening]
    if not strangers or not own:
        return None
    host = strangers[0][0]
    return Listener(host=_WILDCARDS.get(host, host), port=port, ours=False)


def _all_listening(port: int, at: str) -> list[tuple[str, str]]:
    found = [row for family in ("tcp", "tcp6") for row in _listening(f"/proc/net/{family}", port)]
    return [row for row in found if row[0] in (at, f"::ffff:{at}", *_WILDCARDS)] if at else found


def _listening(table: str, port: int) -> Iterator[tuple[str, str]]:
    """(address, inode) of the listening sockets on a port. The kernel lists these first: what follows is not read."""
    try:
        fd = os.open(table, os.O_RDONLY)
    except FileNotFoundError:
        return  # no IPv6 here
    wanted = b":%04X" % port
    try:
        rest = os.read(fd, 65536).partition(b"\n")[2]
        while True:
            *lines, rest = rest.split(b"\n")
            for line in lines:
                fields = line.split()
                if fields[3] != _LISTEN:
                    return
                if fields[1].endswith(wanted):
                    yield address_of(fields[1].partition(b":")[0].decode()), fields[9].decode()
            more = os.read(fd, 65536)
            if not more:
                return
            rest += more
    finally:
        os.close(fd)


def address_of(digits: str) -> str:
    """An address of /proc/net/tcp: words of 32 bits in the machine's byte order."""
    words = [int(digits[start : start + 8], 16) for start in range(0, len(digits), 8)]
    packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    return _socket.inet_ntop(_socket.AF_INET if len(packed) == 4 else _socket.AF_INET6, packed)


def sockets_of(pid: int) -> set[str]:
    """The inodes of all sockets of a process, and "" for every other descriptor: an empty set means that the process is
    ending (it has closed them all)."""
    found = set()
    for name in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208 - pathlib is 10 ms of imports
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")  # noqa: PTH115
        except FileNotFoundError:
            continue  # closed meanwhile
        found.add(target[8:-1] if target.startswith("socket:[") else "")
    return found


class Request:
    """One GET, driven by poll(2): wait for `writes` or reading on `fileno()`, then `advance()`.

    HTTP/1.0, so that the answer ends with the connection and is never in chunks.
    """

    def __init__(self, listener: Listener, path: str, feed: Callable[[bytes], None]) -> None:
        family = _socket.AF_INET6 if ":" in listener.host else _socket.AF_INET
        self._socket = _socket.socket(family, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK)
        self._send = f"GET {path} HTTP/1.0\r\nHost: {listener.host}:{listener.port}\r\n\r\n".encode()
        self._head = b""
        self._in_body = False
        self._feed = feed
        self.status = 0
        self.refused = False
        self.problem = ""
        code = self._socket.connect_ex((listener.host, listener.port))
        if code not in (0, errno.EINPROGRESS):
            self._fail(code)

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def writes(self) -> bool:
        """Whether it waits to send (or to be connected) rather than to receive."""
        return bool(self._send)

    def close(self) -> None:
        self._socket.close()

    def advance(self) -> bool:
        """Send or receive what is possible now; True = over: `status` is set, or `problem` says why not."""
        try:
            if self._send:
                self._send = self._send[self._socket.send(self._send) :]
                return False
            data = self._socket.recv(65536)
        except BlockingIOError:
            return False
        except OSError as error:
            self._fail(error.errno or 0)
            return True
        if self._in_body:
            self._feed(data)
            return not data
        self._head += data
        head, end, body = self._head.partition(b"\r\n\r\n")
        if end:
            self._in_body = True
            self._parse(head)
            self._feed(body)
            return not data or bool(self.problem)
        if not data or len(self._head) > _HEAD_BYTES_MAX:
            self.problem = "the answer is not HTTP"
            return True
        return False

    def _fail(self, code: int) -> None:
        self.refused = code == errno.ECONNREFUSED
        self.problem = os.strerror(code)

    def _parse(self, head: bytes) -> None:
        words = head.split(b"\r\n")[0].split(b" ")
        if len(words) >= 2 and words[0].startswith(b"HTTP/") and words[1].isdigit():
            self.status = int(words[1])
        else:
            self.problem = "the answer is not HTTP"


class Hail:
    """A connection that only listens for the first words of who is there, driven like a Request: what a NATS server
    says to whom connects is how it is known."""

    writes = False

    def __init__(self, peer: Peer) -> None:
        family = _socket.AF_INET6 if ":" in peer[0] else _socket.AF_INET
        self._socket = _socket.socket(family, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK)
        self.peer = peer
        self.greeting: Greeting | None = None  # None: not known yet
        if self._socket.connect_ex(peer) not in (0, errno.EINPROGRESS):
            self.greeting = Greeting.AWAY

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def advance(self) -> None:
        """Hear what can be heard now."""
        try:
            words = self._socket.recv(len(_NATS))
        except BlockingIOError:
            return
        except OSError:
            self.greeting = Greeting.AWAY
            return
        # A proxy accepts and closes at once while what is behind it is away.
        self.greeting = Greeting.AWAY if not words else Greeting.NATS if words == _NATS else Greeting.OTHER

    def late(self) -> Greeting:
        """What it means that there was no word in time."""
        try:
            self._socket.getpeername()
        except OSError:
            return Greeting.AWAY
        return Greeting.SILENT
