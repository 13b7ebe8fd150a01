"""What keeps an execution off a host: filters that explain themselves.

Each filter is one function from (need, seat) to reasons; none of them means that the host will do. The same functions
choose hosts and explain refusals, so a refusal can never name a reason that did not count, nor hide one that did:
an explanation runs every filter on every host, and says by how much something is short.

`standing` filters depend on the host alone, `wanting` ones on what the pipeline asks for as well, `room` on what else
is there at the moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from scheduler.core.goals import lease_bound
from scheduler.core.indexes import cpu_milli
from scheduler.core.liveness import Liveness
from scheduler.core.sessions import belongs
from scheduler.core.sheets import Draft
from scheduler.core.timings import doubt
from scheduler.core.view import HostView, Load
from shared.documents import Driver, Heartbeat, Pin
from shared.intents import HostIntent
from shared.record import PipelineRecord

EXECUTIONS_MAX = 2000  # of one host: its assignment must stay below the 1 MB that a server takes as one message

Labels = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class Need:
    """All that placement depends on; equal needs share one list of candidates. Hashable."""

    required: Labels
    preferred: Labels
    spread: str
    image: bool
    volumes: tuple[str, ...]
    cpu_milli: int
    memory_bytes: int
    bound: bool  # it must stop when the lease of its host ends


class Reason(NamedTuple):
    """Why a host cannot take it. `kind` reads after "2 of 3 hosts", `text` after the host's name; `short` orders hosts
    by how near they are: the missing part of what is asked for, 0 to 1, or 1 where nothing is measured. `never`: a host
    that was not meant, however well it is."""

    kind: str
    text: str
    short: float = 1.0
    never: bool = False


@dataclass(slots=True, eq=False)
class Seat:
    """One host as a candidate: what it offers and what is left of it while the plan grows."""

    host: str
    heartbeat: Heartbeat
    alive: Liveness
    ours: bool
    answered: bool
    intent: HostIntent | None
    cpu_all: int  # at least 1, to divide by
    memory_all: int
    cpu_free: int
    memory_free: int
    count: int
    key: tuple[int, int, str] = (0, 0, "")

    @classmethod
    def of(cls, draft: Draft, host: str, known: HostView) -> Seat:
        beat = known.heartbeat
        load, freed = draft.view.loads.get(host, _NOTHING), draft.freed.get(host, _NOTHING)
        seat = cls(
            host,
            beat,
            draft.alive(host),
            belongs(draft.view, known),
            draft.session(host) == beat.session,
            draft.view.host_intents.get(host),
            cpu_milli(beat.cpu) or 1,
            beat.memory_bytes or 1,
            cpu_milli(beat.cpu) - load.cpu_milli + freed.cpu_milli,
            beat.memory_bytes - load.memory_bytes + freed.memory_bytes,
            load.count - freed.count,
        )
        seat.reserve(0, 0, 0)
        return seat

    def label(self, name: str) -> str:
        """The value of a label; "" if the host has none. Its own name is the label `host`."""
        return self.host if name == "host" else self.heartbeat.labels.get(name, "")

    def reserve(self, cpu: int, memory: int, count: int = 1) -> None:
        """Take a part of what is left; the key orders hosts by requested share, then count, then name."""
        self.cpu_free -= cpu
        self.memory_free -= memory
        self.count += count
        cpu_share = (self.cpu_all - self.cpu_free) * 1_000_000 // self.cpu_all
        memory_share = (self.memory_all - self.memory_free) * 1_000_000 // self.memory_all
        self.key = (max(memory_share, cpu_share), self.count, self.host)

    def has_room(self, need: Need) -> bool:
        """The fast form of `room`; the two agree."""
        return (
            (need.cpu_milli <= self.cpu_free or need.cpu_milli == 0)
            and (need.memory_bytes <= self.memory_free or need.memory_bytes == 0)
            and self.count < EXECUTIONS_MAX
        )


_NOTHING = Load()


def need_of(record: PipelineRecord, pin: Pin) -> Need:
    """What a version of a pipeline asks of a host."""
    place = record.placement
    return Need(
        required=labels_of(place.required),
        preferred=labels_of(place.preferred),
        spread=place.spread,
        image=bool(pin.image),
        volumes=pin.volumes,
        cpu_milli=cpu_milli(pin.cpu),
        memory_bytes=pin.memory_bytes,
        bound=lease_bound(record, pin.overlap),
    )


def labels_of(wanted: Mapping[str, str | list[str]]) -> Labels:
    """Labels of a record with all the values that will do, hashable."""
    if not wanted:
        return ()
    pairs = ((name, (value,) if isinstance(value, str) else tuple(value)) for name, value in wanted.items())
    return tuple(sorted(pairs))


def standing(seat: Seat) -> list[Reason]:
    """Why a host takes nothing at all now."""
    reasons = []
    if not seat.ours:
        store = seat.heartbeat.store_id
        reasons.append(Reason("belong to another store", f"belongs to store {store[:8]} (see `shoal store accept`)"))
    if seat.alive is not Liveness.ALIVE:
        reasons.append(Reason("are silent", "is silent"))
    elif seat.ours and not seat.answered:
        reasons.append(Reason("wait for an earlier session to end", "waits for an earlier session of it to end"))
    intent = seat.intent
    if intent is not None:
        why = f": {intent.reason[:100]}" if intent.reason else ""
        if intent.forget:
            reasons.append(Reason("are forgotten", f"is forgotten{why}"))
        if intent.drain:
            reasons.append(Reason("are draining", f"is draining{why}"))
        if intent.cordon:
            reasons.append(Reason("are cordoned", f"is cordoned{why}"))
    return reasons


def wanting(need: Need, seat: Seat) -> list[Reason]:
    """Which of the things asked for a host does not have."""
    reasons = _drivers(need, seat.heartbeat)
    if need.required:
        reasons = [*_missing_labels(need.required, seat), *reasons]
    return [*reasons, *_volumes(need, seat)] if need.volumes else reasons


def room(need: Need, seat: Seat) -> list[Reason]:
    """What is short at the moment, and by how much."""
    reasons = []
    if need.cpu_milli > max(seat.cpu_free, 0):
        short = need.cpu_milli - max(seat.cpu_free, 0)
        text = f"cpu short by {short / 1000:g} of {need.cpu_milli / 1000:g}"
        reasons.append(Reason("are short of cpu", text, short / need.cpu_milli))
    if need.memory_bytes > max(seat.memory_free, 0):
        short = need.memory_bytes - max(seat.memory_free, 0)
        text = f"memory short by {_size(short)} of {_size(need.memory_bytes)}"
        reasons.append(Reason("are short of memory", text, short / need.memory_bytes))
    if seat.count >= EXECUTIONS_MAX:
        text = f"has {seat.count} executions; at most {EXECUTIONS_MAX} fit"
        reasons.append(Reason("are full", text))
    return reasons


def has_labels(required: Labels, labels: Mapping[str, str], host: str) -> bool:
    """Whether a host has one of its values for every label that is asked for."""
    return all((host if name == "host" else labels.get(name)) in values for name, values in required)


def preference(need: Need, seat: Seat) -> int:
    """How many of the preferred labels a host has."""
    return sum(seat.label(name) in values for name, values in need.preferred) if need.preferred else 0


def _missing_labels(required: Labels, seat: Seat) -> list[Reason]:
    reasons = []
    for name, values in required:
        has = seat.host if name == "host" else seat.heartbeat.labels.get(name)
        if has not in values:
            wanted = f"{name}={'|'.join(values)}"
            text = f"lacks label {wanted}" if has is None else f"lacks label {wanted} (it has {has})"
            reasons.append(Reason(f"lack label {wanted}", text, never=True))
    return reasons


def _drivers(need: Need, beat: Heartbeat) -> list[Reason]:
    if need.image:
        docker = beat.drivers.get("docker")
        if docker is None:
            return [Reason("have no docker driver", "has no docker driver, which an image of its own needs")]
        if not docker.ok:
            return [Reason("have a docker that fails", f"docker fails: {docker.reason[:200]}")]
        fitting = {"docker": docker}
    else:
        fitting = {name: driver for name, driver in beat.drivers.items() if driver.ok}
    if not fitting:
        if not beat.drivers:
            return [Reason("have no driver", "offers no driver")]
        failing = "; ".join(f"{name} fails: {driver.reason[:200]}" for name, driver in sorted(beat.drivers.items()))
        return [Reason("have no working driver", failing)]
    return _lease(fitting, beat) if need.bound else []


def _lease(drivers: Mapping[str, Driver], beat: Heartbeat) -> list[Reason]:
    """Why what must not run twice cannot rely on the host's lease."""
    wrong = doubt(beat)
    reasons = [Reason("announce no lease to rely on", wrong)] if wrong else []
    if all(driver.unbound for driver in drivers.values()):
        said = "; ".join(f"{name}: {driver.unbound[:200]}" for name, driver in sorted(drivers.items()))
        reasons.append(Reason("cannot hold it to a lease", f"cannot stop it when cut off ({said})"))
    return reasons


def _volumes(need: Need, seat: Seat) -> list[Reason]:
    allowed = seat.heartbeat.volumes
    return [
        Reason("do not allow a volume", f"does not allow volume {path} (see `shoal agent --allow-volume`)")
        for path in need.volumes
        if not any(_under(path, prefix) for prefix in allowed)
    ]


def _under(path: str, prefix: str) -> bool:
    base = prefix.rstrip("/")
    return path.rstrip("/") == base or path.startswith(base + "/")


def _size(size: int) -> str:
    """Bytes as a person writes them, rounded up so that "short by" is never too little."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 2**power:
            tenths = -(-size * 10 // 2**power)
            return f"{tenths / 10:g} {unit}"
    return f"{size} B"
