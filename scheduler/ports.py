"""What a scheduler instance works with: the outside world, passed in from the composition root."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from scheduler.core.view import Policy
from scheduler.metrics import SchedulerMetrics
from shared.clock import Clock
from shared.keys import Keys
from shared.store import Store

T = TypeVar("T")


class Worker(Protocol):
    """Runs a pure function somewhere else: a thread in production, in place in the simulation."""

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]: ...


@dataclass(frozen=True, slots=True)
class Ports:
    """What a scheduler instance works with. `token` gives random ids; `refresh` asks the pulse for fresh silences;
    `strict` makes an audit violation crash."""

    store: Store
    keys: Keys
    clock: Clock
    policy: Policy
    metrics: SchedulerMetrics
    worker: Worker
    token: Callable[[], str]
    refresh: Callable[[], None]
    strict: bool = False
