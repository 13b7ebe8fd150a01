"""The store of a simulation: remembers everything that was ever written, by whom and when. The checkers' source."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from shared.keys import Keys
from shared.store import Entry, ObjectInfo, Write
from tests.support.fake_store import FakeStoreServer


@dataclass(frozen=True, slots=True)
class Commit:
    """What was written at once. `expected` are the expectations that came with it, by key. Without entries: the stream
    was made anew, empty."""

    at: float
    bucket: str
    writer: str  # name of the connection
    entries: tuple[Entry, ...]
    expected: tuple[int | None, ...]

    def get(self, key: str) -> Entry | None:
        return next((entry for entry in self.entries if entry.key == key), None)

    @property
    def anew(self) -> bool:
        """Whether the stream was made anew."""
        return not self.entries

    def __str__(self) -> str:
        if self.anew:
            return f"{self.at:9.3f} {self.bucket} is made anew"
        keys = ", ".join(f"{entry.key}{'' if entry.value is not None else ' (deleted)'}" for entry in self.entries[:8])
        more = f" and {len(self.entries) - 8} more" if len(self.entries) > 8 else ""
        return f"{self.at:9.3f} {self.writer:12} {self.bucket}: {keys}{more} @{self.entries[0].revision}"


class RecordingServer(FakeStoreServer):
    """A fake store with its whole history."""

    def __init__(self, *, seed: int, keys: Keys, **options: Any) -> None:
        super().__init__(seed=seed, **options)
        self.keys = keys
        self.history: list[Commit] = []
        self.event_times: list[float] = []
        self._arrivals: dict[str, list[tuple[float, str]]] = {}

    def apply(self, bucket: str, writes: Sequence[Write], writer: str, now: float) -> int:
        self._arrivals.setdefault(bucket, []).append((now, writer))
        first = super().apply(bucket, writes, writer, now)
        entries = tuple(Entry(write.key, write.value, first + index) for index, write in enumerate(writes))
        self.history.append(Commit(now, bucket, writer, entries, tuple(write.expected for write in writes)))
        return first

    def make_anew(self, bucket: str, now: float) -> None:
        """Somebody deletes a stream and makes it again: its revisions begin at 1."""
        self.history.append(Commit(now, bucket, "", (), ()))
        self.recreate(bucket)

    def put_object(self, bucket: str, name: str, data: bytes, writer: str, now: float) -> ObjectInfo:
        info = super().put_object(bucket, name, data, writer, now)
        self.history.append(Commit(now, bucket, writer, (self.streams[bucket].last[name],), (None,)))
        return info

    def delete_object(self, bucket: str, name: str, writer: str, now: float) -> None:
        before = self.streams[bucket].sequence
        super().delete_object(bucket, name, writer, now)
        if self.streams[bucket].sequence != before:
            self.history.append(Commit(now, bucket, writer, (self.streams[bucket].last[name],), (None,)))

    def append(self, subject: str, data: bytes, message_id: str) -> None:
        before = len(self.events)
        super().append(subject, data, message_id)
        if len(self.events) > before:
            self.event_times.append(asyncio.get_running_loop().time())

    def of(self, bucket: str) -> Iterator[Commit]:
        """The commits to one bucket, in order."""
        return (commit for commit in self.history if commit.bucket == bucket)

    def arrivals(self, bucket: str) -> Sequence[tuple[float, str]]:
        """When somebody's writes of a bucket arrived, and whose: those that were refused too."""
        return self._arrivals.get(bucket, [])

    def value(self, bucket: str, key: str) -> bytes | None:
        """What a key has now."""
        entry = self.streams[bucket].last.get(key)
        return None if entry is None else entry.value

    def live(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        """Everything a bucket has now under a prefix, by key."""
        entries = sorted(self.streams[bucket].last.items())
        return {key: entry.value for key, entry in entries if key.startswith(prefix) and entry.value is not None}

    def digest(self) -> str:
        """A hash of everything that was ever written, and when: equal for equal runs."""
        found = hashlib.sha256()
        for commit in self.history:
            found.update(f"{commit.at!r} {commit.bucket} {commit.writer}\n".encode())
            for entry in commit.entries:
                found.update(f"{entry.key} {entry.revision}\n".encode())
                found.update(entry.value if entry.value is not None else b"(deleted)")
        return found.hexdigest()
