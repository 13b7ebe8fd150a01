"""One nats-py client, from dialling to disposal; the only module that handles one directly.

nats-py's own reconnection is not used, for three reasons that were found by reading and trying it: a request that is
in flight when the connection breaks waits until its time-out instead of failing at once; what was buffered is sent
later, to a server that may be another, without anybody knowing; and leaving a frozen server hangs for ever when bytes
for it are still unsent (`wait_closed` waits until they are written). With one client per connection, a break makes
every pending call fail in that moment with the truth: unknown for a write that was sent, nothing done for one that
was not.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Mapping
from typing import Any

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from shared.connection import ConnectionSettings
from shared.errors import BadInput, StoreUnavailable, Unfit, problem

# 2.12 brings atomic batches, but 2.12.0 judges the expectations in a batch on the wrong subject and refuses every
# commit (tried; 2.12.1 to 2.15.1 are right).
VERSION_MIN = (2, 12, 1)
# A frozen server accepts TCP connections (its kernel does) and never says a word: this is what trying it costs.
DIAL_TIMEOUT_S = 1.5
# Liveness: a ping every second; gone after two answerless seconds. So a frozen server is noticed within 3 s even by
# those who only listen; who writes notices at its own time-out and calls `change_server`.
PING_EVERY_S = 1.0
PING_SLICES, PING_SLICE_S = 2, 1.0
LATE_S = 0.25  # a timer that fires this late was held up by this process: it proves nothing about the server
CLOSE_GRACE_S = 0.2

log = structlog.get_logger(__name__)


class _Client(Client):
    """nats-py's client, hardened and quicker where messages of strangers pass.

    Servers take any bytes but white space as a subject, and nearly any as headers. Where these are no UTF-8, or headers
    without a line, nats-py's reader ends without a word: the connection then stands, deaf, and one stored message makes
    every client that lists its stream so again and again. Its header parser checks every character of every name,
    which is a fifth of the cost of listing 100,000 keys (1.3 s against 1.05 s), because every message of a batch
    carries headers.
    """

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg:
        return Msg(
            _client=self,
            subject=subject.decode("utf-8", "replace"),
            reply=reply.decode("utf-8", "replace"),
            data=data,
            headers=headers,
            _sid=sid,
        )

    async def _process_headers(self, headers: bytes | None) -> dict[str, str] | None:
        """Headers as servers pass them on: whatever a stranger stored, also in the first line, where the status is."""
        if not headers:
            return None
        first, _, lines = headers.partition(b"\r\n")
        found = self._parse_header_lines(lines)
        status, _, words = first.removeprefix(b"NATS/1.0").strip().partition(b" ")
        if status:
            found["Status"] = status.decode("latin-1")
            found["Description"] = words.decode("utf-8", "replace")
        return found or None

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        headers: dict[str, str] = {}
        for line in raw.split(b"\r\n"):
            name, colon, value = line.partition(b":")
            if colon:
                headers[name.decode("latin-1")] = value.strip().decode("utf-8", "replace")
        return headers


class Connection:
    """A nats-py client with one inbox for replies, used until `lost` is done and then disposed of."""

    def __init__(self, client: Client, address: str) -> None:
        self.client = client
        self.address = address
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.inbox = client.new_inbox()
        self._waiting: dict[str, asyncio.Future[Msg]] = {}
        self._number = 0
        self._ping: asyncio.Task[None] | None = None

    @property
    def info(self) -> Mapping[str, Any]:
        """What the server said of itself when we connected."""
        found: Mapping[str, Any] = self.client._server_info
        return found

    def lose(self, reason: str) -> None:
        """Give the connection up; everybody who waits for a reply is told now."""
        if not self.lost.done():
            self.lost.set_result(reason)
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(ConnectionResetError(reason))

    async def listen(self) -> None:
        # No limits: replies are bounded by the number of waiting calls, and late ones are dropped below.
        await self.client.subscribe(f"{self.inbox}.*", cb=self._reply, pending_msgs_limit=0, pending_bytes_limit=0)

    def expect(self) -> tuple[str, asyncio.Future[Msg]]:
        """A fresh reply subject and the future of what arrives there."""
        self._number += 1
        token = str(self._number)
        future: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._waiting[token] = future
        return f"{self.inbox}.{token}", future

    def forget(self, reply: str) -> None:
        future = self._waiting.pop(reply.rpartition(".")[2], None)
        if future is not None and not future.cancel() and not future.cancelled():
            future.exception()  # seen: otherwise asyncio reports it as never retrieved

    async def _reply(self, msg: Msg) -> None:
        future = self._waiting.get(msg.subject.rpartition(".")[2])
        if future is not None and not future.done():
            future.set_result(msg)

    def ping(self) -> asyncio.Task[None]:
        """Ask the server for a sign of life. Never cancelled before the client is closed: nats-py's reader dies of a
        pong whose ping was given up."""
        self._ping = asyncio.create_task(self.client.flush(timeout=3600), name=f"ping {self.address}")
        return self._ping

    def peer(self) -> str:
        """The server's address as the socket has it."""
        writer = self._writer()
        found = writer.get_extra_info("peername") if writer is not None else None
        return f"{found[0]}:{found[1]}" if found else ""

    def _writer(self) -> asyncio.StreamWriter | None:
        # nats-py has no public way to its socket; without one, a frozen server cannot be left (see `dispose`).
        writer: asyncio.StreamWriter | None = getattr(self.client._transport, "_io_writer", None)
        return writer

    async def dispose(self) -> None:
        """Close the client and its socket, even if the server is frozen with our bytes unsent."""
        closing = asyncio.create_task(self.client.close(), name=f"close {self.address}")
        await asyncio.wait({closing}, timeout=CLOSE_GRACE_S)
        if not closing.done():
            writer = self._writer()
            if writer is not None:
                writer.transport.abort()
            await asyncio.wait({closing}, timeout=CLOSE_GRACE_S)
        if not closing.done():
            closing.cancel()
            await asyncio.wait({closing})
        if not closing.cancelled():
            closing.exception()  # a socket that broke while it was closed is closed
        if self._ping is not None and not self._ping.done():
            self._ping.cancel()
            await asyncio.wait({self._ping})


async def dial(address: str, options: Mapping[str, Any], name: str) -> Connection:
    """Connect to one server. StoreUnavailable (no answer, or it refuses us), Unfit (too old)."""
    client = _Client()
    established: list[Connection] = []

    async def broken(error: Exception) -> None:
        if not established:
            raise error  # otherwise nats-py tries the same server for ever
        if isinstance(error, OSError | nats.errors.UnexpectedEOF | nats.errors.StaleConnectionError):
            established[0].lose(str(error) or type(error).__name__)
        else:
            log.error("NATS reported an error", name=name, server=address, error=str(error), exc_info=error)

    async def closed() -> None:
        for connection in established:
            connection.lose(str(client.last_error or "the server closed the connection"))

    try:
        async with asyncio.timeout(2 * DIAL_TIMEOUT_S):
            await client.connect(servers=[address], error_cb=broken, closed_cb=closed, **options)
            _check_fit(client._server_info, address)
            connection = Connection(client, address)
            await connection.listen()
    except (OSError, TimeoutError, nats.errors.Error) as error:
        await Connection(client, address).dispose()
        raise StoreUnavailable(_words(error, address)) from error
    except (Unfit, asyncio.CancelledError):
        await Connection(client, address).dispose()
        raise
    established.append(connection)
    return connection


async def send(
    connection: Connection, subject: str, payload: bytes, *, reply: str = "", headers: dict[str, str] | None = None
) -> None:
    """Hand a message to the client. StoreUnavailable = surely not sent, Unfit = too large."""
    try:
        await connection.client.publish(subject, payload, reply=reply, headers=headers)
    except nats.errors.MaxPayloadError as error:
        raise Unfit(
            f"{subject}: {len(payload)} bytes are more than the server accepts ({connection.client.max_payload}); "
            "raise max_payload in its configuration"
        ) from error
    except nats.errors.BadSubjectError as error:
        raise BadInput(problem("subject", subject, "is not a NATS subject")) from error
    except (nats.errors.Error, OSError) as error:
        raise StoreUnavailable(f"{subject}: not sent: {error}") from error


async def watch_over(connection: Connection) -> str:
    """Returns the reason when the connection is lost: the socket said so, or pings have no answer.

    A pong waits behind everything else the server sends. While a list of 100,000 keys arrives on a busy machine that
    may take many seconds, so whatever arrives counts as life: giving up such a connection would list again, for ever.
    """
    loop = asyncio.get_running_loop()
    while not connection.lost.done():
        ping = connection.ping()
        either: set[asyncio.Future[Any]] = {ping, connection.lost}
        silent = 0
        while silent < PING_SLICES and not ping.done() and not connection.lost.done():
            due, arrived = loop.time() + PING_SLICE_S, connection.client.stats["in_msgs"]
            await asyncio.wait(either, timeout=PING_SLICE_S, return_when=asyncio.FIRST_COMPLETED)
            alive = connection.client.stats["in_msgs"] != arrived or loop.time() >= due + LATE_S
            silent = 0 if alive else silent + 1
        if not ping.done():
            connection.lose(f"no answer to a ping in {PING_SLICES * PING_SLICE_S:g} s")
        elif ping.exception() is not None:
            connection.lose(str(ping.exception()))
        await asyncio.wait({connection.lost}, timeout=PING_EVERY_S)
    return connection.lost.result()


def _check_fit(info: Mapping[str, Any], address: str) -> None:
    version = str(info.get("version", "unknown"))
    found = re.match(r"v?(\d+)\.(\d+)\.(\d+)", version)
    if found is None or tuple(int(part) for part in found.groups()) < VERSION_MIN:
        wanted = ".".join(str(part) for part in VERSION_MIN)
        raise Unfit(
            f"the NATS server at {address} is version {version}, which does not give the guarantees that Shoal needs; "
            f"upgrade it to {wanted} or newer"
        )


def _words(error: BaseException, address: str) -> str:
    text = str(error)
    if "authorization" in text.lower():
        return f"{address} refuses these credentials ({text}); check user, credentials or context"
    if isinstance(error, ssl.SSLError):
        return f"{address}: TLS failed: {text}; check the certificate authority and certificates"
    return f"cannot reach {address}: {text or 'no answer'}"


def client_options(settings: ConnectionSettings, name: str) -> dict[str, Any]:
    options: dict[str, Any] = {
        "name": name,
        "allow_reconnect": False,  # see the module's text
        "max_reconnect_attempts": -1,
        "connect_timeout": DIAL_TIMEOUT_S,
        "reconnect_time_wait": 0.05,
        "ping_interval": 3600,  # `_watch_over` pings; two mechanisms would race
        "dont_randomize": True,
        "pending_size": 0,  # no hidden buffer: without a connection, publishing fails at once
        "inbox_prefix": settings.inbox_prefix,
    }
    if settings.creds:
        options["user_credentials"] = settings.creds
    if settings.nkey:
        options["nkeys_seed"] = settings.nkey
    if settings.user:
        options |= {"user": settings.user, "password": settings.password}
    if settings.token:
        options["token"] = settings.token
    if settings.tlsca or settings.tlscert or any(server.startswith("tls://") for server in settings.servers):
        try:
            context = ssl.create_default_context(cafile=settings.tlsca or None)
            if settings.tlscert:
                context.load_cert_chain(settings.tlscert, settings.tlskey)
        except (OSError, ssl.SSLError) as error:
            shown = settings.tlscert or settings.tlsca
            raise BadInput(problem("TLS certificate", shown, f"is not usable: {error}")) from error
        options["tls"] = context
        options["tls_handshake_first"] = settings.tls_first
    return options
