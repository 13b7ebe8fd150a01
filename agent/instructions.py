"""What a host was told: reads its own assignment key and admits what it finds, durably, before anybody acts on it.

A hint (a republished write) says only "look again, at least at this sequence". Without any hint the key is read every
few seconds, from the stream leader: a lost hint costs that long and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import structlog

from agent.core.admit import Admit, Admitted, Reject, Unchanged, admit
from agent.late_store import AgentStore
from agent.metrics import AgentMetrics
from agent.state import Book
from shared.clock import Clock
from shared.documents import Assignment, decode
from shared.errors import BadInput, StoreError
from shared.keys import Keys, assign_key
from shared.store import Entry

POLL_S = 5.0  # between reads without a hint
RETRY_S = 0.5  # after a read that failed
RESUBSCRIBE_S = 1.0  # after a subscription that was refused or closed

log = structlog.get_logger()


class Instructions:
    """The assignment that is obeyed is `admitted`. Nothing is read while the host's name is not ours."""

    def __init__(
        self,
        *,
        host: str,
        store: AgentStore,
        keys: Keys,
        clock: Clock,
        book: Book,
        metrics: AgentMetrics,
        valid: Callable[[], bool],
        coming: Callable[[Assignment], None],
        changed: Callable[[], None],
        refused: Callable[[str], None],
    ) -> None:
        """`valid` says whether the host's name is ours. `coming` is told what is about to be admitted, to prepare for
        it; `changed` is called after each admission, `refused` with the reason why a document is not obeyed."""
        self._host, self._store, self._keys, self._clock = host, store, keys, clock
        self._book, self._metrics = book, metrics
        self._valid, self._coming, self._changed, self._tell_refused = valid, coming, changed, refused
        self._wake = asyncio.Event()
        self._hinted = 0  # sequence of the newest hint
        self._refused = ""  # the last refusal that was logged
        self.reachable = False  # whether the last read succeeded

    @property
    def admitted(self) -> Admitted | None:
        return self._book.saved.admitted

    def wake(self) -> None:
        """Read again now."""
        self._wake.set()

    async def run(self) -> None:
        """Read on every hint and every few seconds, for ever."""
        while True:
            done = await self._look() if self._valid() else True
            await self._pause(POLL_S if done else RETRY_S)

    async def listen(self) -> None:
        """Turn hints into reads, for ever."""
        while True:
            try:
                hints = await self._store.subscribe(self._keys.live_assign(self._host))
                self.wake()  # what came before the subscription came without a hint
                while True:
                    hint = await hints.next()
                    self._hinted = max(self._hinted, hint.sequence)
                    self.wake()
            except StoreError as error:
                log.debug("No hints of assignments now.", problem=str(error))
            await self._clock.sleep(RESUBSCRIBE_S)

    async def _pause(self, seconds: float) -> None:
        await self._clock.wait(self._wake, seconds)
        self._wake.clear()

    async def _look(self) -> bool:
        """Read the key and admit what is there; whether that worked."""
        hinted, self._hinted = self._hinted, 0
        try:
            entry = await self._read(hinted)
        except StoreError as error:
            if self.reachable:
                log.warning("The assignment cannot be read; what was admitted goes on.", problem=str(error))
            self.reachable = False
            return False
        self.reachable = True
        try:
            return await self._admit(entry)
        except OSError as error:
            log.error("The assignment is not obeyed: the state directory cannot be written.", problem=str(error))
            return False

    async def _read(self, hinted: int) -> Entry:
        key = assign_key(self._host)
        if hinted:
            return await self._store.read_at_least(self._keys.control, key, hinted)
        return await self._store.read(self._keys.control, key)

    async def _admit(self, entry: Entry) -> bool:
        try:
            document = None if entry.value is None else decode(Assignment, entry.value)
        except BadInput as error:
            self._refuse(f"the assignment cannot be read: {error}")
            return True
        match admit(self._host, self.admitted, document):
            case Unchanged():
                self._refused = ""
            case Reject(reason):
                self._refuse(reason)
            case Admit(admitted):
                self._refused = ""
                self._coming(admitted.assignment)
                await self._book.change(lambda saved: replace(saved, admitted=admitted))
                self._metrics.plan.set(admitted.assignment.plan)
                log.info(
                    "An assignment was admitted.",
                    term=admitted.assignment.term,
                    plan=admitted.assignment.plan,
                    executions=len(admitted.assignment.executions),
                )
                self._changed()
        return True

    def _refuse(self, reason: str) -> None:
        """Say once why the document is not obeyed."""
        if reason != self._refused:
            self._refused = reason
            self._metrics.refused.inc()
            log.warning("An assignment is not obeyed.", reason=reason)
            self._tell_refused(reason)
