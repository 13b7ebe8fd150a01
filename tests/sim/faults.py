"""Everything that goes wrong in one run, decided in advance from the seed.

Swarm: each run draws a random subset of the kinds of faults, how often they come and how bad they are; a run with few
kinds drives the cluster into corners where a run with all of them never gets. A `Fault` is a value, so a schedule can
be printed, and thinned out by hand.

What this first version may not do to a cluster whose hosts do not stop themselves yet: cut a host that goes on running
off for so long that its executions are placed elsewhere. So whatever silences a living host's heartbeats ends within
`SILENCE_MAX_S`, and leaves the host `RECOVERY_S` of peace. `cut` is the hook for the partitions to come.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

SILENCE_MAX_S = 6.0
RECOVERY_S = 8.0
FOREVER = 1e9


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong: from `at` until `until` (the same for what is over at once)."""

    at: float
    until: float
    kind: str
    target: str = ""  # a scheduler, a host, or a connection `<node>.<role>`
    amount: float = 0.0

    def __str__(self) -> str:
        span = " for ever" if self.until >= FOREVER else f" {self.until - self.at:.1f} s"
        span = "" if self.until == self.at else span
        amount = f" ({self.amount:.2f})" if self.amount else ""
        return f"{self.kind} {self.target}{amount}{span}".strip()


@dataclass(slots=True)
class Shape:
    """What one run is made of."""

    schedulers: list[str]
    hosts: list[str]
    faults_s: float  # how long the phase of faults lasts
    kinds: list[str] = field(default_factory=list)
    gap_s: float = 5.0  # between two faults, on average
    edit_gap_s: float = 4.0  # between two edits by people, on average


SCHEDULER_ROLES = ("main", "elector", "pulse")
HOST_ROLES = ("main", "heart")


class Schedule:
    """Draws the faults of one run."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(f"faults/{seed}")
        self._disturbed: dict[str, float] = {}  # host -> until when its heartbeats must be left in peace
        self._lost: set[str] = set()

    def shape(self) -> Shape:
        """How large the cluster is, and what kind of run this is."""
        chance = self.chance
        shape = Shape(
            schedulers=[f"s{n}" for n in range(chance.choice((1, 2, 2, 3)))],
            hosts=[f"h{n}" for n in range(chance.choice((1, 2, 3, 3, 4)))],
            faults_s=chance.uniform(25, 70),
            gap_s=chance.choice((1.5, 3.0, 6.0)),
            edit_gap_s=chance.choice((1.0, 3.0, 8.0)),
        )
        shape.kinds = [kind for kind in sorted(KINDS) if chance.random() < 0.5]
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

    def quiet_host(self, shape: Shape, at: float, silent_s: float) -> str | None:
        """A host whose heartbeats may be silenced from `at` for `silent_s`; reserves it."""
        free = [host for host in shape.hosts if self._disturbed.get(host, 0.0) <= at and host not in self._lost]
        if not free:
            return None
        host = self.chance.choice(free)
        self._disturbed[host] = at + silent_s + RECOVERY_S
        return host

    def all_hosts(self, shape: Shape, at: float, silent_s: float) -> bool:
        """Whether all heartbeats may be silenced at once; reserves them."""
        if any(self._disturbed.get(host, 0.0) > at for host in shape.hosts):
            return False
        self._disturbed.update(dict.fromkeys(shape.hosts, at + silent_s + RECOVERY_S))
        return True

    def loses(self, shape: Shape, host: str) -> bool:
        """Whether this host never comes back; one at most, and never the only one."""
        if len(shape.hosts) > 1 and not self._lost and self.chance.random() < 0.25:
            self._lost.add(host)
            return True
        return False


def _scheduler_down(kind: str) -> Callable[[Schedule, Shape, float], Fault]:
    def draw(schedule: Schedule, shape: Shape, at: float) -> Fault:
        return Fault(at, at + schedule.chance.uniform(0.2, 12), kind, schedule.chance.choice(shape.schedulers))

    return draw


def _agent_down(kind: str) -> Callable[[Schedule, Shape, float], Fault | None]:
    def draw(schedule: Schedule, shape: Shape, at: float) -> Fault | None:
        silent_s = schedule.chance.uniform(0.1, SILENCE_MAX_S)
        host = schedule.quiet_host(shape, at, silent_s)
        return None if host is None else Fault(at, at + silent_s, kind, host)

    return draw


def _host_down(kind: str) -> Callable[[Schedule, Shape, float], Fault | None]:
    def draw(schedule: Schedule, shape: Shape, at: float) -> Fault | None:
        down_s = schedule.chance.choice((schedule.chance.uniform(0.5, 8), schedule.chance.uniform(8, 40)))
        host = schedule.quiet_host(shape, at, down_s)
        if host is None:
            return None
        if kind == "host crash" and schedule.loses(shape, host):
            down_s = FOREVER
        return Fault(at, at + down_s, kind, host)

    return draw


def _engine(kind: str, longest_s: float) -> Callable[[Schedule, Shape, float], Fault]:
    def draw(schedule: Schedule, shape: Shape, at: float) -> Fault:
        amount = schedule.chance.uniform(0.2, 3.0) if kind == "slow engine" else 0.0
        lasts_s = schedule.chance.uniform(0.5, longest_s)
        return Fault(at, at + lasts_s, kind, schedule.chance.choice(shape.hosts), amount)

    return draw


def _at_once(kind: str) -> Callable[[Schedule, Shape, float], Fault]:
    def draw(schedule: Schedule, shape: Shape, at: float) -> Fault:
        return Fault(at, at, kind, schedule.chance.choice(shape.hosts))

    return draw


def _store_away(kind: str) -> Callable[[Schedule, Shape, float], Fault | None]:
    def draw(schedule: Schedule, shape: Shape, at: float) -> Fault | None:
        away_s = schedule.chance.uniform(0.2, SILENCE_MAX_S)
        if not schedule.all_hosts(shape, at, away_s):
            return None
        return Fault(at, at + away_s, kind)

    return draw


def _connection(kind: str, longest_s: float, worst: float) -> Callable[[Schedule, Shape, float], Fault | None]:
    def draw(schedule: Schedule, shape: Shape, at: float) -> Fault | None:
        chance = schedule.chance
        lasts_s, amount = chance.uniform(0.3, longest_s), chance.uniform(worst / 10, worst) if worst else 0.0
        nodes = [(node, role) for node in shape.schedulers for role in SCHEDULER_ROLES]
        nodes += [(node, role) for node in shape.hosts for role in HOST_ROLES]
        node, role = chance.choice(nodes)
        if role == "heart":
            if kind == "late writes":
                return None  # a heartbeat that arrives late is silence; agents have other faults for that
            lasts_s = min(lasts_s, SILENCE_MAX_S / 2)
            host = schedule.quiet_host(shape, at, lasts_s)
            if host is None:
                return None
            node = host
        return Fault(at, at + lasts_s, kind, f"{node}.{role}", amount)

    return draw


KINDS: dict[str, Callable[[Schedule, Shape, float], Fault | None]] = {
    "scheduler crash": _scheduler_down("scheduler crash"),
    "scheduler stop": _scheduler_down("scheduler stop"),
    "agent crash": _agent_down("agent crash"),
    "host crash": _host_down("host crash"),
    "host replaced": _host_down("host replaced"),
    "execution crash": _at_once("execution crash"),
    "crash loop": _engine("crash loop", 15),
    "cannot start": _engine("cannot start", 10),
    "slow engine": _engine("slow engine", 12),
    "failing engine": _engine("failing engine", 8),
    "hanging engine": _engine("hanging engine", 8),
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
