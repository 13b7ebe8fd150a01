"""Looks at what the executor has: lists it, listens to its events, and reads health files closely while it matters.

run      list now when woken (by events, by own actions that ended), else every few seconds
listen   events of the engine; each says only "look again"
watch    health files: closely of what is on its way to readiness, now and then of the rest
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from contextlib import aclosing

import structlog

from agent.core import inventory as rules
from agent.core.inventory import Inventory
from agent.executor import Executor, Found
from agent.metrics import AgentMetrics
from shared.clock import Clock
from shared.errors import ExecutorUnavailable

LIST_PERIOD_S = 5.0
LIST_DEADLINE_S = 30.0  # over the executor's own; an engine that is slower shows a problem, and is asked again
LIST_GAP_S = 0.05  # between two lists at least
LIST_SHARE = 5.0  # and this many times as long as the last one took: looking must not keep the engine from working
LIST_PAUSE_MAX_S = 10.0  # yet after one list that hung nobody may be blind for a minute: an end is seen only by a list
LIST_RETRY_S = 1.0  # after a list that failed
NEAR_S = 0.025  # between two looks at the health of what is starting: a person waits for it
NEAR_FILES_PER_S = 500  # read at most: a file costs some 40 µs, and many starts at once need the processor themselves
FAR_S = 1.0  # between two looks at the health of the rest

log = structlog.get_logger()


class Lookout:
    """`inventory` is what we know. It may be acted on once `listed`; `problem` says why it may be out of date.

    `strays`: what the last list saw of stores that were not accepted then. `looked` is set once there was a list.
    """

    def __init__(
        self,
        *,
        executor: Executor,
        clock: Clock,
        metrics: AgentMetrics,
        busy: Callable[[], Collection[str]],
        changed: Callable[[], None],
        noticed: Callable[[str], None],
    ) -> None:
        """`noticed` is told when the engine ceases to list its executions, with the problem, and when it does again
        (""), `changed` of everything."""
        self._executor, self._clock, self._metrics = executor, clock, metrics
        self._busy, self._changed, self._noticed = busy, changed, noticed
        self._wake = asyncio.Event()
        self._nearer = asyncio.Event()
        self._near: frozenset[str] = frozenset()
        self._accepted: frozenset[str] = frozenset()
        self.inventory = Inventory()
        self.listed = False
        self.problem = ""
        self.strays: tuple[Found, ...] = ()
        self.looked = asyncio.Event()

    def adopt(self, accepted: frozenset[str]) -> None:
        """These stores' executions are ours. What was known says nothing about those that become ours now."""
        if accepted != self._accepted:
            self._accepted = accepted
            self._executor.adopt(accepted)
            self.listed = False
            self.wake()

    def wake(self) -> None:
        """List again soon."""
        self._wake.set()

    def attend(self, near: frozenset[str]) -> None:
        """Read the health of these closely."""
        if near != self._near:
            self._near = near
            self._nearer.set()

    async def run(self) -> None:
        """List for ever."""
        while True:
            self._wake.clear()
            begun_s = self._clock.monotonic()
            await self._list()
            took_s = self._clock.monotonic() - begun_s
            pause_s = min(max(LIST_GAP_S, LIST_SHARE * took_s), LIST_PAUSE_MAX_S)
            await self._clock.sleep(LIST_RETRY_S if self.problem else pause_s)
            await self._clock.wait(self._wake, LIST_PERIOD_S)

    async def listen(self) -> None:
        """Turn the engine's events into lists, for ever."""
        async with aclosing(self._executor.events()) as events:  # type: ignore[type-var]
            async for _ in events:
                self.wake()

    async def watch(self) -> None:
        """Read health files, for ever."""
        far_s = self._clock.monotonic()
        while True:
            now_s = self._clock.monotonic()
            if now_s >= far_s:
                far_s = now_s + FAR_S
                await self._read_health(self.inventory.found.keys())
            elif self._near:
                await self._read_health(self._near)
            left_s = far_s - self._clock.monotonic()
            if self._near:
                await self._clock.sleep(max(NEAR_S, len(self._near) / NEAR_FILES_PER_S))
            else:
                self._nearer.clear()
                await self._clock.wait(self._nearer, left_s)

    async def _list(self) -> None:
        asked, accepted = self.inventory.number, self._accepted
        busy = frozenset(self._busy())
        try:
            with self._metrics.call("list"):
                async with asyncio.timeout(LIST_DEADLINE_S):
                    items = await self._executor.list()
        except (ExecutorUnavailable, TimeoutError) as error:
            problem = str(error) or f"the engine did not list its executions within {LIST_DEADLINE_S:g} s"
            if not self.problem:
                log.warning("The executor cannot list its executions.", problem=problem)
                self._noticed(problem)
            self.problem = problem
        else:
            self.strays = self._executor.strays
            self.looked.set()
            if self.problem:
                log.info("The executor lists its executions again.")
                self._noticed("")
            self.problem = ""
            if accepted == self._accepted:
                self.listed = True
                self.inventory = rules.listed(self.inventory, items, asked=asked, busy=busy | frozenset(self._busy()))
        self._changed()

    async def _read_health(self, executions: Collection[str]) -> None:
        if not executions:
            return
        try:
            found = self.inventory.found
            healths = await self._executor.health({name: found[name].store_id for name in executions if name in found})
        except ExecutorUnavailable as error:
            log.debug("Health files could not be read.", problem=str(error))
            return
        known = rules.healthy(self.inventory, healths)
        if known is not self.inventory:
            self.inventory = known
            self._changed()
