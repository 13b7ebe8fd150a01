"""For tests on replicated servers: a stream that was created just now, or whose server thawed just now, may have no
leader, or one that the server at hand does not know of yet. The store says Busy or unavailable then, truthfully."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from shared.errors import Busy, StoreUnavailable

T = TypeVar("T")
BOUND_S = 60.0  # ends a hang; no figure


async def patiently(attempt: Callable[[], Awaitable[T]], what: str) -> T:
    """The result of the first `attempt` that the store lets through. Repeated only when it surely changed nothing."""
    deadline = time.monotonic() + BOUND_S
    while True:
        try:
            return await attempt()
        except (Busy, StoreUnavailable) as error:
            if time.monotonic() > deadline:
                raise AssertionError(f"never: {what}") from error
        await asyncio.sleep(0.05)
