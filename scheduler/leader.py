"""What one leadership does, from the takeover that landed to the commit that is refused; dropped with it.

    step: caught up? ──> scope of what changed ──> pass ──> every 60 s a pass over everything, which must find nothing

    pass: want (admission) ──> view ──> plan, audit (worker) ──> commit each part ──> fold it, append its events
                                                             └──> then write the tombstones that it asks for

A wake-up only says "look again": what a pass looks at is the scope that the folds collected. Being leader is not
believed here either: a pass goes on until its commit lands or is refused, and a refusal ends the leadership.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import structlog

from scheduler.admission import Admission
from scheduler.catchup import CatchUp
from scheduler.core.blast import HOSTS
from scheduler.core.candidates import Ready
from scheduler.core.view import Plan, Scope, View
from scheduler.core.world import BLAST, Source, World
from scheduler.finder import Finder
from scheduler.garbage import Rounds, Sweeper
from scheduler.history import History
from scheduler.holds import Holds
from scheduler.inputs import Inputs
from scheduler.journal import Batch, Chain, Deposed, Journal
from scheduler.passes import Decision, Link, decide
from scheduler.ports import Ports
from scheduler.reading import Reading
from scheduler.refused_plans import RefusedPlans
from scheduler.requests import ADMIT_WAIT_S, Requests
from scheduler.takeover import Leadership
from scheduler.tombstones import Outcome, Tombstones
from shared.errors import Unfit

FULL_PASS_S = 60.0
FRESH_WAIT_S = 1.0  # for fresh silences before a full pass; without them it looks at those it has
WAKE_MIN_S = 0.25  # a plan that wants to look again sooner would keep the leader busy with itself
REFUSED_WAIT_S = 10.0  # after a refused plan that names no pipeline to hold
TOMBSTONE_RETRY_S = 1.0  # after one whose outcome is unknown
COALESCE_S = 0.01  # between a commit and the next pass, so that a burst becomes few commits; what comes first after a
# quiet moment is planned at once

log = structlog.get_logger()


class Leader:
    """One leadership. `step` is called whenever something was folded and when `due_s` is reached."""

    def __init__(
        self,
        leadership: Leadership,
        ports: Ports,
        inputs: Inputs,
        admission: Admission,
        history: History,
        sweeper: Sweeper,
        finder: Finder,
    ) -> None:
        self.leadership = leadership
        self.dropped = False
        self._ports = ports
        self._inputs = inputs
        self._history = history
        self._finder = finder
        chain = Chain(leadership.store_id, leadership.term, leadership.term_id, leadership.holder, leadership.term)
        self._journal = Journal(
            ports.store,
            ports.keys.control,
            ports.clock,
            chain,
            token=ports.token,
            on_retry=lambda why: ports.metrics.commit_retries.labels(why).inc(),
        )
        self._accepted = leadership.accepted
        self._holds = Holds(leadership)
        self._reading = Reading(
            CatchUp(self._holds.waits_for()),
            ports.store,
            ports.keys,
            ports.clock,
            marks=lambda: inputs.marks,
            refresh=ports.refresh,
        )
        self._requests = Requests(admission, ports.clock)
        self._first = True
        self._wake_s = math.inf
        self._full_s = math.inf
        self._fresh_asked = False
        self._committed_s = -math.inf
        self._kept_shown: dict[str, int] | None = None  # by the metrics
        self._refused = RefusedPlans(ports.metrics, history, strict=ports.strict)
        self._tombstones = Tombstones(ports.store, ports.keys)
        self._rounds = Rounds(sweeper)

    @property
    def due_s(self) -> float:
        """When to step next even if nothing happens."""
        if not self._able:
            return math.inf  # until something arrives
        if not self._reading.done:
            return self._reading.due_s
        full_s = self._full_s + (FRESH_WAIT_S if self._fresh_asked else 0.0)
        return min(self._wake_s, full_s, self._requests.due_s)

    @property
    def _able(self) -> bool:
        """Every input is listed, and the control bucket is read up to the own last commit."""
        return self._inputs.complete and self._inputs.world.journal_revision >= self._journal.chain.revision

    @property
    def waits_for(self) -> int | None:
        """The commit that this leadership cannot go beyond as long as the store does not say whether a batch landed;
        None: nothing is under way."""
        return self._journal.chain.revision if self._journal.busy else None

    @property
    def quiet_s(self) -> float:
        """Before this the next pass should wait for company."""
        return self._committed_s + COALESCE_S

    async def step(self, *, fresh: bool) -> Deposed | None:
        """Do what is due. `fresh`: every silence was brought up to date by the last fold."""
        world = self._inputs.world
        if not self._able:
            return None
        if not self._reading.done and not await self._catching_up():
            return None
        if self._first:
            led = self.leadership
            host = world.ahead(led.store_id, led.term, led.plan)
            if host or led.store_id in self._inputs.went_back:
                return await self._found_anew(world, host)
        self._end_holds(world)
        self._finder.look(world)
        scope = world.take_scope()
        if self._first:
            return await self._pass(None)
        scope = self._requests.admitted(world.view(), scope)
        woken = self._ports.clock.monotonic() >= self._wake_s
        if woken:
            self._wake_s = math.inf
            self._ports.refresh()
        if woken or not scope.empty or self._holds.stale(world):
            deposed = await self._pass(scope)
            if deposed is not None:
                return deposed
        return await self._full_pass(fresh=fresh)

    async def _catching_up(self) -> bool:
        if await self._reading.look():
            log.info("The new leader has caught up.", term=self.leadership.term)
            self._holds.begin(self._inputs.world, self._reading.caught_up, self._inputs.marks)
        return self._reading.done

    # -- passes -------------------------------------------------------------------------------------------------------

    async def _full_pass(self, *, fresh: bool) -> Deposed | None:
        """Every 60 s, with fresh silences: look at everything. What this finds, no change had announced: a defect."""
        now_s = self._ports.clock.monotonic()
        if now_s < self._full_s:
            return None
        if not fresh and now_s < self._full_s + FRESH_WAIT_S:
            if not self._fresh_asked:
                self._fresh_asked = True
                self._ports.refresh()
            return None
        if self._requests.waiting:
            self._full_s = now_s + ADMIT_WAIT_S
            return None
        rest = self._inputs.world.take_scope()
        if not rest.empty:  # more to do than fits one pass: not the moment
            self._inputs.world.mark(rest)
            self._wake_s = now_s
            return None
        self._sweep()
        return await self._pass(None)

    async def _pass(self, scope: Scope | None) -> Deposed | None:
        """One plan: made, audited, committed. `scope` None: over everything."""
        ports, world = self._ports, self._inputs.world
        began_s = ports.clock.monotonic()
        first, full = self._first, scope is None
        view = world.view()
        if scope is None:
            self._requests.renew(view)
        decision = await self._decide(view, scope)
        if decision.violations:
            self._refuse(decision, view, scope)
            return None
        if full:
            self._first, self._fresh_asked = False, False
            self._full_s = ports.clock.monotonic() + FULL_PASS_S
        if full and not first and not decision.plan.empty:
            self._found(decision.plan)
        try:
            for part, batch in decision.parts:
                if self.dropped:
                    return None
                deposed = await self._commit(part, batch, world)
                if deposed is not None:
                    return deposed
        except Unfit as error:
            self._unfit(error, scope)
            return None
        self._look_again(decision.plan, world)
        await self._bury(decision.plan, view)
        ports.metrics.pass_seconds.labels("full" if full else "changes").observe(ports.clock.monotonic() - began_s)
        return None

    async def _decide(self, view: View, scope: Scope | None) -> Decision:
        ports = self._ports
        policy = replace(ports.policy, hold=self._refused.pipelines(view))
        marks = {name: mark for name, mark in self._inputs.marks.items() if name != Source.CONTROL.value}
        began_s = ports.clock.monotonic()
        last = Link({}, self._accepted, self._holds.known)
        kept = self._inputs.world.all_kept()
        decision = await ports.worker(partial(decide, view, policy, scope, last, marks, kept))
        ports.metrics.plan_seconds.observe(ports.clock.monotonic() - began_s)
        return decision

    async def _commit(self, part: Plan, batch: Batch, world: World) -> Deposed | None:
        ports = self._ports
        began_s = ports.clock.monotonic()
        outcome = await self._journal.commit(batch)
        self._committed_s = ports.clock.monotonic()
        ports.metrics.commit_seconds.observe(self._committed_s - began_s)
        if isinstance(outcome, Deposed):
            ports.metrics.depositions.inc()
            return outcome
        assert outcome.batch is batch, "a commit is never abandoned while its leadership goes on"
        world.fold_journal(outcome.journal, outcome.revision)
        world.fold_plan(part, outcome.first)
        self._accepted = batch.accepted
        for name, said in self._holds.written(batch.holds).items():
            # Hosts that are cut off are an event of the world outside; a stream that lost something is an alarm.
            self._history.tell(world.view(), "outage" if name == HOSTS else "alarm", name, said)
        self._requests.pinned(part.pins)
        ports.metrics.plan_number.set(part.number)
        ports.metrics.writes.inc(2 + len(batch.writes))
        log.info("A plan was committed.", plan=part.number, writes=len(batch.writes), reasons=list(part.reasons))
        for index, event in enumerate(part.events):
            self._history.add(event, f"{event.store_id}-{part.number}-{index}")
        return None

    async def _bury(self, plan: Plan, view: View) -> None:
        """Write the tombstones of a plan. What they allow is for the plan that sees them in the hosts watch."""
        if not plan.tombstones or self.dropped:
            return
        unknown = set()
        for result in await self._tombstones.write(plan.tombstones, view.store_id):
            self._ports.metrics.tombstones.labels(result.outcome.value).inc()
            if result.outcome is Outcome.UNKNOWN:
                unknown.add(result.tombstone.host)
            else:
                self._history.add(result.event(view), result.message_id(view))
        if unknown:
            self._inputs.world.mark(Scope(hosts=frozenset(unknown)))
            self._wake_s = min(self._wake_s, self._ports.clock.monotonic() + TOMBSTONE_RETRY_S)

    def _look_again(self, plan: Plan, world: World) -> None:
        now_s = self._ports.clock.monotonic()
        if plan.rest is not None:
            world.mark(plan.rest)
        if plan.more or plan.rest is not None:
            self._wake_s = now_s
        elif plan.wake_s is not None:
            self._wake_s = now_s + max(plan.wake_s, WAKE_MIN_S)

    # -- holds and alarms ---------------------------------------------------------------------------------------------

    async def _found_anew(self, world: World, host: str) -> Deposed | None:
        """The control stream went back. What it says is older than what the hosts obey, and its numbers would be given
        out a second time: so it becomes another store, which takes over what runs when an operator accepts it."""
        view = world.view()
        why = "it is shorter than it was, or another stream"
        if host:
            why = f"{host} has applied plan {view.reports[host].plan}, which it does not know"
        batch = Batch(
            view.plan + 1,
            reasons=("the control stream went back",),
            inputs=self.leadership.inputs,
            accepted=self._accepted,
            holds=self._holds.known,
            store_id=self._ports.token(),
        )
        outcome = await self._journal.commit(batch)
        if isinstance(outcome, Deposed):
            return outcome  # its successor's plan is the one that it did not know: nothing went back
        log.error(
            "The control stream went back, as from an older backup: it is another store now.",
            why=why,
            plan=view.plan,
            remedy=f"shoal store accept {batch.store_id}",
        )
        self._history.tell(
            view,
            "alarm",
            "control",
            f"the control stream went back: {why}; take over what runs: shoal store accept {batch.store_id}",
        )
        return Deposed("the control stream is another store now")

    def _end_holds(self, world: World) -> None:
        ended = self._holds.end(world, self.leadership.store_id)
        if ended:
            log.warning("An operator confirmed what a stream says; it is followed.", inputs=list(ended))
        kept = {name: len(one.pending) for name, one in world.all_kept().items()}
        if kept != self._kept_shown:  # this is asked in every step
            self._kept_shown = kept
            for name in (*(source.value for source in BLAST), HOSTS):
                self._ports.metrics.kept.labels(name).set(kept.get(name, 0))

    def _refuse(self, decision: Decision, view: View, scope: Scope | None) -> None:
        """The audit refused the plan: hold the pipelines it names as they are, and plan again without them."""
        named, fresh = self._refused.hold(decision, view)
        if scope is not None:
            # If holding them was not enough, they are left out altogether: the rest must go on.
            self._inputs.world.mark(scope if fresh else Scope(scope.pipelines - named, scope.hosts))
        self._wake_s = self._ports.clock.monotonic() + (0.0 if fresh else REFUSED_WAIT_S)

    def _unfit(self, error: Unfit, scope: Scope | None) -> None:
        """The server cannot store a document of this plan. Another leader would meet the same, so a crash would not
        help: say it, and try again."""
        log.error("The store cannot take a plan.", why=str(error))
        self._history.tell(self._inputs.world.view(), "alarm", "store", str(error))
        self._wake_s = self._ports.clock.monotonic() + REFUSED_WAIT_S
        if scope is None:
            self._full_s = self._wake_s
        else:
            self._inputs.world.mark(scope)

    def _found(self, plan: Plan) -> None:
        found = [key for key, _ in plan.documents()]
        self._ports.metrics.full_pass_findings.inc()
        log.warning("A full pass found what no change had announced.", plan=plan.number, keys=found[:20])
        self._history.tell(
            self._inputs.world.view(), "alarm", "full-pass", f"{len(found)} documents, among them {found[0]}"
        )

    # -- bundles ------------------------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        """Have orphaned bundles deleted and missing ones made again, and say which those are."""
        view = self._inputs.world.view()
        candidates = [found.pin for found in view.candidates.values() if isinstance(found, Ready)]
        now_s = self._ports.clock.monotonic()
        for pipeline, version in self._rounds.go(self._inputs.bundles, view.pins, candidates, now_s):
            self._history.tell(
                view, "bundle-missing", pipeline, f"the bundle of version '{version}' is not in the store"
            )
        self._ports.metrics.bundles_missing.set(len(self._rounds.missing))
