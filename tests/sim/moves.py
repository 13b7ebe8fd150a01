"""No needless move: an execution comes off its host only for a reason that is there for everybody to see.

    its record was deleted, drafted, scaled down, asks for another version, or for labels that the host lacks
    its host was drained, silent for long enough, or has another agent
    a restart was asked for

Of two copies of a slot the younger may always go: its replacement was called off.

A leader may act on what it saw a moment ago, so a reason counts if it was there at any time since the execution was
made (and before, for as long as its plan may have been under way). The reasons are found in the store only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from shared.documents import Assigned, Assignment, Heartbeat, Session, Stopping, decode
from shared.ids import parse_execution
from shared.intents import HostIntent
from tests.sim.honesty import age_s
from tests.sim.recording import Commit

if TYPE_CHECKING:
    from tests.sim.world import World

LAG_S = 10.0  # a commit may be this much younger than what it was made from, or more if its leader was ill
SHAREABLE_S, EXCLUSIVE_S = 3.5, 11.5  # of silence: 8 and 24 pulses, the first of which may follow a heartbeat at once


@dataclass(slots=True)
class _Facts:
    """What people and agents wrote, by key, with its time."""

    records: dict[str, list[tuple[float, dict[str, Any] | None]]] = field(default_factory=dict)  # None: deleted
    drains: dict[str, list[tuple[float, bool]]] = field(default_factory=dict)
    dead: dict[str, list[float]] = field(default_factory=dict)  # when an operator said that a host is
    restarts: dict[str, list[float]] = field(default_factory=dict)
    beats: dict[str, list[float]] = field(default_factory=dict)
    sessions: dict[str, list[tuple[float, Session]]] = field(default_factory=dict)


def moves(world: World) -> Iterator[str]:
    """Executions that were taken off their hosts for no reason."""
    facts = _gather(world)
    since: dict[str, float] = {}
    before: dict[str, dict[str, Assigned]] = {}
    for commit, host, document in assignments_of(world):
        if commit.anew:
            before = {}  # what is taken over and what is not is for `restarts` to judge
            continue
        now = {} if document is None else {item.execution: item for item in document.executions}
        for execution, item in before.get(host, {}).items():
            if execution in now or _gives_way(item, before):
                continue
            if not _reason(world, facts, host, item, since[execution], commit.at):
                yield f"{execution} was taken off {host} for no reason: {commit}"
        for execution in now.keys() - since.keys():
            since[execution] = commit.at - age_s(world, commit.writer, commit.at, LAG_S)
        before[host] = now


def _gives_way(item: Assigned, before: dict[str, dict[str, Assigned]]) -> bool:
    """Whether an older execution of its slot is still there: a replacement that was called off moves nothing."""
    serial = parse_execution(item.execution).serial
    slot = [other for items in before.values() for other in items.values() if _slot(other) == _slot(item)]
    return any(parse_execution(other.execution).serial < serial for other in slot)


def _slot(item: Assigned) -> tuple[str, int]:
    return item.pipeline, item.slot


def assignments_of(world: World) -> Iterator[tuple[Commit, str, Assignment | None]]:
    """(commit, host, document) of every assignment ever written, in order; without a host where the stream was made
    anew."""
    for commit in world.server.of(world.keys.control):
        if commit.anew:
            yield commit, "", None  # all of them are gone
        for entry in commit.entries:
            if entry.key.startswith("assign."):
                document = None if entry.value is None else decode(Assignment, entry.value)
                yield commit, entry.key.removeprefix("assign."), document


def items_of(document: Assignment | None) -> tuple[Assigned | Stopping, ...]:
    """Everything that a document knows of."""
    return () if document is None else (*document.executions, *document.stopping)


def _gather(world: World) -> _Facts:
    facts, keys = _Facts(), world.keys
    lost: set[str] = set()  # records that a stream made anew does not have
    for commit in world.server.history:
        if commit.anew and commit.bucket == keys.pipelines:
            lost = set(facts.records)
        for entry in commit.entries:
            if commit.bucket == keys.pipelines:
                record = None if entry.value is None else world.users.meaning(entry.value)
                lost.discard(entry.key)
                if record is not None or entry.value is None:  # nonsense is no reason
                    facts.records.setdefault(entry.key, []).append((commit.at, record))
            elif commit.bucket == keys.operator:
                kind, _, name = entry.key.partition(".")
                if kind == "host" and entry.value is not None:
                    intent = decode(HostIntent, entry.value)
                    facts.drains.setdefault(name, []).append((commit.at, intent.drain))
                    if intent.confirm_dead:
                        facts.dead.setdefault(name, []).append(commit.at)
                elif kind == "confirm" and name == "pipelines":
                    for pipeline in sorted(lost):  # an operator says that they are deleted
                        facts.records[pipeline].append((commit.at, None))
                elif kind == "restart":
                    facts.restarts.setdefault(name, []).append(commit.at)
            elif commit.bucket == keys.hosts and entry.value is not None and entry.key in world.machines:
                beat = decode(Heartbeat, entry.value)
                if beat.dead is not None:
                    continue  # a tombstone is no sign of life
                facts.beats.setdefault(entry.key, []).append(commit.at)
                facts.sessions.setdefault(entry.key, []).append((commit.at, beat.session))
    return facts


def _reason(world: World, facts: _Facts, host: str, item: Assigned, since: float, at: float) -> str:
    """Why an execution may have been taken off its host; "" = there was no reason."""
    if any(when >= since for when in facts.restarts.get(item.pipeline, ()) if when <= at):
        return "a restart was asked for"
    if any(drain for _, drain in _in_force(facts.drains.get(host, []), since, at)):
        return "its host was drained"
    zone = world.machines[host].zone
    for _, record in _in_force(facts.records.get(item.pipeline, []), since, at):
        if record is None or record["status"] == "draft":
            return "its record is gone"
        if record["version"] != item.version or record.get("replicas", 1) <= item.slot:
            return "its record asks for something else"
        wanted = record.get("placement", {}).get("required", {}).get("zone", zone)
        if zone not in ([wanted] if isinstance(wanted, str) else wanted):
            return "its host lacks a label"
    agents = {session.agent for _, session in _in_force(facts.sessions.get(host, []), since, at)}
    if len(agents) > 1:
        return "its host has another agent"
    if any(since <= when <= at for when in facts.dead.get(host, ())):
        return "its host is dead"
    edge = EXCLUSIVE_S if item.overlap == "exclusive" else SHAREABLE_S
    if (item.overlap != "exclusive" or item.lease_bound) and _silence(facts.beats.get(host, []), since, at) >= edge:
        return "its host was silent"
    return ""


def _in_force(history: list[tuple[float, Any]], since: float, until: float) -> list[tuple[float, Any]]:
    """What was in force at any time between: the last one before `since`, and all until `until`."""
    first = max(0, bisect_left([at for at, _ in history], since) - 1)
    return [(at, value) for at, value in history[first:] if at <= until]


def _silence(beats: list[float], since: float, until: float) -> float:
    """The longest time without a heartbeat that touches this span."""
    times = [at for at in beats if at <= until]
    first = max(0, bisect_left(times, since) - 1)
    edges = [*times[first:], until]
    return max((later - earlier for earlier, later in pairwise(edges)), default=until)
