"""What happens when: drawn from the seed before anything happens, within limits that leave the cluster able to recover.

A burst is some faults that begin and end within a few minutes, alone or overlapping. Between bursts the run waits until
all is well, so what never recovers is found, and how long it took can be measured.

Limits, at every instant:
- servers: one is dead, frozen or cut off. More at once only in faults of their own (`two servers killed`, `all servers
  killed`), with no other fault of a server meanwhile.
- hosts: at most two (of four) are dead, frozen or cut off, wholly or their agent alone. More than that only in a fault
  of its own (`most hosts cut off`).
- schedulers: at most two (of three). More than that only in faults of their own (`all schedulers killed`, `cut off`).
- one stranger at a time claims the name of a host, which may suffer something else.
- nobody else suffers two faults at once; every fault ends.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum


class Kind(StrEnum):
    """What can happen. The value is what the report calls it."""

    AGENT_KILL = "agent killed"
    AGENT_FREEZE = "agent frozen"
    AGENT_RESTART = "agent restarted"
    AGENT_CUT = "agent cut off, pipelines not"
    HOST_NEW = "host set up anew"
    STATE_LOST = "state directory of an agent lost"
    HOST_KILL = "host killed"
    HOST_REBOOT = "host booted again"
    HOST_DEAD = "host killed and confirmed dead"
    HOST_CUT = "host cut off, packets dropped"
    HOST_UNPLUG = "host cut off, link down"
    HOST_DEAF = "host cut off, what it sends arrives"
    HOST_MUTE = "host cut off, what it is sent arrives"
    HOST_LOSSY = "host loses a third of its packets"
    HOSTS_CUT = "most hosts cut off"
    STRANGER = "second agent with its name"
    LEASE_GONE = "lease file deleted"
    GRANTS_GONE = "grants deleted"
    RUNNER_KILL = "runner killed"
    RUNNERS_FREEZE = "all runners of a host frozen"
    BENTO_KILL = "Bento killed"
    BENTOS_FREEZE = "all Bentos of a host frozen"
    LEADER_KILL = "leader killed"
    LEADER_FREEZE = "leader frozen"
    LEADER_STOP = "leader stopped"
    LEADER_CUT = "leader cut off, packets dropped"
    LEADER_UNPLUG = "leader cut off, link down"
    STANDBY_KILL = "standby killed"
    SCHEDULERS_CUT = "all schedulers cut off"
    SCHEDULERS_KILL = "all schedulers killed"
    SERVER_KILL = "server killed"
    SERVER_FREEZE = "server frozen"
    SERVER_ALONE = "server cut off from the others"
    SERVER_UNPLUG = "server cut off from all"
    STREAM_LEADER_KILL = "leader of the hosts stream killed"
    STREAM_LEADER_FREEZE = "leader of the hosts stream frozen"
    QUORUM = "two servers killed"
    OUTAGE = "all servers killed"
    DRAIN = "host drained and put back"
    EDIT_VERSION = "new version"
    EDIT_PAUSE = "paused and published again"
    EDIT_DRAFT = "draft and published again"
    EDIT_DELETE = "deleted and published again"
    EDIT_SCALE = "scaled"
    EDIT_PARTITION = "on_partition continue, then stop again"
    EDIT_RESTART = "restart asked for"


class Part(StrEnum):
    """What a fault takes away while it lasts."""

    SERVER = "server"
    HOST = "host"
    SCHEDULER = "scheduler"
    STRANGER = "stranger"
    USER = "user"


@dataclass(frozen=True, slots=True)
class Rule:
    """How often (`weight`), to what, of how many at once (`takes`) and for how long (seconds) a kind happens."""

    weight: int
    part: Part
    durations: tuple[tuple[float, float], ...]
    takes: int = 1


SHORT = (1.0, 6.0)
LEASE = (9.0, 22.0)  # around the lease, the silence after which exclusive pipelines move, and the move itself
LONG = (25.0, 45.0)
# Longer than NATS clients try: Bento's connections are closed for good then. Too long for a short run.
HOPELESS = (140.0, 155.0)
HOPELESS_IN = 15  # one of so many bursts of a long run

RULES: Mapping[Kind, Rule] = {
    Kind.AGENT_KILL: Rule(4, Part.HOST, (SHORT, LEASE, LONG)),
    Kind.AGENT_FREEZE: Rule(5, Part.HOST, (SHORT, LEASE, LEASE, LONG)),
    Kind.AGENT_RESTART: Rule(2, Part.HOST, ((0.0, 2.0),)),
    Kind.AGENT_CUT: Rule(5, Part.HOST, (SHORT, LEASE, LEASE, LONG)),
    Kind.HOST_NEW: Rule(1, Part.HOST, (SHORT, LEASE)),
    Kind.STATE_LOST: Rule(1, Part.HOST, (SHORT, LEASE)),
    Kind.HOST_KILL: Rule(3, Part.HOST, (SHORT, LEASE, LONG)),
    Kind.HOST_REBOOT: Rule(3, Part.HOST, (SHORT, LEASE, LONG)),
    Kind.HOST_DEAD: Rule(1, Part.HOST, (SHORT, LEASE, LONG)),
    Kind.HOST_CUT: Rule(5, Part.HOST, (SHORT, LEASE, LEASE, LONG)),
    Kind.HOST_UNPLUG: Rule(3, Part.HOST, (SHORT, LEASE, LONG)),
    Kind.HOST_DEAF: Rule(2, Part.HOST, (SHORT, LEASE, LONG)),
    Kind.HOST_MUTE: Rule(2, Part.HOST, (SHORT, LEASE, LONG)),
    Kind.HOST_LOSSY: Rule(2, Part.HOST, (LEASE, LONG)),
    Kind.HOSTS_CUT: Rule(1, Part.HOST, (SHORT, LEASE), takes=3),
    Kind.STRANGER: Rule(2, Part.STRANGER, (SHORT, LEASE, LONG)),
    Kind.LEASE_GONE: Rule(1, Part.HOST, ((0.0, 1.0),)),
    Kind.GRANTS_GONE: Rule(1, Part.HOST, ((0.0, 1.0),)),
    Kind.RUNNER_KILL: Rule(2, Part.HOST, ((0.0, 1.0),)),
    Kind.RUNNERS_FREEZE: Rule(2, Part.HOST, (SHORT, LEASE)),
    Kind.BENTO_KILL: Rule(1, Part.HOST, ((0.0, 1.0),)),
    Kind.BENTOS_FREEZE: Rule(1, Part.HOST, (SHORT, LEASE)),
    Kind.LEADER_KILL: Rule(3, Part.SCHEDULER, (SHORT, LEASE)),
    Kind.LEADER_FREEZE: Rule(4, Part.SCHEDULER, (SHORT, LEASE)),
    Kind.LEADER_STOP: Rule(1, Part.SCHEDULER, (SHORT,)),
    Kind.LEADER_CUT: Rule(3, Part.SCHEDULER, (SHORT, LEASE)),
    Kind.LEADER_UNPLUG: Rule(1, Part.SCHEDULER, (SHORT, LEASE)),
    Kind.STANDBY_KILL: Rule(1, Part.SCHEDULER, (SHORT, LEASE)),
    Kind.SCHEDULERS_CUT: Rule(2, Part.SCHEDULER, (SHORT, LEASE), takes=3),
    Kind.SCHEDULERS_KILL: Rule(1, Part.SCHEDULER, (SHORT, LEASE), takes=3),
    Kind.SERVER_KILL: Rule(3, Part.SERVER, (SHORT, LEASE)),
    Kind.SERVER_FREEZE: Rule(3, Part.SERVER, (SHORT, LEASE)),
    Kind.SERVER_ALONE: Rule(2, Part.SERVER, (SHORT, LEASE)),
    Kind.SERVER_UNPLUG: Rule(2, Part.SERVER, (SHORT, LEASE)),
    Kind.STREAM_LEADER_KILL: Rule(3, Part.SERVER, (SHORT, LEASE)),
    Kind.STREAM_LEADER_FREEZE: Rule(2, Part.SERVER, (SHORT, LEASE)),
    Kind.QUORUM: Rule(1, Part.SERVER, (SHORT, LEASE), takes=2),
    Kind.OUTAGE: Rule(1, Part.SERVER, (SHORT, LEASE), takes=3),
    Kind.DRAIN: Rule(2, Part.HOST, (LEASE,)),
    Kind.EDIT_VERSION: Rule(3, Part.USER, ((0.0, 0.0),)),
    Kind.EDIT_PAUSE: Rule(2, Part.USER, (SHORT,)),
    Kind.EDIT_DRAFT: Rule(2, Part.USER, (SHORT, LEASE)),
    Kind.EDIT_DELETE: Rule(1, Part.USER, (SHORT, LEASE)),
    Kind.EDIT_SCALE: Rule(2, Part.USER, ((0.0, 0.0),)),
    Kind.EDIT_PARTITION: Rule(2, Part.USER, (SHORT, LEASE)),
    Kind.EDIT_RESTART: Rule(1, Part.USER, ((0.0, 0.0),)),
}

HOPELESS_KINDS = (Kind.OUTAGE, Kind.HOST_CUT, Kind.QUORUM)
AT_ONCE: Mapping[Part, int] = {Part.SERVER: 1, Part.HOST: 2, Part.SCHEDULER: 2, Part.STRANGER: 1, Part.USER: 2}
ALONE = 0.6  # share of the bursts that are one fault alone
FAULTS_MAX = 6  # in one burst
TRIES = 100  # for a burst: of few kinds not as many as wanted may fit together
SPREAD_S = 20.0  # within which the faults of a burst begin


@dataclass(frozen=True, slots=True)
class Planned:
    """One fault of a burst. `pick` chooses its victim among those that suffer nothing at that moment."""

    kind: Kind
    begin_s: float
    end_s: float
    pick: float  # 0 to 1

    @property
    def rule(self) -> Rule:
        return RULES[self.kind]


def bursts(seed: int, *, long: bool = True, dense: bool = False) -> Iterator[tuple[Planned, ...]]:
    """All bursts of a run, one after the other, for ever. Every kind happens alone once before any does again.

    `long`: with outages of more than two minutes now and then. `dense`: several faults in every other burst.
    """
    rng = random.Random(seed)
    alone: list[Kind] = []
    while True:
        if long and rng.randrange(HOPELESS_IN) == 0:
            yield (Planned(rng.choice(HOPELESS_KINDS), 0.0, rng.uniform(*HOPELESS), rng.random()),)
        elif not dense and rng.random() < ALONE:
            if not alone:
                alone = rng.sample(list(Kind), len(Kind))
            yield (_plan(rng, alone.pop(), 0.0),)
        else:
            yield _several(rng)


def some(seed: int, kinds: Sequence[Kind], *, dense: bool = False) -> Iterator[tuple[Planned, ...]]:
    """Bursts of these kinds only, for ever, to look closely at some: one after the other, or several at once."""
    rng = random.Random(seed)
    while True:
        for kind in kinds:
            yield _several(rng, kinds) if dense else (_plan(rng, kind, 0.0),)


def _several(rng: random.Random, kinds: Sequence[Kind] = tuple(RULES)) -> tuple[Planned, ...]:
    wanted = rng.randint(2, FAULTS_MAX)
    chosen: list[Planned] = []
    weights = [RULES[kind].weight for kind in kinds]
    for _ in range(TRIES):
        if len(chosen) == wanted:
            break
        planned = _plan(rng, rng.choices(kinds, weights)[0], rng.uniform(0.0, SPREAD_S))
        if fits(planned, chosen):
            chosen.append(planned)
    first_s = min(planned.begin_s for planned in chosen)
    shifted = [replace(one, begin_s=one.begin_s - first_s, end_s=one.end_s - first_s) for one in chosen]
    return tuple(sorted(shifted, key=lambda planned: planned.begin_s))


def _plan(rng: random.Random, kind: Kind, begin_s: float) -> Planned:
    low_s, high_s = rng.choice(RULES[kind].durations)
    return Planned(kind, begin_s, begin_s + rng.uniform(low_s, high_s), rng.random())


def fits(planned: Planned, others: list[Planned]) -> bool:
    """Whether the limits hold with `planned` too. Faults that meet at all are counted as if they met all at once."""
    rule = planned.rule
    met = [
        other.rule
        for other in others
        if other.rule.part is rule.part and other.begin_s <= planned.end_s and planned.begin_s <= other.end_s
    ]
    if not met:
        return True
    return rule.takes == 1 and all(r.takes == 1 for r in met) and len(met) < AT_ONCE[rule.part]
