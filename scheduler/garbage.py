"""Bundles that no version refers to any more, and versions whose bundle is gone.

A bundle lives as long as a pin refers to its digest. One without a pin is deleted a day later: a rollback that is
being typed, or a bundle put just before its pin is committed, must not lose it. The day begins when this leader
saw the orphan first, so it starts again with every leader, which only delays.

Deleting is the one thing a leader does that the journal does not fence: a leader that was frozen for a day could delete
what its successor has pinned meanwhile. That is found by `missing` and healed from the configuration object.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

import structlog

from shared.documents import Pin
from shared.errors import StoreError
from shared.store import Store

KEEP_S = 24 * 3600.0
DELETIONS_MAX = 50  # in one pass; thousands of orphans must not hold up what people wait for
WORK_MAX = 200  # deletions and restorations that wait

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Orphans:
    """Digests that no pin refers to, and since when (of the leader's own clock)."""

    since_s: Mapping[str, float] = field(default_factory=dict)

    def after(self, bundles: Collection[str], pins: Collection[Pin], now_s: float) -> Orphans:
        """The orphans now: new ones begin their day, adopted or deleted ones are forgotten."""
        pinned = {pin.digest for pin in pins}
        return Orphans({name: self.since_s.get(name, now_s) for name in sorted(bundles) if name not in pinned})

    def due(self, now_s: float) -> tuple[str, ...]:
        """Those whose day is over, oldest first, a bounded number."""
        over = [name for name, since_s in self.since_s.items() if now_s - since_s >= KEEP_S]
        return tuple(sorted(over, key=lambda name: (self.since_s[name], name))[:DELETIONS_MAX])


def missing(bundles: Collection[str], pins: Mapping[tuple[str, str], Pin]) -> frozenset[tuple[str, str]]:
    """The versions whose bundle is not in the store."""
    return frozenset(version for version, pin in pins.items() if pin.digest not in bundles)


class Sweeper:
    """Does what was found, beside the loop. Bounded: what does not fit is found again by the next full pass."""

    def __init__(self, store: Store, bucket: str, restore: Callable[[Pin], Awaitable[bool]]) -> None:
        """`restore` makes the bundle of a pin again, False if its configuration is not what was pinned."""
        self._store = store
        self._bucket = bucket
        self._restore = restore
        self._work: asyncio.Queue[str | Pin] = asyncio.Queue(WORK_MAX)

    def delete(self, digests: Iterable[str]) -> None:
        """Delete these bundles soon."""
        self._add(digests)

    def restore(self, pins: Iterable[Pin]) -> None:
        """Make the bundles of these pins again soon."""
        self._add(pins)

    def _add(self, work: Iterable[str | Pin]) -> None:
        with contextlib.suppress(asyncio.QueueFull):
            for item in work:
                self._work.put_nowait(item)

    async def run(self) -> None:
        """Work for ever."""
        while True:
            item = await self._work.get()
            try:
                if isinstance(item, str):
                    await self._store.delete_object(self._bucket, item)
                    log.info("A bundle that no version needs was deleted.", digest=item)
                elif await self._restore(item):
                    log.info("A missing bundle was made again.", pipeline=item.pipeline, version=item.version)
                else:
                    log.error(
                        "A bundle is missing, and its configuration object is not what was pinned.",
                        pipeline=item.pipeline,
                        version=item.version,
                        remedy=f"store the configuration with sha256 {item.config_digest} again, or publish a version",
                    )
            except StoreError as error:
                log.info("A bundle could not be deleted or made again.", why=str(error))


class Rounds:
    """Of one leadership: one look at all bundles at each full pass."""

    def __init__(self, sweeper: Sweeper) -> None:
        self.missing: frozenset[tuple[str, str]] = frozenset()  # versions whose bundle the last round did not find
        self._sweeper = sweeper
        self._orphans = Orphans()

    def go(
        self, bundles: Collection[str], pins: Mapping[tuple[str, str], Pin], candidates: Iterable[Pin], now_s: float
    ) -> list[tuple[str, str]]:
        """Have orphaned bundles deleted, and missing ones made again that were missing in the last round too; these."""
        self._orphans = self._orphans.after(bundles, [*pins.values(), *candidates], now_s)
        self._sweeper.delete(self._orphans.due(now_s))
        gone = missing(bundles, pins)
        twice = sorted(gone & self.missing)
        self._sweeper.restore([pins[version] for version in twice])
        self.missing = gone
        return twice
