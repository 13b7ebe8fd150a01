"""Everything that goes wrong in one run, decided in advance from the seed.

Swarm: each run draws a random subset of the kinds of faults, how often they come and how bad they are; a run with few
kinds drives the cluster into corners where a run with all of them never gets. A `Fault` is a value, so a schedule can
be printed, and thinned out by hand.

Not in here, because nothing can be done against them (see the safety argument in ARCHITECTURE.md): a machine that is
paused as a whole, and a runner that somebody stops alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

FOREVER = 1e9
CLOCKS = (0.92, 1.08)  # how far a machine's clock may be slewed from real time
CRYSTALS = (0.995, 1.005)  # how far the raw clock of a scheduler's machine may be off
EDGE_S = (10.0, 14.0)  # around the silence after which exclusive executions are placed elsewhere


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong: from `at` until `until` (the same for what is over at once)."""

    at: float
    until: float
    kind: str
    target: str = ""  # a scheduler, a host, or a connection `<node>.<role>`; "" = all there are
    amount: float = 0.0
    how: str = ""

    def concerns(self, connection: str) -> bool:
        """Whether this is about a connection, or a process: one that is named, all of some nodes, or all there are."""
        node = connection.split(".", maxsplit=1)[0]
        return self.target in ("", connection) or node in self.target.split(",")

    def __str__(self) -> str:
        span = " for ever" if self.until >= FOREVER else f" {self.until - self.at:.1f} s"
        span = "" if self.until == self.at else span
        amount = f" ({self.amount:.2f})" if self.amount else ""
        how = f" ({self.how})" if self.how else ""
        return f"{self.kind} {self.target}{how}{amount}{span}".strip()


@dataclass(slots=True)
class Shape:
    """What one run is made of."""

    schedulers: list[str]
    hosts: list[str]
    faults_s: float  # how long the phase of faults lasts
    kinds: list[str] = field(default_factory=list)
    gap_s: float = 5.0  # between two faults, on average
    edit_gap_s: float = 4.0  # between two edits by people, on average
    writes_max: int = 900  # of one commit
    boot_rates: dict[str, float] = field(default_factory=dict)  # by host; 1.0 if it is not in it
    raw_rates: dict[str, float] = field(default_factory=dict)  # by scheduler
    drains: dict[str, float] = field(default_factory=dict)  # by host: how long its Bentos take to stop
    verify_s: dict[str, float] = field(default_factory=dict)  # by host: what its runners take until they start Bento


SCHEDULER_ROLES = ("main", "elector", "pulse")
HOST_ROLES = ("main", "heart")


SCHEDULER_ROLES = ("main", "elector", "pulse")
HOST_ROLES = ("main", "heart")


class Schedule:
    """Draws the faults of one run."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(f"faults/{seed}")
        self._lost: set[str] = set()
        self._taken: dict[tuple[str, str], float] = {}  # until when something is down already

    def shape(self) -> Shape:
        """How large the cluster is, and what kind of run this is."""
        chance = self.chance
        shape = Shape(
            schedulers=[f"s{n}" for n in range(chance.choice((1, 2, 2, 3)))],
            hosts=[f"h{n}" for n in range(chance.choice((1, 2, 3, 3, 4)))],
            faults_s=chance.uniform(25, 70),
            gap_s=chance.choice((1.5, 3.0, 6.0)),
            edit_gap_s=chance.choice((1.0, 3.0, 8.0)),
            writes_max=chance.choice((900, 900, 12, 6)),
        )
        if chance.random() < 0.5:
            shape.boot_rates = {host: chance.choice((chance.uniform(*CLOCKS), *CLOCKS)) for host in shape.hosts}
            shape.raw_rates = {name: chance.choice((chance.uniform(*CRYSTALS), *CRYSTALS)) for name in shape.schedulers}
        if chance.random() < 0.5:
            shape.drains = {host: chance.choice((0.05, 0.5, 4.0, 60.0)) for host in shape.hosts}
        if chance.random() < 0.3:
            shape.verify_s = {host: chance.choice((0.03, 1.0, 8.0)) for host in shape.hosts}
        shape.kinds = [kind for kind in sorted(KINDS) if chance.random() < 0.35]
        return shape

    def draw(self, shape: Shape) -> list[Fault]:
        """All faults of a run, in the order of their beginnings."""
        found: list[Fault] = []
        at = self.chance.uniform(1, 8)
        while at < shape.faults_s and shape.kinds:
            fault = KINDS[self.chance.choice(shape.kinds)](self, shape, at)
            if fault is not None:
                found.append(fault)
            at += self.chance.expovariate(1 / shape.gap_s)
        return found

    # --- helpers of the kinds

    def span_s(self) -> float:
        """How long something lasts: a moment, about as long as a host may be silent, or long."""
        chance = self.chance
        spans = (chance.uniform(0.2, 4), chance.uniform(2, 10), chance.uniform(*EDGE_S), chance.uniform(14, 40))
        return chance.choice(spans)

    def take(self, what: str, target: str, at: float, until: float) -> bool:
        """Whether something is still up that can go down only once at a time; it is down from then on."""
        if self._taken.get((what, target), 0.0) > at or target in self._lost:
            return False
        self._taken[what, target] = until
        return True

    def loses(self, shape: Shape, host: str) -> bool:
        """Whether this host never comes back; one at most, and never the only one."""
        if len(shape.hosts) > 1 and not self._lost and self.chance.random() < 0.25:
            self._lost.add(host)
            return True
        return False


Kind = Callable[[Schedule, Shape, float], Fault | None]


def _scheduler_down(kind: str) -> Kind:
    def draw(schedule: Schedule, shape: Shape, at: float) -> Fault | None:
        target, until = schedule.chance.choice(shape.schedulers), at + schedule.chance.uniform(0.2, 12)
        return Fault(at, until, kind, target) if schedule.take("process", target, at, until) else None

    return draw


def _scheduler_frozen(schedule: Schedule, shape: Shape, at: float) -> Fault:
    """All of it, or only one of its threads: a leader that computes for a second, or whose pulses stall."""
    how = schedule.chance.choice(("", "", "main", "watch"))
    return Fault(at, at + schedule.span_s(), "scheduler frozen", schedule.chance.choice(shape.schedulers), how=how)


def _agent_down(kind: str) -> Kind:
    def draw(schedule: Schedule, shape: Shape, at: float) -> Fault | None:
        host, until = schedule.chance.choice(shape.hosts), at + schedule.span_s()
        return Fault(at, until, kind, host) if schedule.take("process", host, at, until) else None

    return draw


def _agent_frozen(schedule: Schedule, shape: Shape, at: float) -> Fault:
    how = schedule.chance.choice(("", "timers last"))
    return Fault(at, at + schedule.span_s(), "agent frozen", schedule.chance.choice(shape.hosts), how=how)


def _second_agent(schedule: Schedule, shape: Shape, at: float) -> Fault | None:
    """Another machine whose agent uses the same host name."""
    host, until = schedule.chance.choice(shape.hosts), at + schedule.chance.uniform(4, 50)
    return Fault(at, until, "second agent", host) if schedule.take("name", host, at, until) else None


def _host_down(kind: str) -> Kind:
    def draw(schedule: Schedule, shape: Shape, at: float) -> Fault | None:
        host, until = schedule.chance.choice(shape.hosts), at + schedule.span_s()
        if not schedule.take("process", host, at, until):
            return None
        if kind == "host crash" and schedule.loses(shape, host):
            until = FOREVER
        return Fault(at, until, kind, host)

    return draw


CUTS = ("held", "down", "deaf", "mute")  # frozen at both ends, refused at once, only towards the store, only from it


def _partition(kind: str) -> Kind:
    def draw(schedule: Schedule, shape: Shape, at: float) -> Fault:
        chance = schedule.chance
        match kind:
            case "host cut off":
                target = chance.choice(shape.hosts)
            case "heartbeats cut off":
                target = f"{chance.choice(shape.hosts)}.heart"
            case "assignments cut off":
                target = f"{chance.choice(shape.hosts)}.main"
            case "scheduler cut off":
                target = chance.choice(shape.schedulers)
            case _:
                target = ",".join(shape.schedulers)
        return Fault(at, at + schedule.span_s(), kind, target, how=chance.choice(CUTS))

    return draw


def _engine(kind: str, longest_s: float) -> Kind:
    def draw(schedule: Schedule, shape: Shape, at: float) -> Fault:
        amount = schedule.chance.uniform(0.2, 3.0) if kind == "slow engine" else 0.0
        lasts_s = schedule.chance.uniform(0.5, longest_s)
        return Fault(at, at + lasts_s, kind, schedule.chance.choice(shape.hosts), amount)

    return draw


def _at_once(kind: str, *how: str) -> Kind:
    def draw(schedule: Schedule, shape: Shape, at: float) -> Fault:
        host = schedule.chance.choice(shape.hosts)
        return Fault(at, at, kind, host, how=schedule.chance.choice(how) if how else "")

    return draw


def _store_away(kind: str) -> Kind:
    def draw(schedule: Schedule, shape: Shape, at: float) -> Fault:
        return Fault(at, at + schedule.span_s(), kind)

    return draw


def _connection(kind: str, longest_s: float, worst: float) -> Kind:
    def draw(schedule: Schedule, shape: Shape, at: float) -> Fault:
        chance = schedule.chance
        lasts_s, amount = chance.uniform(0.3, longest_s), chance.uniform(worst / 10, worst) if worst else 0.0
        nodes = [(node, role) for node in shape.schedulers for role in SCHEDULER_ROLES]
        nodes += [(node, role) for node in shape.hosts for role in HOST_ROLES]
        node, role = chance.choice(nodes)
        return Fault(at, at + lasts_s, kind, f"{node}.{role}", amount)

    return draw


KINDS: dict[str, Kind] = {
    "scheduler crash": _scheduler_down("scheduler crash"),
    "scheduler stop": _scheduler_down("scheduler stop"),
    "scheduler frozen": _scheduler_frozen,
    "scheduler cut off": _partition("scheduler cut off"),
    "schedulers cut off": _partition("schedulers cut off"),
    "agent crash": _agent_down("agent crash"),
    "agent frozen": _agent_frozen,
    "state lost": _agent_down("state lost"),
    "all traces lost": _agent_down("all traces lost"),
    "second agent": _second_agent,
    "host cut off": _partition("host cut off"),
    "heartbeats cut off": _partition("heartbeats cut off"),
    "assignments cut off": _partition("assignments cut off"),
    "host crash": _host_down("host crash"),
    "host replaced": _host_down("host replaced"),
    "execution crash": _at_once("execution crash"),
    "lease damaged": _at_once("lease damaged", "deleted", "garbage"),
    "grant damaged": _at_once("grant damaged", "deleted", "garbage"),
    "crash loop": _engine("crash loop", 15),
    "cannot start": _engine("cannot start", 10),
    "slow engine": _engine("slow engine", 12),
    "failing engine": _engine("failing engine", 8),
    "hanging engine": _engine("hanging engine", 20),
    "store down": _store_away("store down"),
    "store frozen": _store_away("store frozen"),
    "connection down": _connection("connection down", 8, 0.0),
    "connection frozen": _connection("connection frozen", 8, 0.0),
    "lost requests": _connection("lost requests", 20, 0.25),
    "lost acknowledgements": _connection("lost acknowledgements", 20, 0.4),
    "late writes": _connection("late writes", 20, 0.3),
    "late watch": _connection("late watch", 15, 1.5),
    "watch breaks": _connection("watch breaks", 1, 0.0),
    "lagging replica": _connection("lagging replica", 15, 3.0),
}
