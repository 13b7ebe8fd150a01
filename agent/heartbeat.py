"""The heartbeat of a host: keeps the host's key and lease, on a connection of its own.

Each second one compare-and-set on the own last revision. What an outcome means is decided in `core.session`; here is
only waiting, asking and remembering. An engine that hangs never delays a heartbeat: what it says is cached by `Facts`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import assert_never

import structlog

from agent.core import session as rules
from agent.core.session import LeaseFile, State
from agent.executor import Executor
from agent.late_store import AgentStore
from agent.lease import LeaseKeeper
from agent.metrics import AgentMetrics
from agent.state import Book
from runner.contract import FENCE_KILL_S, POLL_S
from shared.clock import Clock
from shared.documents import Driver, Heartbeat, Session, Stray, decode, encode
from shared.errors import BadInput, Conflict, ExecutorUnavailable, OutcomeUnknown, StoreError
from shared.keys import Keys
from shared.store import SHORT_TIMEOUT_S, Entry

PERIOD_S = 1.0  # between heartbeats, and between reads of a key that is not ours
RETRY_S = 0.25  # after an attempt that surely did nothing, such as one without a connection
REFUSED_PAUSE_S = 0.05  # before a refusal is looked into: bounds what a store that contradicts itself costs
CHECK_PERIOD_S = 10.0  # between two looks at the engine
CHECK_DEADLINE_S = 10.0  # an engine that says nothing for so long does not work
LOOK_S = 5.0  # for the first list of an agent without a store: until it has told what runs, nobody gives it anything
CHANGE_SERVER_S = 2.0  # leaving a server must not take longer than the outage it ends

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What a host offers; part of every heartbeat."""

    cpu: float  # cores
    memory_bytes: int
    labels: Mapping[str, str]
    volumes: tuple[str, ...]
    software: str


class Facts:
    """The host's facts with what its engine said last."""

    def __init__(self, host: HostFacts, executor: Executor, clock: Clock) -> None:
        self._executor = executor
        self._clock = clock
        self.host = host
        self.drivers: Mapping[str, Driver] = {executor.driver: Driver(False, "not checked yet")}

    async def run(self) -> None:
        """Ask the engine again and again, each time within a deadline."""
        while True:
            self.drivers = {self._executor.driver: await self._check()}
            await self._clock.sleep(CHECK_PERIOD_S)

    async def _check(self) -> Driver:
        try:
            async with asyncio.timeout(CHECK_DEADLINE_S):
                return await self._executor.check()
        except TimeoutError:
            return Driver(False, f"the engine did not answer within {CHECK_DEADLINE_S:g} s")
        except ExecutorUnavailable as error:
            return Driver(False, str(error))


class Heart:
    """Heartbeats of one host, and its session."""

    def __init__(
        self,
        *,
        host: str,
        boot: str,
        lease_s: float,
        store: AgentStore,
        keys: Keys,
        clock: Clock,
        book: Book,
        lease: LeaseKeeper,
        facts: Facts,
        metrics: AgentMetrics,
        strays: Callable[[], tuple[tuple[Stray, ...], str]],
        looked: asyncio.Event,
        ended: Callable[[Session, str], None],
        changed: Callable[[], None],
    ) -> None:
        """`strays`: as `core.strays` has them, which need a first list: `looked` is set then.

        `ended` is told of each session that is over, before the next one begins: it takes away what that one held.
        `changed` is called when the session or its validity has changed."""
        self._host, self._boot, self._lease_s = host, boot, lease_s
        self._store, self._keys, self._clock = store, keys, clock
        self._book, self._lease, self._facts, self._metrics = book, lease, facts, metrics
        self._strays, self._looked = strays, looked
        self._told: tuple[Stray, ...] = ()  # of strays, in the last own heartbeat that was read
        self._ended, self._changed = ended, changed
        saved = book.saved
        self._beginning = rules.begin(saved.agent, boot, saved.number, lease.read(), lease_s, clock.boot())
        self._state: State = self._beginning.state
        self._sequence = int(clock.boot() * 1000)  # above what an earlier process of this session has counted to
        self._sent_s = clock.monotonic() - PERIOD_S  # of the last heartbeat that was acknowledged
        self._said = ""
        self.acknowledged_s: float | None = None  # monotonic clock, for people

    @property
    def session(self) -> Session:
        return self._state.session

    @property
    def valid(self) -> bool:
        """Whether the host's name is ours now; without it no assignment is read and no report is written."""
        return rules.valid(self._state)

    @property
    def holding(self) -> Session | None:
        """The session, if it holds at this very moment: valid, and its lease not over, noticed or not."""
        deadline_s = self._state.deadline_s
        return self.session if self.valid and deadline_s is not None and self._clock.boot() < deadline_s else None

    @property
    def waiting(self) -> str:
        """Why the name is not ours, for people; "" when it is or nothing speaks against it."""
        match self._state:
            case rules.Claiming():
                return self._state.reason
            case _:
                return ""

    async def run(self) -> None:
        """Heartbeat for ever."""
        if self._beginning.wait_s > 0:
            log.info("Another lease length than before: waiting out the old lease.", wait_s=self._beginning.wait_s)
            await self._clock.sleep(self._beginning.wait_s)
        if self._book.saved.admitted is None:
            await self._clock.wait(self._looked, LOOK_S)  # it has nothing yet that a lease could end meanwhile
        while True:
            pause_s = await self._turn()
            if pause_s > 0:
                await self._clock.sleep(pause_s)

    async def _turn(self) -> float:
        """One step of the rules; how long to wait before the next."""
        self._enter(rules.lapse(self._state, self._clock.boot()))
        if not await self._keep_session():
            return PERIOD_S
        match rules.step(self._state):
            case rules.Beat() as beat:
                due_s = self._sent_s + PERIOD_S - self._clock.monotonic()
                return due_s if due_s > 0 else await self._beat(beat)
            case rules.Read(patient=patient):
                if patient:
                    await self._clock.sleep(PERIOD_S)
                return await self._read()
            case other:
                assert_never(other)

    async def _beat(self, beat: rules.Beat) -> float:
        sent_s, sent_boot_s = self._clock.monotonic(), self._clock.boot()
        outcome = await self._write(beat, sent_boot_s)
        holding = self._state
        assert isinstance(holding, rules.Holding), "only this task changes the state"
        self._enter(rules.settle(holding, outcome, self._lease_s, self._clock.boot()))
        match outcome:
            case rules.Acknowledged():
                self._acknowledged(sent_s)
                return 0.0
            case rules.Refused():
                return REFUSED_PAUSE_S
            case rules.Unanswered():
                await self._leave_server()
                return 0.0
            case rules.NotSent():
                return RETRY_S
            case _:
                assert_never(outcome)

    async def _write(self, beat: rules.Beat, sent_boot_s: float) -> rules.Outcome:
        data = encode(self._document(beat.session))
        try:
            revision = await self._store.write(
                self._keys.hosts, self._host, data, expected=beat.expected, timeout=SHORT_TIMEOUT_S
            )
        except Conflict:
            self._metrics.heartbeats.labels(outcome="refused").inc()
            return rules.Refused()
        except OutcomeUnknown:
            self._metrics.heartbeats.labels(outcome="unknown").inc()
            return rules.Unanswered()
        except StoreError as error:  # unavailable, busy, or no such bucket: surely not stored
            self._metrics.heartbeats.labels(outcome="not sent").inc()
            self._say("The store cannot be reached; heartbeats wait.", str(error))
            return rules.NotSent()
        self._metrics.heartbeats.labels(outcome="acknowledged").inc()
        return rules.Acknowledged(revision, sent_boot_s)

    async def _read(self) -> float:
        try:
            entry = await self._store.read(self._keys.hosts, self._host, timeout=SHORT_TIMEOUT_S)
        except StoreError as error:
            self._say("The store cannot be reached; the host's key cannot be read.", str(error))
            if self._store.connected:
                await self._leave_server()
            return RETRY_S
        self._enter(rules.lapse(self._state, self._clock.boot()))
        state = self._state
        assert not isinstance(state, rules.Holding), "a key that is ours is not read"
        beat = _heartbeat(entry)
        if beat is not None and beat.session.agent == self.session.agent:
            self._told = beat.strays
        self._enter(rules.observe(state, _seen(entry, beat)))
        if self.waiting:
            self._say("This host's name is not ours; waiting.", self.waiting, every=self.waiting)
        return 0.0

    def _enter(self, turn: rules.Turn) -> None:
        """Take over the next state; whatever the former session held is taken away first."""
        if turn.ended:
            log.warning("A session ended.", session=str(self._state.session), why=turn.ended)
            self._metrics.sessions_ended.inc()
            self._ended(self._state.session, turn.ended)
        before = (self.session, self.valid)
        self._state = turn.state
        if (self.session, self.valid) != before:
            self._changed()

    async def _keep_session(self) -> bool:
        """Make the session's number durable before it is used."""
        number = self._state.session.number
        if self._book.saved.number == number:
            return True
        try:
            await self._book.change(lambda saved: replace(saved, number=number))
        except OSError as error:
            self._say("The state directory cannot be written; no heartbeat without it.", str(error))
            return False
        return True

    def _acknowledged(self, sent_s: float) -> None:
        first = self.acknowledged_s is None or self._said != ""
        self._sent_s = sent_s
        self.acknowledged_s = self._clock.monotonic()
        state = self._state
        if state.deadline_s is not None:
            try:
                self._lease.write(LeaseFile(state.session, state.deadline_s, self._lease_s))
            except OSError as error:
                self._say("The lease file cannot be written.", str(error))
                return
        if first:
            log.info("The host's heartbeat is in the store.", host=self._host, session=str(state.session))
            self._said = ""

    async def _leave_server(self) -> None:
        """A server that does not answer in time is left at once: a frozen one otherwise takes its clients along."""
        try:
            async with asyncio.timeout(CHANGE_SERVER_S):
                await self._store.change_server()
        except (StoreError, TimeoutError) as error:
            self._say("No other server can be reached.", str(error))

    def _document(self, session: Session) -> Heartbeat:
        self._sequence += 1
        host, admitted = self._facts.host, self._book.saved.admitted
        strays, unknown = self._strays()
        if not self._looked.is_set():
            strays = self._told  # a leader that starts now, too, has not heard it otherwise
        return Heartbeat(
            store_id=admitted.assignment.store_id if admitted else "",
            host=self._host,
            session=session,
            sequence=self._sequence,
            lease_s=self._lease_s,
            fence_kill_s=FENCE_KILL_S,
            poll_s=POLL_S,
            cpu=host.cpu,
            memory_bytes=host.memory_bytes,
            labels=host.labels,
            drivers=self._drivers(),
            software=host.software,
            volumes=host.volumes,
            strays=strays,
            strays_unknown=unknown,
        )

    def _drivers(self) -> Mapping[str, Driver]:
        """What the engine said; not usable while we cannot remember what we are told: nothing new would be obeyed."""
        problem = self._book.problem
        if not problem:
            return self._facts.drivers
        return {name: replace(driver, ok=False, reason=problem) for name, driver in self._facts.drivers.items()}

    def _say(self, sentence: str, problem: str, *, every: str = "") -> None:
        """Log what keeps us from heartbeating once (for `every` reason), not each second."""
        if sentence + every != self._said:
            self._said = sentence + every
            log.warning(sentence, host=self._host, problem=problem)


def _heartbeat(entry: Entry) -> Heartbeat | None:
    try:
        return None if entry.value is None else decode(Heartbeat, entry.value)
    except BadInput:
        return None


def _seen(entry: Entry, beat: Heartbeat | None) -> rules.Seen:
    if entry.value is None:
        return rules.Gone(entry.revision)
    if beat is None:
        return rules.Unreadable(entry.revision)
    if beat.dead is not None:
        return rules.Tombstone(beat.dead, entry.revision)
    return rules.Living(beat.session, entry.revision)
