"""What must never happen, whatever goes wrong: judged from the store's history, the machines' ledger and people's
edits, never from the memory of a loop.

    overlap     two copies of an exclusive slot ran at the same time
    chain       a leader's write outside of the chain of commits: a deposed leader, a late message
    tombstones  a session that was declared dead while it was heard
    ids         an execution id, a plan or a report that was used twice or went back
    pins        a version that changed what it stands for
    moves       an execution that was taken off its host for no reason
    restarts    a Bento that ended and began again in place for no reason
    honesty     a report or a status that shows something as running that is not
    alarms      the product itself says that something is wrong which must never be

`check` looks at a run that is over. What must be true in the end is judged in `final`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from shared.documents import Event, Heartbeat, Journal, Pin, Report, Session, decode
from shared.ids import parse_execution
from shared.keys import JOURNAL, LEASE, PULSE, term_key
from tests.sim.honesty import age_s, honesty
from tests.sim.moves import assignments_of, items_of, moves
from tests.sim.recording import Commit
from tests.sim.restarts import restarts

if TYPE_CHECKING:
    from tests.sim.world import World


FELL_S = 1.5  # four pulses, the first of which may come right after a heartbeat
STONE_S = 11.0  # the shortest silence after which a session is declared dead, and what pulses and clocks take off it
KNOWN_S = 1.0  # from a report to the plan that it matters to
SAID_S = 15.0  # from falling silent until that is in the history, with a store that answers slowly


@dataclass(frozen=True, slots=True)
class _Stamp:
    """What every document of a leader carries."""

    store_id: str
    term: int
    plan: int


def check(world: World) -> Iterator[tuple[str, str]]:
    """(checker, what it found), of all checkers."""
    for name, checker in CHECKERS.items():
        for found in checker(world):
            yield name, found


def overlap(world: World) -> Iterator[str]:
    """At most one running copy of an exclusive slot at every instant of real time: from the start of a Bento to its
    end, on whatever machine, whatever its clock shows, and whoever knows of it."""
    shared, forgotten = _shareable(world), _forgotten(world)
    for earlier, later in world.ledger.overlaps():
        believed_gone = earlier.execution in shared and any(
            earlier.start < at < later.start for at in forgotten.get(world.host_of(earlier.host), ())
        )
        if not believed_gone and not {earlier.execution, later.execution} <= shared:
            yield (
                f"slot {later.slot} of {later.pipeline} ran twice: {earlier.execution} on {earlier.host} "
                f"from {earlier.start:.3f} to {'now' if earlier.end is None else f'{earlier.end:.3f}'}, "
                f"{later.execution} on {later.host} from {later.start:.3f}"
            )


def _shareable(world: World) -> set[str]:
    """Executions of versions that may overlap, by the first document that had them. (`pins` looks whether that is what
    a user said; a store that took them over without knowing them may call them exclusive.)"""
    first: dict[str, str] = {}
    for _, _, document in assignments_of(world):
        for item in items_of(document):
            first.setdefault(item.execution, item.overlap)
    return {execution for execution, overlap in first.items() if overlap == "shareable"}


def _forgotten(world: World) -> dict[str, list[float]]:
    """When an operator's word that a host will not come back was believed, by host. It may: what could overlap there
    is not remembered any more, also not by a version that must not overlap with it."""
    found: dict[str, list[float]] = {}
    for commit, host, document in assignments_of(world):
        if host and document is None:
            found.setdefault(host, []).append(commit.at)
    return found


def chain(world: World) -> Iterator[str]:
    """Every commit succeeds exactly one commit, and everything in it carries its term and plan. A stream that is made
    anew begins another chain, of another store."""
    last: Journal | None = None
    revision = term = 0
    stores: set[str] = set()  # of chains that are over
    for commit in world.server.of(world.keys.control):
        if commit.anew:
            stores |= set() if last is None else {last.store_id}
            last, revision, term = None, 0, 0
            continue
        keys = [entry.key for entry in commit.entries]
        if keys == [LEASE]:
            continue
        entry = commit.get(JOURNAL)
        if entry is None or entry.value is None:
            yield f"a leader's write without a journal: {commit}"
            continue
        if commit.expected[keys.index(JOURNAL)] != revision:
            yield f"a journal that does not succeed revision {revision}: {commit}"
        journal = decode(Journal, entry.value)
        takeover = journal.term == 0
        renamed = bool(stores) and "the control stream went back" in journal.reasons
        if journal.store_id in stores:
            yield f"the id of a store that is lost: {commit}"
        if last is not None and journal.store_id != last.store_id and not renamed:
            yield f"another store id: {commit}"
        # Numbers of executions that another store has given out are left out.
        if last is not None and (journal.plan <= last.plan if stores else journal.plan != last.plan + 1):
            yield f"plan {journal.plan} after plan {last.plan}: {commit}"
        if not takeover and (journal.term != term or last is None or journal.holder != last.holder):
            yield f"term {journal.term} of {journal.holder} writes in term {term}: {commit}"
        terms = {key for key in keys if key.startswith("term.")}
        if takeover and set(keys) != {LEASE, JOURNAL, *terms}:
            yield f"a takeover that writes more than lease, journal and term: {commit}"
        live = {other.key for other in commit.entries if other.key in terms and other.value is not None}
        if live != {term_key(journal.term_id)}:
            yield f"not under the name of its term: {commit}"
        term = entry.revision if takeover else term
        for other in commit.entries:
            if other.key not in (LEASE, JOURNAL, *terms) and other.value is not None:
                yield from _stamped(commit, other.key, other.value, journal)
        last, revision = journal, entry.revision


def tombstones(world: World) -> Iterator[str]:
    """No session is declared dead of a host that was heard a moment ago: only what was silent for long is written over,
    by compare-and-set."""
    heard: dict[str, float] = {}
    for commit in world.server.of(world.keys.hosts):
        if commit.anew:
            heard.clear()
        for entry in commit.entries:
            if entry.key == PULSE or entry.value is None:
                continue
            beat = decode(Heartbeat, entry.value)
            if beat.dead is None:
                heard[entry.key] = commit.at
            elif commit.at - heard.get(entry.key, -1e9) < STONE_S:
                silent_s = commit.at - heard[entry.key]
                yield f"{beat.dead} is declared dead, {silent_s:.3f} s after it was heard: {commit}"


def _stamped(commit: Commit, key: str, value: bytes, journal: Journal) -> Iterator[str]:
    stamp = decode(_Stamp, value)
    if (stamp.store_id, stamp.term, stamp.plan) != (journal.store_id, journal.term, journal.plan):
        yield f"{key} says term {stamp.term}, plan {stamp.plan} in the commit of plan {journal.plan}: {commit}"


def ids(world: World) -> Iterator[str]:
    """Execution ids are never given out twice; reports never go back; nobody else writes an agent's keys.

    Numbers are those of one store. Another one that is made in place of a lost one gives none of them again that any
    host reports; what no report tells of it cannot know.
    """
    made: dict[str, str] = {}
    former: set[str] = set()  # of stores that are lost
    listed: dict[str, set[str]] = {}
    forgotten: set[str] = set()
    for commit, host, document in assignments_of(world):
        if commit.anew:
            listed, former = {}, set(made)
            continue
        before = listed.get(host, set())
        items = items_of(document)
        now = {item.execution for item in items}
        if len(now) != len(items):
            yield f"{host} has an execution twice: {commit}"
        for execution in sorted(now - before):
            if made.get(execution) == host and (execution in former or host in forgotten):
                continue  # taken over as it runs
            seen_at = commit.at - age_s(world, commit.writer, commit.at, KNOWN_S)
            if execution in made and (execution not in former or _known(world, execution, seen_at)):
                yield f"{execution} appears on {host}, it was on {made[execution]} already: {commit}"
            if document is not None and parse_execution(execution).serial != document.plan:
                yield f"{execution} was made in plan {document.plan}: {commit}"
            made[execution] = host
        listed[host] = now
        if document is None:
            forgotten.add(host)
    yield from _reports(world)


def _known(world: World, execution: str, at: float) -> bool:
    """Whether a report that lay in the store told of an execution."""
    reports: dict[str, Report] = {}
    for commit in world.server.of(world.keys.reports):
        if commit.at > at:
            break
        if commit.anew:
            reports = {}
        reports.update({entry.key: decode(Report, entry.value) for entry in commit.entries if entry.value is not None})
    return any(seen.execution == execution for report in reports.values() for seen in report.executions)


def _reports(world: World) -> Iterator[str]:
    last: dict[str, tuple[Session, tuple[int, int], str]] = {}
    for commit in world.server.of(world.keys.reports):
        for entry in commit.entries:
            if world.host_of(commit.writer) != entry.key and commit.writer != "operators":
                yield f"{commit.writer} writes the report of {entry.key}: {commit}"
            if entry.value is None:
                continue
            report = decode(Report, entry.value)
            plan = (report.term, report.plan)
            former = last.get(entry.key)
            another = former is not None and former[2] != report.store_id
            if (
                former is not None
                and former[0] == report.session
                and plan < former[1]
                and plan != (0, 0)
                and not another
            ):
                yield f"the report of {entry.key} goes back from {former[1]} to {plan}: {commit}"
            last[entry.key] = (report.session, plan, report.store_id)


def pins(world: World) -> Iterator[str]:
    """From its admission on, a version is its digest, until its record is deleted; and it is what a user stored."""
    known: dict[str, Pin] = {}
    for commit in world.server.of(world.keys.control):
        if commit.anew:
            known.clear()
        for entry in commit.entries:
            if not entry.key.startswith("version."):
                continue
            if entry.value is None:
                known.pop(entry.key, None)
                continue
            pin = decode(Pin, entry.value)
            former = known.setdefault(entry.key, pin)
            if former.digest != pin.digest:
                yield f"{entry.key} was {former.digest[:8]} and is {pin.digest[:8]}: {commit}"
            if (pin.overlap == "exclusive") not in world.users.said.get((pin.pipeline, pin.version), set()):
                yield f"{entry.key} is taken for {pin.overlap}: {commit}"


def alarms(world: World) -> Iterator[str]:
    """Audit violations, and full passes that found what no change had announced. That most of the hosts fell silent at
    once is said truly when they did, that a stream is another one when it is; that an outage is over may be said long
    after it was."""
    for at, (subject, data) in zip(world.server.event_times, world.server.events, strict=True):
        event = decode(Event, data)
        fell = event.kind == "outage" and event.subject == "hosts" and event.message != "held no longer"
        untrue = fell and len(_silent(world, at)) * 2 <= len(world.machines)
        lost = event.kind == "alarm" and any(
            commit.at < at
            for commit in world.server.history
            if commit.anew and commit.bucket.endswith(f"_{event.subject}")
        )
        if untrue or (event.kind in ("alarm", "audit") and not lost):
            yield f"{at:9.3f} {subject}: {event.message}"


def _silent(world: World, at: float) -> set[str]:
    """Hosts of which nothing had been heard for a while, in the seconds before: it takes a commit to be said."""
    heard = {host: [0.0] for host in world.machines}
    for commit in world.server.of(world.keys.hosts):
        for entry in commit.entries:
            if entry.key in heard and entry.value is not None and decode(Heartbeat, entry.value).dead is None:
                heard[entry.key].append(commit.at)
    return {
        host
        for host, times in heard.items()
        if any(one < at and min(two, at) > at - SAID_S and two - one > FELL_S for one, two in pairwise([*times, 1e9]))
    }


CHECKERS: dict[str, Callable[[World], Iterator[str]]] = {
    "overlap": overlap,
    "chain": chain,
    "tombstones": tombstones,
    "ids": ids,
    "pins": pins,
    "moves": moves,
    "restarts": restarts,
    "honesty": honesty,
    "alarms": alarms,
}
