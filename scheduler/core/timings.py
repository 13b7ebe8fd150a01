"""How long a silence makes it sure that what obeys a host lease has stopped, from what a heartbeat says.

    silent_exclusive = ((lease + fence_kill + poll) x 1.1 + pulse) / 0.99, in whole pulses: 12 s for a lease of 8 s

The host acts on its lease for `lease` seconds after it sent the heartbeat that was stored, its runner looks every
`poll`, and kills after `fence_kill`. A clock may be slewed by 8 %, the host's slow (x 1.1) while ours is fast (/ 0.99);
one pulse lies between the heartbeat and the first pulse that is counted after it.

Nothing that a heartbeat says can make this unsafe. `fence_kill` and `poll` are constants of the runner, so less than
ours is not believed. A lease that no agent can be started with (not a number, too short, too long) tells nothing about
when that agent stops, so it counts as the longest that one can have, and the host gets nothing lease-bound
(`doubt`). A lease in between is the agent's own promise about itself: no shorter silence than its own is ever used.
"""

from __future__ import annotations

import math

from shared.documents import Heartbeat

PULSE_S = 0.5
LEASE_S = 12.0  # of an agent that was not told otherwise, on a replicated store
LEASE_MIN_S = 4.0  # as the agent's settings allow it
LEASE_MAX_S = 120.0
FENCE_KILL_S = 2.0  # as the runner does it
POLL_S = 0.25
FENCE_MAX_S = 30.0  # of fence_kill and poll each: a runner that takes longer is not one of ours


def silent_exclusive_s(heartbeat: Heartbeat) -> float:
    """Seconds of silence, in whole pulses, after which nothing lease-bound of this host runs any more."""
    lease, fence, poll = heartbeat.lease_s, heartbeat.fence_kill_s, heartbeat.poll_s
    lease = lease if LEASE_MIN_S <= lease <= LEASE_MAX_S else LEASE_MAX_S  # not a number: the longest as well
    return derived_s(lease, _at_least(fence, FENCE_KILL_S), _at_least(poll, POLL_S))


def derived_s(lease_s: float, fence_kill_s: float = FENCE_KILL_S, poll_s: float = POLL_S) -> float:
    """The formula, for values that make sense."""
    exact = ((lease_s + fence_kill_s + poll_s) * 1.1 + PULSE_S) / 0.99
    return math.ceil(exact / PULSE_S) * PULSE_S


def doubt(heartbeat: Heartbeat) -> str:
    """Why no lease can be relied on that a host announces, in words that go after its name; "" if it can."""
    if not LEASE_MIN_S <= heartbeat.lease_s <= LEASE_MAX_S:
        return f"announces a lease of {heartbeat.lease_s:g} s; {LEASE_MIN_S:g} to {LEASE_MAX_S:g} s can be relied on"
    for name, seconds in (("fence_kill_s", heartbeat.fence_kill_s), ("poll_s", heartbeat.poll_s)):
        if not 0 <= seconds <= FENCE_MAX_S:
            return f"announces {name} {seconds:g}; 0 to {FENCE_MAX_S:g} can be relied on"
    return ""


def _at_least(said_s: float, ours_s: float) -> float:
    return max(said_s, ours_s) if 0 <= said_s <= FENCE_MAX_S else FENCE_MAX_S
