"""Runs a daemon on a wall clock that is wrong, and jumps: `python -m tests.support.shifted_clock FILE MODULE …`.

FILE says by how many seconds; it is read again at every look at the clock, so a test moves it while the daemon runs.
Shifted are `time.time`, `datetime.now` and CLOCK_REALTIME, for the product and its libraries alike; no other clock is.
"""

from __future__ import annotations

import datetime as dt
import runpy
import sys
import time
from pathlib import Path

_now, _now_ns, _gettime, _gettime_ns = time.time, time.time_ns, time.clock_gettime, time.clock_gettime_ns


class _Shifted(dt.datetime):
    """Every `now` is `time.time`'s."""

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> _Shifted:
        return cls.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls) -> _Shifted:
        return cls.fromtimestamp(time.time(), dt.UTC).replace(tzinfo=None)


def install(file: Path) -> None:
    """Shift the clock of this process, before anything else is imported."""

    def shift_s() -> float:
        try:
            return float(file.read_text())
        except (FileNotFoundError, ValueError):  # not yet, or being written
            return 0.0

    def gettime(clock: int) -> float:
        return time.time() if clock == time.CLOCK_REALTIME else _gettime(clock)

    def gettime_ns(clock: int) -> int:
        return time.time_ns() if clock == time.CLOCK_REALTIME else _gettime_ns(clock)

    time.time = lambda: _now() + shift_s()
    time.time_ns = lambda: _now_ns() + int(shift_s() * 1e9)
    time.clock_gettime = gettime
    time.clock_gettime_ns = gettime_ns
    dt.datetime = _Shifted  # type: ignore[misc]


if __name__ == "__main__":
    install(Path(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
