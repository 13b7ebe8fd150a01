"""The report: writes what the host observes under its own key, whole, as soon as it changes.

Written by compare-and-set on the own last revision: a write without an answer may land late, and must then not cover a
newer report. Changes that come close together go out as one; the first of them is not delayed, except for one that only
says how far a start has come: each report costs the leader a commit, while engine and Bento need the machine.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace

import structlog

from agent.late_store import AgentStore
from agent.metrics import AgentMetrics
from shared.clock import Clock
from shared.documents import Observed, Report, encode
from shared.errors import Conflict, StoreError
from shared.keys import Keys
from shared.states import Phase

COALESCE_S = 0.02  # between two writes: a burst of changes costs the store 50 writes a second at most
COALESCE_EACH_S = 0.0001  # and that much for each execution: a large report takes 10 ms per 1,000 to make and to send
PROGRESS_S = 0.25  # between two writes, when there is nothing new but how far starts have come
RECHECK_S = 60.0  # a report that was lost with its bucket, or covered by somebody else's, is written again
RETRY_S = 0.25
BYTES_MAX = 900_000  # a NATS server takes messages of 1 MiB unless it is told otherwise

_STARTING = frozenset({Phase.FETCHING, Phase.STARTING, Phase.RUNNING})

log = structlog.get_logger()


class Reporter:
    """Keeps the stored report equal to the one that was `said` last, while the host's name is ours."""

    def __init__(
        self,
        *,
        host: str,
        store: AgentStore,
        keys: Keys,
        clock: Clock,
        metrics: AgentMetrics,
        valid: Callable[[], bool],
    ) -> None:
        self._host, self._store, self._keys, self._clock = host, store, keys, clock
        self._metrics, self._valid = metrics, valid
        self._wake = asyncio.Event()
        self._wanted: Report | None = None
        self._stored: Report | None = None  # what the key has, as far as we know
        self._revision: int | None = None  # None = the key must be read
        self._written_s = -math.inf  # when `_stored` was written

    def say(self, report: Report) -> None:
        """Make this the report. Cheap; equal reports cost nothing."""
        if report != self._wanted:
            self._wanted = report
            self._wake.set()

    def wake(self) -> None:
        """Look again whether something must be written, as when the host's name has become ours."""
        self._wake.set()

    async def run(self) -> None:
        """Write what was said, for ever."""
        checked_s = self._clock.monotonic()
        while True:
            if self._wanted is None or self._wanted == self._stored or not self._valid():
                left_s = checked_s + RECHECK_S - self._clock.monotonic()
                if not await self._woken(left_s) and self._clock.monotonic() >= checked_s + RECHECK_S:
                    checked_s = self._clock.monotonic()
                    await self._recheck()
                continue
            progress_s = self._written_s + PROGRESS_S - self._clock.monotonic()
            if progress_s > 0 and self._stored is not None and only_progress(self._stored, self._wanted):
                await self._woken(progress_s)
                continue
            try:
                await self._write(self._wanted)
            except StoreError as error:
                self._revision = None
                self._metrics.reports.labels(outcome=type(error).__name__).inc()
                log.debug("The report could not be written; it will be.", problem=str(error))
                await self._clock.sleep(RETRY_S)
            else:
                await self._clock.sleep(max(COALESCE_S, COALESCE_EACH_S * len(self._wanted.executions)))

    async def _woken(self, seconds: float) -> bool:
        woken = await self._clock.wait(self._wake, seconds)
        self._wake.clear()
        return woken

    async def _write(self, report: Report) -> None:
        if self._revision is None:
            self._revision = (await self._store.read(self._keys.reports, self._host)).revision
        try:
            self._revision = await self._store.write(
                self._keys.reports, self._host, fitted(report), expected=self._revision
            )
        except Conflict:
            self._revision = None  # a write of ours that landed late, or another agent's; ours is the word now
            self._metrics.reports.labels(outcome="Conflict").inc()
            return
        self._stored, self._written_s = report, self._clock.monotonic()
        self._metrics.reports.labels(outcome="written").inc()

    async def _recheck(self) -> None:
        try:
            entry = await self._store.read(self._keys.reports, self._host)
        except StoreError as error:
            log.debug("The report could not be checked.", problem=str(error))
            return
        if entry.revision != self._revision:
            self._stored, self._revision = None, entry.revision


def only_progress(before: Report, now: Report) -> bool:
    """Whether the two differ in nothing but how far executions have come that are not ready yet."""
    if replace(before, executions=()) != replace(now, executions=()) or len(before.executions) != len(now.executions):
        return False
    return all(
        was == one or (was.execution == one.execution and was.phase in _STARTING and one.phase in _STARTING)
        for was, one in zip(before.executions, now.executions, strict=True)
    )


def fitted(report: Report) -> bytes:
    """The report; with fewer last words where it would be too large for one message."""
    data = encode(report)
    for words in (3, 1, 0):
        if len(data) <= BYTES_MAX:
            break
        data = encode(replace(report, executions=tuple(_cut(one, words) for one in report.executions)))
    return data


def _cut(observed: Observed, words: int) -> Observed:
    return replace(observed, last_words=observed.last_words[len(observed.last_words) - words :] if words else ())
