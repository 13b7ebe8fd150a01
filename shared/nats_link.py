"""One connection to NATS that heals itself: requests, core messages, moving between servers.

    Link ── Connection (nats_connection: one nats-py client, thrown away when lost)
      │         └ one inbox for all replies
      ├ requests, core messages, core subscriptions (made anew on every connection)
      └ a supervisor task that watches the connection over and dials the next server

Every call waits for a connection within its own time-out, so a short reconnection is invisible to callers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Self
from urllib.parse import urlsplit

import nats.errors
import structlog
from nats.aio.msg import Msg

from shared.connection import ConnectionSettings
from shared.errors import OutcomeUnknown, StoreError, StoreUnavailable, Unfit
from shared.nats_connection import DIAL_TIMEOUT_S, Connection, client_options, dial, send, watch_over
from shared.nats_errors import NobodyAnswers, read_refusal

DIAL_PAUSE_S, DIAL_PAUSE_MAX_S = 0.05, 1.0  # between rounds over all servers; doubled each round

log = structlog.get_logger(__name__)


class CoreSubscription:
    """A core subscription that survives reconnections; at most once, and a slow reader loses the oldest messages."""

    def __init__(self, link: Link, subject: str, bound: int) -> None:
        self.subject = subject
        self._link = link
        self._messages: deque[Msg] = deque(maxlen=bound)
        self._arrived = asyncio.Event()

    async def deliver(self, msg: Msg) -> None:
        self._messages.append(msg)
        self._arrived.set()

    def wake(self) -> None:
        self._arrived.set()

    async def next(self) -> Msg:
        """The oldest message; StoreUnavailable once the link or the subscription is closed."""
        while not self._messages:
            if self._link.closed or self not in self._link.subscriptions:
                raise StoreUnavailable(f"the subscription to {self.subject} is closed")
            self._arrived.clear()
            await self._arrived.wait()
        return self._messages.popleft()

    async def close(self) -> None:
        await self._link.unsubscribe(self)


class Link:
    """A connection that is always either up or being made again. Made by `Link.open`."""

    def __init__(self, settings: ConnectionSettings, name: str) -> None:
        self._settings = settings
        self._options = client_options(settings, name)
        self.name = name
        self._addresses = list(settings.servers)
        random.shuffle(self._addresses)  # clients spread over the servers
        self._connection: Connection | None = None
        self._up = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._disposals: set[asyncio.Task[None]] = set()
        self._tls_names: dict[str, str] = {}  # of announced addresses: the certificate names the configured host
        self.subscriptions: dict[CoreSubscription, Any] = {}
        self.closed = False
        self._failure: BaseException | None = None

    @classmethod
    async def open(
        cls,
        settings: ConnectionSettings,
        *,
        name: str,
        timeout: float,
        wait: bool,
        waiting: Callable[[StoreError], None] | None = None,
    ) -> Self:
        """Connect to one of the servers; every one is tried once, or for ever with `wait`.

        Raises StoreUnavailable (nobody answers or they refuse us), Unfit (too old). With `wait` neither is raised:
        `waiting` is called with each, for the caller to show.
        """
        link = cls(settings, name)
        connection: Connection | None = None
        pause = DIAL_PAUSE_S
        while connection is None:
            try:
                async with asyncio.timeout(None if wait else timeout):
                    connection = await link._round()
            except TimeoutError as error:
                raise StoreUnavailable(f"no answer from {', '.join(settings.servers)} in {timeout:g} s") from error
            except StoreError as error:
                if not wait:
                    raise
                if waiting is not None:
                    waiting(error)
                await asyncio.sleep(pause * random.uniform(0.7, 1.3))
                pause = min(2 * pause, DIAL_PAUSE_MAX_S)
        await link._adopt(connection)
        link._supervisor = asyncio.create_task(link._supervise(connection), name=f"nats {name}")
        link._supervisor.add_done_callback(link._ended)
        return link

    # --- requests

    async def request(
        self, subject: str, payload: bytes = b"", *, headers: dict[str, str] | None = None, timeout: float, effect: bool
    ) -> Msg:
        """The reply to a request. `effect` = it may change something, so that no answer means OutcomeUnknown.

        Raises NobodyAnswers (it reached nobody), StoreUnavailable (not sent, or it changes nothing), OutcomeUnknown,
        Unfit (larger than the server takes).
        """
        connection: Connection | None = None
        reply = ""
        try:
            async with asyncio.timeout(timeout):
                connection = await self.usable()
                reply, future = connection.expect()
                await send(connection, subject, payload, reply=reply, headers=headers)
                msg = await future
        except (TimeoutError, ConnectionResetError) as error:
            if connection is None:
                raise StoreUnavailable(f"{subject}: no connection in {timeout:g} s") from error
            reason = str(error) or f"no answer in {timeout:g} s"
            kind = OutcomeUnknown if effect else StoreUnavailable
            raise kind(f"{subject}: {reason} from {connection.address}") from error
        finally:
            if connection is not None and reply:
                connection.forget(reply)
        if msg.headers is not None and msg.headers.get("Status") == "503" and not msg.data:
            raise NobodyAnswers(f"{subject}: nobody answers")
        return msg

    async def api(self, subject: str, body: Mapping[str, Any] | None = None, *, timeout: float) -> dict[str, Any]:
        """A request to the JetStream API that changes nothing; numbered refusals become errors."""
        payload = b"" if body is None else json.dumps(body).encode()
        msg = await self.request(f"$JS.API.{subject}", payload, timeout=timeout, effect=False)
        answer: dict[str, Any] = json.loads(msg.data)
        if "error" in answer:
            raise read_refusal(answer["error"], subject)
        return answer

    async def publish(
        self, subject: str, payload: bytes = b"", *, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Send a core message on the connection there is; StoreUnavailable if there is none."""
        if self._connection is None:
            raise StoreUnavailable(f"{subject}: not connected")
        await send(self._connection, subject, payload, reply=reply, headers=headers)

    def discard(self) -> str:
        """A reply subject for requests whose answer nobody reads."""
        return f"{self._connection.inbox}.0" if self._connection is not None else ""

    async def subscribe(self, subject: str, *, bound: int) -> CoreSubscription:
        """Subscribe for as long as the link lives; without a connection now, from the next one on."""
        subscription = CoreSubscription(self, subject, bound)
        self.subscriptions[subscription] = None  # from here on every new connection attaches it
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(StoreUnavailable):
                attached = await self._attach(connection, subscription)
                if self._connection is connection:
                    self.subscriptions[subscription] = attached
        return subscription

    async def unsubscribe(self, subscription: CoreSubscription) -> None:
        attached = self.subscriptions.pop(subscription, None)
        subscription.wake()
        if attached is not None:
            with contextlib.suppress(nats.errors.Error):
                await attached.unsubscribe()

    # --- the connection

    @property
    def connected(self) -> bool:
        return self._connection is not None

    @property
    def info(self) -> Mapping[str, Any]:
        """The INFO of the server we are connected to, {} without a connection."""
        return {} if self._connection is None else self._connection.info

    async def usable(self) -> Connection:
        """The connection, waited for without a bound of its own."""
        while self._connection is None or self._connection.lost.done():
            if self.closed:
                raise StoreUnavailable("the connection was closed") from self._failure
            if self._connection is not None:  # lost just now; the supervisor is about to see it
                self._connection = None
                self._up.clear()
            await self._up.wait()
        return self._connection

    async def change_server(self) -> None:
        """Leave the server; returns when another connection stands, or after one dial's time."""
        if self._connection is not None:
            self._up.clear()
            self._connection.lose("changing server")
            self._connection = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                await self._up.wait()

    async def close(self) -> None:
        """Close for good; pending calls fail with StoreUnavailable or OutcomeUnknown."""
        self.closed = True
        while self._supervisor is not None and not self._supervisor.done():
            # More than once, because `wait_for` of Python 3.11, which nats-py uses, may swallow a cancellation.
            self._supervisor.cancel()
            await asyncio.wait({self._supervisor}, timeout=DIAL_TIMEOUT_S)
        connection, self._connection = self._connection, None
        self._up.set()
        if connection is not None and not connection.lost.done():  # the supervisor had not even begun
            connection.lose("the connection was closed")
            self._dispose(connection)
        for subscription in self.subscriptions:
            subscription.wake()
        if self._disposals:
            await asyncio.wait(self._disposals)

    # --- inside

    def _ended(self, supervisor: asyncio.Task[None]) -> None:
        """The supervisor ends only by cancellation; anything else is a bug, which every call must then show."""
        if not supervisor.cancelled() and (error := supervisor.exception()) is not None:
            log.error("The connection to NATS is not kept any more", name=self.name, exc_info=error)
            self._failure = error
            self.closed = True
            self._up.set()

    async def _supervise(self, connection: Connection) -> None:
        while True:
            try:
                reason = await watch_over(connection)
            finally:
                connection.lose("the connection was closed")
                self._dispose(connection)
            log.info("Connection to NATS lost", name=self.name, server=connection.address, reason=reason)
            self._connection = None
            self._up.clear()
            self._postpone(connection.address)
            pause = DIAL_PAUSE_S
            while True:
                try:
                    connection = await self._round()
                    await self._adopt(connection)
                    break
                except StoreError as error:
                    log.debug("No NATS server can be reached", name=self.name, error=str(error))
                await asyncio.sleep(pause * random.uniform(0.7, 1.3))
                pause = min(2 * pause, DIAL_PAUSE_MAX_S)
            log.info("Connected to NATS again", name=self.name, server=connection.address)

    async def _round(self) -> Connection:
        """Try every known server once, in order; the last error if none can be had."""
        failure: StoreError = StoreUnavailable("no server is known")
        for address in list(self._addresses):
            try:
                return await self._dial(address)
            except StoreError as error:
                # A server that is too old says more than the silence of the others.
                failure = failure if isinstance(failure, Unfit) else error
                self._postpone(address)
        raise failure

    async def _dial(self, address: str) -> Connection:
        connection = await dial(address, self._options | {"tls_hostname": self._tls_names.get(address)}, self.name)
        self._learn(connection)
        return connection

    async def _adopt(self, connection: Connection) -> None:
        """Make `connection` the one in use, with every subscription on it."""
        try:
            for subscription in list(self.subscriptions):
                self.subscriptions[subscription] = await self._attach(connection, subscription)
        except BaseException:
            self._dispose(connection)
            raise
        self._connection = connection
        self._up.set()

    @staticmethod
    async def _attach(connection: Connection, subscription: CoreSubscription) -> Any:
        try:
            return await connection.client.subscribe(
                subscription.subject, cb=subscription.deliver, pending_msgs_limit=0, pending_bytes_limit=0
            )
        except nats.errors.ConnectionClosedError as error:
            raise StoreUnavailable(f"{subscription.subject}: {error}") from error

    def _learn(self, connection: Connection) -> None:
        """Add the servers that this one announced, except itself under another name."""
        address = connection.address
        scheme = urlsplit(address).scheme
        own = {urlsplit(address).netloc, connection.peer()}
        for url in connection.info.get("connect_urls") or ():
            if url not in own and all(urlsplit(known).netloc != url for known in self._addresses):
                self._addresses.append(f"{scheme}://{url}")
                host = self._tls_names.get(address) or urlsplit(address).hostname
                if connection.info.get("tls_required") and host:
                    self._tls_names[f"{scheme}://{url}"] = host

    def _postpone(self, address: str) -> None:
        if address in self._addresses:
            self._addresses.remove(address)
            self._addresses.append(address)

    def _dispose(self, connection: Connection) -> None:
        task = asyncio.create_task(connection.dispose(), name=f"dispose {connection.address}")
        self._disposals.add(task)
        task.add_done_callback(self._disposals.discard)
