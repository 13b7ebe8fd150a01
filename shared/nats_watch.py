"""Watching a bucket: a complete list, then every change, for ever.

nats-py's `kv.watch` is not used: it sometimes reports an empty list although keys exist (6 of 1000, measured), stalls
for 10 to 18 s after a server restart, leaves its consumer behind for five minutes, and never notices a purge by API.

    ask the leader for S ── create a fresh consumer ── fill a new list until a sequence ≥ S ── Listing ── Change ...
         └────────────── Stalled ◄── gap in the consumer's sequence, 2.5 s of silence, or another connection

S is the last sequence under the filter as the stream *leader* says it, asked before the consumer exists. The consumer
may live on a replica that lags; its own idea of "nothing pending" was wrong in 73 of 499 lists there.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

import structlog
from nats.aio.msg import Msg

from shared.errors import Missing, StoreError, StoreUnavailable
from shared.nats_codec import Source
from shared.nats_connection import Connection
from shared.nats_consumer import SILENCE_S, Consumer
from shared.nats_errors import NoMessage
from shared.nats_link import Link
from shared.store import REQUEST_TIMEOUT_S, Change, Entry, Listing, Mark, Stalled, WatchItem

SHORTER_READS, SHORTER_PAUSE_S = 3, 1.0  # when the leader says less than was seen: see `_target`
RETRY_PAUSE_S, RETRY_PAUSE_MAX_S = 0.05, 1.0
# Changes a slow reader may leave waiting before the server is held back. Entries keep their bytes: this bounds memory.
BACKLOG_MAX = 20_000

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Seen:
    """What this watch has delivered, over all its consumers."""

    created: str = ""
    sequence: int = 0


async def watch(link: Link, source: Source, *, relist_s: float) -> AsyncIterator[WatchItem]:
    """See `Store.watch`. Ends only with StoreUnavailable when the link is closed."""
    seen = _Seen()
    while True:
        feed, mark = await _list(link, source, seen)
        try:
            listing = feed.take(mark)
            seen.created, seen.sequence = mark.created, max(seen.sequence, feed.last)
            yield listing
            del listing
            until = asyncio.get_running_loop().time() + relist_s * random.uniform(0.8, 1.2)
            while (entry := await feed.next(until)) is not None:
                yield Change(entry)
            seen.sequence = max(seen.sequence, feed.last)
            reason = feed.broken
        finally:
            await feed.close(link)
        if reason:
            log.info("Watch lost its source and lists anew", stream=source.stream, reason=reason)
            yield Stalled()


async def last_sequence(link: Link, stream: str, subject: str, *, timeout: float = REQUEST_TIMEOUT_S) -> int:
    """The last sequence under `subject` (wildcards allowed) as the stream leader says it; 0 = none."""
    try:
        answer = await link.api(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject}, timeout=timeout)
    except NoMessage:
        return 0
    return int(answer["message"]["seq"])


async def stream_mark(link: Link, stream: str, *, timeout: float = REQUEST_TIMEOUT_S) -> Mark:
    """Creation time and last sequence of a stream. Only its leader answers. Missing: no such stream."""
    answer = await link.api(f"STREAM.INFO.{stream}", timeout=timeout)
    return Mark(str(answer["created"]), int(answer["state"]["last_seq"]))


async def _list(link: Link, source: Source, seen: _Seen) -> tuple[_Feed, Mark]:
    """A feed whose list is complete; tries until it has one."""
    pause = RETRY_PAUSE_S
    shown = ""
    while True:
        try:
            return await _attempt(link, source, seen)
        except StoreError as error:
            if link.closed:
                raise
            if str(error) != shown:
                shown = str(error)
                log.info("Watch cannot list yet; trying again", stream=source.stream, error=shown)
            # A stream that does not exist is waited for: whoever creates it may be starting right now.
            pause = RETRY_PAUSE_MAX_S if isinstance(error, Missing) else pause
        await asyncio.sleep(pause * random.uniform(0.7, 1.3))
        pause = min(2 * pause, RETRY_PAUSE_MAX_S)


async def _attempt(link: Link, source: Source, seen: _Seen) -> tuple[_Feed, Mark]:
    connection = await link.usable()
    mark, target = await _target(link, source, seen)
    feed = _Feed(connection, source, target)
    try:
        await feed.start(link)
        while not await feed.complete():
            # Data has been silent: the message at `target` may have been overwritten or purged meanwhile.
            mark, feed.target = await _target(link, source, seen)
    except BaseException:
        await feed.close(link)
        raise
    return feed, Mark(mark.created, max(mark.sequence, feed.last))


async def _target(link: Link, source: Source, seen: _Seen) -> tuple[Mark, int]:
    """The stream's mark and the sequence at which a list is complete.

    A leader that knows less than was already seen is asked three times, 1 s apart: it may be one that has not yet
    noticed that it was deposed. If it insists, the stream really is shorter (purged by API, or restored from a
    backup). A stream with another creation time is a new one: nothing seen counts.
    """
    reads = 0
    while True:
        # INFO first: everything up to the mark is then covered by the sequence that is asked for after it.
        mark = await stream_mark(link, source.stream)
        sequence = await last_sequence(link, source.stream, source.filter)
        reads += 1
        if seen.created and mark.created != seen.created:
            seen.sequence = 0
        if sequence >= seen.sequence or reads == SHORTER_READS:
            seen.created, seen.sequence = mark.created, min(seen.sequence, sequence)
            return mark, sequence
        await asyncio.sleep(SHORTER_PAUSE_S)


class _Feed:
    """One consumer: fills a list until it is complete, then queues changes."""

    def __init__(self, connection: Connection, source: Source, target: int) -> None:
        self.target = target
        self.last = 0  # highest stream sequence delivered
        self._source = source
        self._listing = True
        self._entries: dict[str, Entry] = {}
        self._deleted: dict[str, int] = {}
        self._changes: deque[Entry] = deque()
        self._consumer = Consumer(
            connection,
            source.stream,
            source.filter,
            {"deliver_policy": "last_per_subject"},
            self._take,
            room=lambda: len(self._changes) <= BACKLOG_MAX,
        )

    @property
    def broken(self) -> str:
        """Why it ended, "" while it lives."""
        return self._consumer.broken

    async def start(self, link: Link) -> None:
        await self._consumer.start(link)

    async def close(self, link: Link) -> None:
        await self._consumer.close(link)

    async def complete(self) -> bool:
        """Waits until the list reaches `target`; False after 2.5 s without data (ask again). Raises when broken."""
        loop = asyncio.get_running_loop()
        while self.last < self.target:
            quiet_at = self._consumer.advanced + SILENCE_S
            await self._consumer.wait(quiet_at)
            if self.broken:
                raise StoreUnavailable(f"{self._source.stream}: {self.broken}")
            if self.last < self.target and loop.time() >= self._consumer.advanced + SILENCE_S:
                self._consumer.advanced = loop.time()
                return False
        return True

    def take(self, mark: Mark) -> Listing:
        """The complete list; what comes from now on are changes."""
        self._listing = False
        entries, self._entries = self._entries, {}
        deleted, self._deleted = self._deleted, {}
        return Listing(entries, deleted, mark)

    async def next(self, until: float) -> Entry | None:
        """The next change; None at loop time `until`, and when broken (after the changes before the break)."""
        loop = asyncio.get_running_loop()
        while loop.time() < until:
            if self._changes:
                if len(self._changes) < BACKLOG_MAX // 2:
                    await self._consumer.resume()
                return self._changes.popleft()
            if self.broken:
                return None
            await self._consumer.wait(until)
        return None

    def _take(self, msg: Msg, sequence: int) -> None:
        self.last = sequence
        entry = self._source.decode(msg.subject, msg.data, msg.headers, sequence)
        if not self._listing:
            self._changes.append(entry)
            self._consumer.wake()
            return
        if entry.value is None:
            self._entries.pop(entry.key, None)
            self._deleted[entry.key] = sequence
        else:
            self._deleted.pop(entry.key, None)
            self._entries[entry.key] = entry
        if sequence >= self.target:
            self._consumer.wake()
