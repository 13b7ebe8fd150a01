"""Does what was decided: one action per execution at a time, in lanes that are bounded each for itself.

A lane that is full refuses more; what was refused is decided anew when a place is free, on what is known then. So
nothing waits in a queue until it is wrong, stops that drain for a long time keep nobody from starting, and an action
that hangs holds one place and delays no other execution.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import assert_never

import structlog

from agent.bundles import Bundles
from agent.core.restarts import Cause
from agent.core.situation import Action, Fetch, Remove, Start, Stop
from agent.executor import Executor
from agent.metrics import AgentMetrics
from shared.errors import BadInput, CannotStart, ExecutorUnavailable, StoreError


class Lane(Enum):
    """What competes for the same places, and how many there are."""

    FETCHES = 8
    STARTS = 16  # an engine is busy with that many; more only wait inside of it
    ENDS = 32  # stops and removals: they mostly wait for Bento to drain


log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Done:
    """The action has succeeded, or was so already."""


@dataclass(frozen=True, slots=True)
class Failed:
    """It has not. `known`: surely without effect."""

    cause: Cause
    reason: str
    known: bool


Result = Done | Failed


class Work:
    """`busy` is what is under way, by execution."""

    def __init__(
        self,
        *,
        executor: Executor,
        bundles: Bundles,
        metrics: AgentMetrics,
        permit: Callable[[Action], None],
        finished: Callable[[Action, Result], None],
    ) -> None:
        """`permit` gives or takes what the action needs to have or must not have when the executor is asked; called in
        one piece with the decision, because a session that ends in between must find it. It may raise OSError."""
        self._executor, self._bundles, self._metrics = executor, bundles, metrics
        self._permit, self._finished = permit, finished
        self._group: asyncio.TaskGroup | None = None
        self._preparing: set[str] = set()
        self.busy: Mapping[str, Action] = {}

    async def run(self) -> None:
        """Own the tasks of the actions until cancelled; what is under way then goes on in the engine."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            await asyncio.Event().wait()

    def begin(self, action: Action) -> bool:
        """Begin an action, unless its lane is full."""
        assert self._group is not None, "run() comes first"
        name = action.subject.execution
        assert name not in self.busy, f"{name} has an action under way"
        lane = _lane(action)
        if sum(_lane(other) is lane for other in self.busy.values()) >= lane.value:
            return False
        problem: OSError | None = None
        try:
            self._permit(action)
        except OSError as error:
            problem = error
        self.busy = {**self.busy, name: action}
        self._group.create_task(self._perform(action, problem), name=f"{type(action).__name__.lower()} {name}")
        return True

    def prepare(self, digest: str) -> None:
        """Fetch a bundle that will be wanted, if there is a place; whoever wants it then fetches it again or waits."""
        assert self._group is not None, "run() comes first"
        if len(self._preparing) < Lane.FETCHES.value and digest not in self._preparing:
            self._preparing.add(digest)
            self._group.create_task(self._prepare(digest), name=f"prepare {digest}")

    async def _prepare(self, digest: str) -> None:
        # Whoever wants it meets the same problem, and then it is shown and tried again.
        with contextlib.suppress(StoreError, BadInput, OSError):
            await self._bundles.fetch(digest)
        self._preparing.discard(digest)

    async def _perform(self, action: Action, problem: OSError | None) -> None:
        name = action.subject.execution
        result: Result
        try:
            if problem is not None:
                raise problem
            await self._call(action)
            result = Done()
            log.info(_SENTENCES[type(action)], execution=name, version=action.subject.version)
        except CannotStart as error:
            result = Failed(error.kind, str(error), known=True)
        except ExecutorUnavailable as error:
            result = Failed("engine", str(error), known=False)
        except (StoreError, BadInput) as error:
            result = Failed("bundle", str(error), known=True)
        except OSError as error:
            result = Failed("host", str(error), known=True)
        if isinstance(result, Failed):
            kind = type(action).__name__.lower()
            log.warning("An action failed.", action=kind, execution=name, cause=result.cause, reason=result.reason)
        self.busy = {other: item for other, item in self.busy.items() if other != name}
        self._finished(action, result)

    async def _call(self, action: Action) -> None:
        name = action.subject.execution
        match action:
            case Fetch():
                await self._bundles.fetch(action.subject.digest)
            case Start():
                with self._metrics.call("start"):
                    await self._executor.ensure_running(action.spec)
            case Stop():
                with self._metrics.call("stop"):
                    await self._executor.stop(name, action.grace_s)
            case Remove():
                with self._metrics.call("remove"):
                    await self._executor.remove(name, action.grace_s)
            case _:
                assert_never(action)


_SENTENCES = {
    Fetch: "The bundle of an execution is here.",
    Start: "An execution was started.",
    Stop: "An execution was stopped.",
    Remove: "An execution was removed.",
}


def _lane(action: Action) -> Lane:
    match action:
        case Fetch():
            return Lane.FETCHES
        case Start():
            return Lane.STARTS
        case Stop() | Remove():
            return Lane.ENDS
        case _:
            assert_never(action)
