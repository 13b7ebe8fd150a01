"""Placement: which host takes a slot. Filters first (see `filters`), then these scores, most important first:

    1  preferred labels     a host with more of them, as long as it has room
    2  spread               the value of the `spread` label that fewest other slots of the pipeline have
    3  stickiness           the host that had the slot before, so that an update finds its files and images
    4  load                 least requested share of cpu or memory, then fewest executions
    5  name                 so that equal clusters give equal plans

Speed. Pipelines with equal needs share one `Pool` of candidates per plan. A pool keeps its hosts in heaps by load, one
heap per value of the spread label, and a heap of those values. Placing only ever adds load (everything that a plan
frees is freed before the first slot is placed), so an entry that is out of date is too cheap, comes up too early, and
is corrected when it comes up; a host without room for the pool's need leaves the pool for the rest of the plan. So a
slot costs a few heap operations however many hosts there are. Values that already have a slot of the pipeline are set
aside until all the others are used up; `Picker.close` puts them back for the next pipeline.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace

from scheduler.core.filters import EXECUTIONS_MAX, Need, Seat, has_labels, preference, standing, wanting
from scheduler.core.sheets import Draft

Key = tuple[int, int, str]


class Seats:
    """All hosts as candidates, made when the first slot is placed: nothing may be freed after that."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._all: dict[str, Seat] = {}
        self._open: list[Seat] | None = None
        self._tiers: dict[Need, list[Pool]] = {}

    def seat(self, host: str) -> Seat | None:
        """The host as a candidate; None if nobody has ever heard of it."""
        seat = self._all.get(host)
        if seat is None:
            known = self._draft.view.hosts.get(host)
            if known is None:
                return None
            seat = self._all[host] = Seat.of(self._draft, host, known)
        return seat

    def every(self) -> list[Seat]:
        """Every host there is, in the order of names: what an explanation has to speak of."""
        found = [self.seat(host) for host in sorted(self._draft.view.hosts)]
        return [seat for seat in found if seat is not None]

    def will_do(self, need: Need, seat: Seat) -> bool:
        """Whether a host would take it if there were room."""
        return not standing(seat) and not wanting(need, seat)

    def tiers(self, need: Need) -> list[Pool]:
        """Candidates with equally many preferred labels, best first."""
        tiers = self._tiers.get(need)
        if tiers is None:
            by_preference: dict[int, list[Seat]] = {}
            for seat in self._candidates(need):
                by_preference.setdefault(preference(need, seat), []).append(seat)
            ordered = sorted(by_preference, reverse=True)
            tiers = self._tiers[need] = [Pool(need, by_preference[preferred]) for preferred in ordered]
        return tiers

    def _candidates(self, need: Need) -> list[Seat]:
        names = dict(need.required).get("host")
        if names is not None:  # pinned to named hosts: do not look at a thousand others
            named = [self.seat(name) for name in sorted(set(names))]
            return [seat for seat in named if seat is not None and self.will_do(need, seat)]
        if self._open is None:
            self._open = self._willing()
        found = self._open
        if need.required:
            found = [seat for seat in found if has_labels(need.required, seat.heartbeat.labels, seat.host)]
        return [seat for seat in found if not wanting(need, seat)]

    def _willing(self) -> list[Seat]:
        """The hosts without a `standing` reason, in no order: the heaps order them."""
        view, silent_s = self._draft.view, self._draft.policy.silent_shareable_s
        names = [host for host, known in view.hosts.items() if known.silence_s < silent_s]
        seats = [self.seat(host) for host in names]
        return [seat for seat in seats if seat is not None and not standing(seat)]


class Pool:
    """Candidates of one tier for one need, ordered by load within each value of the spread label."""

    def __init__(self, need: Need, seats: list[Seat]) -> None:
        self.need = need
        self.seats = tuple(seats)
        self._lanes: dict[str, list[tuple[Key, Seat]]] = {}
        for seat in seats:
            self._lanes.setdefault(seat.label(need.spread), []).append((seat.key, seat))
        for lane in self._lanes.values():
            heapify(lane)
        self.order: list[tuple[Key, str]] = [(lane[0][0], value) for value, lane in self._lanes.items()]
        heapify(self.order)

    def top(self, value: str) -> Seat | None:
        """The least loaded host of a value that has room."""
        lane = self._lanes[value]
        need = self.need
        cpu, memory = need.cpu_milli, need.memory_bytes
        while lane:
            key, seat = lane[0]
            if (cpu > seat.cpu_free and cpu) or (memory > seat.memory_free and memory) or seat.count >= EXECUTIONS_MAX:
                heappop(lane)
            elif key is seat.key:
                return seat
            elif len(lane) == 1:
                lane[0] = (seat.key, seat)
            else:
                heapreplace(lane, (seat.key, seat))
        return None


class Picker:
    """Places the slots of one pipeline, one after the other."""

    def __init__(self, seats: Seats, need: Need) -> None:
        self._seats = seats
        self.need = need
        self._tiers = seats.tiers(need)
        self._aside: list[list[tuple[Key, str]]] = [[] for _ in self._tiers]
        self._taken: dict[str, int] = {}
        self._levels = [0 for _ in self._tiers]

    def occupy(self, host: str, by: int = 1) -> None:
        """Another slot of the pipeline is (by -1: no longer counts as) on this host."""
        seat = self._seats.seat(host)
        if seat is not None:
            value = seat.label(self.need.spread)
            self._taken[value] = self._taken.get(value, 0) + by
            if by < 0:
                self.close()

    def pick(self, sticky: str) -> Seat | None:
        """The best host for one slot, not yet reserved; None if no host will do."""
        best, level = None, 0
        for tier, pool in enumerate(self._tiers):
            best, level = self._best(tier, pool)
            if best is not None:
                break
        if best is None or not sticky or best.host == sticky:
            return best
        old = self._seats.seat(sticky)
        if old is None or not old.has_room(self.need) or not self._seats.will_do(self.need, old):
            return best
        same_tier = preference(self.need, old) >= preference(self.need, best)
        return old if same_tier and self._taken.get(old.label(self.need.spread), 0) <= level else best

    def take(self, seat: Seat) -> None:
        """Reserve the picked host for one slot."""
        seat.reserve(self.need.cpu_milli, self.need.memory_bytes)
        value = seat.label(self.need.spread)
        self._taken[value] = self._taken.get(value, 0) + 1

    def would_fit(self, host: str, cpu: int, memory: int) -> bool:
        """Whether `host` could take the slot if an execution with these requests had left it."""
        seat = self._seats.seat(host)
        if seat is None or not self._seats.will_do(self.need, seat):
            return False
        need = self.need
        cpu_fits = need.cpu_milli == 0 or need.cpu_milli <= seat.cpu_free + cpu
        return cpu_fits and (need.memory_bytes == 0 or need.memory_bytes <= seat.memory_free + memory)

    def close(self) -> None:
        """Put back what was set aside; the pools are shared."""
        for pool, aside in zip(self._tiers, self._aside, strict=True):
            for entry in aside:
                heappush(pool.order, entry)
            aside.clear()
        self._levels = [0 for _ in self._tiers]

    def _best(self, tier: int, pool: Pool) -> tuple[Seat | None, int]:
        aside, order, taken = self._aside[tier], pool.order, self._taken
        level = self._levels[tier]  # what the least used value with room has; only grows while slots are added
        while True:
            while order:
                key, value = order[0]
                seat = pool.top(value)
                if seat is None:
                    heappop(order)
                elif seat.key is not key:
                    heapreplace(order, (seat.key, value))
                elif taken.get(value, 0) > level:
                    aside.append(heappop(order))
                else:
                    return seat, level
            if not aside:
                return None, level
            level = self._levels[tier] = min(taken.get(value, 0) for _, value in aside)
            for entry in aside:
                heappush(order, entry)
            aside.clear()
