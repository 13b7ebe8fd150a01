"""What is drawn from a seed keeps the limits that the timetable states."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from tests.chaos.timetable import AT_ONCE, FAULTS_MAX, Kind, Part, Planned, bursts, fits, some

BURSTS = 300


def _at_once(burst: tuple[Planned, ...], moment_s: float) -> list[Planned]:
    return [planned for planned in burst if planned.begin_s <= moment_s <= planned.end_s]


@pytest.mark.parametrize("seed", range(10))
def test_limits_hold_at_every_instant(seed: int) -> None:
    for burst in islice(bursts(seed), BURSTS):
        assert 1 <= len(burst) <= FAULTS_MAX
        assert burst[0].begin_s == 0.0
        for one in burst:
            met = _at_once(burst, one.begin_s)
            counts = Counter(planned.rule.part for planned in met)
            for part, count in counts.items():
                most = max(planned.rule.takes for planned in met if planned.rule.part is part)
                assert count <= AT_ONCE[part] if most == 1 else count == 1


def test_every_kind_happens_alone_before_any_does_again() -> None:
    alone = [burst[0].kind for burst in islice(bursts(7, long=False), BURSTS) if len(burst) == 1][: 2 * len(Kind)]
    assert set(alone[: len(Kind)]) == set(alone[len(Kind) :]) == set(Kind)


def test_the_same_seed_gives_the_same_bursts() -> None:
    assert list(islice(bursts(3), 20)) == list(islice(bursts(3), 20))
    assert list(islice(bursts(3), 20)) != list(islice(bursts(4), 20))


def test_a_few_kinds_that_hardly_fit_together_still_make_bursts() -> None:
    kinds = [Kind.QUORUM, Kind.OUTAGE, Kind.STRANGER]
    for burst in islice(some(5, kinds, dense=True), BURSTS):
        assert burst
        assert {planned.kind for planned in burst} <= set(kinds)
        for one in burst:
            assert sum(planned.rule.part is Part.SERVER for planned in _at_once(burst, one.begin_s)) <= 1
    assert any(len(burst) > 1 for burst in islice(some(5, kinds, dense=True), BURSTS))


def test_a_fault_that_takes_all_of_a_part_leaves_no_room_for_another() -> None:
    whole = Planned(Kind.QUORUM, 0.0, 10.0, 0.5)
    assert not fits(Planned(Kind.SERVER_KILL, 5.0, 6.0, 0.5), [whole])
    assert fits(Planned(Kind.SERVER_KILL, 11.0, 12.0, 0.5), [whole])
    assert fits(Planned(Kind.HOST_KILL, 5.0, 6.0, 0.5), [whole])
    assert whole.rule.part is Part.SERVER
