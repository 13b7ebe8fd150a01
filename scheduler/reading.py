"""How a new leader catches up: it reads on, and asks the stream leaders about the inputs that stay behind."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import structlog

from scheduler.catchup import ASK_GAP_S, CatchUp
from shared.clock import Clock
from shared.documents import InputMark
from shared.errors import StoreError
from shared.keys import Keys
from shared.store import Store

log = structlog.get_logger()


class Reading:
    """Of one leadership. `caught_up`: what is still waited for, and which inputs are not what the predecessor had read.

    `marks` says how far each input is read; `refresh` asks the pulse for a snapshot.
    """

    def __init__(
        self,
        caught_up: CatchUp,
        store: Store,
        keys: Keys,
        clock: Clock,
        *,
        marks: Callable[[], Mapping[str, InputMark]],
        refresh: Callable[[], None],
    ) -> None:
        self.caught_up = caught_up
        self.done = False
        self._store = store
        self._keys = keys
        self._clock = clock
        self._marks = marks
        self._refresh = refresh
        self._ask_s = clock.monotonic() + ASK_GAP_S

    @property
    def due_s(self) -> float:
        """When to look again even if nothing is read."""
        return math.inf if self.done else self._ask_s

    async def look(self) -> bool:
        """Whether every input was read as far as the predecessor had; asks the stream leaders once a second."""
        behind = self.caught_up.behind(self._marks())
        if behind and self._clock.monotonic() >= self._ask_s:
            self._refresh()  # the hosts' mark comes with a snapshot
            for name in behind:
                await self._ask(name)
            self._ask_s = self._clock.monotonic() + ASK_GAP_S
            behind = self.caught_up.behind(self._marks())
        self.done = not behind
        return self.done

    async def _ask(self, name: str) -> None:
        try:
            mark = await self._store.mark(getattr(self._keys, name))
        except StoreError:
            return
        before, self.caught_up = self.caught_up, self.caught_up.answered(name, mark)
        if len(self.caught_up.wanted) < len(before.wanted):
            log.error(
                "An input stream was made anew or is shorter than the last leader saw it.",
                input=name,
                seen=f"{before.wanted[name].created} {before.wanted[name].sequence}",
                now=f"{mark.created} {mark.sequence}",
            )
