"""For tests on servers that fail, or that have only just begun: what the store does not let through is tried again.

A stream that was created just now, or whose server thawed just now, may have no leader, or one that the server at hand
does not know of yet. The store says Busy or unavailable then, truthfully.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import nats.errors

from shared.errors import Busy, StoreError, StoreUnavailable

T = TypeVar("T")
BOUND_S = 60.0  # ends a hang; no figure
FAULTS_BOUND_S = 120.0  # the same, while servers fail


async def patiently(attempt: Callable[[], Awaitable[T]], what: str) -> T:
    """The result of the first `attempt` that the store lets through. Repeated only when it surely changed nothing."""
    return await _repeated(attempt, what, BOUND_S, Busy, StoreUnavailable)


async def surely(attempt: Callable[[], Awaitable[T]], what: str) -> T:
    """The result of the first `attempt` that succeeds. Earlier ones may have had their effect too."""
    return await _repeated(attempt, what, FAULTS_BOUND_S, StoreError, nats.errors.Error, TimeoutError)


async def _repeated(attempt: Callable[[], Awaitable[T]], what: str, bound_s: float, *passing: type[Exception]) -> T:
    deadline = time.monotonic() + bound_s
    while True:
        try:
            return await attempt()
        except passing as error:
            if time.monotonic() > deadline:
                raise AssertionError(f"never: {what}") from error
        await asyncio.sleep(0.05)
