"""Waiting for whatever comes first."""

from __future__ import annotations

import asyncio

from shared.clock import Clock


async def wait_or_sleep(event: asyncio.Event, clock: Clock, seconds: float) -> None:
    """Return when `event` is set or after about `seconds` of `clock`."""
    async with asyncio.TaskGroup() as group:
        sleeper = group.create_task(clock.sleep(seconds), name="sleep")
        waiter = group.create_task(event.wait(), name="wake-up")
        await asyncio.wait((sleeper, waiter), return_when=asyncio.FIRST_COMPLETED)
        sleeper.cancel()
        waiter.cancel()
