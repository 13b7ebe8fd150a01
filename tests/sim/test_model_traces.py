"""The shortest traces of the abstract model, as far as they can be brought about from outside: with the rules nothing
bad happens, and each scenario shows by what did happen that it is the one that is meant.

The model knows no clocks and may let anybody do nothing for any time; here cuts and freezes do that, at many instants.
"""

from __future__ import annotations

import pytest

from tests.sim import scripts
from tests.sim.faults import Fault
from tests.sim.traces import CUT_S, Trace, play

SEEDS = (1, 2, 4)

TRACES = {
    # A is cut off and another agent claims its name, is answered, and could confirm a stop of which it knows nothing.
    "V1: a second agent confirms a stop": Trace(
        [Fault(CUT_S, 40.0, "host cut off", "h0", how="held"), Fault(CUT_S + 0.5, 40.0, "second agent", "h0")],
        stop=CUT_S + 1.0,
    ),
    "V1, with lost state": Trace([Fault(CUT_S, CUT_S + 2.0, "all traces lost", "h0")], stop=CUT_S + 1.0),
    # The second agent lapses, and its next session has a predecessor of the same agent.
    "V2: the predecessor of the predecessor": Trace(
        [
            Fault(CUT_S, 45.0, "host cut off", "h0", how="held"),
            Fault(CUT_S + 0.5, 45.0, "second agent", "h0"),
            Fault(CUT_S + 5.0, CUT_S + 15.0, "host cut off", "h0~1", how="held"),
        ]
    ),
    # The tombstone on the key is that of another agent.
    "V3: somebody else's tombstone": Trace(
        [
            Fault(CUT_S, 42.0, "agent frozen", "h0"),
            Fault(CUT_S + 0.5, CUT_S + 9.0, "second agent", "h0"),
        ]
    ),
    # An agent that lost its memory renews a lease that its predecessor's runner must not follow.
    "V4: the lease of another session": Trace(
        [Fault(CUT_S, CUT_S + 0.3, "all traces lost", "h0")], driver="process", drain_s=60.0
    ),
    # A start of the old agent completes under the new one.
    "V5: a start that is forgotten": Trace(script=scripts.forgotten_while_it_starts, driver="process"),
    "a heartbeat after the silence": Trace(script=scripts.unacknowledged, drain_s=4.0),
    "back behind its tombstone": Trace(script=scripts.back_behind_its_tombstone, drain_s=4.0),
    "behind a stranger's tombstone": Trace(script=scripts.behind_a_strangers_tombstone, drain_s=4.0),
    "taken over by another store": Trace(script=scripts.taken_over),
    "made anew in the middle of a commit": Trace(script=scripts.made_anew, schedulers=2),
    "acknowledged late": Trace(script=scripts.acknowledged_late, drain_s=4.0),
    "started late": Trace(script=scripts.started_late, driver="docker", drain_s=4.0, verify_s=0.002),
    "started in a session that is over": Trace(
        script=scripts.started_in_a_session_that_is_over, driver="docker", drain_s=4.0, verify_s=0.002
    ),
    "read from a deposed server": Trace(script=scripts.read_from_a_deposed_server, drain_s=0.5),
    "led before": Trace(script=scripts.led_before, schedulers=2, drain_s=4.0),
    "found by a new agent": Trace(script=scripts.found_by_a_new_agent, kind="shareable", drain_s=4.0),
    "read late": Trace(script=scripts.read_late, schedulers=2),
    "a leader that computes": Trace(script=scripts.computing, schedulers=2),
    "hosts out of sight": Trace(script=scripts.out_of_sight, drain_s=4.0),
    "host cut off, both ways": Trace([Fault(CUT_S, 40.0, "host cut off", "h0", how="held")]),
    "host cut off, acknowledgements only": Trace([Fault(CUT_S, 40.0, "host cut off", "h0", how="deaf")]),
    "host cut off, requests only": Trace([Fault(CUT_S, 40.0, "host cut off", "h0", how="mute")]),
    "agent away for a second": Trace([Fault(CUT_S, CUT_S + 1.0, "agent crash", "h0")]),
    "agent frozen": Trace([Fault(CUT_S, 40.0, "agent frozen", "h0", how="timers last")]),
    "back with an old assignment": Trace(
        [
            Fault(CUT_S, 32.0, "heartbeats cut off", "h0", how="held"),
            Fault(CUT_S, 42.0, "assignments cut off", "h0", how="held"),
        ]
    ),
    **{
        f"back {after:g} s after falling silent": Trace(
            [Fault(CUT_S, CUT_S + after, "host cut off", "h0", how="held")], stop=None
        )
        for after in (7.5, 8.0, 10.0, 11.5, 11.75, 12.0, 12.25, 12.5, 13.0)
    },
}


@pytest.mark.parametrize("trace", TRACES.values(), ids=TRACES.keys())
def test_with_the_rules_it_is_safe(trace: Trace) -> None:
    for seed in SEEDS:
        result, world = play(trace, seed)
        assert not result.violations, result.report(lines=80)
        runs = world.ledger.runs
        assert any(run.host == "h0" and run.start < CUT_S for run in runs), "the host that suffers had the pipeline"
