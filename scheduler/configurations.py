"""The configurations in the object store: what the watch says of them, and reading them, each revision once.

Bounded: a few large objects at once, and as much kept in memory as records may ask for next. Whatever parses runs in a
thread.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Protocol

from scheduler.core.blast import replaced
from shared.configuration import Configuration, read_configuration, too_large
from shared.documents import InputMark, decode
from shared.errors import BadInput
from shared.keys import CONFIG_BYTES_MAX, Keys
from shared.store import Entry, Listing, ObjectInfo

FETCH_TIMEOUT_S = 15.0  # an object of 8 MiB over a slow link
LARGE_BYTES = 256 * 1024
LARGE_MAX = 2  # of these at once, from reading to verdict: parsed, one may take some ten times its size
KEPT_BYTES_MAX = 32 * 1024 * 1024  # of configurations that were read; records may ask for them next
KEPT_MAX = 1000


class Objects(Protocol):
    """What admission needs of a store."""

    async def get_object(self, bucket: str, name: str, *, bytes_max: int, timeout: float = ...) -> bytes: ...

    async def put_object(self, bucket: str, name: str, data: bytes, *, timeout: float = ...) -> ObjectInfo: ...


class Configurations:
    """What is known of the objects of the configs bucket, by name."""

    def __init__(self, store: Objects, keys: Keys) -> None:
        self._store = store
        self._bucket = keys.configs
        self._infos: dict[str, ObjectInfo] = {}
        self._mark: InputMark | None = None  # of their stream when it was listed last
        self._kept: OrderedDict[tuple[str, int], Configuration] = OrderedDict()  # by object name and revision
        self._kept_bytes = 0
        self._fetching: dict[tuple[str, int], asyncio.Event] = {}
        self._large = asyncio.Semaphore(LARGE_MAX)

    # --- what the watch says

    def revision(self, name: str) -> int:
        """Of an object; 0 = the watch has shown none."""
        info = self._infos.get(name)
        return info.revision if info is not None else 0

    def lost(self, listing: Listing) -> list[str]:
        """The objects that a new list does not have, or not as they were known: of another stream, whose revisions
        cannot be compared, all of them."""
        before, self._mark = self._mark, InputMark(listing.mark.created, listing.mark.sequence)
        other = before is not None and replaced(before, self._mark)
        return [known for known in self._infos if other or known not in listing.entries]

    def learn(self, entry: Entry) -> bool:
        """Take over what is said of an object. False: it is nothing newer."""
        before = self._infos.get(entry.key)
        if before is not None and 0 < entry.revision <= before.revision:
            return False
        info = _info(entry)
        if info is None:
            self._infos.pop(entry.key, None)
        else:
            self._infos[entry.key] = info
        if before is not None:
            self._forget(entry.key, before.revision)
        return True

    # --- reading

    async def get(self, name: str, revision: int) -> Configuration:
        """The configuration in an object, from memory if it was read at this revision. Raises Missing, BadInput,
        StoreError."""
        key = (name, revision)
        while key in self._fetching:
            await self._fetching[key].wait()
        kept = self._kept.get(key)
        if kept is not None:
            return kept
        ended = self._fetching[key] = asyncio.Event()
        try:
            configuration = await self.read(name)
            if revision:
                self._keep(name, revision, configuration)
            return configuration
        finally:
            del self._fetching[key]
            ended.set()

    async def read(self, name: str) -> Configuration:
        """The configuration in an object, whatever its revision. Raises Missing, BadInput, StoreError."""
        info = self._infos.get(name)
        if info is not None and info.size > CONFIG_BYTES_MAX:
            raise BadInput(too_large(info.size))
        data = await self._store.get_object(self._bucket, name, bytes_max=CONFIG_BYTES_MAX, timeout=FETCH_TIMEOUT_S)
        return await asyncio.to_thread(read_configuration, data)

    def room(self, name: str) -> AbstractAsyncContextManager[object]:
        """Held while an object is looked at, so that only a few large ones are in memory."""
        info = self._infos.get(name)
        return self._large if info is not None and info.size > LARGE_BYTES else nullcontext()

    def _keep(self, name: str, revision: int, configuration: Configuration) -> None:
        """Remember a configuration until records have asked for it; the oldest go when there are too many."""
        self._forget(name, revision)
        self._kept[name, revision] = configuration
        self._kept_bytes += configuration.size
        while self._kept_bytes > KEPT_BYTES_MAX or len(self._kept) > KEPT_MAX:
            self._forget(*next(iter(self._kept)))

    def _forget(self, name: str, revision: int) -> None:
        dropped = self._kept.pop((name, revision), None)
        if dropped is not None:
            self._kept_bytes -= dropped.size


def _info(entry: Entry) -> ObjectInfo | None:
    """What a watch says of an object; None = it is not there, or nobody can read what is said."""
    if entry.value is None:
        return None
    try:
        return decode(ObjectInfo, entry.value)
    except BadInput:
        return None
