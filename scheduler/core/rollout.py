"""Fifth step: which of the verdicts are acted on now, and in which order old and new change places.

    Place      nothing of the slot exists: a new execution
    Swap       new one placed and old one taken off in the same plan: the old one does no work any more
    Surge      new one placed, old one stays until the new one is ready (shareable)
    StopFirst  old one taken off, new one placed when that is confirmed (exclusive); only if there is room for it now
    TakeOff    old one taken off, nothing takes its place

A change is one value: either all of it happens or nothing. So an old execution is never stopped for a new one that has
no place; it stays, and the status says what the new one lacks.

Pace, per pipeline: one healthy execution at a time. A rollout goes on when what it placed is ready; if that never
comes, it stands still with one slot of the new version, and publishing the old one again undoes just that slot.
An execution that is known to be broken (failing, or paused) may go at once: nothing is lost by it.

What waits. A slot whose exclusive copy was taken off somewhere and is not confirmed stopped gets no new one, unless
the silence of that host has released it. The same holds when either of two versions is exclusive.
"""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.core.goals import Goal, Pause, Remove, Run, Stay
from scheduler.core.liveness import Liveness, obeys_lease
from scheduler.core.reconcile import Case, Halting, Live, Slot, Verdict
from scheduler.core.sheets import Draft
from shared.documents import Assigned, Pin, Stopping
from shared.states import Overlap, Phase

MAX_SURGE = 1  # healthy shareable executions of one pipeline that run twice at once during a rollout
MAX_UNAVAILABLE = 1  # exclusive slots of one pipeline that are down at once for a rollout


@dataclass(frozen=True, slots=True)
class Place:
    slot: Slot
    sticky: str


@dataclass(frozen=True, slots=True)
class Swap:
    slot: Slot
    old: Live


@dataclass(frozen=True, slots=True)
class Surge:
    slot: Slot
    old: Live


@dataclass(frozen=True, slots=True)
class StopFirst:
    slot: Slot
    old: Live


@dataclass(frozen=True, slots=True)
class TakeOff:
    slot: Slot
    old: Live
    reason: str


Change = Place | Swap | Surge | StopFirst | TakeOff


def pace(draft: Draft, case: Case) -> list[Change]:
    """What is to be done for one pipeline now, in the order of its slots. Slots that wait say why."""
    goal = case.goal
    match goal.wish:
        case Stay():
            return []
        case Remove() | Pause():
            return _unwanted(case)
        case Run(_, pin, replicas):
            return _Pace(draft, goal, pin, case).changes(replicas) + _unwanted(case)


def _unwanted(case: Case) -> list[Change]:
    slots = [case.slots[number] for number in sorted(case.slots)]
    found = [(slot, live) for slot in slots for live in slot.live if live.verdict is Verdict.REMOVE]
    return [TakeOff(slot, live, live.reason) for slot, live in found]


class _Pace:
    """The rollout of one published pipeline."""

    def __init__(self, draft: Draft, goal: Goal, pin: Pin, case: Case) -> None:
        self._draft = draft
        self._goal = goal
        self._pin = pin
        self._case = case
        self._down: set[int] = set()  # wanted slots that nobody can rely on
        self._surging = 0
        status = draft.view.statuses.get(goal.pipeline)
        self._rows = () if status is None else status.slots

    def changes(self, replicas: int) -> list[Change]:
        """First what is superfluous, which may make room in the pace; then what is missing or out of date."""
        found: list[Change] = []
        kept: list[tuple[Slot, Live | None]] = []
        slots = self._case.slots
        for number in range(replicas):
            slot = slots.get(number)
            if slot is None:  # never placed: by far the most common of a large plan
                slot = slots[number] = Slot(number)
                kept.append((slot, None))
                self._down.add(number)
                continue
            live = slot.live
            best = live[0] if len(live) == 1 else min(_wanted(slot) or live, key=preference, default=None)
            kept.append((slot, best))
            if best is None or not best.ready:
                self._down.add(number)
            if best is not None and len(slot.live) > 1:
                found.extend(self._superfluous(slot, best))
        for slot, best in kept:
            if best is None:
                slot.waits = self._blocked(slot) if slot.halting else ""
                if not slot.waits:
                    found.append(Place(slot, slot.former or self._host_before(slot.number)))
            elif best.verdict is not Verdict.KEEP:
                found.extend(self._superseded(slot, best))
        return found

    def _superfluous(self, slot: Slot, best: Live) -> list[Change]:
        """Of several executions of a slot only the best is kept; another one that works, until the best one does."""
        relieved = best.ready
        changes: list[Change] = []
        for live in slot.live:
            works = not live.broken and live.heard and not self._alone(live.item.overlap)
            if live is best:
                continue
            if relieved or not works or best.verdict is not Verdict.KEEP:
                changes.append(TakeOff(slot, live, live.reason or f"{best.item.execution} took its place"))
            else:
                self._surging += 1
                if live.ready:
                    self._down.discard(slot.number)
        return changes

    def _superseded(self, slot: Slot, old: Live) -> list[Change]:
        alone = self._alone(old.item.overlap)
        blocked = self._blocked(slot)
        if blocked:
            slot.waits = blocked
            return []
        if old.verdict is Verdict.MOVE:
            if alone and not self._released(old.host, old.item):
                slot.waits = awaited(self._draft, old.host, old.item)
                return []
            return [Swap(slot, old)]
        healthy = not old.broken
        if not alone:
            if not healthy:
                return [Swap(slot, old)]
            updating = old.item.version != self._pin.version
            if self._surging >= MAX_SURGE or (updating and self._down - {slot.number}):
                return []
            self._surging += 1
            return [Surge(slot, old)]
        if healthy and len(self._down - {slot.number}) >= MAX_UNAVAILABLE:
            return []
        self._down.add(slot.number)
        return [StopFirst(slot, old)]

    def _blocked(self, slot: Slot) -> str:
        for halting in slot.halting:
            alone = self._alone(halting.item.overlap)
            if alone and not self._released(halting.host, halting.item):
                return blocked_by(self._draft, halting, alone=True)
        return ""

    def _alone(self, overlap: Overlap) -> bool:
        return Overlap.EXCLUSIVE in (overlap, self._pin.overlap)

    def _released(self, host: str, item: Assigned | Stopping) -> bool:
        return self._draft.released(host, item, alone=True)

    def _host_before(self, number: int) -> str:
        rows = self._rows
        return rows[number].host if number < len(rows) and rows[number].slot == number else ""


def blocked_by(draft: Draft, halting: Halting, *, alone: bool = False) -> str:
    """Why a slot waits for a stop, for people. `alone`: for its sake what may otherwise overlap must not."""
    host, item = halting.host, halting.item
    text = f"waits until {host} confirms that {item.execution} has stopped"
    if draft.alive(host) is Liveness.ALIVE:
        seen = draft.observed(host, item.execution)
        hindered = seen is not None and seen.phase is Phase.STOPPING and seen.reason
        return f"{text}; there: {hindered}" if hindered else text
    alone = alone or item.overlap is Overlap.EXCLUSIVE
    return f"{text}; {awaited(draft, host, item) if alone else f'{host} is silent'}"


def awaited(draft: Draft, host: str, item: Assigned | Stopping) -> str:
    """What has to happen before an execution that must run alone is placed elsewhere than on a silent host, for people.
    The same words from the first silence to the move: a status is not rewritten for each step."""
    if obeys_lease(draft.view, host, item):
        return f"{host} is silent; when what runs there must have stopped, its session is ended, then it is replaced"
    return (
        f"{host} is silent, and it may go on there; nothing replaces it until {host} is heard, or you know that it is "
        f"dead: `shoal hosts confirm-dead {host}`"
    )


def _wanted(slot: Slot) -> list[Live]:
    return [live for live in slot.live if live.verdict is Verdict.KEEP]


def preference(live: Live) -> tuple[bool, bool, bool, str, str]:
    """Which of several executions of one slot is kept: a ready one, then one on a host that is heard."""
    return not live.ready, not live.heard, live.broken, live.item.execution, live.host
