"""The store on NATS JetStream: `Store` of `shared.store`, its errors, and what a time-out means.

    NatsStore ── Link (nats_link)      the connection, requests
              ├─ watch (nats_watch)    lists and changes
              ├─ objects (nats_objects)
              └─ streams (nats_streams) are created by whoever starts first

Why an error is what it is
- A reply with an error number: the server decided, nothing was written.
- "No responders": no stream, or no stream leader, took the message. Surely not written: Busy (or Missing if the
  leader of the cluster says that there is no such stream).
- No reply to a write: OutcomeUnknown. The same when the connection breaks after sending.
- No reply to the *first* message of a batch: nothing else of it was sent, and without its last message a batch never
  lands: StoreUnavailable.

Cost (nats-notes, measured): a commit takes about 1 ms on R3 and in memory, but 4 to 11 ms on a stream with one replica
in a file, whatever its size: the server makes a temporary file store per batch. A plain write has no such cost.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import nats.errors
from nats.aio.msg import Msg

from shared import nats_objects
from shared.connection import ConnectionSettings
from shared.errors import Busy, Missing, OutcomeUnknown, StoreError, StoreUnavailable, Unfit
from shared.nats_codec import bucket_source, is_deletion, key_subject, objects_source, raw_message
from shared.nats_connection import Connection, send
from shared.nats_errors import NobodyAnswers, NoMessage, refusal
from shared.nats_history import history
from shared.nats_link import CoreSubscription, Link
from shared.nats_watch import stream_mark, watch
from shared.store import REQUEST_TIMEOUT_S, Entry, Mark, Message, ObjectInfo, Subscription, WatchItem, Write

BATCH_MAX = 1000  # the server refuses more (10199)
HEADERS_BYTES = 512  # what headers and subject of a batch message take at most, next to its value
SUBSCRIPTION_BOUND = 1024  # messages a slow reader may leave waiting; wake-ups are worth nothing when old
DIRECT_PAUSE_S, DIRECT_PAUSE_MAX_S = 0.002, 0.1
DIRECT_SHARE = 0.6  # of the time-out is given to replicas before the leader is asked

_SEQUENCE_DIGITS = 20  # sequences are 64 bits
_EXPECTED = "Nats-Expected-Last-Subject-Sequence"
_DELETE = {"KV-Operation": "DEL"}


async def connect(
    settings: ConnectionSettings,
    *,
    name: str = "shoal",
    timeout: float = REQUEST_TIMEOUT_S,
    wait: bool = False,
    waiting: Callable[[StoreError], None] | None = None,
) -> NatsStore:
    """Connect to one of the servers.

    Raises StoreUnavailable (no server answers, or they refuse us), Unfit (older than NATS 2.12.1), BadInput (TLS
    files).
    With `wait` it tries until it is cancelled, and shows every StoreError to `waiting` instead of raising it.
    """
    return NatsStore(await Link.open(settings, name=name, timeout=timeout, wait=wait, waiting=waiting))


class NatsStore:
    """A connection to the store on NATS. Made by `connect`; belongs to one event loop."""

    def __init__(self, link: Link) -> None:
        self.link = link

    # --- keys

    async def read(self, bucket: str, key: str, *, timeout: float = REQUEST_TIMEOUT_S) -> Entry:
        subject = key_subject(bucket, key)
        try:
            answer = await self.link.api(f"STREAM.MSG.GET.KV_{bucket}", {"last_by_subj": subject}, timeout=timeout)
        except NoMessage:
            return Entry(key, None, 0)
        data, headers, sequence = raw_message(answer)
        return Entry(key, None if is_deletion(headers) else data, sequence)

    async def read_at_least(self, bucket: str, key: str, revision: int, *, timeout: float = REQUEST_TIMEOUT_S) -> Entry:
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        direct_until = loop.time() + timeout * DIRECT_SHARE
        pause = DIRECT_PAUSE_S
        while True:
            left = end - loop.time()
            if loop.time() < direct_until:
                entry = await self._read_direct(bucket, key, timeout=left)
                if entry is None:
                    direct_until = 0.0  # no replica serves direct reads
                    continue
            else:
                entry = await self.read(bucket, key, timeout=max(left, 0.001))
            if entry.revision >= revision:
                return entry
            if loop.time() + pause >= end:
                raise StoreUnavailable(f"{bucket} {key}: no replica has revision {revision}, only {entry.revision}")
            await asyncio.sleep(pause)
            pause = min(2 * pause, DIRECT_PAUSE_MAX_S)

    async def write(
        self,
        bucket: str,
        key: str,
        value: bytes | None,
        *,
        expected: int | None = None,
        timeout: float = REQUEST_TIMEOUT_S,
    ) -> int:
        headers = _headers(value, expected)
        answer = await self._publish(
            key_subject(bucket, key), value or b"", headers, f"KV_{bucket}", f"{bucket} {key}", timeout
        )
        return int(answer["seq"])

    async def commit(self, bucket: str, writes: Sequence[Write], *, timeout: float = REQUEST_TIMEOUT_S) -> int:
        if not 1 <= len(writes) <= BATCH_MAX:
            raise ValueError(f"a commit has 1 to {BATCH_MAX} writes, not {len(writes)}")
        if len(writes) == 1:
            # Equivalent to a batch of one: the server checks the same expectation under the same stream lock, all or
            # nothing is trivial, and an earlier attempt that is still under way carries the same expectation, so at
            # most one of the two can land. It saves the 4 to 11 ms that a batch costs on R1.
            only = writes[0]
            return await self.write(bucket, only.key, only.value, expected=only.expected, timeout=timeout)
        return await self._batch(bucket, writes, timeout)

    def watch(self, bucket: str, *, relist_s: float = 60.0) -> AsyncIterator[WatchItem]:
        return watch(self.link, bucket_source(bucket), relist_s=relist_s)

    async def mark(self, bucket: str) -> Mark:
        """As `Store.mark`; for object buckets too."""
        try:
            return await stream_mark(self.link, f"KV_{bucket}")
        except Missing:
            return await stream_mark(self.link, f"OBJ_{bucket}")

    # --- objects

    async def get_object(self, bucket: str, name: str, *, bytes_max: int, timeout: float = REQUEST_TIMEOUT_S) -> bytes:
        return await nats_objects.get(self.link, bucket, name, bytes_max=bytes_max, timeout=timeout)

    async def put_object(
        self, bucket: str, name: str, data: bytes, *, timeout: float = REQUEST_TIMEOUT_S
    ) -> ObjectInfo:
        return await nats_objects.put(self.link, bucket, name, data, timeout=timeout)

    async def delete_object(self, bucket: str, name: str, *, timeout: float = REQUEST_TIMEOUT_S) -> None:
        await nats_objects.delete(self.link, bucket, name, timeout=timeout)

    def watch_objects(self, bucket: str, *, relist_s: float = 60.0) -> AsyncIterator[WatchItem]:
        return watch(self.link, objects_source(bucket), relist_s=relist_s)

    # --- messages

    async def publish(self, subject: str, data: bytes) -> None:
        await self.link.publish(subject, data)

    async def append(self, subject: str, data: bytes, *, message_id: str, timeout: float = REQUEST_TIMEOUT_S) -> None:
        await self._publish(subject, data, {"Nats-Msg-Id": message_id}, None, subject, timeout)

    def history(self, stream: str, subject: str, *, last: int, follow: bool) -> AsyncIterator[Message]:
        return history(self.link, stream, subject, last=last, follow=follow)

    async def subscribe(self, subject: str) -> Subscription:
        return _Messages(await self.link.subscribe(subject, bound=SUBSCRIPTION_BOUND))

    async def request_many(
        self, subject: str, data: bytes, *, idle_timeout: float = REQUEST_TIMEOUT_S
    ) -> AsyncIterator[bytes]:
        return self._answers(subject, data, idle_timeout)

    # --- the connection

    async def change_server(self) -> None:
        await self.link.change_server()

    @property
    def connected(self) -> bool:
        return self.link.connected

    async def close(self) -> None:
        await self.link.close()

    # --- inside

    async def _usable(self, timeout: float) -> Connection:
        try:
            async with asyncio.timeout(timeout):
                return await self.link.usable()
        except TimeoutError as error:
            raise StoreUnavailable(f"no connection in {timeout:g} s") from error

    async def _read_direct(self, bucket: str, key: str, *, timeout: float) -> Entry | None:
        """The key as any replica has it; None if the stream has no direct reads."""
        try:
            msg = await self.link.request(
                f"$JS.API.DIRECT.GET.KV_{bucket}.{key_subject(bucket, key)}", timeout=timeout, effect=False
            )
        except NobodyAnswers:
            return None
        headers: Mapping[str, str] = msg.headers or {}
        if "Nats-Sequence" not in headers:
            return Entry(key, None, 0)  # 404: not there, or not yet there
        return Entry(key, None if is_deletion(headers) else msg.data, int(headers["Nats-Sequence"]))

    async def _publish(
        self, subject: str, data: bytes, headers: dict[str, str], stream: str | None, what: str, timeout: float
    ) -> dict[str, Any]:
        """Publish to a stream and read its acknowledgement."""
        try:
            msg = await self.link.request(subject, data, headers=headers or None, timeout=timeout, effect=True)
        except NobodyAnswers as error:
            raise await self._nobody(stream, what) from error
        return _acknowledgement(msg, what)

    async def _nobody(self, stream: str | None, what: str) -> StoreError:
        """Why nobody took a write: no such stream, or no leader of it for the moment."""
        if stream is not None:
            try:
                await stream_mark(self.link, stream, timeout=1.0)
            except Missing:
                return Missing(f"{what}: there is no stream {stream}")
            except StoreError:
                pass  # no leader to ask: the same thing to whoever writes
        return Busy(f"{what}: no leader of the stream took it")

    async def _batch(self, bucket: str, writes: Sequence[Write], timeout: float) -> int:
        """ADR-50: the first message by request (an empty reply means accepted), the last one commits."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        connection = await self._usable(timeout)
        largest = max(len(write.value or b"") for write in writes)
        if largest + HEADERS_BYTES > connection.client.max_payload:
            # Checked before anything is sent: a batch left open counts against the server's limit of 50 for 10 s.
            raise Unfit(
                f"{bucket}: a value of {largest} bytes is more than the server accepts "
                f"({connection.client.max_payload}); raise max_payload in its configuration"
            )
        batch = connection.client.new_inbox().rpartition(".")[2]  # a fresh NUID for every call
        stream, what = f"KV_{bucket}", f"{bucket} commit of {len(writes)}"
        messages = [
            (
                key_subject(bucket, write.key),
                write.value or b"",
                {**_headers(write.value, write.expected), "Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)},
            )
            for number, write in enumerate(writes, 1)
        ]
        await self._open_batch(messages[0], stream, what, end - loop.time())
        for subject, data, headers in messages[1:-1]:
            await send(connection, subject, data, headers=headers)
        subject, data, headers = messages[-1]
        left = end - loop.time()
        if left <= 0:
            raise StoreUnavailable(f"{what}: not finished in {timeout:g} s, and so never written")
        answer = await self._publish(subject, data, {**headers, "Nats-Batch-Commit": "1"}, stream, what, left)
        if answer.get("batch") != batch or answer.get("count") != len(writes):
            raise Unfit(f"{what}: the server stored it without atomicity; upgrade it to NATS 2.12.1 or newer")
        return int(answer["seq"]) - len(writes) + 1

    async def _open_batch(
        self, message: tuple[str, bytes, dict[str, str]], stream: str, what: str, timeout: float
    ) -> None:
        subject, data, headers = message
        try:
            msg = await self.link.request(subject, data, headers=headers, timeout=timeout, effect=True)
        except NobodyAnswers as error:
            raise await self._nobody(stream, what) from error
        except OutcomeUnknown as error:
            raise StoreUnavailable(f"{what}: not begun: {error}") from error
        if msg.data:
            _acknowledgement(msg, what)  # raises the refusal
            raise Unfit(f"{what}: the server does not know atomic batches; upgrade it to NATS 2.12.1 or newer")

    async def _answers(self, subject: str, data: bytes, idle_timeout: float) -> AsyncIterator[bytes]:
        connection = await self._usable(idle_timeout)
        arrived: asyncio.Queue[Msg] = asyncio.Queue(SUBSCRIPTION_BOUND)
        inbox = connection.client.new_inbox()
        subscription = await connection.client.subscribe(inbox, cb=arrived.put)
        try:
            await send(connection, subject, data, reply=inbox)
            while True:
                msg = await _first(arrived, connection.lost, subject, idle_timeout)
                if msg.headers is not None and msg.headers.get("Status") == "503":
                    raise NobodyAnswers(f"{subject}: nobody answers")
                if not msg.data:
                    return
                yield msg.data
        finally:
            with contextlib.suppress(nats.errors.Error, OSError):
                await subscription.unsubscribe()


class _Messages:
    """A core subscription as the contract has it."""

    def __init__(self, subscription: CoreSubscription) -> None:
        self._subscription = subscription

    async def next(self) -> Message:
        msg = await self._subscription.next()
        sequence = (msg.headers or {}).get("Nats-Sequence", "0")
        # Anybody may publish on the subject: "²" is a digit too, and 5,000 of them are a number that is no int.
        known = sequence.isascii() and sequence.isdigit() and len(sequence) < _SEQUENCE_DIGITS
        return Message(msg.subject, msg.data, msg.reply, int(sequence) if known else 0)

    async def close(self) -> None:
        await self._subscription.close()


def _headers(value: bytes | None, expected: int | None) -> dict[str, str]:
    headers = dict(_DELETE) if value is None else {}
    if expected is not None:
        headers[_EXPECTED] = str(expected)
    return headers


def _acknowledgement(msg: Msg, what: str) -> dict[str, Any]:
    """The acknowledgement in a reply, or the refusal as an error."""
    try:
        answer: dict[str, Any] = json.loads(msg.data)
    except ValueError as error:
        raise OutcomeUnknown(f"{what}: the reply is no acknowledgement: {msg.data[:80]!r}") from error
    if "error" in answer:
        raise refusal(answer["error"], what)
    return answer


async def _first(arrived: asyncio.Queue[Msg], lost: asyncio.Future[str], subject: str, timeout: float) -> Msg:
    getting = asyncio.ensure_future(arrived.get())
    either: set[asyncio.Future[Any]] = {getting, lost}
    try:
        await asyncio.wait(either, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if getting.done():
            return getting.result()
        reason = lost.result() if lost.done() else f"nothing arrived for {timeout:g} s"
        raise StoreUnavailable(f"{subject}: {reason}")
    finally:
        getting.cancel()
