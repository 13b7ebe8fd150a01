"""What the agent remembers of its executions, and how that outlives it: restarts, failures and what it waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog

from agent.core import restarts
from agent.core.restarts import NOTHING, Cause, Doing, Memory
from agent.core.situation import Action, Fetch, Remove, Start, Stop
from agent.state import Durable, Offload
from shared.clock import Clock

SAVE_GAP_S = 0.5  # between two writes

log = structlog.get_logger()


class Memories:
    """`known`: by execution, trimmed. Losing the last moment of it costs a count, not safety."""

    def __init__(self, durable: Durable, offload: Offload, clock: Clock) -> None:
        """Reads what was saved."""
        now_s = clock.boot()
        loaded = durable.load_memories()
        self.known: Mapping[str, Memory] = {name: restarts.recalled(one, now_s) for name, one in loaded.items()}
        self._durable = durable
        self._offload = offload
        self._clock = clock
        self._unsaved = asyncio.Event()

    def replace(self, memories: Mapping[str, Memory]) -> None:
        """Remember these from now on; they are written soon."""
        kept = restarts.trimmed(memories)
        if kept != self.known:
            self.known = kept
            self._unsaved.set()

    def done(self, action: Action) -> None:
        """An action has succeeded: nothing hinders the execution, and one that was removed is forgotten."""
        name = action.subject.execution
        memory = self.known.get(name, NOTHING)
        gone = isinstance(action, Remove)
        self.replace({**self.known, name: NOTHING if gone else restarts.unhindered(memory)})

    def failed(self, action: Action, cause: Cause, reason: str) -> None:
        """An action has failed: it is tried again later."""
        name = action.subject.execution
        memory = restarts.hindered(self.known.get(name, NOTHING), _doing(action), cause, reason, self._clock.boot())
        self.replace({**self.known, name: memory})

    async def run(self) -> None:
        """Write for ever what has changed."""
        while True:
            await self._unsaved.wait()
            self._unsaved.clear()
            memories = self.known
            try:
                await self._offload(lambda memories=memories: self._durable.save_memories(memories))  # type: ignore[misc]
            except OSError as error:
                log.error("Restart counts cannot be written.", problem=str(error))
            await self._clock.sleep(SAVE_GAP_S)

    def save(self) -> None:
        """Write at once what is not written yet, after `run` was cancelled. Raises OSError."""
        if self._unsaved.is_set():
            self._durable.save_memories(self.known)

    def clear(self) -> None:
        """Nothing of ours is left on this host: write that there is nothing to remember. Raises OSError."""
        self._durable.save_memories({})


def _doing(action: Action) -> Doing:
    match action:
        case Fetch() | Start():
            return "start"
        case Stop():
            return "stop"
        case Remove():
            return "remove"
