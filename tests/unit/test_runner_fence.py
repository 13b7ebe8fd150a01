"""When a lease-bound Bento may start and when it must end, as tables. Times are seconds on an imagined boot clock.

The lease lasts 8 s and began at 100: its deadline is 108.
"""

from __future__ import annotations

import signal

import pytest

from runner import contract, core, events, fence
from runner.core import Phase, State, Stop
from runner.events import End, Ended, Looked, Send, Signalled, Woken
from runner.fence import Fence, Permits, Place
from runner.permits import Grant, Lease
from runner.value import replace

NAME = "shoal-0123abcd-orders-0-17"
PLACE = Place(execution=NAME, boot="b1", shifted=False)
GRANT = Grant(agent="a1", boot="b1", number=3, execution=NAME, bound=True)
LEASE = Lease(agent="a1", boot="b1", number=3, deadline_s=108.0, lease_s=8.0)
FREE = replace(GRANT, bound=False)
TERM, KILL = Send(number=int(signal.SIGTERM)), Send(number=int(signal.SIGKILL))
GRACE_S = 20.0


def permits(grant: Grant | str = GRANT, lease: Lease | str = LEASE) -> Permits:
    return Permits(grant=grant, lease=lease)


def admitted(found: Permits | None = None, now: float = 101.0) -> Fence:
    result = fence.admit(PLACE, found or permits(), now)
    assert isinstance(result, Fence), result
    return result


# --- starting


def test_a_bound_one_starts_under_the_lease_of_its_grants_session() -> None:
    assert admitted() == Fence(place=PLACE, session=("a1", "b1", 3), bound=True, deadline_s=108.0)


def test_the_very_edges_of_a_lease() -> None:
    assert isinstance(fence.admit(PLACE, permits(), 107.999), Fence)
    assert fence.admit(PLACE, permits(), 108.0) == "the host's lease has been over for 0.0 s"
    assert isinstance(fence.admit(PLACE, permits(), 100.0), Fence), "as far ahead as a lease can be"
    ahead = fence.admit(PLACE, permits(), 99.9)
    assert ahead == "the host's lease ends in 8.1 s, further ahead than its 8 s"


@pytest.mark.parametrize(
    ("found", "place", "words"),
    [
        pytest.param(permits(grant="it has no grant: x"), PLACE, "no grant", id="no grant"),
        pytest.param(permits(replace(GRANT, execution="other")), PLACE, "another execution", id="other name"),
        pytest.param(permits(replace(GRANT, boot="b0")), PLACE, "another boot", id="grant of another boot"),
        pytest.param(permits(lease="there is no lease of this host"), PLACE, "no lease", id="no lease"),
        pytest.param(permits(lease=replace(LEASE, agent="a2")), PLACE, "another session", id="other agent's lease"),
        pytest.param(permits(lease=replace(LEASE, number=4)), PLACE, "another session", id="next session's lease"),
        pytest.param(permits(lease=replace(LEASE, boot="b0")), PLACE, "another session", id="lease of another boot"),
        pytest.param(permits(lease=replace(LEASE, deadline_s=50.0)), PLACE, "over for 51.0 s", id="over"),
        pytest.param(permits(lease=replace(LEASE, deadline_s=1e6)), PLACE, "further ahead", id="far ahead"),
        pytest.param(permits(), replace(PLACE, shifted=True), "time namespace", id="another boot clock"),
    ],
)
def test_a_bound_one_does_not_start(found: Permits, place: Place, words: str) -> None:
    reason = fence.admit(place, found, 101.0)
    assert isinstance(reason, str)
    assert words in reason


@pytest.mark.parametrize("lease", ["none", replace(LEASE, number=9), replace(LEASE, deadline_s=1.0)])
def test_a_free_one_needs_its_grant_and_nothing_else(lease: Lease | str) -> None:
    assert isinstance(fence.admit(replace(PLACE, shifted=True), permits(FREE, lease), 101.0), Fence)
    assert isinstance(fence.admit(PLACE, permits(replace(FREE, boot="b0"), lease), 101.0), Fence), (
        "of a virtual machine"
    )
    for grant in ("gone", replace(FREE, execution="other")):
        assert isinstance(fence.admit(PLACE, permits(grant, lease), 101.0), str)


# --- running


def begun(found: Permits | None = None, *, fetching: bool = False) -> State:
    """A run that began at 101 and is not asked anything."""
    state = core.begin(101.0, fetching=fetching, grace_s=GRACE_S, http_ours=True, fence=admitted(found))
    state = replace(state, links=replace(state.links, look_at=1e9))
    return replace(state, phase=Phase.READY, ready_at=1e9) if not fetching else state


def run(state: State, *happened: tuple[float, events.Event]) -> tuple[State, list[events.Action]]:
    actions: list[events.Action] = []
    for now, event in happened:
        state, more = core.step(state, event, now)
        actions += more
    return state, actions


def looked(grant: Grant | str = GRANT, lease: Lease | str = LEASE) -> Looked:
    return Looked(permits=permits(grant, lease))


def until(deadline_s: float) -> Lease:
    return replace(LEASE, deadline_s=deadline_s)


def test_a_lease_that_is_renewed_lets_it_run() -> None:
    state = begun()
    for second in range(101, 200):
        state, actions = run(state, (float(second), looked(lease=until(second + 7.9))))
        assert actions == []
    assert core.wake_at(state) == 199 + contract.POLL_S


def test_it_is_stopped_at_the_deadline_and_killed_two_seconds_later() -> None:
    state, actions = run(begun(), (107.9, looked()))
    assert (actions, core.wake_at(state)) == ([], 108.0)
    state, actions = run(state, (108.0, Woken()))
    assert (actions, state.stop, state.phase) == ([TERM], Stop.FENCED, Phase.STOPPING)
    state, actions = run(state, (109.9, looked()))
    assert (actions, core.wake_at(state)) == ([], 110.0)
    state, actions = run(state, (110.0, Woken()))
    assert actions == [KILL]
    state, actions = run(state, (110.1, Ended(code=137, signal=9, words=())))
    assert actions == [End(code=77, signal=9, failure=("lease", "the host's lease has been over for 0.0 s"))]
    assert core.wake_at(state) is None


def test_the_deadline_is_read_again_before_it_is_believed_to_have_passed() -> None:
    state, _ = run(begun(), (107.9, looked()))
    assert core.looks_at(state) == 108.0
    state, actions = run(state, (108.0, looked(lease=until(115.0))))
    assert (actions, core.looks_at(state)) == ([], 108.0 + contract.POLL_S)


def test_a_late_stop_is_killed_no_later() -> None:
    """The runner was stopped, or the machine slept, from 102 to 109.5: half a second is left of the two."""
    state, actions = run(begun(), (102.0, looked()), (109.5, looked()))
    assert (actions, core.wake_at(state)) == ([TERM], 109.5 + contract.POLL_S)
    state, actions = run(state, (110.0, Woken()))
    assert actions == [KILL]


def test_one_that_wakes_up_long_after_is_killed_at_once() -> None:
    _, actions = run(begun(), (102.0, looked()), (3600.0, looked()))
    assert actions == [TERM, KILL]


def test_a_grace_that_is_shorter_than_the_fence_counts() -> None:
    state, _ = run(replace(begun(), grace_s=0.5), (102.0, looked(grant="revoked")))
    _, actions = run(state, (102.5, Woken()))
    assert actions == [KILL]


@pytest.mark.parametrize(
    "grant",
    [
        pytest.param("it has no grant", id="gone or unreadable"),
        pytest.param(replace(GRANT, agent="a2"), id="of another agent"),
        pytest.param(replace(GRANT, number=4), id="of the next session"),
        pytest.param(replace(GRANT, number=4, bound=False), id="of the next session, which would not bind it"),
        pytest.param(replace(GRANT, boot="b0"), id="of another boot"),
        pytest.param(replace(GRANT, execution="other"), id="of another execution"),
    ],
)
def test_a_grant_that_is_lost_stops_it_at_once(grant: Grant | str) -> None:
    state, actions = run(begun(), (102.0, looked(grant)))
    assert (actions, state.stop) == ([TERM], Stop.FENCED)
    _, actions = run(state, (109.99, looked(grant)), (110.0, Woken()))
    assert actions == [KILL], "the lease was not renewed any more"


def test_a_grant_that_is_revoked_under_a_valid_lease_leaves_the_whole_grace() -> None:
    """How an agent begins a graceful stop: it goes on renewing the lease."""
    state, actions = run(begun(), (102.0, looked("revoked")))
    for second in range(103, 122):
        state, more = run(state, (float(second), looked("revoked", until(second + 8.0))))
        actions += more
    assert actions == [TERM]
    _, actions = run(state, (122.0, Woken()))
    assert actions == [KILL], "20 s of grace"


def test_a_lease_of_another_session_never_moves_the_deadline() -> None:
    """An agent that lost its state begins a new session and renews that for ever; the run knows only its own."""
    late = replace(LEASE, agent="a2", deadline_s=116.0)
    state, actions = run(begun(), (107.0, looked("it has no grant", late)))
    assert actions == [TERM]
    for tenth in range(1070, 1100):
        state, actions = run(state, (tenth / 10, looked("it has no grant", late)))
        assert actions == []
    _, actions = run(state, (110.0, looked("it has no grant", late)))
    assert actions == [KILL]


@pytest.mark.parametrize("lease", ["gone", replace(LEASE, number=4, deadline_s=109.0), until(1e6)])
def test_whatever_the_lease_file_becomes_the_end_is_near(lease: Lease | str) -> None:
    """No file, another session's, one far ahead: none of them moves the deadline that was read before."""
    state = begun()
    for quarter in range(404, 432):
        state, actions = run(state, (quarter / 4, looked(lease=lease)))
        assert actions == []
    _, actions = run(state, (108.0, looked(lease=lease)), (110.0, looked(lease=lease)))
    assert actions == [TERM, KILL]


def test_a_shorter_lease_counts_as_the_last_one_read() -> None:
    _, actions = run(begun(), (101.0, looked()), (101.25, looked(lease=until(103.0))), (103.0, Woken()))
    assert actions == [TERM]


def test_told_to_stop_it_is_fenced_all_the_same() -> None:
    state, actions = run(begun(), (102.0, Signalled(number=int(signal.SIGTERM))), (103.0, looked()))
    assert actions == [TERM]
    state, actions = run(state, (108.0, looked()), (109.0, looked()))
    assert actions == []
    assert core.looks_at(state) == 109.0 + contract.POLL_S, "it does not spin"
    state, actions = run(state, (110.0, Woken()), (110.1, Ended(code=137, signal=9, words=())))
    assert actions == [KILL, End(code=137, signal=9)]


def test_told_to_stop_after_the_fence_is_still_the_fence() -> None:
    _, actions = run(
        begun(), (108.0, looked()), (108.5, Signalled(number=15)), (108.6, Ended(code=0, signal=None, words=()))
    )
    assert actions == [TERM, End(code=77, failure=("lease", "the host's lease has been over for 0.0 s"))]


def test_while_it_changes_its_port_the_fence_makes_an_end_of_it() -> None:
    state = replace(begun(), phase=Phase.STOPPING, stop=Stop.PORT, kill_at=121.0)
    state, actions = run(state, (102.0, looked("revoked")), (102.1, Ended(code=0, signal=None, words=())))
    assert actions == [End(code=77, failure=("lease", "revoked"))]


def test_a_fetch_that_is_fenced_ends_at_once() -> None:
    state, actions = run(begun(fetching=True), (102.0, looked("revoked")))
    assert actions == [TERM, KILL]
    _, actions = run(state, (102.1, Ended(code=137, signal=9, words=())))
    assert actions == [End(code=77, failure=("lease", "revoked"))]


def test_what_is_started_later_has_the_fence_of_its_own_start() -> None:
    later = Fence(place=PLACE, session=("a1", "b1", 4), bound=True, deadline_s=130.0)
    state, _ = run(begun(fetching=True), (102.0, Ended(code=0, signal=None, words=())))
    state, _ = run(state, (125.0, events.Started(fence=later)))
    assert (state.fence, core.looks_at(state)) == (later, 125.0)


def test_who_was_started_by_hand_looks_at_nothing() -> None:
    state = core.begin(0.0, fetching=False, grace_s=GRACE_S, http_ours=True, fence=None)
    assert core.looks_at(state) is None
    assert run(state, (0.0, looked("gone")))[0].stop is None


# --- bound or not, while it runs


def test_a_free_one_goes_on_whatever_happens() -> None:
    state = begun(permits(FREE, "gone"))
    others: list[Grant | str] = [
        "gone",
        replace(FREE, number=9),
        replace(FREE, boot="b0"),
        replace(GRANT, execution="x"),
    ]
    for second, grant in enumerate(others):
        state, actions = run(state, (200.0 + second, looked(grant, "gone")))
        assert actions == []
        assert core.wake_at(state) == 200.0 + second + contract.POLL_UNBOUND_S


def test_a_free_one_that_becomes_bound_is_fenced_in_that_grants_session() -> None:
    newer, lease = replace(GRANT, number=7), replace(LEASE, number=7, deadline_s=308.0)
    state, actions = run(begun(permits(FREE)), (300.0, looked(newer, lease)))
    assert actions == []
    assert core.wake_at(state) == 300.0 + contract.POLL_S
    _, actions = run(state, (308.0, looked(newer, lease)), (310.0, Woken()))
    assert actions == [TERM, KILL]


def test_a_free_one_that_becomes_bound_without_a_lease_ends() -> None:
    state, actions = run(begun(permits(FREE)), (300.0, looked(GRANT, replace(LEASE, number=9, deadline_s=305.0))))
    assert actions == [TERM]
    _, actions = run(state, (302.0, Woken()))
    assert actions == [KILL]


def test_a_bound_one_is_released_by_its_own_session() -> None:
    state, actions = run(begun(), (102.0, looked(FREE)), (500.0, looked("gone", "gone")))
    assert actions == []
    assert core.wake_at(state) == 500.0 + contract.POLL_UNBOUND_S


def test_released_while_it_stops_it_has_its_whole_grace() -> None:
    state, _ = run(begun(), (108.0, looked()), (108.25, looked(FREE)))
    _, actions = run(state, (127.9, Woken()))
    assert actions == []
    _, actions = run(state, (128.0, Woken()))
    assert actions == [KILL]


def test_becoming_bound_where_the_clock_is_another_ends_it() -> None:
    found = fence.admit(replace(PLACE, shifted=True), permits(FREE), 101.0)
    assert isinstance(found, Fence)
    state, actions = run(replace(begun(), fence=found), (102.0, looked()))
    assert (actions, "time namespace" in state.fenced) == ([TERM], True)


def test_becoming_bound_under_an_agent_on_another_kernel_ends_it() -> None:
    """Its lease says nothing here, however far ahead its deadline is on that machine's clock."""
    there = replace(GRANT, boot="b0"), replace(LEASE, boot="b0", deadline_s=304.0, lease_s=8.0)
    state, actions = run(begun(permits(FREE)), (300.0, looked(*there)))
    assert actions == [TERM]
    _, actions = run(state, (300.25, looked(*there)), (302.0, Woken()))
    assert actions == [KILL]
