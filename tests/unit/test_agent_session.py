"""The session rules of a host's key, row by row."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.session import (
    CLAIM_READS,
    Acknowledged,
    Beat,
    Claiming,
    Doubting,
    Gone,
    Holding,
    LeaseFile,
    Living,
    NotSent,
    Outcome,
    Read,
    Refused,
    Seen,
    State,
    Tombstone,
    Turn,
    Unanswered,
    Unreadable,
    begin,
    lapse,
    observe,
    settle,
    step,
    valid,
)
from shared.documents import Session

LEASE_S = 8.0
MINE = Session("me", "boot-1", 5)
NEXT = replace(MINE, number=6)
OLDER = replace(MINE, number=4)
REBOOTED = replace(MINE, boot="boot-0")
STRANGER = Session("stranger", "boot-9", 1)

HOLDING = Holding(MINE, 10, 100.0)
DOUBTING = Doubting(MINE, 100.0)
FRESH = Claiming(MINE, fresh=True)
RETURNING = Claiming(MINE, fresh=False, deadline_s=100.0)  # an agent that restarted within its lease


@pytest.mark.parametrize(
    ("number", "lease", "lease_s", "session", "fresh", "wait_s"),
    [
        pytest.param(0, None, 8.0, 1, True, 0.0, id="first start ever"),
        pytest.param(5, None, 8.0, 6, True, 0.0, id="no lease file: the old session is over"),
        pytest.param(5, LeaseFile(MINE, 51.0, 8.0), 8.0, 5, False, 0.0, id="back within the lease: it goes on"),
        pytest.param(5, LeaseFile(MINE, 50.0, 8.0), 8.0, 6, True, 0.0, id="back just after the lease"),
        pytest.param(5, LeaseFile(REBOOTED, 90.0, 8.0), 8.0, 6, True, 0.0, id="lease of an earlier boot"),
        pytest.param(5, LeaseFile(STRANGER, 90.0, 8.0), 8.0, 6, True, 0.0, id="lease of another agent id"),
        pytest.param(6, LeaseFile(MINE, 90.0, 8.0), 8.0, 7, True, 0.0, id="a newer session was never acknowledged"),
        pytest.param(5, LeaseFile(NEXT, 90.0, 8.0), 8.0, 7, True, 0.0, id="state set back: numbers are not used twice"),
        pytest.param(5, LeaseFile(MINE, 53.0, 12.0), 8.0, 6, True, 3.0, id="shorter lease: wait out the longer one"),
        pytest.param(5, LeaseFile(MINE, 53.0, 8.0), 12.0, 6, True, 3.0, id="longer lease: wait all the same"),
        pytest.param(5, LeaseFile(MINE, 49.0, 12.0), 8.0, 6, True, 0.0, id="other lease, lapsed: nothing to wait for"),
    ],
)
def test_begin(number: int, lease: LeaseFile | None, lease_s: float, session: int, fresh: bool, wait_s: float) -> None:
    beginning = begin("me", "boot-1", number, lease, lease_s, now_s=50.0)
    assert beginning.state.session == Session("me", "boot-1", session)
    assert beginning.state.fresh is fresh
    assert beginning.wait_s == wait_s
    assert (beginning.state.deadline_s is None) is fresh


@pytest.mark.parametrize(
    ("outcome", "now_s", "state", "ended"),
    [
        pytest.param(Acknowledged(11, 90.0), 90.5, Holding(MINE, 11, 98.0), False, id="extended from before sending"),
        pytest.param(Acknowledged(11, 99.0), 100.0, Holding(NEXT, 11, None), True, id="acknowledged after the lapse"),
        pytest.param(Acknowledged(11, 90.0), 99.0, Holding(NEXT, 11, None), True, id="acknowledged a lease too late"),
        pytest.param(Refused(), 90.5, DOUBTING, False, id="refused: read the key"),
        pytest.param(Unanswered(), 90.5, DOUBTING, False, id="lost ack: read the key, extend nothing"),
        pytest.param(NotSent(), 90.5, HOLDING, False, id="surely not stored: try again"),
    ],
)
def test_outcome_of_a_heartbeat(outcome: Outcome, now_s: float, state: State, ended: bool) -> None:
    turn = settle(HOLDING, outcome, LEASE_S, now_s)
    assert turn.state == state
    assert bool(turn.ended) is ended


def test_the_first_acknowledgement_makes_the_session_valid() -> None:
    first = Holding(MINE, 0, None)
    assert not valid(first)
    turn = settle(first, Acknowledged(1, 90.0), LEASE_S, 90.1)
    assert turn == Turn(Holding(MINE, 1, 98.0))
    assert valid(turn.state)


def test_a_first_acknowledgement_that_is_older_than_the_lease_begins_another_session() -> None:
    """An agent that was frozen between sending and receiving."""
    turn = settle(Holding(MINE, 0, None), Acknowledged(1, 90.0), LEASE_S, 98.0)
    assert turn.state == Holding(NEXT, 1, None)
    assert turn.ended


@pytest.mark.parametrize(
    ("state", "seen", "after", "ended"),
    [
        # --- after a heartbeat without an answer, or a refusal
        pytest.param(
            DOUBTING, Living(MINE, 11), Holding(MINE, 11, 100.0), False,
            id="own heartbeat landed, or an older one of ours: go on from it, extend nothing",
        ),
        pytest.param(DOUBTING, Living(OLDER, 11), Holding(MINE, 11, 100.0), False, id="straggler of our older session"),
        pytest.param(
            DOUBTING, Living(NEXT, 11), Holding(replace(MINE, number=7), 11, None), True,
            id="our own future: the state directory was set back",
        ),
        pytest.param(DOUBTING, Tombstone(MINE, 11), Holding(NEXT, 11, None), True, id="tombstone of this session"),
        pytest.param(
            DOUBTING, Tombstone(OLDER, 11), Holding(MINE, 11, 100.0), False, id="tombstone of our older session"
        ),
        pytest.param(
            DOUBTING, Tombstone(STRANGER, 11), Claiming(NEXT, fresh=True, watched=11, reads=1), True,
            id="V3: another agent's tombstone is never written over within this session",
        ),
        pytest.param(
            DOUBTING, Tombstone(REBOOTED, 11), Claiming(NEXT, fresh=True, watched=11, reads=1), True,
            id="tombstone of our agent id on another boot is a stranger's",
        ),
        pytest.param(
            DOUBTING, Living(STRANGER, 11), Claiming(NEXT, fresh=True, watched=11, reads=1), True,
            id="V1: another agent took the name: new session, and it is claimed, not overwritten",
        ),
        pytest.param(
            DOUBTING, Living(REBOOTED, 11), Claiming(NEXT, fresh=True, watched=11, reads=1), True,
            id="a heartbeat of our agent id on another boot (a copied state directory)",
        ),
        pytest.param(
            DOUBTING, Unreadable(11), Claiming(NEXT, fresh=True, watched=11, reads=1), True, id="garbage on the key"
        ),
        pytest.param(DOUBTING, Gone(12), Holding(MINE, 12, 100.0), False, id="key gone, lease valid: same session"),
        pytest.param(DOUBTING, Gone(0), Holding(MINE, 0, 100.0), False, id="bucket made anew"),
        # --- at the start
        pytest.param(RETURNING, Living(MINE, 11), Holding(MINE, 11, 100.0), False, id="restart: own key, at once"),
        pytest.param(RETURNING, Gone(0), Holding(MINE, 0, 100.0), False, id="restart: key gone, lease valid"),
        pytest.param(
            RETURNING, Living(STRANGER, 11), Claiming(NEXT, fresh=True, watched=11, reads=1), True,
            id="restart: the name was taken meanwhile",
        ),
        pytest.param(RETURNING, Tombstone(MINE, 11), Holding(NEXT, 11, None), True, id="restart: declared dead"),
        pytest.param(FRESH, Gone(0), Holding(MINE, 0, None), False, id="first start: nobody has the name"),
        pytest.param(FRESH, Living(OLDER, 11), Holding(MINE, 11, None), False, id="own key after the lease"),
        pytest.param(FRESH, Tombstone(OLDER, 11), Holding(MINE, 11, None), False, id="start after our tombstone"),
        pytest.param(
            FRESH, Living(STRANGER, 11), Claiming(MINE, fresh=True, watched=11, reads=1), False,
            id="a stranger's key: first read; the session was never used, so it stays",
        ),
        pytest.param(
            FRESH, Living(REBOOTED, 11), Claiming(MINE, fresh=True, watched=11, reads=1), False,
            id="after a reboot: our own old key is claimed like a stranger's",
        ),
        pytest.param(
            replace(FRESH, watched=11, reads=1), Living(STRANGER, 11), Claiming(MINE, fresh=True, watched=11, reads=2),
            False, id="unchanged: second read",
        ),
        pytest.param(
            replace(FRESH, watched=11, reads=3), Living(STRANGER, 12), Claiming(MINE, fresh=True, watched=12, reads=1),
            False, id="it lives: count anew",
        ),
        pytest.param(
            replace(FRESH, watched=11, reads=3), Living(STRANGER, 11), Holding(MINE, 11, None), False,
            id="fourth unchanged read: claimed",
        ),
        pytest.param(
            replace(FRESH, watched=11, reads=2), Gone(12), Holding(MINE, 12, None), False, id="the stranger left"
        ),
    ],
)  # fmt: skip
def test_what_is_on_the_key(state: Claiming | Doubting, seen: Seen, after: State, ended: bool) -> None:
    turn = observe(state, seen)
    got = turn.state
    assert (replace(got, reason="") if isinstance(got, Claiming) else got) == after
    assert bool(turn.ended) is ended


@pytest.mark.parametrize(
    ("state", "after"),
    [
        pytest.param(HOLDING, Holding(NEXT, 10, None), id="no acknowledgement in time"),
        pytest.param(DOUBTING, Doubting(NEXT, None), id="no answer at all"),
        pytest.param(RETURNING, Claiming(NEXT, fresh=True), id="restarted, and the store did not answer in time"),
        pytest.param(
            replace(RETURNING, watched=7, reads=2), Claiming(NEXT, fresh=True, watched=7, reads=2), id="while claiming"
        ),
    ],
)
def test_a_lapse_that_is_noticed_begins_a_new_session(state: State, after: State) -> None:
    assert lapse(state, 99.9) == Turn(state)
    turn = lapse(state, 100.0)
    assert turn.state == after
    assert turn.ended
    assert not valid(turn.state)


@pytest.mark.parametrize("state", [Holding(MINE, 0, None), Doubting(MINE, None), FRESH])
def test_what_was_never_acknowledged_cannot_lapse(state: State) -> None:
    assert lapse(state, 1e9) == Turn(state)


def test_next_steps() -> None:
    assert step(HOLDING) == Beat(MINE, 10)
    assert step(DOUBTING) == Read(patient=False)
    assert step(FRESH) == Read(patient=False)
    assert step(replace(FRESH, watched=3, reads=1)) == Read(patient=True)


def test_a_stranger_that_lives_is_never_overwritten_and_the_reason_says_what_to_do() -> None:
    state: Claiming = FRESH
    for revision in range(11, 60):
        turn = observe(state, Living(STRANGER, revision))
        assert isinstance(turn.state, Claiming), "while the other heartbeats, its key is not ours"
        state = turn.state
    assert "another agent (stranger/boot-9/1) uses this host name and is alive" in state.reason
    assert "another name" in state.reason


def test_a_stranger_that_is_silent_is_claimed_by_the_fourth_read_and_by_compare_and_set() -> None:
    state: State = FRESH
    reads = 0
    while isinstance(state, Claiming):
        state = observe(state, Living(STRANGER, 11)).state
        reads += 1
    assert reads == CLAIM_READS
    assert step(state) == Beat(MINE, 11), "refused if the stranger has come back"


def test_v2_an_impostor_that_lapses_stays_the_same_agent_with_a_later_number() -> None:
    """The leader compares agent ids with the session its document names; numbers alone must not look like a change."""
    impostor = Holding(STRANGER, 5, 20.0)
    after = lapse(impostor, 20.0).state
    assert (after.session.agent, after.session.boot) == (STRANGER.agent, STRANGER.boot)
    assert after.session.number == STRANGER.number + 1


def test_two_live_agents_never_hold_the_key_at_once_in_the_same_revision() -> None:
    """Whoever claims does it by compare-and-set on the revision it watched: of two claimers one is refused."""
    one = Holding(Session("a", "b1", 1), 11, None)
    two = Holding(Session("b", "b2", 1), 11, None)
    one_beat, two_beat = step(one), step(two)
    assert isinstance(one_beat, Beat)
    assert isinstance(two_beat, Beat)
    assert one_beat.expected == two_beat.expected, "the store lets only one of them pass"
    loser = settle(two, Refused(), LEASE_S, 50.0).state
    assert isinstance(loser, Doubting)
    turn = observe(loser, Living(one.session, 12))
    assert isinstance(turn.state, Claiming)
    assert turn.state.session.number == 2, "its refused heartbeat may have been seen by nobody, but that is not known"
