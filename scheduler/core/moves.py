"""Sixth step: carry the changes out on the draft, each wholly or not at all.

    order of pipelines   those with a stop that was just confirmed, then those that remove or replace, then the others,
                         each by name; so room that an execution has just left is offered to its own slot first
    two rounds           first everything that finds its place now, then what has to be stopped first
    withdrawals          what is not wanted at all any more comes last, and host by host: an assignment takes its whole
                         size of the commit, so it is rewritten once for all that comes off. Pipeline by pipeline,
                         10,000 of them on 1,000 hosts took 460 passes

What is stopped first has to find room that is still there when it has stopped. So the second round sets aside, for
every slot on its way from one host to another, the room it would take; the slots of earlier passes found their room the
same way and find it again. What is placed anew in the first round of a later pass may take it all the same: then that
slot waits, with its refusal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

from scheduler.core.batches import Batch
from scheduler.core.filters import need_of
from scheduler.core.goals import Remove, Run, lease_bound
from scheduler.core.indexes import cpu_milli
from scheduler.core.placement import Picker, Seats
from scheduler.core.reconcile import Case, Halting, Live, Slot, Verdict, by_place, up_to_date
from scheduler.core.rollout import Change, Place, StopFirst, Surge, Swap, TakeOff, blocked_by
from scheduler.core.sheets import Draft, Seating
from shared.documents import Assigned, Stopping
from shared.states import Wanted

SHOWN_MAX = 5  # slots that one event names

Work = tuple[Case, Sequence[Change]]


def carry_out(draft: Draft, seats: Seats, works: Sequence[Work]) -> set[str]:
    """Change the draft; the pipelines for which there was no room left in the commit."""
    destructive = any(isinstance(change, Swap | StopFirst | TakeOff) for _, changes in works for change in changes)
    batch = Batch(draft) if destructive else None
    staying = [work for work in works if not _withdrawn(work)]
    left: set[str] = set()
    for case, changes in sorted(staying, key=_order):
        if left or not _Mover(draft, seats, case, batch).first_round(changes):
            left.add(case.goal.pipeline)
    for case, changes in sorted(staying, key=_name):
        if case.goal.pipeline in left:
            continue
        if not _Mover(draft, seats, case, batch).second_round(changes):
            left.add(case.goal.pipeline)
    return left | _withdraw(draft, seats, batch, [work for work in works if _withdrawn(work)])


def _withdrawn(work: Work) -> bool:
    return isinstance(work[0].goal.wish, Remove)


def _withdraw(draft: Draft, seats: Seats, batch: Batch | None, works: Sequence[Work]) -> set[str]:
    """Take off what is wanted no more; the pipelines of which something is left."""
    offs = [
        (change.old.host, case.goal.pipeline, change.slot.number, change, case)
        for case, changes in works
        for change in changes
        if isinstance(change, TakeOff)
    ]
    left: set[str] = set()
    for _, pipeline, _, change, case in sorted(offs, key=lambda off: off[:3]):
        if left or not _Mover(draft, seats, case, batch).take_off(change):
            left.add(pipeline)
    return left


def _order(work: Work) -> tuple[int, str]:
    case, changes = work
    removes = any(isinstance(change, Swap | StopFirst | TakeOff) for change in changes)
    return (0 if case.freed else 1 if removes else 2), case.goal.pipeline


def _name(work: Work) -> str:
    return work[0].goal.pipeline


def _may_stop_first(change: Change) -> TypeGuard[StopFirst | Swap]:
    """What is stopped first by its nature, and what is broken and found no second place beside itself."""
    match change:
        case StopFirst():
            return True
        case Swap(slot, old):
            return slot.refused and old.verdict is not Verdict.MOVE
        case Place() | Surge() | TakeOff():
            return False


class _Mover:
    """Carries out the changes of one pipeline. `batch` None: the plan only adds, and may be as large as it likes."""

    def __init__(self, draft: Draft, seats: Seats, case: Case, batch: Batch | None) -> None:
        self._draft = draft
        self._seats = seats
        self._case = case
        self._batch = batch
        self._picker: Picker | None = None
        self._seated: list[Seating] = []
        self._restart = ""
        self._bound = False

    def first_round(self, changes: Sequence[Change]) -> bool:
        """Everything but what is stopped first. False: the commit is full."""
        full = not self._pin()
        for change in changes:
            if full:
                break
            match change:
                case Place(slot, sticky):
                    full = not self._place(slot, sticky)
                case Surge(slot, old):
                    full = not self._place(slot, old.host, leaves=old)
                case Swap(slot, old):
                    full = not self._swap(slot, old)
                case TakeOff():
                    full = not self.take_off(change)
                case StopFirst():
                    pass
        if not full:
            full = not self._bring_up_to_date()
        self._tell()
        self._close()
        return not full

    def second_round(self, changes: Sequence[Change]) -> bool:
        """Set room aside for what is being stopped, and stop what would have room. False: the commit is full."""
        stops = {change.slot.number: change.old for change in changes if _may_stop_first(change)}
        full = False
        for number in sorted(self._case.slots):
            slot = self._case.slots[number]
            if number in stops:
                full = full or not self._stop_first(slot, stops[number])
            elif slot.halting and not slot.live and slot.seating is None:
                if slot.waits:
                    self._room_after(slot, None)
                elif slot.refused and self._fits_after(slot, None):
                    slot.refused, slot.waits = False, blocked_by(self._draft, slot.halting[0])
        self._close()
        return not full

    def take_off(self, change: TakeOff) -> bool:
        """Take one execution off its host. False: the commit is full."""
        old = change.old
        if not self._admit({old.host}, 1):
            return False
        self._off(change.slot, old, change.reason)
        words = f"{old.item.execution} comes off {old.host}: {change.reason}"
        self._draft.event("removed", self._case.goal.pipeline, words)
        return True

    def _pin(self) -> bool:
        pin = self._case.goal.new_pin
        if pin is None:
            return True
        if self._batch is not None and not self._batch.admit(set(), pin, 0):
            return False
        self._draft.pins[pin.pipeline, pin.version] = pin
        self._draft.count("versions admitted")
        self._draft.event("admitted", pin.pipeline, f"version '{pin.version}' is {pin.digest[:12]} from now on")
        return True

    def _place(self, slot: Slot, sticky: str, leaves: Live | None = None) -> bool:
        """Add an execution; False if the commit is full. `leaves`: does not count as a neighbour."""
        picker = self._picker or self._ready_picker()
        if leaves is not None:
            picker.occupy(leaves.host, -1)
        seat = picker.pick(sticky)
        slot.refused = seat is None
        if seat is not None:
            if self._batch is not None and not self._batch.admit({seat.host}, None, 1):
                return False
            picker.take(seat)
            self._seat(slot, seat.host)
        if leaves is not None:
            picker.occupy(leaves.host)
        return True

    def _swap(self, slot: Slot, old: Live) -> bool:
        picker = self._ready_picker()
        picker.occupy(old.host, -1)
        seat = picker.pick(old.host)
        if seat is not None:
            if not self._admit({seat.host, old.host}, 2):
                return False
            picker.take(seat)
            self._seat(slot, seat.host)
            self._off(slot, old, old.reason)
            what = "moved" if old.verdict is Verdict.MOVE else "replaced"
            self._draft.event(
                what, self._case.goal.pipeline, f"slot {slot.number} goes from {old.host} to {seat.host}: {old.reason}"
            )
            return True
        picker.occupy(old.host)
        slot.refused = True
        return True

    def _stop_first(self, slot: Slot, old: Live) -> bool:
        slot.refused = not self._room_after(slot, old)
        return slot.refused or self.take_off(TakeOff(slot, old, old.reason))

    def _room_after(self, slot: Slot, old: Live | None) -> bool:
        """Whether a slot has a place once what is left of it has gone; a place on another host is set aside."""
        if self._fits_after(slot, old):
            return True
        picker = self._ready_picker()
        seat = picker.pick("")
        if seat is not None:
            picker.take(seat)
        return seat is not None

    def _fits_after(self, slot: Slot, old: Live | None) -> bool:
        """Whether a host has room for a slot once everything of the slot, `old` included, has left it."""
        leaving: dict[str, tuple[int, int]] = {}
        items: list[tuple[str, Assigned | Stopping]] = [(halting.host, halting.item) for halting in slot.halting]
        items += [] if old is None else [(old.host, old.item)]
        for host, item in items:
            cpu, memory = leaving.get(host, (0, 0))
            leaving[host] = cpu + cpu_milli(item.cpu), memory + item.memory_bytes
        return any(self._ready_picker().would_fit(host, *leaving[host]) for host in sorted(leaving))

    def _off(self, slot: Slot, old: Live, reason: str) -> None:
        self._draft.take_off(old.host, old.item.execution, reason)
        slot.live.remove(old)
        slot.halting.append(Halting(old.host, self._draft.sheet(old.host).stopping[old.item.execution]))
        slot.halting.sort(key=by_place)  # as the next pass will find it
        self._draft.count("executions taken off")

    def _seat(self, slot: Slot, host: str) -> None:
        wish = self._case.goal.wish
        assert isinstance(wish, Run)
        if not self._seated:
            self._restart = self._draft.view.restart_intents.get(wish.record.id, "")
            self._bound = lease_bound(wish.record, wish.pin.overlap)
        seating = Seating(wish.record.id, slot.number, wish.replicas, wish.pin, self._bound, self._restart, host)
        slot.seating = seating
        self._draft.seat(seating)
        self._seated.append(seating)

    def _tell(self) -> None:
        """One event and one count for all that was placed."""
        seated = self._seated
        if seated:
            shown = ", ".join(f"slot {seating.slot} on {seating.host}" for seating in seated[:SHOWN_MAX])
            more = f" and {len(seated) - SHOWN_MAX} more" if len(seated) > SHOWN_MAX else ""
            self._draft.event("placed", self._case.goal.pipeline, shown + more)
            self._draft.count("executions placed", len(seated))

    def _bring_up_to_date(self) -> bool:
        goal = self._case.goal
        for number in sorted(self._case.slots):
            for live in self._case.slots[number].live:
                if live.verdict is not Verdict.KEEP:
                    continue
                now = up_to_date(live.item, goal)
                if now is not live.item:
                    if not self._admit({live.host}, 0):
                        return False
                    if now.wanted is not live.item.wanted:
                        to = "pause" if now.wanted is Wanted.PAUSE else "run again"
                        self._draft.event(now.wanted.value, goal.pipeline, f"{now.execution} on {live.host} is to {to}")
                    live.item = self._draft.rewrite(live.host, now)
                    self._draft.count("executions changed")
        return True

    def _admit(self, hosts: set[str], items: int) -> bool:
        return self._batch is None or self._batch.admit(hosts, None, items)

    def _ready_picker(self) -> Picker:
        if self._picker is None:
            wish = self._case.goal.wish
            assert isinstance(wish, Run), "only what is published is placed"
            self._picker = Picker(self._seats, need_of(wish.record, wish.pin))
            for slot in self._case.slots.values():
                for live in slot.live:
                    self._picker.occupy(live.host)
                if slot.seating is not None:
                    self._picker.occupy(slot.seating.host)
        return self._picker

    def _close(self) -> None:
        if self._picker is not None:
            self._picker.close()
            self._picker = None
