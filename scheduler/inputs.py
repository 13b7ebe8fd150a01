"""The warm view: every watch of a scheduler, folded into one `World`. Leaders and standbys alike.

    pipelines, configs, operator, reports, control ──watches──┐
                                                  hosts ──────┼──> arrived ──fold()──> World, marks
                                                bundles ──────┘

What arrives waits in a queue until `fold` is called, between passes: the view that a plan is made from is not copied,
so nothing may change it meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

import structlog

from scheduler.core.blast import replaced
from scheduler.core.view import Policy
from scheduler.core.world import Source, World
from scheduler.metrics import SchedulerMetrics
from scheduler.pulse import Hosts
from scheduler.takeover import holder_of
from shared.documents import InputMark
from shared.keys import LEASE, Keys
from shared.store import Change, Listing, Stalled, Store, WatchItem

HOSTS = "hosts"  # the name of the sixth input, which comes from the pulse
ARRIVED_MAX = 50_000  # items that wait while a plan is made; then the watches wait too, and the server after them

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Arrived:
    source: Source | None  # None: the bundles
    item: Listing | Change


class Inputs:
    """Watches over one connection and keeps `world` and `marks`. `news` is set whenever something arrived.

    `on_vacant`: the control watch shows a lease without a holder. `on_config`: what the configs watch delivers, for the
    admission. Both are called at once, not between passes.
    """

    def __init__(
        self,
        store: Store,
        keys: Keys,
        policy: Policy,
        metrics: SchedulerMetrics,
        *,
        news: asyncio.Event,
        on_vacant: Callable[[], None],
        on_config: Callable[[WatchItem], None],
    ) -> None:
        self._store = store
        self._keys = keys
        self._policy = policy
        self._metrics = metrics
        self._news = news
        self._on_vacant = on_vacant
        self._on_config = on_config
        self._arrived: deque[_Arrived] = deque()
        self._room = asyncio.Event()
        self._hosts: Hosts | None = None  # not folded yet
        self._last_hosts: Hosts | None = None
        self._renew = asyncio.Event()
        self.went_back: set[str] = set()  # store ids whose control stream was replaced, as this instance saw
        self._begin()

    def _begin(self) -> None:
        self.world = World(self._policy)
        self.bundles: set[str] = set()
        self.marks: dict[str, InputMark] = {}
        self.complete = False  # whether every input was listed, and none is being listed anew
        self._missing = {*(source.value for source in Source), HOSTS}
        self._arrived.clear()
        self._room.set()
        self._hosts = self._last_hosts
        self._store_id = ""  # as the journal says

    def put_hosts(self, hosts: Hosts) -> None:
        """The newest snapshot of the hosts; replaces one that was not folded yet."""
        if self._hosts is not None and self._hosts.fresh and not hosts.fresh:
            hosts = replace(hosts, fresh=True)
        self._hosts = hosts
        self._news.set()

    async def run(self) -> None:
        """Watch for ever. Begins anew, with an empty world, when the control stream was made anew."""
        while True:
            async with asyncio.TaskGroup() as group:
                watches = [group.create_task(self._follow(source), name=f"watch {source.value}") for source in Source]
                watches.append(group.create_task(self._follow(None), name="watch bundles"))
                await self._renew.wait()
                for watch in watches:
                    watch.cancel()
            self._renew.clear()
            self._begin()

    def fold(self) -> bool:
        """Fold all that arrived; whether the hosts were among it with every silence up to date."""
        while self._arrived:
            arrived = self._arrived.popleft()
            if arrived.source is None:
                self._fold_bundles(arrived.item)
            else:
                self._fold(arrived.source, arrived.item)
        self._room.set()
        hosts, self._hosts = self._hosts, None
        if hosts is not None:
            self._last_hosts = hosts
            mark = self.marks[HOSTS] = InputMark(hosts.mark.created, hosts.mark.sequence)
            self.world.fold_hosts(hosts.views, hosts.term_age_s, hosts.gone, mark)
            self._missing.discard(HOSTS)
        self._check_store()
        self.complete = not self._missing
        return hosts is not None and hosts.fresh

    def _check_store(self) -> None:
        """Another store id in the journal: whatever else the control stream had may be gone without a word."""
        if self.world.journal is None:
            return
        if self._store_id not in ("", self.world.journal.store_id):
            self._missing.add(Source.CONTROL.value)
            self._renew.set()
        self._store_id = self.world.journal.store_id

    # -- inside -------------------------------------------------------------------------------------------------------

    async def _follow(self, source: Source | None) -> None:
        async for item in self._watch(source):
            name = "bundles" if source is None else source.value
            if isinstance(item, Stalled):
                self._metrics.watch_stalls.labels(name).inc()
                if source is not None:
                    self._missing.add(name)
                    self.complete = False
                continue
            if isinstance(item, Listing):
                self._metrics.watch_lists.labels(name).inc()
            if source is Source.CONTROL and _vacant(item):
                self._on_vacant()
            elif source is Source.CONFIGS:
                self._on_config(item)
            if len(self._arrived) >= ARRIVED_MAX:
                self._room.clear()
                await self._room.wait()
            self._arrived.append(_Arrived(source, item))
            self._news.set()

    def _watch(self, source: Source | None) -> AsyncIterator[WatchItem]:
        if source is None:
            return self._store.watch_objects(self._keys.bundles)
        bucket: str = getattr(self._keys, source.value)
        return self._store.watch_objects(bucket) if source is Source.CONFIGS else self._store.watch(bucket)

    def _fold(self, source: Source, item: Listing | Change) -> None:
        known = self.marks.get(source.value)
        match item:
            case Listing(mark=mark):
                self._missing.discard(source.value)
                now = InputMark(mark.created, mark.sequence)
                reason = "" if known is None else replaced(known, now)
                if known is None or not reason:
                    self.world.fold_listing(source, item)
                    self.marks[source.value] = now
                else:
                    self._changed_identity(source, item, known, now, reason)
            case Change(entry):
                assert known is not None, "a watch begins with a list"
                self.world.fold_change(source, item)
                self.marks[source.value] = replace(known, sequence=max(known.sequence, entry.revision))

    def _changed_identity(
        self, source: Source, listing: Listing, known: InputMark, now: InputMark, reason: str
    ) -> None:
        log.error(
            "An input stream is not what it was.",
            input=source.value,
            why=reason,
            known=f"{known.created} {known.sequence}",
            now=f"{now.created} {now.sequence}",
            consequence="everything is read anew" if source is Source.CONTROL else "what runs goes on",
        )
        if source is not Source.CONTROL:
            self.world.fold_replaced(source, listing, known, reason)
            self.marks[source.value] = now
        else:
            if self._store_id:
                self.went_back.add(self._store_id)
            # Revisions of different streams cannot be compared, so nothing of the old one may stay.
            self._renew.set()

    def _fold_bundles(self, item: Listing | Change) -> None:
        match item:
            case Listing(entries=entries):
                self.bundles = set(entries)
            case Change(entry):
                (self.bundles.discard if entry.value is None else self.bundles.add)(entry.key)


def _vacant(item: Listing | Change) -> bool:
    match item:
        case Listing(entries=entries):
            return LEASE not in entries or not holder_of(entries[LEASE])
        case Change(entry):
            return entry.key == LEASE and not holder_of(entry)
