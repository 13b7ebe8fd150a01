"""What the fake store holds: buckets, objects and events, changed by atomic synchronous steps. See `fake_store`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shared.documents import encode
from shared.errors import BadInput, Busy, Conflict, Missing, problem
from shared.keys import Keys
from shared.store import Entry, ObjectInfo, Write

HISTORY = 8  # versions of a key that a lagging replica may still show


@dataclass(slots=True)
class Stream:
    """One bucket. `last` has the delete markers too."""

    created: str
    sequence: int = 0
    last: dict[str, Entry] = field(default_factory=dict)
    past: dict[str, list[tuple[float, Entry]]] = field(default_factory=dict)  # with the time, for lagging replicas
    objects: dict[str, tuple[ObjectInfo, bytes | None]] = field(default_factory=dict)  # None: chunks are missing
    listeners: list[Callable[[Entry], None]] = field(default_factory=list)  # live watches
    ended: list[Callable[[], None]] = field(default_factory=list)  # told when the stream is made anew

    def as_of(self, key: str, moment: float) -> Entry:
        """The key as a replica had it that got that far."""
        past = self.past.get(key, [])
        return next((entry for at, entry in reversed(past) if at <= moment), Entry(key, None, 0))


class StoreState:
    """The truth. Tests and checkers may look at everything, and tamper with the methods after the first line."""

    def __init__(self) -> None:
        self.streams: dict[str, Stream] = {}
        self.events: list[tuple[str, bytes]] = []
        self.writes: list[tuple[str, Entry, str]] = []  # (bucket, entry, connection) in order of acceptance
        self.republished: dict[str, Keys] = {}
        self._event_ids: set[str] = set()
        self._made = 0

    def stream(self, bucket: str) -> Stream:
        """The bucket, or Missing."""
        if bucket not in self.streams:
            raise Missing(f"there is no bucket {bucket}")
        return self.streams[bucket]

    # --- what connections do

    def apply(self, bucket: str, writes: Sequence[Write], writer: str, now: float) -> int:
        """All of `writes` or none; the revision of the first."""
        stream = self.stream(bucket)
        if len({write.key for write in writes}) != len(writes):
            raise Busy(f"{bucket}: a batch that writes a key twice")
        for write in writes:
            actual = stream.last[write.key].revision if write.key in stream.last else 0
            if write.expected is not None and write.expected != actual:
                raise Conflict(f"{bucket} {write.key}: wrong last sequence: {actual}", actual)
        for write in writes:
            self._store(bucket, Entry(write.key, write.value, stream.sequence + 1), writer, now)
        return stream.sequence - len(writes) + 1

    def put_object(self, bucket: str, name: str, data: bytes, writer: str, now: float) -> ObjectInfo:
        stream = self.stream(bucket)
        revision = stream.sequence + 1
        info = ObjectInfo(name, len(data), hashlib.sha256(data).hexdigest(), revision, f"nuid{revision}")
        stream.objects[name] = (info, data)
        self._store(bucket, Entry(name, encode(info), revision), writer, now)
        return info

    def get_object(self, bucket: str, name: str, bytes_max: int) -> bytes:
        objects = self.stream(bucket).objects
        if name not in objects:
            raise Missing(f"there is no object {name} in {bucket}")
        info, data = objects[name]
        if info.size > bytes_max:
            raise BadInput(problem(f"object {name}", f"{info.size} bytes", f"store at most {bytes_max} bytes"))
        if data is None:
            raise BadInput(problem(f"object {name}", "", "its chunks are missing; store it again"))
        return data

    def delete_object(self, bucket: str, name: str, writer: str, now: float) -> None:
        stream = self.stream(bucket)
        if stream.objects.pop(name, None) is not None:
            self._store(bucket, Entry(name, None, stream.sequence + 1), writer, now)

    def append(self, subject: str, data: bytes, message_id: str) -> None:
        if message_id not in self._event_ids:
            self._event_ids.add(message_id)
            self.events.append((subject, data))

    def _store(self, bucket: str, entry: Entry, writer: str, now: float) -> None:
        stream = self.streams[bucket]
        stream.sequence = entry.revision
        stream.last[entry.key] = entry
        past = stream.past.setdefault(entry.key, [])
        past.append((now, entry))
        del past[:-HISTORY]
        self.writes.append((bucket, entry, writer))
        for listener in list(stream.listeners):
            listener(entry)

    # --- what tests do to it

    def create_streams(self, keys: Keys) -> None:
        """All streams of a cluster; those that exist stay."""
        buckets = (keys.pipelines, keys.configs, keys.operator, keys.hosts, keys.reports, keys.control, keys.bundles)
        for bucket in buckets:
            if bucket not in self.streams:
                self.recreate(bucket)
        self.republished[keys.control] = keys

    def recreate(self, bucket: str) -> None:
        """A stream of the same name made anew: empty, with another creation time."""
        former = self.streams.get(bucket)
        self._made += 1
        self.streams[bucket] = Stream(created=f"made-{self._made}")
        for ended in list(former.ended) if former is not None else []:
            ended()

    def purge(self, bucket: str, key: str) -> None:
        """A purge by API: the key is gone without a marker, and no watch is told."""
        self.streams[bucket].last.pop(key, None)
        self.streams[bucket].past.pop(key, None)

    def lose_chunks(self, bucket: str, name: str) -> None:
        """The metadata of an object stays, its bytes do not."""
        info, _ = self.streams[bucket].objects[name]
        self.streams[bucket].objects[name] = (info, None)
