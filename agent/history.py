"""Tells the history what happened on this host that people will ask about. Best effort: nobody waits for it, and what
cannot be told in time is dropped.

    session-ended       the host's lease is over, or its name is somebody else's
    assignment-refused  the host does not obey what it was told
    engine-silent, engine-answers
    execution-ended     by itself, and is started again (what ends with the session is told by that)
    execution-healed    Bento had lost NATS for good, and is started again

One event about the same thing a minute at most: the next one says how many were left out. So a crash loop, or a store
that comes and goes, fills no history.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from agent.core.restarts import NOTHING, Memory
from agent.core.situation import Decision
from agent.late_store import AgentStore
from shared.clock import Clock
from shared.documents import Event, Session, encode
from shared.errors import StoreError
from shared.keys import Keys

GAP_S = 60.0  # between two events of one kind about the same thing
WAITING_MAX = 200  # events that wait for the store; the oldest are dropped first
KNOWN_MAX = 2000  # things that something was told of lately: two for each execution of a full host
TRIES_MAX = 3
RETRY_S = 2.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Origin:
    """What every event carries: the store, and the last plan that was admitted."""

    store_id: str
    term: int
    plan: int


@dataclass(slots=True)
class _Told:
    at_s: float
    left_out: int = 0


class History:
    """A bounded queue in front of the events stream."""

    def __init__(
        self, *, host: str, store: AgentStore, keys: Keys, clock: Clock, token: str, origin: Callable[[], Origin]
    ) -> None:
        """`token` tells the events of this process from all others."""
        self._host, self._store, self._keys, self._clock = host, store, keys, clock
        self._token, self._origin = token, origin
        self._count = 0
        self._told: dict[tuple[str, str], _Told] = {}
        self._waiting: deque[tuple[str, Event]] = deque(maxlen=WAITING_MAX)
        self._more = asyncio.Event()

    def session_ended(self, session: Session, why: str) -> None:
        self.tell("session-ended", self._host, f"session {session}: {why}")

    def assignment_refused(self, reason: str) -> None:
        self.tell("assignment-refused", self._host, reason)

    def engine(self, problem: str) -> None:
        """It does not list its executions any more; "" = it does again."""
        if problem:
            self.tell("engine-silent", self._host, problem)
        else:
            self.tell("engine-answers", self._host, "the engine lists its executions again")

    def ends(self, before: Mapping[str, Memory], decision: Decision) -> None:
        """What a pass has found ended that was alive in the one before; to the log as well."""
        for one in decision.observed:
            memory = decision.memory.get(one.execution, NOTHING)
            if memory.healing:
                if not before.get(one.execution, NOTHING).healing:
                    log.warning("An execution is started again.", execution=one.execution, reason=one.reason)
                    message = f"{one.execution} on {self._host} is started again: {one.reason}"
                    self.tell("execution-healed", one.pipeline, message, about=one.execution)
                continue
            if memory.end is None or memory.alive or not before.get(one.execution, NOTHING).alive:
                continue
            log.warning(
                "An execution ended by itself." if memory.owed else "An execution ended with its host's session.",
                execution=one.execution,
                kind=memory.end.kind.value,
                reason=memory.end.reason,
                restarts=memory.restarts,
                delay_s=memory.delay_s,
            )
            if memory.owed:
                again = f"restart {memory.restarts + 1} in {memory.delay_s:g} s"
                message = f"{one.execution} on {self._host}: {memory.end.reason}; {again}"
                self.tell("execution-ended", one.pipeline, message, about=one.execution)

    def tell(self, kind: str, subject: str, message: str, *, about: str = "") -> None:
        """Append soon, unless something of this kind about the same thing (default: the subject) was told just now."""
        key = kind, about or subject
        now_s = self._clock.monotonic()
        told = self._told.get(key)
        if told is not None and now_s - told.at_s < GAP_S:
            told.left_out += 1
            return
        if told is not None and told.left_out:
            message = f"{message} (and {told.left_out} times more before)"
        self._remember(key, now_s)
        origin = self._origin()
        event = Event(
            store_id=origin.store_id,
            kind=kind,
            subject=subject,
            at=self._clock.wall(),
            term=origin.term,
            plan=origin.plan,
            message=message,
        )
        self._count += 1
        self._waiting.append((f"{self._token}-{self._count}", event))
        self._more.set()

    def _remember(self, key: tuple[str, str], now_s: float) -> None:
        self._told.pop(key, None)  # the newest last
        self._told[key] = _Told(now_s)
        if len(self._told) > KNOWN_MAX:
            del self._told[next(iter(self._told))]

    async def run(self) -> None:
        """Append what was told, in order, for ever."""
        while True:
            await self._more.wait()
            self._more.clear()
            while self._waiting:
                await self._append(*self._waiting.popleft())

    async def _append(self, message_id: str, event: Event) -> None:
        subject = self._keys.event(event.kind, event.subject)
        for attempt in range(TRIES_MAX):
            try:
                await self._store.append(subject, encode(event), message_id=message_id)
                return
            except StoreError as error:
                if attempt + 1 == TRIES_MAX:
                    log.info("An event was not appended.", kind=event.kind, problem=str(error))
            await self._clock.sleep(RETRY_S)
