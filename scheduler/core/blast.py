"""Blast radius: what an accident to an input stream may change, which is nothing.

    another creation time, or fewer sequences than before   the stream was made anew, or restored from a backup
    most records gone without a delete marker               it was purged, or has lost messages

    more than half of the hosts silent at once              a switch or a power line, not so many machines

Users remove a record by deleting it, which leaves a marker. Whatever is missing or different for another reason is
*kept*: it goes on as it was, and the leader says so. What is written after the accident is a user's word and is
followed, record by record; a record that is there again, unchanged, is simply followed too. When nothing is left to be
kept the hold ends by itself; otherwise an operator says that the stream is right (`shoal store confirm`).

    Kept   what one instance keeps of one input, with what the store has in its place
    Hold   the same in the journal, so that a leader that never saw the stream before the accident keeps it as well
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shared.documents import Hold, InputMark, Status
from shared.intents import ConfirmIntent
from shared.record import PipelineRecord
from shared.store import Entry

HOSTS = "hosts"  # the input that hosts fall silent in, many at once


@dataclass(slots=True)
class Kept:
    """What goes on as it was. `trusted`: how far the stream had been read before. `mark`: of the stream when it was
    noticed. `pending`: by key, what counts once an operator says so."""

    reason: str
    trusted: InputMark
    mark: InputMark
    pending: dict[str, Entry] = field(default_factory=dict)


def replaced(known: InputMark, now: InputMark) -> str:
    """Why a stream is not the one that was read; "" if it is."""
    if now.created != known.created:
        return "the stream was made anew"
    if now.sequence < known.sequence:
        return "the stream went back, as from an older backup"
    return ""


def too_many(gone: int, known: int) -> bool:
    """Whether so many of the known records are gone without a marker that it was no user who removed them."""
    return gone > 0 and 2 * gone > known


def agrees(record: PipelineRecord, status: Status | None) -> bool:
    """Whether following a record leaves what was decided last as it is, as far as a status can tell."""
    if status is None or (status.version, status.wanted) != (record.version, record.status.value):
        return False
    return len(status.slots) in (0, record.replicas)


def confirmed(hold: Hold | None, intent: ConfirmIntent | None, store_id: str) -> bool:
    """Whether an operator has said that this very accident is to be taken as it is."""
    if hold is None or intent is None:
        return False
    return (intent.store_id, intent.plan, intent.created) == (store_id, hold.plan, hold.mark.created)


def holds(kept: Mapping[str, Kept], known: Mapping[str, Hold], number: int) -> dict[str, Hold]:
    """What the journal of plan `number` says: a hold that it knows keeps its name, unless the stream changed again."""
    found = {}
    for name, one in kept.items():
        was = known.get(name)
        if was is not None and was.mark == one.mark:
            found[name] = was
        else:
            found[name] = Hold(reason=one.reason, plan=number, mark=one.mark)
    return found


def trusted(marks: Mapping[str, InputMark], kept: Mapping[str, Kept]) -> dict[str, InputMark]:
    """The marks that the journal holds: of a users' stream that is held, the one from before."""
    return {name: kept[name].trusted if name in kept and name != HOSTS else mark for name, mark in marks.items()}


def fell_together(fell: Mapping[str, float], alive: int, within_s: float) -> frozenset[str]:
    """The hosts that fell silent at about the same time, if that were more than half of all and more than two.

    `fell`: when each silent host was heard last, on any clock. `alive`: how many are heard.
    """
    ordered = sorted(fell.items(), key=lambda one: (one[1], one[0]))
    best: list[str] = []
    first = 0
    for last in range(len(ordered)):
        while ordered[last][1] - ordered[first][1] > within_s:
            first += 1
        if last - first + 1 > len(best):
            best = [host for host, _ in ordered[first : last + 1]]
    return frozenset(best) if len(best) > 2 and len(best) > alive else frozenset()


def sentence(name: str, reason: str) -> str:
    """What a status says of a pipeline that is kept."""
    return f"kept as it was: {reason}; publish the record again, or say `shoal store confirm {name}`"
