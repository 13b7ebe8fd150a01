"""What runs under a store that was lost: read out of its bundle, since its pin is lost as well.

Bundles are named by the hash of their bytes, so what a bundle says of the version that runs cannot be wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Set

import structlog

from scheduler.core import adoption
from scheduler.core.adoption import Running
from scheduler.core.candidates import remade
from scheduler.core.world import World
from shared.bundle import BUNDLE_BYTES_MAX
from shared.clock import Clock
from shared.documents import Pin
from shared.errors import BadInput, Missing, StoreError
from shared.store import Store

RETRY_S = 1.0

log = structlog.get_logger()


class Finder:
    """`look` at each step: it is `take` and `want`. `news` is called when there is something to take."""

    def __init__(self, store: Store, bucket: str, clock: Clock, news: Callable[[], None]) -> None:
        self._store = store
        self._bucket = bucket
        self._clock = clock
        self._news = news
        self._wanted: set[Running] = set()
        self._found: dict[Running, Pin | None] = {}
        self._wake = asyncio.Event()

    def look(self, world: World) -> None:
        """Tell the world what was found, and want what it still lacks."""
        world.fold_found(self.take())
        view = world.view()
        self.want(adoption.wanted(view) - view.found.keys())

    def want(self, wanted: Set[Running]) -> None:
        """All that is to be found; replaces what was wanted before."""
        self._wanted = set(wanted)
        if wanted:
            self._wake.set()

    def take(self) -> dict[Running, Pin | None]:
        """What was found since the last call; None: nothing says what that is."""
        found, self._found = self._found, {}
        return found

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._wanted:
                name = min(self._wanted)
                self._wanted.discard(name)
                try:
                    self._found[name] = await self._find(name)
                except StoreError as error:
                    log.info("A bundle that runs cannot be read now.", digest=name[2], why=str(error))
                    self._wanted.add(name)
                    await self._clock.sleep(RETRY_S)
                else:
                    self._news()

    async def _find(self, name: Running) -> Pin | None:
        pipeline, version, digest = name
        try:
            data = await self._store.get_object(self._bucket, digest, bytes_max=BUNDLE_BYTES_MAX)
            return remade(pipeline, version, digest, data)
        except (Missing, BadInput) as error:
            log.error(
                "Nothing says what runs; it goes on until its next version.",
                pipeline=pipeline,
                version=version,
                digest=digest,
                why=str(error),
            )
            return None
