"""Third step: what a pipeline should be now, from its record, its versions and what already runs.

    record            version                       goal
    ------            -------                       ----
    deleted, draft    -                             Remove
    paused            any                           Pause (pinned as soon as it is admitted)
    published         pinned                        Run
    published         admitted, not pinned yet      Run, and the pin is written with the same plan
    published         rejected, object missing      Run with the last good version, else Stay
    published         being looked at               Stay
    held, on hold     -                             Stay

A pin that is refused for its replicas is not written: what a user would change to make it right (`overlap`) is captured
with the pin. A version that was admitted from another record than the newest one (its captured fields differ) counts
as being looked at, so that no version is pinned to fields its user has just corrected.

There is always a last good version: what the committed status names or, if that is not pinned, what runs. It goes on
under the other fields of the new record; only `replicas` stays as it is if it is `replicas` that is refused.
A record that never validated in this leader's life says nothing about placement, so what runs stays where it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from scheduler.core.candidates import Ready, Rejected, Unavailable
from scheduler.core.view import Policy, RecordView, View
from shared.documents import Assigned, Pin
from shared.ids import parse_execution
from shared.record import PipelineRecord, PipelineStatus, captured
from shared.states import Overlap

TEXT_CHARS_MAX = 500  # of one problem or note in a status
TEXTS_MAX = 10  # problems or notes in a status

CHECKING = "its configuration is being checked"


@dataclass(frozen=True, slots=True)
class Run:
    """So many slots of this version run."""

    record: PipelineRecord
    pin: Pin
    replicas: int


@dataclass(frozen=True, slots=True)
class Pause:
    """What exists is stopped and kept; nothing new is placed."""

    record: PipelineRecord
    replicas: int


@dataclass(frozen=True, slots=True)
class Remove:
    """No trace may remain."""

    reason: str


@dataclass(frozen=True, slots=True)
class Stay:
    """Everything stays exactly as it is."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What a pipeline should be, and what its user has to be told about it.

    `pin`: of the version in force. `new_pin`: it is written with this plan. `waits`: why there is no verdict yet.
    `checking`: nothing has been decided about the newest record yet. `deleted`: its record is gone, so its pins go too.
    """

    pipeline: str
    wish: Run | Pause | Remove | Stay
    wanted: str
    version: str
    record: int
    pin: Pin | None = None
    new_pin: Pin | None = None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    waits: str = ""
    checking: bool = False
    deleted: bool = False


def resolve(view: View, policy: Policy, pipeline: str) -> Goal:
    """The goal of one pipeline. `new_pin` has no plan number yet."""
    known = view.records.get(pipeline)
    if pipeline in policy.hold:
        return _stay(view, pipeline, known, notes=(_ON_HOLD,))
    if known is None:
        version = _last_version(view, pipeline)
        return Goal(pipeline, Remove("its record was deleted"), "removed", version, 0, deleted=True)
    if known.held:
        return _stay(view, pipeline, known, notes=(known.kept or _HELD,))
    record = known.good
    if record is None:
        return _stay(view, pipeline, known, notes=_kept(known))
    if record.status is PipelineStatus.DRAFT:
        problems = bounded(known.problems)
        return Goal(pipeline, Remove("it is a draft"), "draft", record.version, known.revision, problems=problems)
    choice = _choose(view, known, record)
    if record.status is PipelineStatus.PAUSED:
        return _goal(view, known, record, choice, Pause(record, choice.replicas))
    if choice.pin is None or choice.checking:
        return _goal(view, known, record, choice, Stay())
    return _goal(view, known, record, choice, Run(record, choice.pin, choice.replicas))


_ON_HOLD = "on hold: the audit refused a plan for it; nothing about it changes until its record does"
_HELD = "its record is gone without having been deleted; nothing changes until a second list agrees"


@dataclass(frozen=True, slots=True)
class _Choice:
    """The version in force and how it came to be that."""

    pin: Pin | None
    replicas: int
    new_pin: Pin | None = None
    problems: tuple[str, ...] = ()
    waits: str = ""
    checking: bool = False


def _choose(view: View, known: RecordView, record: PipelineRecord) -> _Choice:
    wanted = (record.id, record.version)
    pin = view.pins.get(wanted)
    if pin is not None:
        wrong = replicas_problem(pin, record)
        if not wrong:
            return _Choice(pin, record.replicas)
        return _Choice(pin, 1, problems=(wrong,)) if _exists(view, record, pin) else _fall_back(view, record, (wrong,))
    candidate = view.candidates.get(wanted)
    match candidate:
        case Ready(ready) if ready.captured == _captured(known, record):
            pin = replace(ready, store_id=view.store_id, term=view.term)
            wrong = replicas_problem(pin, record)
            return _Choice(pin, record.replicas, pin) if not wrong else _fall_back(view, record, (wrong,))
        case Rejected(problems):
            return _fall_back(view, record, problems)
        case Unavailable(reason, missing):
            return _fall_back(view, record, (reason,) if missing else (), waits=reason)
        case None | Ready():
            return replace(_fall_back(view, record, ()), waits=CHECKING, checking=True)


def replicas_problem(pin: Pin, record: PipelineRecord) -> str:
    """Why a version cannot run as often as the record says; "" if it can."""
    said = pin.captured.get("overlap", "auto") != "auto"
    if record.replicas <= 1 or pin.overlap is Overlap.SHAREABLE or said:
        return ""
    return (
        f"replicas is {record.replicas}: version '{pin.version}' must not run twice at once ({pin.overlap_reason}); "
        'use 1, or publish a version with overlap "forbid" (each slot by itself, sharded by SHOAL_SLOT) or "allow"'
    )


def _fall_back(view: View, record: PipelineRecord, problems: tuple[str, ...], waits: str = "") -> _Choice:
    version = _last_version(view, record.id)
    pin = view.pins.get((record.id, version))
    replicas = record.replicas
    if pin is not None and replicas_problem(pin, record):
        replicas, pin = (1, pin) if _exists(view, record, pin) else (0, None)
    return _Choice(pin, replicas, problems=problems, waits=waits)


def _exists(view: View, record: PipelineRecord, pin: Pin) -> bool:
    """Whether a version whose `replicas` are refused now is already there, with the one slot that it can have.

    Between a stop and the next start only the status knows of it; a paused version need not be anywhere.
    """
    if record.status is PipelineStatus.PAUSED:
        return True
    status = view.statuses.get(record.id)
    shown = status is not None and status.version == pin.version and bool(status.slots)
    return shown or any(place.item.version == pin.version for place in view.places.get(record.id, ()))


def _goal(view: View, known: RecordView, record: PipelineRecord, choice: _Choice, wish: Run | Pause | Stay) -> Goal:
    status = view.statuses.get(record.id)
    undecided = choice.checking and isinstance(wish, Stay)
    revision = known.revision
    if undecided:
        revision = 0 if status is None else status.record
    return Goal(
        pipeline=record.id,
        wish=wish,
        wanted=record.status.value,
        version=record.version if choice.pin is None else choice.pin.version,
        record=revision,
        pin=choice.pin,
        new_pin=choice.new_pin,
        problems=bounded(known.problems + choice.problems),
        notes=bounded(_kept(known) + _notes(view, known, record, choice.pin)),
        waits=choice.waits,
        checking=undecided,
    )


def _stay(view: View, pipeline: str, known: RecordView | None, notes: tuple[str, ...] = ()) -> Goal:
    record = None if known is None else known.good
    version = _last_version(view, pipeline)
    return Goal(
        pipeline=pipeline,
        wish=Stay(),
        wanted="" if record is None else record.status.value,
        version=version,
        record=0 if known is None else known.revision,
        pin=view.pins.get((pipeline, version)),
        problems=() if known is None else bounded(known.problems),
        notes=notes,
    )


def barrier(goal: Goal, why: str) -> Goal:
    """The same, while nothing may be decided about it, for `why`."""
    return replace(goal, wish=Stay(), new_pin=None, waits=why, checking=False, deleted=False)


def _kept(known: RecordView) -> tuple[str, ...]:
    return (known.kept,) if known.kept else ()


def _notes(view: View, known: RecordView, record: PipelineRecord, pin: Pin | None) -> tuple[str, ...]:
    if pin is None:
        return ()
    name = f"{pin.pipeline}/{pin.version}"
    notes = []
    digest = view.config_digests.get((pin.pipeline, pin.version))
    if digest is None:
        notes.append(f"the configuration {name} was deleted; version '{pin.version}' runs on as it was admitted")
    elif digest != pin.config_digest:
        notes.append(f"the configuration {name} was overwritten; that changes nothing: publish it as another version")
    if pin.version == record.version:
        edited = _edited(pin.captured, _captured(known, record))
        if edited:
            notes.append(
                f"{', '.join(edited)}: edited under version '{pin.version}'; takes effect with the next version"
            )
    return tuple(notes)


def _edited(fixed: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [] if fixed == now else sorted(name for name in now if name in fixed and fixed[name] != now[name])


def _captured(known: RecordView, record: PipelineRecord) -> Mapping[str, Any]:
    return captured(record) if known.captured is None else known.captured


def _running(view: View, pipeline: str) -> list[Assigned]:
    return [place.item for place in view.places.get(pipeline, ()) if isinstance(place.item, Assigned)]


def _last_version(view: View, pipeline: str) -> str:
    """The version to fall back to: what the status says was in force, else the newest that runs; "" if none."""
    status = view.statuses.get(pipeline)
    if status is not None and (pipeline, status.version) in view.pins:
        return status.version
    running = [item for item in _running(view, pipeline) if (pipeline, item.version) in view.pins]
    if running:
        return max(running, key=lambda item: (parse_execution(item.execution).serial, item.execution)).version
    return "" if status is None else status.version


def lease_bound(record: PipelineRecord, overlap: Overlap) -> bool:
    """Whether `on_partition` resolves to stop: then lease, grant and session rules hold."""
    if record.on_partition == "auto":
        return overlap is Overlap.EXCLUSIVE
    return record.on_partition == "stop"


def bounded(texts: tuple[str, ...]) -> tuple[str, ...]:
    """As many and as long texts as a status may hold."""
    return tuple(text[:TEXT_CHARS_MAX] for text in texts[:TEXTS_MAX])
