"""Appends events to the history, beside the loop: nobody's decision waits for it, and none depends on it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from scheduler.core.view import View
from shared import documents
from shared.clock import Clock
from shared.documents import Event
from shared.errors import StoreError
from shared.keys import Keys
from shared.store import Store

WAITING_MAX = 10_000  # events; when the store is away for long, the oldest are lost first
TRIES_MAX = 3
RETRY_S = 0.5

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Line:
    event: Event
    message_id: str


class History:
    """A bounded queue in front of the events stream. The same (event, message id) may be appended twice: it is stored
    once within the store's window."""

    def __init__(self, store: Store, keys: Keys, clock: Clock, *, on_dropped: Callable[[], None]) -> None:
        self._store = store
        self._keys = keys
        self._clock = clock
        self._on_dropped = on_dropped
        self._waiting: deque[_Line] = deque()
        self._more = asyncio.Event()

    def tell(self, view: View, kind: str, subject: str, message: str) -> None:
        """Append what this leader says beside its plans; the same of one plan once."""
        event = Event(
            store_id=view.store_id, kind=kind, subject=subject, at="", term=view.term, plan=view.plan, message=message
        )
        self.add(event, f"{view.store_id}-{view.plan}-{kind}-{subject}")

    def add(self, event: Event, message_id: str) -> None:
        """Append soon, with the time of now."""
        if len(self._waiting) >= WAITING_MAX:
            self._waiting.popleft()
            self._on_dropped()
        self._waiting.append(_Line(replace(event, at=self._clock.wall()), message_id))
        self._more.set()

    async def run(self) -> None:
        """Append what was added, in order, for ever."""
        while True:
            await self._more.wait()
            self._more.clear()
            while self._waiting:
                await self._append(self._waiting.popleft())

    async def _append(self, line: _Line) -> None:
        subject = self._keys.event(line.event.kind, line.event.subject)
        for attempt in range(TRIES_MAX):
            try:
                await self._store.append(subject, documents.encode(line.event), message_id=line.message_id)
                return
            except StoreError as error:
                if attempt + 1 == TRIES_MAX:
                    log.info("An event was not appended.", kind=line.event.kind, why=str(error))
            await self._clock.sleep(RETRY_S)
        self._on_dropped()
