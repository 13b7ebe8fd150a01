"""The contract of the store, in words. `nats_store` is NATS; the tests have a fake; one suite runs against both.

A `Store` is one connection. Buckets are named as in `keys`. Revisions are the stream's sequence numbers: within a
bucket they only grow, and 0 stands for "does not exist".

What may be relied on
- `write` and `commit` are atomic, and visible to every watch in the order of their revisions.
- `write` with `expected` succeeds only if the key's last revision (its delete marker counts, 0 = never written) is
  exactly that. It is the only proof there is.
- `commit` writes several keys of one bucket at once or none; at most one of them carries an expectation per key.

What may not
- A read is never a proof: it may be older than a write that has been acknowledged elsewhere.
- A time-out of a write (`OutcomeUnknown`) means unknown: it may still happen later.
- A wake-up may be lost or repeated.

Every call ends within its time-out. Cancellation passes through.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

REQUEST_TIMEOUT_S = 5.0
SHORT_TIMEOUT_S = 0.75  # of heartbeats, pulses and lease renewals, which change server at the first time-out


@dataclass(frozen=True, slots=True)
class Entry:
    """A key's value at a revision. `value` None = deleted, `revision` is then the marker's."""

    key: str
    value: bytes | None
    revision: int


@dataclass(frozen=True, slots=True)
class Write:
    """One write of a commit. `value` None = delete. `expected` None = whatever is there."""

    key: str
    value: bytes | None
    expected: int | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """Identity and extent of a bucket's stream, as its leader says: creation time and last sequence."""

    created: str
    sequence: int


@dataclass(frozen=True, slots=True)
class Listing:
    """A complete list of a bucket: everything that was there when it was asked for, and what came until now.

    `entries` has the live keys; `deleted` the keys whose marker was seen, with its revision. A key that is in neither
    is gone without a marker. Replaces everything a watcher knew, except that it must not be below a sequence already
    seen: the store asks again by itself until it is not.
    """

    entries: Mapping[str, Entry]
    deleted: Mapping[str, int]
    mark: Mark


@dataclass(frozen=True, slots=True)
class Change:
    """One write or deletion, live. Applied by key; a revision that is not above the known one changes nothing."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Stalled:
    """The watch has lost its source and is listing anew; the next item is a `Listing`."""


WatchItem = Listing | Change | Stalled


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object in an object bucket. `digest` is the sha256 of its bytes in hex."""

    name: str
    size: int
    digest: str
    revision: int
    nuid: str


@dataclass(frozen=True, slots=True)
class Message:
    """A core message. `reply` is "" when nobody waits for an answer. `sequence` is the stream sequence of a republished
    message, else 0."""

    subject: str
    data: bytes
    reply: str
    sequence: int = 0


class Subscription(Protocol):
    """A core subscription; at most once, bounded (oldest messages are dropped when the reader is slow)."""

    async def next(self) -> Message: ...

    async def close(self) -> None: ...


class Store(Protocol):
    """One connection to the store."""

    # --- keys

    async def read(self, bucket: str, key: str, *, timeout: float = REQUEST_TIMEOUT_S) -> Entry:
        """The key as the stream leader has it (never a follower's answer). A key never written: revision 0.

        Raises StoreUnavailable, Missing (no such bucket).
        """
        ...

    async def read_at_least(self, bucket: str, key: str, revision: int, *, timeout: float = REQUEST_TIMEOUT_S) -> Entry:
        """The key at `revision` or newer: direct reads first (cheap, any replica), the stream leader at the end.

        Raises StoreUnavailable when no replica has got that far in time.
        """
        ...

    async def write(
        self,
        bucket: str,
        key: str,
        value: bytes | None,
        *,
        expected: int | None = None,
        timeout: float = REQUEST_TIMEOUT_S,
    ) -> int:
        """Write or delete (None) one key; its new revision.

        Raises Conflict, Busy, OutcomeUnknown, StoreUnavailable (surely not written), Missing (no such bucket), Unfit
        (larger than the server takes).
        """
        ...

    async def commit(self, bucket: str, writes: Sequence[Write], *, timeout: float = REQUEST_TIMEOUT_S) -> int:
        """Write all or nothing, in order, with consecutive revisions; the revision of the first.

        At most 1,000 writes. Raises as `write` does.
        """
        ...

    def watch(self, bucket: str, *, relist_s: float = 60.0) -> AsyncIterator[WatchItem]:
        """A `Listing`, then every change, then listings again (each `relist_s` with jitter, and after every gap,
        silence or reconnection). Never ends by itself; heals by itself: a bucket that does not exist is waited for
        (ask `mark` to know). Closing the iterator frees the consumer."""
        ...

    async def mark(self, bucket: str) -> Mark:
        """Creation time and last sequence of the bucket's stream, from the stream leader."""
        ...

    # --- objects

    async def get_object(self, bucket: str, name: str, *, bytes_max: int, timeout: float = REQUEST_TIMEOUT_S) -> bytes:
        """The bytes of an object, digest verified. Missing (no such object), BadInput (too large, chunks missing or
        altered), StoreUnavailable."""
        ...

    async def put_object(
        self, bucket: str, name: str, data: bytes, *, timeout: float = REQUEST_TIMEOUT_S
    ) -> ObjectInfo:
        """Store an object whole; readers see the old or the new one. Raises OutcomeUnknown, StoreUnavailable."""
        ...

    async def delete_object(self, bucket: str, name: str, *, timeout: float = REQUEST_TIMEOUT_S) -> None:
        """Delete an object and its chunks; deleting what is not there is success."""
        ...

    def watch_objects(self, bucket: str, *, relist_s: float = 60.0) -> AsyncIterator[WatchItem]:
        """As `watch`; keys are object names, values JSON of `ObjectInfo` (`documents.decode(ObjectInfo, ...)`)."""
        ...

    # --- messages

    async def publish(self, subject: str, data: bytes) -> None:
        """Send a core message; at most once."""
        ...

    async def append(self, subject: str, data: bytes, *, message_id: str, timeout: float = REQUEST_TIMEOUT_S) -> None:
        """Append to the stream that owns the subject; the same `message_id` within two minutes is stored once."""
        ...

    def history(self, stream: str, subject: str, *, last: int, follow: bool) -> AsyncIterator[Message]:
        """The last `last` messages of a stream on a subject (wildcards allowed), oldest first; with `follow` then every
        new one for ever. For people: a message may be missing after a reconnection. Missing: no such stream."""
        ...

    async def subscribe(self, subject: str) -> Subscription:
        """Subscribe to core messages."""
        ...

    async def request_many(
        self, subject: str, data: bytes, *, idle_timeout: float = REQUEST_TIMEOUT_S
    ) -> AsyncIterator[bytes]:
        """Send a request that many messages answer; ends at an empty message. StoreUnavailable: nobody answers."""
        ...

    # --- the connection

    async def change_server(self) -> None:
        """Leave the server we are connected to for another (the same one if it is the only one)."""
        ...

    @property
    def connected(self) -> bool:
        """Whether there is a connection now, as far as the client knows."""
        ...

    async def close(self) -> None:
        """Close the connection; pending calls fail."""
        ...
