"""The agent of one host: reads its assignment, makes the executor match it, reports what it observes.

    heartbeat ─ session, valid ─────────────────────────────┐
    instructions ─ admitted assignment ──┐                  v
    lookout ─ inventory, problem ────────┼── pass: diff ── report
    bundles ─ have ──────────────────────┘        └─ actions ── work ── executor

A pass is a plain function of what is known; whoever learns something wakes it. Nothing here decides: `core.diff` does.
The store is needed to learn of a new assignment and to tell what is observed. To keep running what was assigned, and to
start it again when it ends, it is not.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

import structlog

from agent.core import inventory as known
from agent.core.diff import STOP_GRACE_S, diff
from agent.core.situation import Action, Decision, Fetch, Situation, Start
from agent.core.strays import strays
from agent.executor import Found, Life
from agent.grants import Grants
from agent.heartbeat import Facts, Heart
from agent.history import History, Origin
from agent.host import Host
from agent.instructions import Instructions
from agent.logs import Logs
from agent.lookout import Lookout
from agent.memories import Memories
from agent.metrics import AgentMetrics
from agent.report import Reporter
from agent.state import Book, Saved
from agent.work import Done, Failed, Result, Work
from shared.bundle import Runtime
from shared.documents import Assignment, Observed, Report, Session, Stray, decode
from shared.errors import BadInput, ExecutorError
from shared.log_stream import LogRequest
from shared.states import Phase, Wanted

NEAR_FOR_S = 60.0  # so long after its start an execution that is not ready is watched closely
TIDY_GAP_S = 0.5  # before another look, where unused bundles could not be deleted

log = structlog.get_logger()


class Agent:
    """`run` until cancelled; executions go on without it."""

    def __init__(self, host: Host, metrics: AgentMetrics) -> None:
        """Reads the state directory, the lease file and the grants."""
        self._host, self._clock, self._executor, self._bundles = host, host.clock, host.executor, host.bundles
        self._metrics = metrics
        self._woken, self._untidy = asyncio.Event(), asyncio.Event()
        self._memories = Memories(host.durable, host.offload, host.clock)
        self._coming: frozenset[str] = frozenset()  # digests of the assignment that was read last
        self._reachable_since_s: float | None = None  # boot clock
        self._applied = (0, 0)  # term and plan of the last pass that knew all
        self.decision = Decision(actions=(), observed=(), memory={}, wake_s=None)

        self._book = book = Book(host.durable, host.offload)
        self._history = History(
            host=host.name,
            store=host.store,
            keys=host.keys,
            clock=host.clock,
            token=f"{host.name}-{book.saved.agent}-{host.clock.boot()!r}",
            origin=self._origin,
        )
        self.lookout = Lookout(
            executor=host.executor,
            clock=host.clock,
            metrics=metrics,
            busy=self._busy,
            changed=self._woken.set,
            noticed=self._history.engine,
        )
        self._facts = Facts(host.facts, host.executor, host.clock)
        self.heart = Heart(
            host=host.name,
            boot=host.boot,
            lease_s=host.lease_s,
            store=host.heart_store,
            keys=host.keys,
            clock=host.clock,
            book=book,
            lease=host.lease,
            facts=self._facts,
            metrics=metrics,
            strays=self._strays,
            looked=self.lookout.looked,
            ended=self._session_ended,
            changed=self._session_changed,
        )
        self._grants = Grants(host.grants, host.keys.cluster, self.heart.session)
        self.instructions = Instructions(
            host=host.name,
            store=host.store,
            keys=host.keys,
            clock=host.clock,
            book=book,
            metrics=metrics,
            valid=self._valid,
            coming=self._prepare,
            changed=self._admitted,
            refused=self._history.assignment_refused,
        )
        self._work = Work(
            executor=host.executor,
            bundles=host.bundles,
            metrics=metrics,
            permit=self._permit,
            finished=self._finished,
        )
        self._reporter = Reporter(
            host=host.name, store=host.store, keys=host.keys, clock=host.clock, metrics=metrics, valid=self._valid
        )
        self._logs = Logs(
            host=host.name,
            store=host.store,
            keys=host.keys,
            executor=host.executor,
            clock=host.clock,
            valid=self._valid,
        )

    async def run(self) -> None:
        """Everything at once, until cancelled. What ends by itself is a defect and ends the agent."""
        _warm_up()
        await self._bundles.load()
        self._admitted()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._work.run(), name="work")
                group.create_task(self.heart.run(), name="heartbeat")
                group.create_task(self._facts.run(), name="engine check")
                group.create_task(self.instructions.listen(), name="assignment hints")
                group.create_task(self.instructions.run(), name="assignment")
                group.create_task(self.lookout.listen(), name="executor events")
                group.create_task(self.lookout.watch(), name="health")
                group.create_task(self.lookout.run(), name="list")
                group.create_task(self._decide(), name="decide")
                group.create_task(self._reporter.run(), name="report")
                group.create_task(self._memories.run(), name="restart counts")
                group.create_task(self._tidy(), name="bundle directory")
                group.create_task(self._logs.run(), name="logs")
                group.create_task(self._history.run(), name="history")
        finally:
            self._memories.save()

    async def remove_all(self) -> None:
        """Stop and remove everything that is ours, after `run` was cancelled. What the executor refuses is logged."""
        self._admitted()
        self._grants.revoke_all()
        try:
            items = await self._executor.list()
            async with asyncio.TaskGroup() as group:
                for item in items:
                    group.create_task(self._remove(item), name=f"remove {item.execution}")
        except ExecutorError as error:
            log.error("The executions could not be listed; they go on.", problem=str(error))
        self._memories.clear()

    async def _remove(self, item: Found) -> None:
        bundle = self._bundles.have.get(item.digest)
        try:
            await self._executor.remove(item.execution, bundle.runtime.stop_grace_s if bundle else STOP_GRACE_S)
        except ExecutorError as error:
            log.error("An execution could not be removed.", execution=item.execution, problem=str(error))

    # --- wakes

    def _valid(self) -> bool:
        return self.heart.valid

    def _busy(self) -> Mapping[str, Action]:
        return self._work.busy

    def _strays(self) -> tuple[tuple[Stray, ...], str]:
        """What the heartbeat tells of executions that no store commands."""
        lookout = self.lookout
        if not lookout.looked.is_set():
            return (), lookout.problem or "its executor has not listed what it has yet"
        return strays((*lookout.inventory.found.values(), *lookout.strays), self.instructions.admitted)

    def _session_ended(self, session: Session, why: str) -> None:
        """Take away all that the session held, before the next one begins. The next pass stops what ran under it."""
        self._grants.revoke_bound()
        self._history.session_ended(session, why)
        self._woken.set()

    def _session_changed(self) -> None:
        self.instructions.wake()
        self._reporter.wake()
        self._woken.set()

    def _prepare(self, assignment: Assignment) -> None:
        """Fetch bundles while the assignment is made durable: a person waits for both."""
        self._coming = frozenset(item.digest for item in assignment.executions if item.wanted is Wanted.RUN)
        for digest in sorted(self._coming - self._bundles.have.keys()):
            self._work.prepare(digest)

    def _admitted(self) -> None:
        admitted = self.instructions.admitted
        if admitted is not None:
            self._grants.adopt(admitted.accepted, self.lookout.inventory.uncertain.keys())
            self.lookout.adopt(admitted.accepted)
            self._coming = frozenset()
        self._woken.set()

    def _permit(self, action: Action) -> None:
        self._grants.permit(action, self.heart.session)

    def _finished(self, action: Action, result: Result) -> None:
        """Take over what an action has changed."""
        lookout, admitted = self.lookout, self.instructions.admitted
        assert admitted is not None, "without an assignment nothing is done"
        match result:
            case Done():
                lookout.inventory = known.done(lookout.inventory, action)
                self._memories.done(action)
            case Failed(cause, reason, certain):
                lookout.inventory = known.failed(lookout.inventory, action, known=certain)
                self._memories.failed(action, cause, reason)
        if not isinstance(action, Fetch):
            lookout.wake()
        self._woken.set()

    # --- the pass

    async def _decide(self) -> None:
        while True:
            self._woken.clear()
            wake_s = self._pass()
            await self._clock.wait(self._woken, wake_s)

    def _pass(self) -> float | None:
        """Decide on what is known now, begin what can begin, say what is observed; when to look again."""
        admitted = self.instructions.admitted
        if admitted is None:
            return None
        if not self.lookout.listed:
            if self.lookout.problem:
                self._say(())
            return None
        begun_s, now_s = self._clock.monotonic(), self._clock.boot()
        inventory = self.lookout.inventory
        if not self.heart.valid:
            self._reachable_since_s = None
        elif self._reachable_since_s is None:
            self._reachable_since_s = now_s
        reachable_since_s = self._reachable_since_s
        situation = Situation(
            assignment=admitted.assignment,
            found=inventory.found,
            session=self.heart.holding,
            granted=self._grants.of(self.heart.session),
            uncertain=inventory.uncertain,
            bundles=self._bundles.have,
            busy=self._work.busy,
            agent=self._book.saved.agent,
            boot=self._host.boot,
            reachable_s=None if reachable_since_s is None else now_s - reachable_since_s,
            problem=self.lookout.problem,
        )
        self.decision = decision = diff(situation, self._memories.known, now_s)
        self._history.ends(self._memories.known, decision)
        self._memories.replace(decision.memory)
        settled = self._grants.settle(decision, self.heart.session)
        for action in decision.actions:
            if self._work.begin(action) and isinstance(action, Start):
                name = action.subject.execution
                self.lookout.inventory = known.starting(self.lookout.inventory, name, now_s)
        self.lookout.attend(self._near(decision, now_s))
        if settled and decision.applied and not self.lookout.problem:
            self._applied = (admitted.assignment.term, admitted.assignment.plan)
        if not self.lookout.problem and self._bundles.have.keys() - self._used():
            self._untidy.set()
        self._say(decision.observed)
        self._metrics.decided(decision)
        self._metrics.passes.observe(self._clock.monotonic() - begun_s)
        return decision.wake_s

    def _say(self, observed: tuple[Observed, ...]) -> None:
        admitted = self.instructions.admitted
        assert admitted is not None
        term, plan = self._applied
        report = Report(
            store_id=admitted.assignment.store_id,
            host=self._host.name,
            session=self.heart.session,
            term=term,
            plan=plan,
            executions=observed,
            problem=self.lookout.problem,
        )
        self._reporter.say(report)

    def _near(self, decision: Decision, now_s: float) -> frozenset[str]:
        """Whom to watch closely: what is on its way to readiness and has not been for long."""
        found, begun = self.lookout.inventory.found, self.lookout.inventory.begun_s
        return frozenset(
            item.execution
            for item in decision.observed
            if item.phase in (Phase.FETCHING, Phase.STARTING, Phase.RUNNING)
            and item.execution in found
            and found[item.execution].life is Life.ALIVE
            and now_s - begun.get(item.execution, 0.0) < NEAR_FOR_S
        )

    def _used(self) -> frozenset[str]:
        """Digests of bundles that some execution refers to, as far as we know; all, while we do not."""
        if not self.lookout.listed:
            return frozenset(self._bundles.have)
        admitted, inventory = self.instructions.admitted, self.lookout.inventory
        assigned = admitted.assignment.executions if admitted else ()
        return self._coming | frozenset(
            [item.digest for item in assigned]
            + [item.digest for item in (*inventory.found.values(), *self.lookout.strays)]
            + [item.digest for item in inventory.uncertain.values()]
            + [action.subject.digest for action in self._work.busy.values()]
        )

    # --- what is kept

    def _origin(self) -> Origin:
        admitted = self.instructions.admitted
        if admitted is None:
            return Origin("", 0, 0)
        return Origin(admitted.assignment.store_id, admitted.assignment.term, admitted.assignment.plan)

    async def _tidy(self) -> None:
        """Delete bundles that nothing refers to."""
        while True:
            await self._untidy.wait()
            self._untidy.clear()
            try:
                await self._bundles.drop_unused(self._used)
            except OSError as error:
                log.error("Unused bundles cannot be deleted.", problem=str(error))
                await self._clock.sleep(TIDY_GAP_S)

    # --- for people

    def facts(self) -> Mapping[str, Any]:
        """What /healthz shows. Called from other threads: reads only."""
        admitted = self.instructions.admitted
        return {
            "host": self._host.name,
            "session": str(self.heart.session),
            "session_valid": self.heart.valid,
            "waiting": self.heart.waiting,
            "store_id": admitted.assignment.store_id if admitted else "",
            "term": admitted.assignment.term if admitted else 0,
            "plan": admitted.assignment.plan if admitted else 0,
            "applied_plan": self._applied[1],
            "executions": len(self.decision.observed),
            "ready": sum(item.phase is Phase.READY for item in self.decision.observed),
            "problem": self.lookout.problem,
        }


def _warm_up() -> None:
    """Make the parsers of documents now: some 10 ms each, which the first assignment would otherwise wait for."""
    for kind in (Assignment, Report, Saved, Runtime, LogRequest):
        with contextlib.suppress(BadInput):
            decode(kind, b"")
