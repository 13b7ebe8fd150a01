"""Clusters for the planner: a `World` that is fed like the real one, and agents that do what they are told.

    cluster = Cluster()
    cluster.host("h1", memory_bytes=1 << 30)
    cluster.publish("orders", replicas=2)
    cluster.settle()            # plans, commits, lets the agents act, until nothing changes
    cluster.running("orders")   # {slot: host}

Everything is fed through the folds that the loop uses, with one growing revision, so that what is tested is what runs.
Nothing here decides anything. Time is a number of seconds that `cluster.pass_time` adds to the silence of hosts that
are down. Used by unit tables, by properties and by `bench/`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from scheduler.core import adoption
from scheduler.core.audit import audit
from scheduler.core.candidates import Candidate, Ready, Rejected, Unavailable
from scheduler.core.plan import plan
from scheduler.core.timings import silent_exclusive_s
from scheduler.core.view import GoneView, HostView, Plan, Policy, Scope, View
from scheduler.core.world import Source, World
from shared.documents import (
    Assigned,
    Driver,
    Heartbeat,
    InputMark,
    Journal,
    Observed,
    Pin,
    Report,
    Session,
    Status,
    encode,
)
from shared.intents import HostIntent, RestartIntent, StoreIntent
from shared.keys import STORE_INTENT, host_intent_key, object_name, restart_intent_key
from shared.record import captured, parse_record
from shared.states import Overlap, Phase, Wanted
from shared.store import Change, Entry, ObjectInfo

STORE = "store-0123456789"
GIB = 2**30
MIB = 2**20


@dataclass
class Machine:
    """A host with its agent: what it says, and what it has."""

    heartbeat: Heartbeat
    up: bool = True  # beats, and obeys
    reporting: bool = True  # beats, but neither obeys nor reports while False
    silence_s: float = 0.0
    heard: dict[tuple[str, str], float] = field(default_factory=dict)
    needs: dict[tuple[str, str], float] = field(default_factory=dict)  # silent_exclusive, by identity
    dead: Session | None = None  # a tombstone lies on its key
    revision: int = 0
    phases: dict[str, Phase] = field(default_factory=dict)  # of what it has, by execution
    items: dict[str, Assigned] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    applied: tuple[int, int] = (0, 0)
    problem: str = ""


class Cluster:
    """Builds views step by step. `lag` True: agents need one step more for each phase."""

    def __init__(self, policy: Policy | None = None, *, lag: bool = False, store_id: str = STORE) -> None:
        self.store_id = store_id
        self.policy = policy or Policy()
        self.world = World(self.policy)
        self.machines: dict[str, Machine] = {}
        self.gone: dict[str, GoneView] = {}
        self.tombstones = True  # False: the store does not answer when one is written
        self.records: dict[str, dict[str, Any]] = {}
        self.broken: set[tuple[str, str]] = set()  # versions that never become ready
        self.revision = 1
        self.age_s = 1000.0
        self.lag = lag
        self.audited = True
        self.world.fold_journal(Journal(store_id=store_id, term=0, plan=0, attempt="", holder="me"), self._next())

    # --- hosts

    def host(self, name: str, *, agent: str = "", boot: str = "boot", **fields: Any) -> Machine:
        values: dict[str, Any] = {
            "store_id": self.store_id,
            "session": Session(agent or f"agent-{name}", f"{boot}-{name}", 1),
            "sequence": 1,
            "lease_s": 8.0,
            "fence_kill_s": 2.0,
            "poll_s": 0.25,
            "cpu": 4.0,
            "memory_bytes": 4 * GIB,
            "drivers": {"process": Driver(True)},
        }
        machine = Machine(Heartbeat(host=name, **(values | fields)))
        self.machines[name] = machine
        self.beat()
        return machine

    def down(self, name: str, silence_s: float = 1.0) -> None:
        """The host falls silent; what it had is gone if it is lost for good, and unknown to us in any case."""
        machine = self.machines[name]
        machine.up = False
        machine.silence_s = silence_s
        machine.heard[_identity(machine)] = silence_s
        self.beat()

    def up(self, name: str, *, session: Session | None = None, kept: bool = True) -> None:
        """The host is back, in the same session unless another is given; `kept`: it still has what it had."""
        machine = self.machines[name]
        before = _identity(machine)
        machine.heard.setdefault(before, machine.silence_s)
        if session is None and machine.dead is not None:
            session = replace(machine.dead, number=machine.dead.number + 1)
        if session is not None:
            machine.heartbeat = replace(machine.heartbeat, session=session)
        machine.dead = None
        if not kept:
            machine.items.clear()
            machine.phases.clear()
        machine.up = True
        machine.silence_s = 0.0
        self.beat()

    def pass_time(self, seconds: float) -> None:
        self.age_s += seconds
        self.gone = {name: replace(gone, silence_s=gone.silence_s + seconds) for name, gone in self.gone.items()}
        for machine in self.machines.values():
            if not machine.up:
                machine.silence_s += seconds
            now = _identity(machine)
            machine.heard = {
                identity: 0.0 if machine.up and identity == now else silence + seconds
                for identity, silence in machine.heard.items()
            }
        self.beat()

    def relabel(self, name: str, **fields: Any) -> None:
        machine = self.machines[name]
        machine.heartbeat = replace(machine.heartbeat, **fields)
        self.beat()

    def beat(self) -> None:
        views = {}
        for name, machine in sorted(self.machines.items()):
            if machine.up:
                machine.revision = self._next()
                machine.heard[_identity(machine)] = 0.0
                machine.needs[_identity(machine)] = silent_exclusive_s(machine.heartbeat)
            views[name] = HostView(
                replace(machine.heartbeat, dead=machine.dead) if machine.dead else machine.heartbeat,
                machine.revision,
                machine.silence_s,
                dict(machine.heard),
                self.age_s,
                silent_exclusive_s(machine.heartbeat),
                dict(machine.needs),
            )
        self.world.fold_hosts(views, self.age_s, self.gone, InputMark("hosts", self.revision))

    def lose_key(self, name: str) -> None:
        """The host's key is deleted, and nobody makes it anew."""
        del self.machines[name]
        self.gone[name] = GoneView(self._next(), 0.0)
        self.beat()

    def bury(self, made: Plan) -> bool:
        """Store a plan's tombstones as the leader would, and show them; whether there were any."""
        stored = False
        if not self.tombstones:
            self.world.mark(Scope(hosts=frozenset(stone.host for stone in made.tombstones)))
            return False
        for stone in made.tombstones:
            machine = self.machines.get(stone.host)
            if machine is None:
                gone = self.gone.pop(stone.host, None)
                assert stone.revision == (0 if gone is None else gone.revision)
                machine = self.machines[stone.host] = Machine(stone.document(STORE), up=False)
            elif machine.revision != stone.revision:
                continue
            machine.dead, machine.revision, stored = stone.dead, self._next(), True
        if stored:
            self.beat()
        return stored

    # --- users and operators

    def publish(
        self,
        name: str,
        version: str = "1",
        *,
        derived: Overlap = Overlap.SHAREABLE,
        candidate: Candidate | None = None,
        admitted: bool = True,
        config: str = "",
        **fields: Any,
    ) -> None:
        """Write the record, and have the version admitted (unless `candidate` or `admitted` say otherwise).

        `derived`: what admission finds in its inputs; `fields` are the record's.
        """
        fields = {"id": name, "status": "published", "version": version} | fields
        self.records[name] = fields
        if candidate is not None:
            self.candidate(name, version, candidate)
        elif admitted and (name, version) not in self.view.pins:
            self.candidate(name, version, Ready(pin_of(fields, derived)))
            self.config(name, version, config or digest_of(name, version))
        self.put(name, json.dumps(fields).encode())

    def edit(self, name: str, **fields: Any) -> None:
        """Change fields of the record; a version that is pinned stays what it is."""
        self.records[name] = self.records[name] | fields
        self.put(name, json.dumps(self.records[name]).encode())

    def put(self, name: str, data: bytes | None) -> None:
        self._fold(Source.PIPELINES, name, data)

    def delete(self, name: str) -> None:
        self.put(name, None)

    def candidate(self, name: str, version: str, candidate: Candidate | None) -> None:
        self.world.fold_candidate(name, version, candidate)

    def config(self, name: str, version: str, digest: str | None) -> None:
        key = object_name(name, version)
        info = None if digest is None else encode(ObjectInfo(key, 10, digest, 1, "nuid"))
        self._fold(Source.CONFIGS, key, info)

    def intend(self, host: str, **fields: Any) -> None:
        """Operator's intent for a host; without fields it is withdrawn."""
        data = encode(HostIntent(**fields)) if fields else None
        self._fold(Source.OPERATOR, host_intent_key(host), data)

    def restart(self, name: str, request: str = "") -> None:
        self._fold(Source.OPERATOR, restart_intent_key(name), encode(RestartIntent(request=request)))

    def say(self, key: str, data: bytes | None) -> None:
        """Any other word of an operator."""
        self._fold(Source.OPERATOR, key, data)

    # --- planning and acting

    @property
    def view(self) -> View:
        return self.world.view()

    def plan(self, scope: Scope | None = None) -> Plan:
        """A plan, audited, not committed."""
        made = plan(self.view, self.policy, scope)
        if self.audited:
            found = audit(self.view, made, self.policy)
            assert not found, found
        return made

    def commit(self, made: Plan) -> None:
        """Commit a plan and everything behind it, as the loop does: the journal first, then its documents."""
        for part in (made, *made.then):
            journal = self.world.journal
            assert journal is not None
            if part.empty:
                continue
            assert part.number == max(journal.plan, self.view.serials) + 1
            revision = self._next()
            self.world.fold_journal(replace(journal, term=self.view.term, plan=part.number), revision)
            self.world.fold_plan(part, revision + 1)
            self.revision = revision + len(part.documents()) + 1
        if made.rest is not None:
            self.world.mark(made.rest)

    def step(self, *, scoped: bool = True) -> bool:
        """One pass and one action of every agent; whether anything happened."""
        scope = self.world.take_scope() if scoped else None
        made = self.plan(scope)
        self.commit(made)
        buried = self.bury(made)
        acted = [self.act(name) for name in sorted(self.machines)]
        return not made.empty or buried or any(acted) or made.rest is not None

    def settle(self, *, scoped: bool = True, steps: int = 60) -> int:
        """Until nothing happens any more; how many steps it took."""
        for count in range(steps):
            if not self.step(scoped=scoped):
                return count
        raise AssertionError(f"not quiet after {steps} steps: {self.world.take_scope()}")

    def act(self, name: str) -> bool:
        """Let an agent read its assignment, do one thing per execution, and report if anything changed."""
        machine = self.machines[name]
        document = self.view.assignments.get(name)
        if not machine.up or not machine.reporting or document is None:
            return False
        obeys = machine.heartbeat.store_id
        if document.session != machine.heartbeat.session or obeys not in ("", self.store_id, *document.accepted):
            return False
        if obeys == self.store_id and (document.term, document.plan) < machine.applied:
            return False
        before = obeys == self.store_id and (machine.applied, dict(machine.phases), machine.problem)
        machine.applied = (document.term, document.plan)
        if obeys != document.store_id:
            machine.heartbeat = replace(machine.heartbeat, store_id=document.store_id)
            self.beat()
        wanted = {item.execution: item for item in document.executions}
        for execution in [execution for execution in machine.items if execution not in wanted]:
            if machine.phases[execution] is Phase.STOPPING or not self.lag:
                del machine.items[execution], machine.phases[execution]
            else:
                machine.phases[execution] = Phase.STOPPING
        for execution, item in wanted.items():
            machine.items[execution] = item
            machine.phases[execution] = self._advance(item, machine.phases.get(execution))
        if before == (machine.applied, machine.phases, machine.problem):
            return False
        self.report(name)
        return True

    def _advance(self, item: Assigned, now: Phase | None) -> Phase:
        if item.wanted is Wanted.PAUSE:
            return Phase.STOPPING if self.lag and now not in (Phase.STOPPING, Phase.STOPPED) else Phase.STOPPED
        if (item.pipeline, item.version) in self.broken:
            return Phase.BACKOFF
        if not self.lag or now is Phase.RUNNING or now is Phase.READY:
            return Phase.READY
        return Phase.RUNNING if now is Phase.STARTING else Phase.STARTING

    def report(self, name: str) -> None:
        """What the agent of a host sees now."""
        machine = self.machines[name]
        executions = tuple(
            Observed(
                execution=execution,
                pipeline=item.pipeline,
                slot=item.slot,
                version=item.version,
                digest=item.digest,
                phase=machine.phases[execution],
                reason=machine.reasons.get(execution, ""),
            )
            for execution, item in sorted(machine.items.items())
        )
        term, number = machine.applied
        report = Report(
            store_id=machine.heartbeat.store_id,
            host=name,
            session=machine.heartbeat.session,
            term=term,
            plan=number,
            executions=executions,
            problem=machine.problem,
        )
        self._fold(Source.REPORTS, name, encode(report))

    # --- accidents

    def successor(self, store_id: str) -> Cluster:
        """The same users and hosts above a control stream that was made anew: a leader that knows nothing else."""
        new = Cluster(self.policy, lag=self.lag, store_id=store_id)
        new.machines = self.machines
        for name, report in self.view.reports.items():
            new._fold(Source.REPORTS, name, encode(report))
        new.beat()
        for name, fields in self.records.items():
            new.put(name, json.dumps(fields).encode())
        return new

    def accept(self, older: str) -> None:
        """An operator's word that this store takes over from another."""
        self._fold(Source.OPERATOR, STORE_INTENT, encode(StoreIntent(accept=self.store_id, replaces=older)))

    def find(self, pins: Mapping[tuple[str, str], Pin]) -> None:
        """Have the bundles of what runs read; `pins`: what they say."""
        found = {}
        for pipeline, version, digest in adoption.wanted(self.view):
            pin = pins.get((pipeline, version))
            found[pipeline, version, digest] = pin if pin is not None and pin.digest == digest else None
        self.world.fold_found(found)

    # --- answers

    def status(self, name: str) -> Status:
        return self.view.statuses[name]

    def places(self, name: str) -> dict[int, list[str]]:
        """Hosts of the live executions, by slot."""
        found: dict[int, list[str]] = {}
        for place in self.view.places.get(name, ()):
            if isinstance(place.item, Assigned):
                found.setdefault(place.item.slot, []).append(place.host)
        return found

    def running(self, name: str) -> dict[int, str]:
        """Host of each slot; asserts that there is one each."""
        found = self.places(name)
        assert all(len(hosts) == 1 for hosts in found.values()), found
        return {slot: hosts[0] for slot, hosts in sorted(found.items())}

    def running_of_version(self, name: str, version: str) -> list[str]:
        """Hosts of the live executions of one version."""
        places = self.view.places.get(name, ())
        return [place.host for place in places if isinstance(place.item, Assigned) and place.item.version == version]

    def item(self, name: str, slot: int = 0) -> Assigned:
        """The live execution of a slot; asserts that there is exactly one."""
        items = [place.item for place in self.view.places.get(name, ()) if isinstance(place.item, Assigned)]
        found = [item for item in items if item.slot == slot]
        assert len(found) == 1, found
        return found[0]

    def _next(self) -> int:
        self.revision += 1
        return self.revision

    def _fold(self, source: Source, key: str, data: bytes | None) -> None:
        self.world.fold_change(source, Change(Entry(key, data, self._next())))


def pin_of(fields: Mapping[str, Any], derived: Overlap = Overlap.SHAREABLE) -> Pin:
    """The pin that admission offers for a record."""
    record = parse_record(str(fields["id"]), json.dumps(dict(fields)).encode())
    said = {"auto": derived, "forbid": Overlap.EXCLUSIVE, "allow": Overlap.SHAREABLE}[record.overlap]
    return Pin(
        store_id="",
        term=0,
        plan=0,
        pipeline=record.id,
        version=record.version,
        digest=f"{record.id}-{record.version}".ljust(64, "0"),
        config_digest=digest_of(record.id, record.version),
        overlap=said,
        overlap_reason="input generate makes data of its own",
        inputs=("generate",),
        stop_grace_s=25.0,
        cpu=record.resources.cpu or 0.0,
        memory_bytes=64 * MIB if record.resources.memory is None else record.resources.memory,
        image=record.image,
        volumes=tuple(volume.partition(":")[0] for volume in record.volumes),
        captured=captured(record),
    )


def digest_of(name: str, version: str) -> str:
    """The digest of the configuration object of a version."""
    return f"config-{name}-{version}"


def _identity(machine: Machine) -> tuple[str, str]:
    session = machine.heartbeat.session
    return session.agent, session.boot


__all__ = ["GIB", "MIB", "STORE", "Cluster", "Machine", "Ready", "Rejected", "Unavailable", "digest_of", "pin_of"]
