"""Repeat what the store does not let through while servers fail; with a bound that only ends a hang."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import nats.errors

from shared.errors import StoreError

T = TypeVar("T")
BOUND_S = 120.0


async def surely(attempt: Callable[[], Awaitable[T]], what: str) -> T:
    """The result of the first `attempt` that succeeds. Earlier ones may have had their effect too."""
    deadline = time.monotonic() + BOUND_S
    while True:
        try:
            return await attempt()
        except (StoreError, nats.errors.Error, TimeoutError) as error:
            if time.monotonic() > deadline:
                raise AssertionError(f"never: {what}") from error
        await asyncio.sleep(0.1)
