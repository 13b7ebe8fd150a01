"""What a plan claims in the leader's name: sessions that are answered or dead, what versions are, and what people read.

Part of the audit (`audit`): worked out from the documents alone, with nothing of how the plan was made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from scheduler.core.candidates import Ready
from scheduler.core.facts import Facts
from scheduler.core.view import Plan, Tombstone
from shared.documents import Assigned, Assignment, Pin, Status, Stopping
from shared.keys import version_key
from shared.states import Overlap, Phase, State


@dataclass(frozen=True, slots=True)
class Violation:
    """One rule that a plan breaks, and the pipelines it names (none: the plan as a whole)."""

    message: str
    pipelines: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.message


def header(facts: Facts, part: Plan, host: str, new: Assignment, old: Assignment | None) -> Iterator[Violation]:
    """What is wrong with whom an assignment is from and for: a plan of this term, to a session that may be answered."""
    mine = (facts.view.store_id, facts.view.term, part.number, host)
    if (new.store_id, new.term, new.plan, new.host) != mine:
        yield Violation(
            f"the assignment of {host} is not this plan's: {new.store_id[:8]}, {new.term}, {new.plan}, {new.host}"
        )
    before = None if old is None else old.session
    if new.session == before:
        return
    known = facts.view.hosts.get(host)
    report = facts.view.reports.get(host)
    if old is None and report is not None and report.session == new.session:
        return  # taken over: whoever has said what runs there is asked, whether it is heard or not
    if known is None or known.heartbeat.session != new.session or known.heartbeat.dead is not None:
        yield Violation(f"the assignment of {host} names a session that nobody has")
    elif old is None and report is not None and report.executions:
        if not facts.may_follow(known, report.session, new.session):
            yield Violation(f"{host} is answered in session {new.session} while who reported last may live")
    elif before is not None and not facts.may_follow(known, before, new.session):
        yield Violation(f"{host} is answered in session {new.session} while its predecessor {before} may live")
    elif before is not None and known.heartbeat.session.agent != before.agent:
        if facts.goes_on(host):
            yield Violation(f"{host} is answered in session {new.session} while {before} may go on through a partition")
        carried = {item.execution for item in (() if old is None else old.executions) if _alone(item)}
        for item in new.executions:
            if item.execution in carried:
                yield Violation(
                    f"{item.execution} on {host} would be resumed by an agent that does not know it", (item.pipeline,)
                )


def tombstone(facts: Facts, stone: Tombstone) -> Iterator[Violation]:
    """What is wrong with declaring a session dead."""
    known, document = facts.view.hosts.get(stone.host), facts.view.assignments.get(stone.host)
    if known is None:
        gone = facts.view.gone.get(stone.host)
        meant = document is not None and document.session == stone.dead
        fits = meant and stone.revision == (0 if gone is None else gone.revision)
    else:
        fits = (known.heartbeat.session, known.revision, None) == (stone.dead, stone.revision, known.heartbeat.dead)
    if not fits:
        yield Violation(f"the tombstone for {stone.dead} is not of the session that was heard last on {stone.host}")
    if not facts.has_ended(stone.host):
        yield Violation(f"{stone.host} is to be declared dead before it has been silent for long enough")
    if document is None or not (document.executions or document.stopping):
        yield Violation(f"{stone.host} is to be declared dead, but nothing was ever given to it")


def pin(facts: Facts, part: Plan, name: tuple[str, str], new: Pin | None) -> Iterator[Violation]:
    """What is wrong with saying for good what a version is; `new` None: with deleting that."""
    pipeline, version = name
    known = facts.view.records.get(pipeline)
    if pipeline in facts.policy.hold:
        yield Violation(f"{pipeline} is on hold, but its version '{version}' is written", (pipeline,))
    if new is None:
        if known is not None:
            yield Violation(f"the pin of {pipeline}/{version} is deleted while its record exists", (pipeline,))
        return
    before = facts.view.pins.get(name)
    same = before is not None and replace(new, store_id="", term=0, plan=0) == replace(
        before, store_id="", term=0, plan=0
    )
    repaired = same and version_key(pipeline, version) in facts.view.damaged
    if before is not None and not repaired:
        yield Violation(f"{pipeline}/{version} is pinned already and never changes", (pipeline,))
    candidate = facts.view.candidates.get(name)
    runs = facts.view.found.get((*name, new.digest)) is not None
    if not repaired and not runs and (not isinstance(candidate, Ready) or candidate.pin.digest != new.digest):
        yield Violation(f"{pipeline}/{version} is pinned to what was not admitted", (pipeline,))
    if (new.pipeline, new.version) != name or (new.store_id, new.plan) != (facts.view.store_id, part.number):
        yield Violation(f"the pin of {pipeline}/{version} is not this plan's", (pipeline,))


def status(facts: Facts, part: Plan, pipeline: str, new: Status | None) -> Iterator[Violation]:
    """What is wrong with what people will read of a pipeline; `new` None: with its deletion."""
    if new is None:
        places = facts.view.places.get(pipeline, ())
        left = [place for place in places if _remains(facts, place.host, place.item.execution)]
        if left:
            yield Violation(f"the status of {pipeline} is deleted, but {left[0].item.execution} is left", (pipeline,))
        return
    if (new.store_id, new.term, new.plan) != (facts.view.store_id, facts.view.term, part.number):
        yield Violation(f"the status of {pipeline} is not this plan's", (pipeline,))
    for row in new.slots:
        if row.phase == Phase.READY and not _is_ready(facts, row.host, row.execution):
            yield Violation(f"{row.execution} is shown as ready on {row.host}, which nobody has said", (pipeline,))
    if new.state is State.RUNNING and any(row.phase not in (Phase.READY, Phase.STOPPING) for row in new.slots):
        yield Violation(f"{pipeline} is shown as running, but not all of it is ready", (pipeline,))


def _remains(facts: Facts, host: str, execution: str) -> bool:
    if host not in facts.written:
        return True
    new = facts.written[host]
    items: tuple[Assigned | Stopping, ...] = () if new is None else (*new.executions, *new.stopping)
    return any(item.execution == execution for item in items)


def _is_ready(facts: Facts, host: str, execution: str) -> bool:
    seen = facts.seen(host).get(execution)
    return seen is not None and seen.phase is Phase.READY and facts.is_alive(host)


def _alone(item: Assigned) -> bool:
    """Whether an agent that did not start it must not be given it."""
    return item.lease_bound or item.overlap is Overlap.EXCLUSIVE
