"""Who lives. The leader's own heartbeat, seen back through its host watch, is the unit in which silence is measured.

    write _pulse ──> comes back live through the own watch ──> count it ──> wait 0.5 s ──> write the next

One watch delivers heartbeats and pulses, and a stream is totally ordered: every heartbeat that was stored before a
pulse has been seen before it. So a host's silence is the pulses since its last heartbeat, times 0.5 s. When NATS or the
watch stalls, pulses stop and nobody grows silent. No clock of another machine is read, nor is the own one trusted with
more than "at least 0.5 s have passed".

Standbys watch too, so that a takeover starts from a warm list; they write no pulses and count none.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from scheduler.core.timings import PULSE_S
from scheduler.core.view import GoneView, HostView
from scheduler.roll import Roll
from shared import documents
from shared.clock import Clock
from shared.errors import BadInput, Busy, Missing, OutcomeUnknown, StoreUnavailable
from shared.keys import PULSE, Keys
from shared.store import SHORT_TIMEOUT_S, Change, Entry, Listing, Mark, Stalled, Store

SLOW_PULSE_S = 2.0  # a pulse that takes longer says that hosts may have been unable to say anything either
RELIST_S = 600.0  # rare: each may start silences anew, and deletions without a marker do no harm
GATHER_S = 0.02  # between two snapshots, so that a thousand hosts that start at once do not make a thousand
RETRY_S = 0.1  # before a pulse that was not written, or did not come back, is followed by another


@dataclass(frozen=True, slots=True)
class Hosts:
    """An immutable snapshot of every host.

    `changed`: those of which something that matters changed since the last one. `mark`: how far the bucket was read.
    `term`: in whose pulses the silences are counted (0: a standby, all are 0), `term_age_s`: how many there were, as a
    duration. `fresh`: answers `refresh`, every silence is up to date.
    """

    views: Mapping[str, HostView]
    changed: frozenset[str]
    mark: Mark
    term: int
    term_age_s: float
    fresh: bool
    gone: Mapping[str, GoneView] = field(default_factory=dict)  # whose key was deleted


class Pulse:
    """Watches the hosts bucket, and writes the pulse while leading. Over its own connection.

    `on_hosts` gets a snapshot when something that matters changed; `on_pulse` how long a pulse took and the longest
    silence, for metrics. Both are called in this event loop and must not wait.
    """

    def __init__(
        self,
        store: Store,
        keys: Keys,
        clock: Clock,
        *,
        thresholds_s: Iterable[float],
        on_hosts: Callable[[Hosts], None],
        on_pulse: Callable[[float, float], None] = lambda _took, _longest: None,
    ) -> None:
        self._store = store
        self._bucket = keys.hosts
        self._clock = clock
        self._on_hosts = on_hosts
        self._on_pulse = on_pulse
        self._roll = Roll(thresholds_s)
        self._mark: Mark | None = None  # None until the first list
        self._store_id = ""
        self._term = 0
        self._number = 0
        self._awaited = 0  # number of the pulse that may be counted; 0 = none
        self._began_s = 0.0  # when the awaited pulse, or the first of its row that failed, was sent
        self._back = asyncio.Event()  # the awaited pulse came back, or never will: write the next
        self._leading = asyncio.Event()
        self._fresh = False
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Watch for ever, and pulse between `lead` and `stop_leading`."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch(), name="watch hosts")
            group.create_task(self._pulse(), name="pulse")
            group.create_task(self._hand_over(), name="hand over hosts")

    def lead(self, store_id: str, term: int) -> None:
        """Count from zero, in pulses of `term`."""
        self._store_id, self._term, self._number, self._awaited = store_id, term, 0, 0
        self._roll.zero(grace=False)
        self._leading.set()
        self._news.set()

    def stop_leading(self) -> None:
        self._term, self._awaited = 0, 0
        self._leading.clear()
        self._back.set()
        self._roll.zero(grace=False)
        self._news.set()

    def refresh(self) -> None:
        """Hand over a snapshot now, with every silence up to date."""
        self._fresh = True
        self._news.set()

    async def _watch(self) -> None:
        interrupted = False
        async for item in self._store.watch(self._bucket, relist_s=RELIST_S):
            match item:
                case Listing():
                    self._roll.list(item, interrupted=interrupted, other=_other(self._mark, item.mark))
                    self._mark = item.mark
                    interrupted = False
                    self._news.set()  # an empty list is news too: the loop waits for the first one
                    self._give_up()  # the awaited pulse may have been in the list, and would not come live any more
                case Change(entry):
                    self._advance(entry.revision)
                    if entry.key == PULSE:
                        self._see(entry)
                    else:
                        self._roll.change(entry)
                case Stalled():
                    interrupted = True
            if self._roll.news:
                self._news.set()

    def _advance(self, revision: int) -> None:
        assert self._mark is not None, "a watch begins with a list"
        self._mark = Mark(self._mark.created, max(self._mark.sequence, revision))

    def _see(self, entry: Entry) -> None:
        """A pulse came by: counted if it is the one we wait for."""
        if not self._awaited or entry.value is None:
            return
        try:
            pulse = documents.decode(documents.Pulse, entry.value)
        except BadInput:
            return
        if (pulse.store_id, pulse.term, pulse.number) != (self._store_id, self._term, self._awaited):
            return
        took_s = self._clock.monotonic() - self._began_s
        self._awaited = 0
        self._back.set()
        if took_s > SLOW_PULSE_S:
            self._roll.zero(grace=True)
        else:
            self._roll.pulse()
        self._on_pulse(took_s, self._roll.longest_s)

    def _give_up(self) -> None:
        self._awaited = 0
        self._back.set()

    async def _pulse(self) -> None:
        repeating = False
        while True:
            await self._leading.wait()
            self._number += 1
            self._awaited = self._number
            self._back.clear()
            if not repeating:
                self._began_s = self._clock.monotonic()
            if await self._write(documents.Pulse(self._store_id, self._term, self._number)):
                await self._returned()
            repeating = not self._back.is_set()
            if repeating:
                # The next has a number of its own: were this one counted when it comes after all, two pulses could be
                # closer than the unit.
                self._give_up()
                if self._clock.monotonic() - self._began_s > SLOW_PULSE_S:
                    self._roll.zero(grace=True)
            await self._rest(RETRY_S if repeating else PULSE_S)

    async def _returned(self) -> None:
        """Wait until the pulse came back, at most as long as makes it a slow one."""
        until = self._clock.monotonic() + SLOW_PULSE_S
        while not self._back.is_set() and (left := until - self._clock.monotonic()) > 0:
            await self._clock.wait(self._back, left)

    async def _write(self, pulse: documents.Pulse) -> bool:
        """Whether the pulse was stored for certain."""
        try:
            await self._store.write(self._bucket, PULSE, documents.encode(pulse), timeout=SHORT_TIMEOUT_S)
        except (Busy, Missing):
            return False
        except (OutcomeUnknown, StoreUnavailable):
            with contextlib.suppress(StoreUnavailable):
                await self._store.change_server()
            return False
        return True

    async def _rest(self, seconds: float) -> None:
        """At least `seconds` by the raw clock: sleeps may end early, and the unit must not be shorter than it says."""
        until = self._clock.monotonic() + seconds
        while (left := until - self._clock.monotonic()) > 0:
            await self._clock.sleep(left)

    async def _hand_over(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            if self._mark is None:
                continue  # not before the first list
            fresh, self._fresh = self._fresh, False
            views, changed = self._roll.views(fresh=fresh)
            age_s, gone = self._roll.term_age_s, self._roll.gone()
            self._on_hosts(Hosts(views, changed, self._mark, self._term, age_s, fresh, gone))
            await self._clock.sleep(GATHER_S)


def _other(known: Mark | None, now: Mark) -> bool:
    """Whether a stream was made anew, or restored from a backup."""
    return known is not None and (now.created != known.created or now.sequence < known.sequence)
