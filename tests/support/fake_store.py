"""A store in memory that keeps the contract of `shared.store`, for simulations on a virtual-time event loop.

    FakeStoreServer ── StoreState: buckets, objects, events          (the truth; tests may look and tamper)
      └ FakeStore    one connection, with its own faults and seeded latency

All waiting is asyncio's (`sleep`, `timeout_at`), so that a loop with virtual time runs it without delay, and all chance
comes from one generator per connection, seeded with its name: the same seed gives the same run. The contract suite
(tests/contract/test_store_contract.py) runs against this and against NATS.

Faults are set on a connection and last until they are cleared; a request that is held arrives when the hold ends, as
with a server that was frozen: that is the straggler which a compare-and-set must refuse.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from shared import store
from shared.clock import Clock
from shared.errors import BadInput, OutcomeUnknown, StoreError, StoreUnavailable
from shared.store import REQUEST_TIMEOUT_S, Change, Entry, Listing, Mark, Message, ObjectInfo, Stalled, Write
from tests.support.fake_store_state import StoreState, Stream

T = TypeVar("T")
SILENCE_S = 2.5  # as the real watch: so long without its source, and it says Stalled
RETRY_S = 0.1
MESSAGES_MAX = 1024
_ON_ITS_WAY = Context()  # of what travels: it belongs to no process, so none that is frozen or killed holds it up


@dataclass(slots=True)
class Faults:
    """What is wrong with one connection. Everything off is a healthy network. A change wakes whoever waits for it."""

    down: bool = False  # no connection: requests wait, watches stall
    held: bool = False  # frozen or partitioned: requests and deliveries wait until the hold ends
    lose_held: float = 0.0  # probability that a request never arrives that met a hold
    deaf: bool = False  # partitioned one way: requests arrive and have their effect, nothing comes back
    lose_requests: float = 0.0  # probability that a request never arrives
    lose_replies: float = 0.0  # probability that its effect happens and its reply is lost
    straggle: float = 0.0  # probability that a write arrives late ...
    straggle_s: float = 10.0  # ... by up to so much
    watch_delay_s: float = 0.0  # every delivery takes so much longer
    late_bucket: str = ""  # deliveries of this one alone ...
    late_s: float = 0.0  # ... take so much longer
    direct_lag_s: float = 0.0  # direct reads answer as of so long ago
    leader_lag_s: float = 0.0  # so do reads from the leader: it was deposed and has not noticed it
    changed: list[Callable[[], None]] = field(default_factory=list, repr=False, compare=False)

    def __setattr__(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)
        for wake in list(getattr(self, "changed", ())):
            wake()

    @property
    def silent(self) -> bool:
        """Whether nothing arrives at this end."""
        return self.down or self.held or self.deaf

    def when_released(self, call: Callable[[], None]) -> None:
        """Call it when the hold ends."""
        loop = asyncio.get_running_loop()

        def look() -> None:
            if not self.held:
                self.changed.remove(look)
                loop.call_soon(call, context=_ON_ITS_WAY)

        self.changed.append(look)


class FakeStoreServer(StoreState):
    """The store itself, and the network to it. `clock` is the simulation's; nothing here needs it but its loop."""

    def __init__(
        self, clock: Clock | None = None, *, seed: int = 0, latency_s: tuple[float, float] = (0.0005, 0.003)
    ) -> None:
        super().__init__()
        self.clock = clock
        self.latency_s = latency_s
        self.stores: list[FakeStore] = []
        self._seed = seed
        self._under_way = 0  # requests
        self._arrived = asyncio.Event()

    def connect(self, name: str) -> FakeStore:
        """A new connection, with faults and latency of its own."""
        connection = FakeStore(self, name, random.Random(f"{self._seed}/{name}/{len(self.stores)}"))
        self.stores.append(connection)
        return connection

    async def settle(self) -> None:
        """Wait until every request that is under way has arrived (for the end of a test)."""
        while self._under_way:
            self._arrived.clear()
            await self._arrived.wait()

    def commit(self, bucket: str, writes: Sequence[Write], writer: str) -> int:
        """Apply `writes` and wake whom the stream's republishing wakes."""
        first = self.apply(bucket, writes, writer, asyncio.get_running_loop().time())
        for revision, write in enumerate(writes, first):
            if bucket in self.republished and write.key.startswith("assign."):
                subject = self.republished[bucket].live_assign(write.key.removeprefix("assign."))
                self.send(Message(subject, write.value or b"", "", revision))
        return first

    def send(self, message: Message) -> int:
        """Deliver a core message; how many subscriptions wanted it."""
        interested = [s for c in self.stores for s in c.subscriptions if _matches(s.subject, message.subject)]
        for subscription in interested:
            subscription.connection.deliver(subscription, message)
        return len(interested)

    def departed(self) -> None:
        """A request is under way."""
        self._under_way += 1

    def arrived(self) -> None:
        """One that was under way has had its effect, and its answer has arrived or never will."""
        self._under_way -= 1
        self._arrived.set()


class FakeStore:
    """One connection. `faults` may be changed at any moment; `stall_watches` makes every watch list anew."""

    def __init__(self, server: FakeStoreServer, name: str, chance: random.Random) -> None:
        self.server = server
        self.name = name
        self.faults = Faults()
        self.server_changes = 0
        self.subscriptions: list[_Messages] = []
        self.watches: list[_Watch] = []
        self._chance = chance
        self._closed = False
        self._arrival = 0.0  # requests of one connection arrive in order
        self._delivery = 0.0  # and so do messages to one

    # --- keys

    async def read(self, bucket: str, key: str, *, timeout: float = REQUEST_TIMEOUT_S) -> Entry:
        if self.faults.leader_lag_s:
            moment = asyncio.get_running_loop().time() - self.faults.leader_lag_s
            return await self._call(lambda: self._as_of(bucket, key, moment), timeout)
        return await self._call(lambda: self.server.stream(bucket).last.get(key, Entry(key, None, 0)), timeout)

    async def read_at_least(self, bucket: str, key: str, revision: int, *, timeout: float = REQUEST_TIMEOUT_S) -> Entry:
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        while True:
            lag = self.faults.direct_lag_s if loop.time() < end - timeout / 2 else 0.0  # at the end the leader
            get = partial(self._as_of, bucket, key, loop.time() - lag)
            entry = await self._call(get, max(end - loop.time(), 0.001))
            if entry.revision >= revision:
                return entry
            if loop.time() + RETRY_S >= end:
                raise StoreUnavailable(f"{bucket} {key}: no replica has revision {revision}")
            await asyncio.sleep(RETRY_S)

    async def write(
        self,
        bucket: str,
        key: str,
        value: bytes | None,
        *,
        expected: int | None = None,
        timeout: float = REQUEST_TIMEOUT_S,
    ) -> int:
        return await self.commit(bucket, [Write(key, value, expected)], timeout=timeout)

    async def commit(self, bucket: str, writes: Sequence[Write], *, timeout: float = REQUEST_TIMEOUT_S) -> int:
        assert 1 <= len(writes) <= 1000
        frozen = tuple(writes)
        return await self._call(lambda: self.server.commit(bucket, frozen, self.name), timeout, effect=True)

    async def mark(self, bucket: str) -> Mark:
        stream = await self._call(lambda: self.server.stream(bucket), REQUEST_TIMEOUT_S)
        return Mark(stream.created, stream.sequence)

    async def watch(self, bucket: str, *, relist_s: float = 60.0) -> AsyncIterator[store.WatchItem]:
        watch = _Watch(self, bucket)
        self.watches.append(watch)
        try:
            while True:
                yield await self._list(bucket, watch)
                watch.end_in(relist_s * self._chance.uniform(0.8, 1.2))
                while (entry := await watch.next()) is not None:
                    yield Change(entry)
                watch.detach()
                if watch.broken:
                    yield Stalled()
        finally:
            watch.detach()
            self.watches.remove(watch)

    # --- objects

    async def get_object(self, bucket: str, name: str, *, bytes_max: int, timeout: float = REQUEST_TIMEOUT_S) -> bytes:
        return await self._call(lambda: self.server.get_object(bucket, name, bytes_max), timeout)

    async def put_object(
        self, bucket: str, name: str, data: bytes, *, timeout: float = REQUEST_TIMEOUT_S
    ) -> ObjectInfo:
        return await self._call(
            lambda: self.server.put_object(bucket, name, data, self.name, _now()), timeout, effect=True
        )

    async def delete_object(self, bucket: str, name: str, *, timeout: float = REQUEST_TIMEOUT_S) -> None:
        await self._call(lambda: self.server.delete_object(bucket, name, self.name, _now()), timeout, effect=True)

    def watch_objects(self, bucket: str, *, relist_s: float = 60.0) -> AsyncIterator[store.WatchItem]:
        return self.watch(bucket, relist_s=relist_s)

    # --- messages

    async def publish(self, subject: str, data: bytes) -> None:
        self._check_up(subject)
        self._send(lambda: self.server.send(Message(subject, data, "")), None, effect=False)

    async def append(self, subject: str, data: bytes, *, message_id: str, timeout: float = REQUEST_TIMEOUT_S) -> None:
        await self._call(lambda: self.server.append(subject, data, message_id), timeout, effect=True)

    async def history(self, stream: str, subject: str, *, last: int, follow: bool) -> AsyncIterator[Message]:
        shown: int | None = None
        while True:
            found = [Message(s, d, "", n) for n, (s, d) in enumerate(self.server.events, 1) if _matches(subject, s)]
            end = len(self.server.events)
            for message in found[max(0, len(found) - last) :] if shown is None else found:
                if message.sequence > (shown or 0):
                    yield message
            shown = end
            if not follow:
                return
            await asyncio.sleep(RETRY_S)

    async def subscribe(self, subject: str) -> _Messages:
        subscription = _Messages(self, subject)
        self.subscriptions.append(subscription)
        return subscription

    async def request_many(
        self, subject: str, data: bytes, *, idle_timeout: float = REQUEST_TIMEOUT_S
    ) -> AsyncIterator[bytes]:
        return self._answers(subject, data, idle_timeout)

    async def _answers(self, subject: str, data: bytes, idle_timeout: float) -> AsyncIterator[bytes]:
        answers = await self.subscribe(f"_INBOX.{self.name}.{self._chance.getrandbits(64):x}")
        try:
            message = Message(subject, data, answers.subject)
            if await self._call(lambda: self.server.send(message), idle_timeout) == 0:
                raise StoreUnavailable(f"{subject}: nobody answers")
            while True:
                try:
                    async with asyncio.timeout(idle_timeout):
                        answer = await answers.next()
                except TimeoutError as error:
                    raise StoreUnavailable(f"{subject}: nothing arrived for {idle_timeout:g} s") from error
                if not answer.data:
                    return
                yield answer.data
        finally:
            await answers.close()

    def deliver(self, subscription: _Messages, message: Message) -> None:
        """What was sent to a subscription of this connection is on its way: in the order in which it was sent."""

        def arrive() -> None:
            if not (self.faults.silent or self._chance.random() < self.faults.lose_replies):
                subscription.offer(message)

        loop = asyncio.get_running_loop()
        self._delivery = max(math.nextafter(self._delivery, math.inf), loop.time() + self._latency())
        loop.call_at(self._delivery, arrive, context=_ON_ITS_WAY)

    # --- the connection

    async def change_server(self) -> None:
        """Watches list anew; a hold ends for this connection only if the test says so (`faults`)."""
        self.server_changes += 1
        self.stall_watches()
        await asyncio.sleep(self._latency())

    @property
    def connected(self) -> bool:
        return not (self._closed or self.faults.down)

    async def close(self) -> None:
        self._closed = True
        for wake in list(self.faults.changed):
            wake()
        self.stall_watches()
        for subscription in list(self.subscriptions):
            await subscription.close()

    def stall_watches(self) -> None:
        """Break every watch of this connection: Stalled, then a new list."""
        for watch in self.watches:
            watch.break_()

    # --- inside

    async def _call(self, action: Callable[[], T], timeout: float, *, effect: bool = False) -> T:
        """Send `action` to the server, which runs it when it arrives, and wait for the reply."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        while self.faults.down or self._closed:
            left_s = end - RETRY_S - loop.time()
            if self._closed or left_s <= 0:
                raise StoreUnavailable(f"{self.name}: not connected")
            await self._change(left_s)
        reply: asyncio.Future[Any] = loop.create_future()
        self._send(action, reply, effect=effect)
        late = False

        def expire() -> None:
            """As with any time-out it is too late from here on, also if an answer arrives in the same moment."""
            nonlocal late
            late = True
            if not reply.done():
                reply.set_result(None)

        timer = loop.call_at(end, expire)
        try:
            answer = await reply
        finally:
            timer.cancel()
        if late:
            kind = OutcomeUnknown if effect else StoreUnavailable
            raise kind(f"{self.name}: no answer in {timeout:g} s")
        if isinstance(answer, StoreError | BadInput):
            raise answer
        return answer

    def _send(self, action: Callable[[], Any], reply: asyncio.Future[Any] | None, *, effect: bool) -> None:
        """Send a request. Callbacks, because a task for each would be most of what a simulation does."""
        loop = asyncio.get_running_loop()
        faults, chance = self.faults, self._chance
        # The dice are rolled when the request is sent, in the order of the calls.
        lost, deaf = chance.random() < faults.lose_requests, chance.random() < faults.lose_replies
        if effect and chance.random() < faults.straggle:
            arrival = loop.time() + self._latency() + chance.uniform(0.0, faults.straggle_s)
        else:
            arrival = self._arrival = max(self._arrival, loop.time() + self._latency())

        def arrive() -> None:
            nonlocal lost
            if faults.held:
                lost = lost or chance.random() < faults.lose_held
                faults.when_released(act)
            else:
                act()

        def act() -> None:
            if lost:
                self.server.arrived()
                return
            outcome: Any
            try:
                outcome = action()
            except (StoreError, BadInput) as error:
                outcome = error
            loop.call_later(self._latency(), answer, outcome, context=_ON_ITS_WAY)

        def answer(outcome: Any) -> None:
            self.server.arrived()
            if reply is not None and not (reply.done() or deaf or faults.silent):
                reply.set_result(outcome)

        self.server.departed()
        loop.call_at(arrival, arrive, context=_ON_ITS_WAY)

    async def _list(self, bucket: str, watch: _Watch) -> Listing:
        while True:
            await asyncio.sleep(self._latency() + self.faults.watch_delay_s)
            if self._closed:
                raise StoreUnavailable(f"{self.name}: closed")
            if self.faults.silent:
                await self._change(SILENCE_S)
                continue
            stream = self.server.streams.get(bucket)
            if stream is not None:
                break
            await asyncio.sleep(RETRY_S)
        watch.attach(stream)
        live = {key: entry for key, entry in stream.last.items() if entry.value is not None}
        deleted = {key: entry.revision for key, entry in stream.last.items() if entry.value is None}
        return Listing(live, deleted, Mark(stream.created, stream.sequence))

    async def _change(self, seconds: float) -> None:
        """Wait until the faults change or the connection is closed, so long at most."""
        loop = asyncio.get_running_loop()
        changed: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not changed.done():
                changed.set_result(None)

        timer = loop.call_later(seconds, wake)
        self.faults.changed.append(wake)
        try:
            await changed
        finally:
            timer.cancel()
            self.faults.changed.remove(wake)

    def _as_of(self, bucket: str, key: str, moment: float) -> Entry:
        return self.server.stream(bucket).as_of(key, moment)

    def _latency(self) -> float:
        return self._chance.uniform(*self.server.latency_s)

    def delivery_s(self, bucket: str) -> float:
        """How long an entry takes to a watch of this connection."""
        late_s = self.faults.late_s if bucket == self.faults.late_bucket else 0.0
        return self._latency() + self.faults.watch_delay_s + late_s

    def _check_up(self, what: str) -> None:
        if not self.connected:
            raise StoreUnavailable(f"{what}: not connected")


class _Watch:
    """The live half of a watch: entries on their way, in order."""

    def __init__(self, connection: FakeStore, bucket: str) -> None:
        self.broken = False
        self._connection, self._bucket = connection, bucket
        self._stream: Stream | None = None
        self._coming: deque[tuple[float, Entry]] = deque()
        self._loop = asyncio.get_running_loop()
        self._rest: asyncio.Future[None] | None = None
        self._end = 0.0  # loop time
        self._timer: asyncio.TimerHandle | None = None  # for that

    def attach(self, stream: Stream) -> None:
        self.broken = False
        self._coming.clear()
        self._stream = stream
        stream.listeners.append(self._offer)
        stream.ended.append(self.break_)
        self._connection.faults.changed.append(self._wake)

    def end_in(self, seconds: float) -> None:
        self._end = self._loop.time() + seconds
        self._timer = self._loop.call_at(self._end, self._wake)

    def detach(self) -> None:
        if self._stream is not None:
            self._stream.listeners.remove(self._offer)
            self._stream.ended.remove(self.break_)
            self._connection.faults.changed.remove(self._wake)
        self._stream = None
        if self._timer is not None:
            self._timer.cancel()

    def break_(self) -> None:
        self.broken = True
        self._wake()

    def _offer(self, entry: Entry) -> None:
        arrival = self._loop.time() + self._connection.delivery_s(self._bucket)
        if self._coming:
            self._coming.append((max(arrival, self._coming[-1][0]), entry))
            return
        self._coming.append((arrival, entry))
        self._loop.call_at(arrival, self._wake, context=_ON_ITS_WAY)

    def _wake(self) -> None:
        if self._rest is not None and not self._rest.done():
            self._rest.set_result(None)

    async def next(self) -> Entry | None:
        """The next entry when it has arrived; None at the end or when broken."""
        loop, faults, coming = self._loop, self._connection.faults, self._coming
        silent_since: float | None = None
        while not self.broken and loop.time() < self._end:
            if not faults.silent:
                silent_since = None
                if coming and coming[0][0] <= loop.time():
                    return coming.popleft()[1]
                due = coming[0][0] if coming else None
            else:
                silent_since = loop.time() if silent_since is None else silent_since
                due = silent_since + SILENCE_S
                if loop.time() >= due:
                    self.broken = True
                    break
            await self._until(due)
        return None

    async def _until(self, due: float | None) -> None:
        """Wait for loop time `due`, the end, or a change of anything."""
        self._rest = self._loop.create_future()
        timer = None if due is None else self._loop.call_at(due, self._wake)
        try:
            await self._rest
        finally:
            self._rest = None
            if timer is not None:
                timer.cancel()


class _Messages:
    """A core subscription: at most once, oldest dropped."""

    def __init__(self, connection: FakeStore, subject: str) -> None:
        self.connection = connection
        self.subject = subject
        self._messages: deque[Message] = deque(maxlen=MESSAGES_MAX)
        self._wake = asyncio.Event()

    def offer(self, message: Message) -> None:
        self._messages.append(message)
        self._wake.set()

    async def next(self) -> Message:
        while not self._messages:
            if self not in self.connection.subscriptions:
                raise StoreUnavailable(f"the subscription to {self.subject} is closed")
            self._wake.clear()
            await self._wake.wait()
        return self._messages.popleft()

    async def close(self) -> None:
        if self in self.connection.subscriptions:
            self.connection.subscriptions.remove(self)
        self._wake.set()


def _matches(pattern: str, subject: str) -> bool:
    wanted, got = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        return len(got) >= len(wanted) and all(w in ("*", g) for w, g in zip(wanted[:-1], got, strict=False))
    return len(wanted) == len(got) and all(w in ("*", g) for w, g in zip(wanted, got, strict=True))


def _now() -> float:
    return asyncio.get_running_loop().time()
