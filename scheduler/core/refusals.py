"""Why no host can take a slot: every host with all of its reasons, the nearest candidate first.

Explanations are made when everything else of a plan is decided, over what is left then: so they are true after the
plan, and the next pass finds the same. How much exactly is short changes with every neighbour, and a status that
followed it would be rewritten all the time; so a status keeps its words as long as the same sorts of reasons hold for
equally many hosts (`same`). `plan.explain` always says how it is now.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from scheduler.core.filters import Need, Reason, room, standing, wanting
from scheduler.core.placement import Seats
from shared.documents import REFUSALS_MAX, HostRefusal, Status

KINDS_MAX = 4  # sorts of reasons in the one sentence


@dataclass(frozen=True, slots=True)
class Refusals:
    """`hosts`: all of them, nearest first. `summary`: without anything that changes with every neighbour."""

    hosts: tuple[HostRefusal, ...]
    summary: str
    nearest: str

    @property
    def sentence(self) -> str:
        return f"{self.summary}; nearest {self.nearest}" if self.nearest else self.summary


class Explainer:
    """Explains needs, each once per plan."""

    def __init__(self, seats: Seats) -> None:
        self._seats = seats
        self._known: dict[Need, Refusals] = {}

    def explain(self, need: Need) -> Refusals:
        found = self._known.get(need)
        if found is None:
            found = self._known[need] = _explain(self._seats, need)
        return found


def same(old: Status | None, refusals: Refusals, record: int) -> bool:
    """Whether a committed status already says this, apart from how much exactly is short."""
    return (
        old is not None
        and old.record == record
        and old.refused_hosts == len(refusals.hosts)
        and old.reason.partition("; nearest ")[0].endswith(refusals.summary)
    )


def shown(refusals: Refusals) -> tuple[HostRefusal, ...]:
    """As many as a status may name."""
    return refusals.hosts[:REFUSALS_MAX]


def refused_by(seats: Seats, need: Need) -> tuple[HostRefusal, ...]:
    """The hosts that cannot take one more now, nearest first."""
    return tuple(
        HostRefusal(host, tuple(reason.text for reason in reasons))
        for host, reasons in _reasons(seats, need)
        if reasons
    )


def _reasons(seats: Seats, need: Need) -> list[tuple[str, list[Reason]]]:
    found = [(seat.host, [*standing(seat), *wanting(need, seat), *room(need, seat)]) for seat in seats.every()]
    found.sort(key=_distance)
    return found


def _distance(candidate: tuple[str, list[Reason]]) -> tuple[bool, int, float, str]:
    """Nearest first. Whoever asked for one host wants to know what is wrong with that one."""
    host, reasons = candidate
    return any(reason.never for reason in reasons), len(reasons), sum(reason.short for reason in reasons), host


def _explain(seats: Seats, need: Need) -> Refusals:
    kinds: Counter[str] = Counter()
    refusals = []
    for host, found in _reasons(seats, need):
        assert found, f"{host} was refused without a reason"  # room only shrinks while a plan is made
        kinds.update({reason.kind for reason in found})
        refusals.append(HostRefusal(host, tuple(reason.text for reason in found)))
    hosts = tuple(refusals)
    if not hosts:
        return Refusals((), "no host can take it: there is no host yet", "")
    most = sorted(kinds.items(), key=lambda entry: (-entry[1], entry[0]))[:KINDS_MAX]
    counts = ", ".join(f"{count} of {len(hosts)} {kind}" for kind, count in most)
    nearest = f"{hosts[0].host}: {', '.join(hosts[0].reasons)}"
    return Refusals(hosts, f"no host can take it: {counts}", nearest)
