"""How long a silence must be, by the formula and by what heartbeats may say."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from agent import settings as agent_settings
from runner import contract
from scheduler.core import timings
from scheduler.core.timings import derived_s, doubt, silent_exclusive_s
from tests.unit.test_tombstones import BEAT

CLOCK_ERROR = 1.08


@pytest.mark.parametrize(("lease_s", "needed_s"), [(4, 7.5), (8, 12.0), (12, 16.5), (60, 70.0), (120, 136.5)])
def test_the_formula_in_whole_pulses(lease_s: float, needed_s: float) -> None:
    assert derived_s(lease_s) == needed_s
    assert silent_exclusive_s(replace(BEAT, lease_s=lease_s)) == needed_s


@pytest.mark.parametrize("lease_s", [4.0, 8.0, 12.0, 33.3, 120.0])
def test_it_outlasts_a_slow_clock_on_the_host(lease_s: float) -> None:
    """The last pulse before the heartbeat counts for nothing, and the host's clock is as slow as it may be."""
    assert silent_exclusive_s(replace(BEAT, lease_s=lease_s)) - timings.PULSE_S > (lease_s + 2.25) * CLOCK_ERROR


@pytest.mark.parametrize("lease_s", [0.0, -1.0, 3.9, 120.1, 1e9, math.nan, math.inf, -math.inf])
def test_a_lease_that_cannot_be_counts_as_the_longest(lease_s: float) -> None:
    beat = replace(BEAT, lease_s=lease_s)
    assert silent_exclusive_s(beat) == derived_s(timings.LEASE_MAX_S)
    assert "lease" in doubt(beat)


@pytest.mark.parametrize("seconds", [0.0, 0.1])
def test_a_runner_is_not_believed_to_be_faster_than_ours(seconds: float) -> None:
    assert silent_exclusive_s(replace(BEAT, fence_kill_s=seconds, poll_s=seconds)) == 12.0


@pytest.mark.parametrize("seconds", [-1.0, 31.0, math.nan, math.inf])
def test_a_runner_that_cannot_be_counts_as_the_slowest(seconds: float) -> None:
    for field in ("fence_kill_s", "poll_s"):
        beat = replace(BEAT, **{field: seconds})  # type: ignore[arg-type]
        assert silent_exclusive_s(beat) >= 8.0 + timings.FENCE_MAX_S
        assert field in doubt(beat)


def test_a_slower_runner_makes_the_silence_longer() -> None:
    assert silent_exclusive_s(replace(BEAT, fence_kill_s=10.0)) == derived_s(8.0, 10.0)


def test_both_sides_know_the_same_bounds() -> None:
    assert (timings.LEASE_MIN_S, timings.LEASE_MAX_S) == (agent_settings.LEASE_MIN_S, agent_settings.LEASE_MAX_S)
    assert (timings.FENCE_KILL_S, timings.POLL_S) == (contract.FENCE_KILL_S, contract.POLL_S)
