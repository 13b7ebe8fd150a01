"""Time as an argument. Only durations cross process borders; wall time is for display."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What a loop may know about time. The simulation has its own."""

    def monotonic(self) -> float:
        """Seconds on a raw clock that no one adjusts (CLOCK_MONOTONIC_RAW); stands still while suspended."""
        ...

    def boot(self) -> float:
        """Seconds since boot, suspension included (CLOCK_BOOTTIME): the clock of leases."""
        ...

    def wall(self) -> str:
        """Now as RFC 3339 in UTC with milliseconds, for people only."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Sleep; may wake a little early (measured: 0.8 ms under uvloop), so compare clocks afterwards."""
        ...

    async def wait(self, event: asyncio.Event, seconds: float | None) -> bool:
        """Wait until `event` is set, as long as that sleep at most (None: for ever). Whether it is set."""
        ...


class SystemClock:
    """The clocks of this machine."""

    def monotonic(self) -> float:
        return time.clock_gettime(time.CLOCK_MONOTONIC_RAW)

    def boot(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall(self) -> str:
        return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def wait(self, event: asyncio.Event, seconds: float | None) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            pass
        return event.is_set()
