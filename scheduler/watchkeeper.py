"""Election and pulse together: what must go on, on time, while the loop computes.

Elector ──> leading, lost ──┬──> Pulse    counts silences in the term that is led
                            └──> Loop     in another thread in production: see `service`
Pulse ────> hosts ─────────────> Loop
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from scheduler.core.view import Policy
from scheduler.elector import Elector, Role
from scheduler.metrics import SchedulerMetrics
from scheduler.pulse import Hosts, Pulse
from scheduler.takeover import Leadership
from shared.clock import Clock
from shared.keys import Keys
from shared.store import Store


@dataclass(frozen=True, slots=True)
class LoopSide:
    """The loop as the watchkeeper sees it: each is called in the watchkeeper's event loop, and returns at once."""

    eligible: Callable[[], bool]
    lead: Callable[[Leadership], None]
    lose: Callable[[int], None]
    hosts: Callable[[Hosts], None]


class Watchkeeper:
    """Everything in one event loop, over two connections. `run` ends after `leave`, or by cancellation."""

    def __init__(
        self,
        lease_store: Store,
        pulse_store: Store,
        keys: Keys,
        clock: Clock,
        *,
        policy: Policy,
        metrics: SchedulerMetrics,
        holder: str,
        name: str,
        token: Callable[[], str],
        loop: LoopSide,
    ) -> None:
        self._loop = loop
        self._elector = Elector(
            lease_store,
            keys,
            clock,
            holder=holder,
            name=name,
            token=token,
            eligible=loop.eligible,
            on_leading=self._lead,
            on_lost=self._lose,
        )
        self._pulse = Pulse(
            pulse_store,
            keys,
            clock,
            thresholds_s=(policy.silent_shareable_s / 2, policy.silent_shareable_s, policy.silent_exclusive_s),
            on_hosts=loop.hosts,
            on_pulse=lambda took_s, longest_s: _show(metrics, took_s, longest_s),
        )

    @property
    def role(self) -> Role:
        """May be read from other threads."""
        return self._elector.role

    async def run(self) -> None:
        """Stand by, lead and pulse until `leave`."""
        async with asyncio.TaskGroup() as group:
            pulse = group.create_task(self._pulse.run(), name="pulse")
            await self._elector.run()
            pulse.cancel()

    async def leave(self) -> None:
        """Stop for good; a leader clears the lease, so that a standby takes over at once."""
        await self._elector.leave()

    def look(self) -> None:
        """The lease may be vacant, or this instance became eligible."""
        self._elector.look()

    def resign(self, term: int) -> None:
        """A commit of `term` was refused."""
        self._elector.resign(term)

    def give_up(self, term: int) -> None:
        """Nothing of `term` can be committed."""
        self._elector.give_up(term)

    def refresh(self) -> None:
        """Hand over the hosts with every silence up to date."""
        self._pulse.refresh()

    def _lead(self, leadership: Leadership) -> None:
        self._pulse.lead(leadership.store_id, leadership.term)
        self._loop.lead(leadership)

    def _lose(self, term: int, _reason: str) -> None:
        self._pulse.stop_leading()
        self._loop.lose(term)


def _show(metrics: SchedulerMetrics, took_s: float, longest_s: float) -> None:
    metrics.pulse_seconds.observe(took_s)
    metrics.silence_seconds_max.set(longest_s)
