"""Seventh step: what a person is told about a pipeline. Decisions and reasons, no counters, ages or times.

A status is written only when it differs from the committed one in more than the number of the plan that wrote it. It
shows what is known: an execution is `ready` if the session that its host's document names has said so and its host is
not silent; on a silent host it is `lost`, whatever it said last. What was lost stays so until its host is heard: a new
leader counts every silence from zero, and has not heard a host again that died before.

    one word, first that holds
    REMOVING   a draft or deleted record, and something of it is left
    REFUSED    the record or its configuration is wrong and nothing older runs
    PAUSING / PAUSED
    FAILING    a slot is in back-off or failed
    WAITING    a slot has no place, waits for a stop or for a silent host, or there is no verdict yet
    UPDATING   a slot of another version or on its way to another host
    STARTING   not every slot is ready
    RUNNING    every slot is ready, with the version in force
"""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.core.filters import need_of
from scheduler.core.goals import Goal, Pause, Remove, Run, Stay
from scheduler.core.indexes import LOST, WAITING, shown_lost
from scheduler.core.liveness import Liveness, given_up
from scheduler.core.reconcile import Case, Halting, Live, Slot, Verdict
from scheduler.core.refusals import Explainer, Refusals, same, shown
from scheduler.core.rollout import awaited, blocked_by, preference
from scheduler.core.sheets import Draft
from shared.documents import SlotStatus, Status
from shared.keys import status_key
from shared.states import Overlap, Phase, State, Wanted

REASON_CHARS_MAX = 300  # of one slot
SENTENCE_CHARS_MAX = 1000  # of a status

_STARTING = Phase.STARTING.value


def statuses(draft: Draft, explainer: Explainer, cases: Sequence[Case]) -> dict[str, Status | None]:
    """The statuses that have to be written. Asked when every new execution has its id."""
    found: dict[str, Status | None] = {}
    lost: set[str] = set()
    back: set[str] = set()
    for case in cases:
        pipeline = case.goal.pipeline
        old = draft.view.statuses.get(pipeline)
        new = _status(draft, explainer, case, old)
        if new is None:
            if old is not None:
                found[pipeline] = None
                draft.event("gone", pipeline, "nothing of it is left")
        elif new != old or (draft.view.damaged and status_key(pipeline) in draft.view.damaged):
            found[pipeline] = new
            was = {row.host for row in (() if old is None else old.slots) if row.phase == LOST}
            now = {row.host for row in new.slots if row.phase == LOST}
            lost |= now - was
            back |= {host for host in was - now if draft.alive(host) is Liveness.ALIVE}
            if new.state is not (None if old is None else old.state):
                draft.event("state", pipeline, f"{new.state.value}: {new.reason}" if new.reason else new.state.value)
    for host in sorted(lost):
        draft.event("host-lost", host, f"{host} is silent")
    for host in sorted(back):
        draft.event("host-returned", host, f"{host} is heard again")
    return found


def _status(draft: Draft, explainer: Explainer, case: Case, old: Status | None) -> Status | None:
    goal = case.goal
    rows = _rows(draft, case)
    if isinstance(goal.wish, Remove) and not rows and not goal.problems:
        return None
    if goal.checking and old is not None and not rows:
        return old
    refusals = _refusals(explainer, case)
    state = _state(draft, case, rows, refusals is not None)
    reason = _reason(draft, case, state, rows, refusals)
    hosts = () if refusals is None else shown(refusals)
    if old is not None and refusals is not None and same(old, refusals, goal.record):
        reason, hosts = old.reason, old.refusals
    return Status(
        store_id=draft.view.store_id,
        term=0 if old is None else old.term,
        plan=0 if old is None else old.plan,
        pipeline=goal.pipeline,
        state=state,
        wanted=goal.wanted,
        version=goal.version,
        reason=reason[:SENTENCE_CHARS_MAX],
        problems=goal.problems,
        notes=goal.notes,
        slots=tuple(rows),
        refusals=hosts,
        refused_hosts=0 if refusals is None else len(refusals.hosts),
        record=goal.record,
    )


def _refusals(explainer: Explainer, case: Case) -> Refusals | None:
    wish = case.goal.wish
    if isinstance(wish, Run) and any(slot.refused for slot in case.slots.values()):
        return explainer.explain(need_of(wish.record, wish.pin))
    return None


# --- one row per slot


def _rows(draft: Draft, case: Case) -> list[SlotStatus]:
    goal = case.goal
    replicas = goal.wish.replicas if isinstance(goal.wish, Run) else 0
    rows = []
    for number in sorted(case.slots):
        slot = case.slots[number]
        seating = slot.seating
        kept = [live for live in slot.live if live.verdict is Verdict.KEEP] if slot.live else ()
        if kept or (slot.live and seating is None):
            lives = kept or slot.live
            rows.append(_live_row(draft, slot, lives[0] if len(lives) == 1 else min(lives, key=preference)))
        elif seating is not None:
            assert seating.assigned is not None, "executions get their ids before statuses are made"
            rows.append(_row(slot, seating.assigned.execution, seating.host, goal.version, *_unreported(seating.host)))
        elif slot.halting and not slot.refused:
            halting = slot.halting[0]
            item, why = halting.item, slot.waits or blocked_by(draft, halting)
            rows.append(_row(slot, item.execution, halting.host, item.version, Phase.STOPPING.value, why))
        elif number < replicas:
            why = slot.waits or "no host can take it"
            rows.append(_row(slot, "", "", goal.version, WAITING, why))
    if rows and isinstance(goal.wish, Stay):
        # What waited goes on waiting; without its rows the others alone would look like everything.
        old = draft.view.statuses.get(goal.pipeline)
        there = {row.slot for row in rows}
        rows.extend(row for row in (old.slots if old else ()) if not row.execution and row.slot not in there)
        items = [live.item for slot in case.slots.values() for live in slot.live]
        replicas = max((item.replicas for item in items if item.wanted is Wanted.RUN), default=0)
        missing = set(range(replicas)) - {row.slot for row in rows}
        why = goal.waits or "nothing is placed now"
        rows.extend(_row(Slot(number), "", "", goal.version, WAITING, why) for number in missing)
        rows.sort(key=_number)
    return rows


def _number(row: SlotStatus) -> int:
    return row.slot


def _live_row(draft: Draft, slot: Slot, live: Live) -> SlotStatus:
    phase, reason = _phase(draft, slot, live)
    return _row(slot, live.item.execution, live.host, live.item.version, phase, reason)


def _phase(draft: Draft, slot: Slot, live: Live) -> tuple[str, str]:
    host, item = live.host, live.item
    if draft.alive(host) is not Liveness.ALIVE:
        if slot.refused or slot.waits or item.wanted is Wanted.PAUSE:
            return LOST, slot.waits or f"{host} is silent"
        if host in draft.view.outage and not given_up(draft.view, host):
            what = f"more than half of the hosts fell silent at once, {host} among them: nothing is moved"
            return LOST, f"{what} until they are heard, or you say `shoal store confirm hosts`"
        if item.overlap is Overlap.EXCLUSIVE:
            return LOST, awaited(draft, host, item)
        return LOST, f"{host} is silent"
    known = draft.view.hosts.get(host)
    if known is not None and known.unheard:
        row = shown_lost(draft.view.statuses.get(item.pipeline), item)
        if row is not None:
            return LOST, row.reason
    if live.phase is None:
        return (Phase.STOPPING.value, "") if item.wanted is Wanted.PAUSE else _unreported(host)
    return live.phase.value, live.said


def _unreported(host: str) -> tuple[str, str]:
    return _STARTING, f"{host} has not reported on it yet"


def _row(slot: Slot, execution: str, host: str, version: str, phase: str, reason: str) -> SlotStatus:
    return SlotStatus(
        slot=slot.number,
        execution=execution,
        host=host,
        version=version,
        phase=phase,
        reason=reason[:REASON_CHARS_MAX],
    )


# --- one word and one sentence


def _state(draft: Draft, case: Case, rows: Sequence[SlotStatus], refused: bool) -> State:
    goal = case.goal
    match goal.wish:
        case Remove():
            return State.REMOVING if rows else State.REFUSED
        case Pause():
            return _paused(draft, case, goal, rows)
        case Stay() if not rows:
            return State.WAITING if goal.waits or not goal.problems else State.REFUSED
        case Stay():
            lives = [live for slot in case.slots.values() for live in slot.live]
            if lives and all(live.item.wanted is Wanted.PAUSE for live in lives):
                return _paused(draft, case, goal, rows)
            return _running(rows, refused, moving=_held_back(goal, rows))
        case Run(_, _, replicas):
            moving = any(slot.live and _on_its_way(slot) for slot in case.slots.values() if slot.number < replicas)
            wanted = [row for row in rows if row.slot < replicas]
            return _running(wanted, refused, moving or any(row.version != goal.version for row in wanted))


def _held_back(goal: Goal, rows: Sequence[SlotStatus]) -> bool:
    """Whether something else runs than what its user wants, and waits."""
    return bool(goal.waits) and any(row.version != goal.version for row in rows)


def _on_its_way(slot: Slot) -> bool:
    return len(slot.live) + (slot.seating is not None) > 1 or any(
        live.verdict is not Verdict.KEEP for live in slot.live
    )


def _paused(draft: Draft, case: Case, goal: Goal, rows: Sequence[SlotStatus]) -> State:
    if not rows and goal.pin is None:
        return State.WAITING if goal.waits else State.REFUSED
    lives = [live for slot in case.slots.values() for live in slot.live]
    halting = _may_run(draft, case)
    return State.PAUSED if halting is None and all(live.phase is Phase.STOPPED for live in lives) else State.PAUSING


def _may_run(draft: Draft, case: Case) -> Halting | None:
    """Something of it that was taken off its host and may run there yet."""
    for _, slot in sorted(case.slots.items()):
        for halting in slot.halting:
            if not draft.released(halting.host, halting.item, alone=True):
                return halting
    return None


def _running(rows: Sequence[SlotStatus], refused: bool, moving: bool) -> State:
    phases = {row.phase for row in rows}
    if phases & {Phase.BACKOFF.value, Phase.FAILED.value}:
        return State.FAILING
    if refused or phases & {LOST, WAITING}:
        return State.WAITING
    if moving or Phase.STOPPING.value in phases:
        return State.UPDATING
    return State.RUNNING if phases <= {Phase.READY.value} else State.STARTING


def _reason(draft: Draft, case: Case, state: State, rows: Sequence[SlotStatus], refusals: Refusals | None) -> str:
    goal = case.goal
    if refusals is not None:
        text = refusals.sentence
    elif not rows:
        text = goal.waits or (goal.problems[0] if goal.problems else "")
        return text or ("admitted; nothing of it is on any host" if state is State.PAUSED else "")
    else:
        text = _why(draft, case, state, rows) or (goal.waits if state in (State.WAITING, State.UPDATING) else "")
    if goal.problems and state is not State.REMOVING:
        goes_on = f"; version '{goal.version}' goes on" if goal.version else ""
        return f"{goal.problems[0]}{goes_on}" + (f"; {text}" if text else "")
    return text


def _why(draft: Draft, case: Case, state: State, rows: Sequence[SlotStatus]) -> str:
    """The first row that explains the state."""
    match state:
        case State.RUNNING | State.PAUSED | State.REFUSED:
            return ""
        case State.REMOVING:
            assert isinstance(case.goal.wish, Remove)
            return f"{case.goal.wish.reason}; {rows[0].reason}" if rows[0].reason else case.goal.wish.reason
        case State.UPDATING:
            why = [live.reason for _, slot in sorted(case.slots.items()) for live in slot.live if live.reason]
            return why[0] if why else _first(rows, (Phase.READY.value,))
        case State.FAILING:
            return next(_told(row) for row in rows if row.phase in (Phase.BACKOFF.value, Phase.FAILED.value))
        case State.WAITING:
            return next((_told(row) for row in rows if row.phase in (LOST, WAITING)), "")
        case State.PAUSING:
            halting = _may_run(draft, case)
            return _first(rows, (Phase.STOPPED.value,)) or ("" if halting is None else blocked_by(draft, halting))
        case State.STARTING:
            return _first(rows, (Phase.READY.value,))


def _first(rows: Sequence[SlotStatus], fine: tuple[str, ...]) -> str:
    return next((_told(row) for row in rows if row.phase not in fine), "")


def _told(row: SlotStatus) -> str:
    place = f"slot {row.slot} on {row.host}" if row.host else f"slot {row.slot}"
    return f"{place} is {row.phase}: {row.reason}" if row.reason else f"{place} is {row.phase}"
