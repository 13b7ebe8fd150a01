"""What a `World` keeps besides the documents, so that a pass touches only what it asks about.

Each function brings one index up to date after one document changed; none is ever rebuilt as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable

from scheduler.core.view import Load, Place
from shared.documents import Assigned, Assignment, Observed, Report, SlotStatus, Status, Stopping
from shared.states import Phase, State

WAITING = "waiting"  # instead of a phase, in a status: there is no execution
LOST = "lost"  # the same: its host is silent


def cpu_milli(cores: float) -> int:
    """Cores as whole thousandths."""
    return round(cores * 1000)


def load_of(assignment: Assignment) -> Load:
    """What everything on this host requests, what is still stopping included."""
    items: tuple[Assigned | Stopping, ...] = (*assignment.executions, *assignment.stopping)
    return Load(sum(round(item.cpu * 1000) for item in items), sum(item.memory_bytes for item in items), len(items))


def index_places(
    places: dict[str, tuple[Place, ...]], host: str, old: Assignment | None, new: Assignment | None
) -> set[str]:
    """Bring `places` up to date after a host's assignment changed; the pipelines that it changed for.

    Items that were carried over are the same objects, so a document that gained one execution costs one comparison
    per item and re-indexes one pipeline.
    """
    before, after = _items(old), _items(new)
    changed = {item.pipeline for key, item in before.items() if key not in after}
    changed.update(item.pipeline for key, item in after.items() if key not in before)
    mine: dict[str, list[Place]] = {pipeline: [] for pipeline in changed}
    for item in after.values():
        if item.pipeline in mine:
            mine[item.pipeline].append(Place(host, item))
    for pipeline, added in mine.items():
        merged = [place for place in places.get(pipeline, ()) if place.host != host] + added
        if merged:
            merged.sort(key=_order)
            places[pipeline] = tuple(merged)
        else:
            places.pop(pipeline, None)
    return changed


def changed_pipelines(assignment: Assignment | None, old: Report | None, new: Report | None) -> set[str]:
    """The pipelines for which a new report of a host may matter.

    Those whose executions are observed differently, and those for which the plan number of the report alone may count:
    it may confirm a stop on this host, or that an execution has become lease-bound.
    """
    applied = 0 if old is None else old.plan
    pipelines = set() if assignment is None else {item.pipeline for item in assignment.stopping}
    pipelines.update(item.pipeline for item in (assignment.executions if assignment else ()) if item.bound_in > applied)
    same_sender = old is not None and new is not None and _sender(old) == _sender(new)
    before = {} if old is None else {seen.execution: seen for seen in old.executions}
    after = {} if new is None else {seen.execution: seen for seen in new.executions}
    if not same_sender:
        pipelines.update(seen.pipeline for seen in (*before.values(), *after.values()))
        pipelines.update(item.pipeline for item in (() if assignment is None else assignment.executions))
        return pipelines
    for execution in before.keys() | after.keys():
        was, now = before.get(execution), after.get(execution)
        if was is None or now is None or _shown(was) != _shown(now):
            seen = now or was
            assert seen is not None
            pipelines.add(seen.pipeline)
    return pipelines


def is_waiting(status: Status | None) -> bool:
    """Whether every pass has to look at a pipeline: any change may make room for what was refused, and a slot that is
    being stopped to be placed again keeps room for itself."""
    if status is None or status.state in (State.RUNNING, State.PAUSED):
        return False
    moving = status.state in (State.WAITING, State.UPDATING)
    phases = {row.phase for row in status.slots}
    return status.refused_hosts > 0 or WAITING in phases or (moving and Phase.STOPPING in phases)


def pinned(versions: frozenset[str], version: str, there: bool) -> frozenset[str]:
    """The versions of a pipeline that are pinned, after one pin was written or deleted."""
    return versions | {version} if there else versions - {version}


def _items(assignment: Assignment | None) -> dict[int, Assigned | Stopping]:
    if assignment is None:
        return {}
    items: Iterable[Assigned | Stopping] = (*assignment.executions, *assignment.stopping)
    return {id(item): item for item in items}


def _order(place: Place) -> tuple[str, str]:
    return place.host, place.item.execution


def _sender(report: Report) -> tuple[object, ...]:
    return report.store_id, report.session, bool(report.problem)


def _shown(seen: Observed) -> tuple[object, ...]:
    return seen.phase, seen.reason, seen.digest


def shown_lost(status: Status | None, item: Assigned) -> SlotStatus | None:
    """The row of a status that shows an execution as lost; None: it has no such row."""
    rows = () if status is None else status.slots
    row = rows[item.slot] if item.slot < len(rows) else None  # in the order of slots, mostly without a gap
    return row if row is not None and (row.execution, row.phase) == (item.execution, LOST) else None
