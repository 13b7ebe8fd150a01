"""Fourth step: for every execution of a pipeline one verdict, from an ordered table of rules; the first to speak wins.

    KEEP      stays where it is (its document entry may be brought up to date in place)
    REMOVE    nothing takes its place: it comes off now
    MOVE      its host is gone: another takes its place now, and it comes off in the same plan
    REPLACE   another should take its place, at the pace of the rollout

Whatever no rule names is kept: there are no needless moves. A rule sees one execution and the goal, never another
pipeline and never what placement would like better. How many replacements go on at once is for `rollout` to say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from scheduler.core.filters import Labels, has_labels, labels_of
from scheduler.core.goals import Goal, Pause, Remove, Run, Stay, lease_bound
from scheduler.core.liveness import Liveness
from scheduler.core.sessions import confirmed
from scheduler.core.sheets import Draft, Seating
from shared.documents import Assigned, Pin, Stopping
from shared.record import PipelineRecord
from shared.states import Overlap, Phase, Wanted


class Verdict(Enum):
    """What becomes of one execution."""

    KEEP = auto()
    REMOVE = auto()
    MOVE = auto()
    REPLACE = auto()


@dataclass(slots=True, eq=False)
class Live:
    """An execution that its host's document has, what is observed of it, and the verdict on it."""

    host: str
    item: Assigned
    phase: Phase | None  # None: the session that the document names has not said anything about it
    heard: bool  # whether its host is not silent
    said: str = ""  # the reason that goes with the phase
    verdict: Verdict = Verdict.KEEP
    reason: str = ""

    @property
    def ready(self) -> bool:
        return self.heard and self.phase is Phase.READY

    @property
    def broken(self) -> bool:
        """Known not to do its work, so that taking it off makes nothing worse. Not known is not broken."""
        return self.item.wanted is Wanted.PAUSE or self.phase not in (None, Phase.READY)


@dataclass(slots=True, eq=False)
class Halting:
    """An execution that was taken off its host and is not confirmed stopped."""

    host: str
    item: Stopping


def by_place(halting: Halting) -> tuple[str, str]:
    """The order of `View.places`."""
    return halting.host, halting.item.execution


@dataclass(slots=True, eq=False)
class Slot:
    """One slot with everything that exists of it, kept up to date while the plan is made.

    `former`: the host of a stop that was confirmed in this plan. `seating`: a new execution. `refused`: a place was
    looked for and there is none. `waits`: why a place is not even looked for yet.
    """

    number: int
    live: list[Live] = field(default_factory=list)
    halting: list[Halting] = field(default_factory=list)
    former: str = ""
    seating: Seating | None = None
    refused: bool = False
    waits: str = ""


@dataclass(slots=True, eq=False)
class Case:
    """One pipeline with its goal and its slots: what the steps behind hand to each other."""

    goal: Goal
    slots: dict[int, Slot]
    freed: bool = False  # a stop of it was confirmed in this plan: its slots are placed first

    def slot(self, number: int) -> Slot:
        found = self.slots.get(number)
        if found is None:
            found = self.slots[number] = Slot(number)
        return found


@dataclass(slots=True)
class _Question:
    """One execution before the rules."""

    draft: Draft
    required: Labels
    pin: Pin | None
    replicas: int
    restart: str  # that was asked for last; "" = none
    live: Live


def reconcile(draft: Draft, goal: Goal) -> Case:
    """Drop the stops that are confirmed, and judge every execution that is left."""
    case = _gather(draft, goal)
    wish = goal.wish
    match wish:
        case Remove(reason):
            for slot in case.slots.values():
                for live in slot.live:
                    live.verdict, live.reason = Verdict.REMOVE, reason
        case Stay():
            pass
        case Run(record, pin, replicas):
            _judge(draft, case, record, pin, replicas)
        case Pause(record, replicas):
            _judge(draft, case, record, None, replicas)
    return case


def _gather(draft: Draft, goal: Goal) -> Case:
    case = Case(goal, {})
    for place in draft.view.places.get(goal.pipeline, ()):
        host, execution = place.host, place.item.execution
        sheet = draft.sheets.get(host)  # settling the host may have taken it off or dropped it
        item: Assigned | Stopping | None = place.item
        if sheet is not None and sheet.changed:
            item = sheet.executions.get(execution) or sheet.stopping.get(execution)
        if item is None:
            case.slot(place.item.slot)
            continue
        slot = case.slot(item.slot)
        if isinstance(item, Assigned):
            seen = draft.observed(host, execution)
            heard = draft.alive(host) is Liveness.ALIVE
            live = Live(host, item, None, heard) if seen is None else Live(host, item, seen.phase, heard, seen.reason)
            slot.live.append(live)
        elif item is place.item and confirmed(draft.view, host, item):
            draft.drop(host, execution)
            slot.former, case.freed = host, True
        else:
            slot.halting.append(Halting(host, item))
    return case


def _judge(draft: Draft, case: Case, record: PipelineRecord, pin: Pin | None, replicas: int) -> None:
    restart = draft.view.restart_intents.get(record.id, "")
    required = labels_of(record.placement.required)
    for slot in case.slots.values():
        for live in slot.live:
            question = _Question(draft, required, pin, replicas, restart, live)
            for verdict, rule in RULES:
                reason = rule(question)
                if reason is not None:
                    live.verdict, live.reason = verdict, reason
                    break


# --- the rules: a reason, or None where the rule has nothing to say


def _beyond_replicas(q: _Question) -> str | None:
    return f"replicas is {q.replicas} now" if q.live.item.slot >= q.replicas else None


def _paused_on_draining(q: _Question) -> str | None:
    return f"{q.live.host} is drained, and nothing is kept on it" if q.pin is None and _drained(q) else None


def _paused(q: _Question) -> str | None:
    return "" if q.pin is None else None


def _host_gone(q: _Question) -> str | None:
    live, item = q.live, q.live.item
    if q.draft.alive(live.host) is Liveness.ALIVE:
        return None
    alone = item.overlap is Overlap.EXCLUSIVE
    return f"{live.host} is silent" if q.draft.released(live.host, item, alone=alone) else None


def _draining(q: _Question) -> str | None:
    return f"{q.live.host} is drained" if _drained(q) else None


def _elsewhere_required(q: _Question) -> str | None:
    known = q.draft.view.hosts.get(q.live.host)
    if not q.required or known is None:
        return None
    has = has_labels(q.required, known.heartbeat.labels, q.live.host)
    return None if has else f"{q.live.host} lacks a label that is required now"


def _other_version(q: _Question) -> str | None:
    item, pin = q.live.item, q.pin
    if pin is None or (item.version == pin.version and item.digest == pin.digest):
        return None
    return f"version '{pin.version}' replaces '{item.version}'"


def _restart_asked(q: _Question) -> str | None:
    return "a restart was asked for" if q.restart not in ("", q.live.item.restart) else None


def _drained(q: _Question) -> bool:
    intent = q.draft.view.host_intents.get(q.live.host)
    return intent is not None and intent.drain


RULES: tuple[tuple[Verdict, Callable[[_Question], str | None]], ...] = (
    (Verdict.REMOVE, _beyond_replicas),
    (Verdict.REMOVE, _paused_on_draining),
    (Verdict.KEEP, _paused),  # from here on the pipeline is published
    (Verdict.MOVE, _host_gone),
    (Verdict.REPLACE, _draining),
    (Verdict.REPLACE, _elsewhere_required),
    (Verdict.REPLACE, _other_version),
    (Verdict.REPLACE, _restart_asked),
)


def up_to_date(item: Assigned, goal: Goal) -> Assigned:
    """The entry of an execution that is kept, as its host should see it now; the very same object if nothing changes.

    Only what acts at once is brought up to date; what a version captured stays as it was pinned.
    """
    match goal.wish:
        case Run(record, pin, replicas):
            return _with(item, Wanted.RUN, replicas, lease_bound(record, pin.overlap))
        case Pause(record, replicas):
            return _with(item, Wanted.PAUSE, replicas, lease_bound(record, item.overlap))
        case Remove() | Stay():
            return item


def _with(item: Assigned, wanted: Wanted, replicas: int, bound: bool) -> Assigned:
    if (item.wanted, item.replicas, item.lease_bound) == (wanted, replicas, bound):
        return item
    return replace(item, wanted=wanted, replicas=replicas, lease_bound=bound)
