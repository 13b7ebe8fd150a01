"""A whole scheduler in one event loop. In production `scheduler.service` puts the watchkeeper into a thread of its own
and wires the same parts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from prometheus_client import CollectorRegistry

from scheduler.core.view import Policy
from scheduler.elector import Role
from scheduler.lint import Linter, NoLint
from scheduler.loop import Loop
from scheduler.metrics import SchedulerMetrics
from scheduler.ports import Ports, T, Worker
from scheduler.watchkeeper import LoopSide, Watchkeeper
from shared.clock import Clock
from shared.keys import Keys
from shared.store import Store


async def in_place(work: Callable[[], T], /) -> T:
    """The worker of one event loop: computes where it is called."""
    return work()


class Instance:
    """One scheduler over three connections (loop, lease, pulse) that belong to the running event loop.

    A crash is the cancellation of `run`. `token` gives random ids, never the same twice. An audit violation is an
    AssertionError out of `run` (`strict`).
    """

    def __init__(
        self,
        store: Store,
        lease_store: Store,
        pulse_store: Store,
        keys: Keys,
        clock: Clock,
        *,
        name: str,
        token: Callable[[], str],
        policy: Policy | None = None,
        linter: Linter | None = None,
        worker: Worker = in_place,
        strict: bool = True,
    ) -> None:
        self.name = name
        self.registry = CollectorRegistry()
        policy = policy or Policy()
        metrics = SchedulerMetrics(self.registry)
        ports = Ports(store, keys, clock, policy, metrics, worker, token, self._refresh, strict)
        self.loop = Loop(
            ports,
            linter or NoLint(),
            on_deposed=self._resign,
            on_vacant=self._look,
            on_hindered=self._give_up,
        )
        self.watchkeeper = Watchkeeper(
            lease_store,
            pulse_store,
            keys,
            clock,
            policy=policy,
            metrics=metrics,
            holder=token(),
            name=name,
            token=token,
            loop=LoopSide(lambda: self.loop.eligible, self.loop.lead, self.loop.lose, self.loop.hosts),
        )

    @property
    def leading(self) -> bool:
        return self.watchkeeper.role is Role.LEADING

    async def run(self) -> None:
        """Until `leave` or cancellation."""
        async with asyncio.TaskGroup() as group:
            loop = group.create_task(self.loop.run(), name=f"{self.name} loop")
            await self.watchkeeper.run()
            loop.cancel()

    async def leave(self) -> None:
        """Stop on purpose."""
        await self.watchkeeper.leave()

    # The loop is made before the watchkeeper, so it is given these.

    def _refresh(self) -> None:
        self.watchkeeper.refresh()

    def _resign(self, term: int) -> None:
        self.watchkeeper.resign(term)

    def _look(self) -> None:
        self.watchkeeper.look()

    def _give_up(self, term: int) -> None:
        self.watchkeeper.give_up(term)
