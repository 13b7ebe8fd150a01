"""One scheduler instance: a warm standby, and the leader's loop while it leads.

    watches ──> Inputs ──fold──> World ──> Leader.step: plan, commit, fold ──┐
       Pulse ─────┘                ^                                          │
    Elector ── lead, lose          └──────────────────────────────────────────┘

One thing at a time: fold what arrived, then step. While a step plans in the worker nothing is folded.

A leader that cannot commit must let another one lead: its lease is renewed over a connection of its own, so nobody else
would notice. Was one commit without an answer for HINDERED_S, or every question that it asked over the loop's
connection, the elector is asked to give the lease up; it does so only if its own connection has worked all that time
(`Elector.give_up`). When the whole store is away nobody resigns: nobody could do better. Until its commit is certain
such an instance does not claim the lease again.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import structlog

from scheduler.admission import Admission
from scheduler.finder import Finder
from scheduler.garbage import Sweeper
from scheduler.history import History
from scheduler.inputs import Inputs
from scheduler.leader import Leader
from scheduler.lint import Linter
from scheduler.metrics import census
from scheduler.ports import Ports
from scheduler.pulse import Hosts
from scheduler.takeover import Leadership
from shared.errors import Missing, StoreUnavailable
from shared.keys import LEASE
from shared.store import SHORT_TIMEOUT_S

HINDERED_S = 15.0  # longer than a replicated stream is without a leader (4 to 10 s)
GUARD_S = 2.0  # between two questions
CENSUS_S = 5.0  # between two counts for the metrics; counting 100,000 executions takes some 20 ms

log = structlog.get_logger()


class Loop:
    """`lead`, `lose` and `hosts` are told by elector and pulse, in this event loop.

    `on_deposed(term)`: a commit was refused, the elector must stop leading. `on_vacant`: the elector should look at the
    lease at once. `on_hindered(term)`: nothing of that term can be committed, see the module.
    """

    def __init__(
        self,
        ports: Ports,
        linter: Linter,
        *,
        on_deposed: Callable[[int], None],
        on_vacant: Callable[[], None],
        on_hindered: Callable[[int], None],
    ) -> None:
        self._ports = ports
        self._on_deposed = on_deposed
        self._on_vacant = on_vacant
        self._on_hindered = on_hindered
        self._stepping: Leader | None = None  # may be dropped already, and still wait for the store
        self._hindered = False
        self._news = asyncio.Event()
        self._leading = asyncio.Event()
        self._idle = asyncio.Event()
        self._leader: Leader | None = None
        self._admission = Admission(ports.store, ports.keys, linter, ports.clock, has_bundle=self._has_bundle)
        self._inputs = Inputs(
            ports.store,
            ports.keys,
            ports.policy,
            ports.metrics,
            news=self._news,
            on_vacant=on_vacant,
            on_config=self._admission.fold,
        )
        self._history = History(ports.store, ports.keys, ports.clock, on_dropped=ports.metrics.events_dropped.inc)
        self._finder = Finder(ports.store, ports.keys.bundles, ports.clock, self._news.set)
        self._sweeper = Sweeper(ports.store, ports.keys.bundles, self._admission.restore)
        self._world = self._inputs.world  # the one that the admission's verdicts were folded into
        self._census_s = -math.inf

    @property
    def eligible(self) -> bool:
        """Whether this instance could plan if it led: every input is listed, and no commit of an earlier term is in
        the way. May be read from other threads."""
        return self._inputs.complete and not self._hindered

    @property
    def term(self) -> int:
        """The term that is led; 0 = none. May be read from other threads."""
        leader = self._leader
        return 0 if leader is None else leader.leadership.term

    def lead(self, leadership: Leadership) -> None:
        """A takeover landed."""
        self._drop()
        self._leader = Leader(
            leadership, self._ports, self._inputs, self._admission, self._history, self._sweeper, self._finder
        )
        self._ports.metrics.leader.set(1)
        self._ports.metrics.term.set(leadership.term)
        self._idle.clear()
        self._leading.set()
        self._news.set()

    def lose(self, term: int) -> None:
        """`term` is led no longer. A commit that is under way ends by itself, refused."""
        if self._leader is not None and self._leader.leadership.term == term:
            self._drop()

    def hosts(self, hosts: Hosts) -> None:
        """A new snapshot of the hosts."""
        self._inputs.put_hosts(hosts)

    async def run(self) -> None:
        """Fold for ever, and step while leading."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._inputs.run(), name="inputs")
            group.create_task(self._history.run(), name="history")
            group.create_task(self._sweeper.run(), name="bundles")
            group.create_task(self._finder.run(), name="bundles of a lost store")
            group.create_task(self._admit(), name="admission")
            group.create_task(self._hear(), name="hear admission")
            group.create_task(self._guard(), name="guard")
            group.create_task(self._steps(), name="steps")

    # -- inside -------------------------------------------------------------------------------------------------------

    async def _steps(self) -> None:
        while True:
            await asyncio.sleep(0)  # however much there is to do, watches and answers get their turn
            await self._wait()
            self._news.clear()
            eligible = self.eligible
            fresh = self._inputs.fold()
            if self.eligible and not eligible:
                self._on_vacant()  # it may be, and this instance may now lead
            self._fold_candidates()
            leader = self._leader
            if leader is not None:
                self._stepping = leader
                deposed = await leader.step(fresh=fresh)
                self._stepping = None
                if deposed is not None:
                    log.warning("A commit was refused: deposed.", term=leader.leadership.term, why=deposed.reason)
                    self.lose(leader.leadership.term)
                    self._on_deposed(leader.leadership.term)
            self._count()

    async def _guard(self) -> None:
        """Notice that nothing can be committed, and let go of the lease for it."""
        clock = self._ports.clock
        commit: tuple[Leader | None, int | None] = (None, None)
        began_s = answered_s = clock.monotonic()  # that commit; the last question
        while True:
            await clock.sleep(GUARD_S)
            now = self._stepping or self._leader
            waits_for = None if now is None else now.waits_for
            if waits_for is None or (now, waits_for) != commit:
                commit, began_s = (now, waits_for), clock.monotonic()
            if now is None or await self._answers():
                answered_s = clock.monotonic()
            self._hindered = clock.monotonic() >= min(began_s, answered_s) + HINDERED_S
            if self._hindered and self._leader is not None:
                self._on_hindered(self._leader.leadership.term)

    async def _answers(self) -> bool:
        """Whether the store answers over the loop's connection, whatever it says."""
        try:
            await self._ports.store.read(self._ports.keys.control, LEASE, timeout=SHORT_TIMEOUT_S)
        except StoreUnavailable:
            return False
        except Missing:
            pass
        return True

    async def _wait(self) -> None:
        """Until something arrived or is due; then, shortly after a commit, a moment longer for company."""
        clock = self._ports.clock
        while not self._news.is_set():
            due_s = math.inf if self._leader is None else self._leader.due_s
            left_s = min(due_s, self._census_s + CENSUS_S) - clock.monotonic()
            if left_s <= 0:
                break
            await clock.wait(self._news, left_s)
        quiet_s = -math.inf if self._leader is None else self._leader.quiet_s - clock.monotonic()
        if quiet_s > 0:
            await clock.sleep(quiet_s)

    def _fold_candidates(self) -> None:
        changes = self._admission.take_changes()
        if self._world is not self._inputs.world:
            self._world = self._inputs.world
            changes = self._admission.candidates()
        for version, candidate in changes.items():
            self._world.fold_candidate(*version, candidate)

    async def _hear(self) -> None:
        """The admission's verdicts wake the loop."""
        while True:
            await self._admission.changed.wait()
            self._admission.changed.clear()
            self._news.set()

    async def _admit(self) -> None:
        """The admission works while this instance leads."""
        while True:
            await self._leading.wait()
            async with asyncio.TaskGroup() as group:
                working = group.create_task(self._admission.run(), name="admission work")
                await self._idle.wait()
                working.cancel()

    def _has_bundle(self, digest: str) -> bool:
        return digest in self._inputs.bundles

    def _drop(self) -> None:
        if self._leader is not None:
            self._leader.dropped = True
            self._leader = None
        self._ports.metrics.leader.set(0)
        self._ports.metrics.term.set(0)
        self._leading.clear()
        self._idle.set()

    def _count(self) -> None:
        now_s = self._ports.clock.monotonic()
        if now_s < self._census_s + CENSUS_S:
            return
        self._census_s = now_s
        if self._inputs.world.journal is not None:
            world = self._inputs.world
            self._ports.metrics.show(census(world.view(), self._ports.policy), world.problems)
