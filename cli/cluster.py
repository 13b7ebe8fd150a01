"""One connection of the command line, and what the cluster says of itself."""

from __future__ import annotations

import asyncio
import getpass
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from cli.options import Options
from shared.documents import Assignment, Heartbeat, Report, Status, decode
from shared.errors import BadInput, Missing, Refused, ShoalError, StoreUnavailable
from shared.keys import Keys
from shared.store import Entry, Listing, ObjectInfo, Store, WatchItem

T = TypeVar("T")
D = TypeVar("D")

ELECTION_S = 15.0  # patience with a stream that has no leader at the moment


_NO_KEY = "_"  # no document has it: reading it asks whether the bucket exists, for which a watch would wait for ever


class TimedOut(ShoalError):
    """What was waited for did not happen in time; the message says how things stand."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A connection and the names it works with."""

    store: Store
    keys: Keys

    async def entries(self, bucket: str) -> dict[str, Entry]:
        """Everything in a bucket now. Refused when the bucket does not exist."""
        await self.read(bucket, _NO_KEY)
        return await self._listed(self.store.watch(bucket))

    async def objects(self, bucket: str) -> dict[str, ObjectInfo]:
        """Every object of an object bucket, by name. Refused when the bucket does not exist."""
        await self.read(self.keys.pipelines, _NO_KEY)  # made together with all other buckets
        found = await self._listed(self.store.watch_objects(bucket))
        return {n: decode(ObjectInfo, e.value) for n, e in sorted(found.items()) if e.value is not None}

    async def _listed(self, watch: AsyncIterator[WatchItem]) -> dict[str, Entry]:
        async with aclosing(watch) as items:  # type: ignore[type-var]
            async for item in items:
                if isinstance(item, Listing):
                    return dict(item.entries)
        raise AssertionError("a watch never ends by itself")

    async def documents(self, bucket: str, kind: type[D], prefix: str = "") -> dict[str, D]:
        """All documents of one kind in a bucket, by key without `prefix`; unreadable ones are left out."""
        entries = await self.entries(bucket)
        return select({key: entry for key, entry in entries.items() if not key.startswith("_")}, kind, prefix)

    async def read(self, bucket: str, key: str) -> Entry:
        """One key, from the stream leader. Refused when the bucket does not exist.

        Waits while a replicated stream elects a leader: that takes 4 to 10 s, and a person should not see it.
        """
        deadline = time.monotonic() + ELECTION_S
        while True:
            try:
                return await self.store.read(bucket, key)
            except Missing as error:
                raise self.absent(bucket) from error
            except StoreUnavailable:
                if time.monotonic() >= deadline:
                    raise
                await asyncio.sleep(0.2)

    def absent(self, bucket: str) -> Refused:
        """The sentence for a bucket that does not exist."""
        return Refused(
            f"there is no bucket '{bucket}' on this server: no scheduler of cluster '{self.keys.cluster}' has run "
            "here yet. Start one with `shoal scheduler` (or a whole cluster with `shoal up`), or name another "
            "cluster with --cluster."
        )


@dataclass(frozen=True, slots=True)
class Picture:
    """What hosts, assignments, reports and statuses say together."""

    heartbeats: Mapping[str, Heartbeat]
    assignments: Mapping[str, Assignment]
    reports: Mapping[str, Report]
    statuses: Mapping[str, Status]


async def picture(cluster: Cluster) -> Picture:
    """Read the whole cluster once."""
    control, heartbeats, reports = await asyncio.gather(
        cluster.entries(cluster.keys.control),
        cluster.documents(cluster.keys.hosts, Heartbeat),
        cluster.documents(cluster.keys.reports, Report),
    )
    return Picture(heartbeats, select(control, Assignment, "assign."), reports, select(control, Status, "status."))


def select(entries: Mapping[str, Entry], kind: type[D], prefix: str) -> dict[str, D]:
    """The documents of one kind under the keys with this prefix, by key without it; unreadable ones are left out."""
    found: dict[str, D] = {}
    for key, entry in sorted(entries.items()):
        if key.startswith(prefix) and entry.value is not None:
            try:
                found[key.removeprefix(prefix)] = decode(kind, entry.value)
            except BadInput:
                continue  # one that somebody has overwritten must not hide all others; `shoal doctor` names it
    return found


@asynccontextmanager
async def connected(options: Options) -> AsyncIterator[Cluster]:
    """A connection for the time of a command."""
    from shared.nats_store import connect

    store = await connect(options.connection(), name=f"shoal-cli-{who()}")
    try:
        yield Cluster(store, options.keys)
    finally:
        await store.close()


def run(options: Options, command: Callable[[Cluster], Awaitable[T]]) -> T:
    """Run one command over a connection of its own."""

    async def body() -> T:
        async with connected(options) as cluster:
            return await command(cluster)

    return asyncio.run(body())


def who() -> str:
    """Who gives the command, for documents that people read later."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in many containers
        return "unknown"
