"""The contract between an agent and what runs executions: `docker_executor`, `process_executor`, a fake in the tests.

One contract suite runs against all three. "Already so" is success. Every call ends within a deadline of its own and
raises ExecutorUnavailable when the engine does not answer, CannotStart when this execution cannot start. Calls for
different executions may run at once; the agent makes at most one at a time for the same execution.

Memory is outside of the agent: labels of the container, or files of the process directory. An agent that restarts
lists and finds everything again, also what it did not start itself. Only what carries the cluster's name, the host's
and one of the store ids in `accepted` is its own. What carries another store id is only shown (`strays`); everything
else is invisible to it.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from shared.documents import Driver
from shared.errors import ExecutorUnavailable


class Life(StrEnum):
    """What an executor sees of an execution."""

    CREATED = "created"  # exists, was never started
    ALIVE = "alive"
    EXITED = "exited"  # ended or stopped; what is kept can be started again


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One execution as the executor finds it. `health` is the runner's health file (see runner.contract), {} if none.

    `exit_code` and `oom` speak of the last run. `runtime` is the container id or the process id.
    """

    execution: str
    store_id: str
    pipeline: str
    slot: int
    version: str
    digest: str
    life: Life
    runtime: str
    started_s: float | None = None  # boot clock
    exit_code: int | None = None
    oom: bool = False
    health: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """All that is needed to start one execution."""

    execution: str
    store_id: str
    pipeline: str
    slot: int
    replicas: int
    version: str
    digest: str
    bundle: str  # path on the host of the bundle file, `<state>/bundles/<digest>/bundle.tar`
    env: Mapping[str, str]  # of the record; the agent's own --env and the SHOAL_ names are added by the executor
    volumes: tuple[str, ...]
    image: str  # "" = the agent's default
    cpu: float | None  # limits; None = none
    memory_bytes: int | None
    stop_grace_s: float
    http: str  # "auto", or the address that the configuration states


class Executor(Protocol):
    """Starts, stops and shows executions on one host."""

    @property
    def driver(self) -> str:
        """Its name in heartbeats and placements: `docker`, `process`."""
        ...

    def adopt(self, accepted: frozenset[str]) -> None:
        """The store ids whose executions are ours, newest admitted one included."""
        ...

    async def check(self) -> Driver:
        """Whether the engine works now."""
        ...

    async def list(self) -> tuple[Found, ...]:
        """Everything that is ours, in the order of execution ids, with health. Complete or ExecutorUnavailable.

        An execution may be there under several accepted stores: what an engine starts late for one that was lost.
        """
        ...

    @property
    def strays(self) -> tuple[Found, ...]:
        """What the last `list` saw of this cluster and host under stores that are not accepted, in the same order and
        without health. It is nobody's to touch: an agent only tells of it."""
        ...

    async def health(self, executions: Mapping[str, str]) -> Mapping[str, Mapping[str, Any]]:
        """The health files of these executions, each under the store with this id: cheap (no engine call), for watching
        starts closely."""
        ...

    async def ensure_running(self, spec: Spec) -> None:
        """Create and start, or start again what exists and is stopped (same container, same id): under the store of
        `spec`, or else under another accepted one where it is there already."""
        ...

    async def stop(self, execution: str, grace_s: float) -> None:
        """Stop gracefully: SIGTERM, after `grace_s` SIGKILL; returns when it is stopped. What is needed to start it
        again is kept."""
        ...

    async def remove(self, execution: str, grace_s: float) -> None:
        """Stop if needed, then leave no trace: container, processes, directories, logs."""
        ...

    def logs(self, execution: str, *, tail: int, follow: bool) -> AsyncIterator[bytes]:
        """The execution's output in chunks; with `follow` until it is removed or the iterator is closed."""
        ...

    def events(self) -> AsyncIterator[None]:
        """Wake-ups: something about our executions may have changed. May be lost or repeated; heals by itself."""
        ...

    async def close(self) -> None:
        """Release the connection to the engine; executions go on."""
        ...


@contextlib.contextmanager
def complete_or_nothing() -> Iterator[None]:
    """For lists: what a host cannot read is not what is not there, and what a list leaves out counts as stopped."""
    try:
        yield
    except OSError as error:
        raise ExecutorUnavailable(f"this host cannot tell what it runs: {error}") from error


def ordered(found: Iterable[Found]) -> tuple[Found, ...]:
    """As lists have them."""
    return tuple(sorted(found, key=lambda one: (one.execution, one.store_id)))
