"""The session rules of a host's key: what a heartbeat's outcome, a read-back and the passing of time mean.

    Claiming ──key free, own, or unchanged for four reads──> Holding <──own heartbeat read back── Doubting
       ^                                                     │    └──no answer, or refused──────────^ │
       └────────────── somebody else wrote on the key: a new session ──────┴──────────────────────────┘

`Claiming`: no heartbeat may be sent yet. `Holding`: the next heartbeat is a compare-and-set on `revision`.
`Doubting`: a heartbeat got no answer or was refused; the key is read back, which extends nothing.

A session is (agent id, boot id, number). Whatever makes it end makes a new number, never used before; a session never
writes over what somebody else wrote. The caller makes a new session durable before it acts on it, and takes away what
the old one held (`Turn.ended`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import assert_never

from shared.documents import Session

CLAIM_READS = 4  # own reads, 1 s apart, that show a stranger's key unchanged: it stopped heartbeating, politely counted
LAPSED = "the lease ran out: no heartbeat was acknowledged in time"


@dataclass(frozen=True, slots=True)
class Claiming:
    """The key is not ours yet. `fresh`: no heartbeat of this session was ever sent, so nobody can have heard of it."""

    session: Session
    fresh: bool
    deadline_s: float | None = None  # of the host lease that a former process of this session left behind
    watched: int | None = None  # revision of a stranger's key
    reads: int = 0  # how often it was read unchanged
    reason: str = ""  # why we wait, for people


@dataclass(frozen=True, slots=True)
class Holding:
    """The key is ours at `revision`, as far as we know. `deadline_s` None: no heartbeat of it was acknowledged yet."""

    session: Session
    revision: int
    deadline_s: float | None


@dataclass(frozen=True, slots=True)
class Doubting:
    """The last heartbeat has no known outcome, or was refused."""

    session: Session
    deadline_s: float | None


State = Claiming | Holding | Doubting


def valid(state: State) -> bool:
    """Whether the host's name is ours and the store knows our session: only then is an assignment meant for us."""
    return not isinstance(state, Claiming) and state.deadline_s is not None


@dataclass(frozen=True, slots=True)
class Read:
    """Next: read the key; `patient` = not before a second after the last read."""

    patient: bool


@dataclass(frozen=True, slots=True)
class Beat:
    """Next: write a heartbeat of `session` over `expected`."""

    session: Session
    expected: int


Step = Read | Beat


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The heartbeat was stored. `sent_s`: boot clock before it was sent."""

    revision: int
    sent_s: float


@dataclass(frozen=True, slots=True)
class Refused:
    """Somebody else wrote first, or a heartbeat of ours landed late."""


@dataclass(frozen=True, slots=True)
class Unanswered:
    """It may have been stored, or may be later."""


@dataclass(frozen=True, slots=True)
class NotSent:
    """Surely not stored: no connection, no bucket, or the server refused without a verdict."""


Outcome = Acknowledged | Refused | Unanswered | NotSent


@dataclass(frozen=True, slots=True)
class Gone:
    """The key is deleted (at the marker's revision) or was never written (0)."""

    revision: int


@dataclass(frozen=True, slots=True)
class Living:
    """A heartbeat of `session` is on the key."""

    session: Session
    revision: int


@dataclass(frozen=True, slots=True)
class Tombstone:
    """The leader declared the session `dead`."""

    dead: Session
    revision: int


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Something is on the key that is no heartbeat: somebody else's, by definition."""

    revision: int


Seen = Gone | Living | Tombstone | Unreadable


@dataclass(frozen=True, slots=True)
class Turn:
    """The next state. `ended`: why the former session is over ("" = it is not); all that it held is to be revoked."""

    state: State
    ended: str = ""


@dataclass(frozen=True, slots=True)
class LeaseFile:
    """What the lease file in the run directory said: the last extension of a session's lease on this boot."""

    session: Session
    deadline_s: float
    lease_s: float


@dataclass(frozen=True, slots=True)
class Beginning:
    """How an agent process begins: its state, and how long it must wait before it may do anything with it."""

    state: Claiming
    wait_s: float


def begin(agent: str, boot: str, number: int, lease: LeaseFile | None, lease_s: float, now_s: float) -> Beginning:
    """The state of an agent process that starts. `number` is that of the last durable session (0 = none).

    The session goes on only if its lease has not lapsed, on this boot. With another lease length than before the old
    one is waited out first: the leader derives its own patience from what heartbeats say, and must not be told of a
    shorter lease while a longer one may still be trusted by a runner.
    """
    ours = lease is not None and (lease.session.agent, lease.session.boot) == (agent, boot)
    if lease is None or not ours or lease.deadline_s <= now_s:
        return Beginning(Claiming(Session(agent, boot, number + 1), fresh=True), 0.0)
    if lease.session.number != number:  # the state moved on before the lease file did: that lease is nobody's
        return Beginning(Claiming(Session(agent, boot, max(number, lease.session.number) + 1), fresh=True), 0.0)
    if lease.lease_s != lease_s:
        wait_s = lease.deadline_s - now_s
        return Beginning(Claiming(Session(agent, boot, number + 1), fresh=True), wait_s)
    return Beginning(Claiming(lease.session, fresh=False, deadline_s=lease.deadline_s), 0.0)


def step(state: State) -> Step:
    """What to do next."""
    match state:
        case Claiming():
            return Read(patient=state.reads > 0)
        case Holding():
            return Beat(state.session, state.revision)
        case Doubting():
            return Read(patient=False)
        case _:
            assert_never(state)


def lapse(state: State, now_s: float) -> Turn:
    """Whether the lease has run out unnoticed. To be asked before anything else is done with a state."""
    if state.deadline_s is None or now_s < state.deadline_s:
        return Turn(state)
    session = _successor(state.session)
    match state:
        case Claiming():
            return Turn(replace(state, session=session, fresh=True, deadline_s=None), LAPSED)
        case Holding():
            return Turn(Holding(session, state.revision, None), LAPSED)
        case Doubting():
            return Turn(Doubting(session, None), LAPSED)
        case _:
            assert_never(state)


def settle(state: Holding, outcome: Outcome, lease_s: float, now_s: float) -> Turn:
    """What the outcome of a heartbeat means. Only an acknowledgement extends the lease, from before it was sent.

    One that comes after the lease has run out, or tells of a heartbeat so old that its own extension is over, extends
    nothing: the session ended while we waited.
    """
    match outcome:
        case Acknowledged():
            extended_s = outcome.sent_s + lease_s
            if min(extended_s, extended_s if state.deadline_s is None else state.deadline_s) <= now_s:
                return Turn(Holding(_successor(state.session), outcome.revision, None), LAPSED)
            return Turn(Holding(state.session, outcome.revision, extended_s))
        case Refused() | Unanswered():
            return Turn(Doubting(state.session, state.deadline_s))
        case NotSent():
            return Turn(state)
        case _:
            assert_never(outcome)


def observe(state: Claiming | Doubting, seen: Seen) -> Turn:
    """What a read of the key means. The lease has not lapsed (`lapse` was asked first)."""
    match seen:
        case Gone():
            return Turn(Holding(state.session, seen.revision, state.deadline_s))
        case Living():
            if not _same_identity(seen.session, state.session):
                return _stranger(state, seen.revision, f"another agent ({seen.session}) uses this host name")
            if seen.session.number <= state.session.number:
                return Turn(Holding(state.session, seen.revision, state.deadline_s))
            # Our own future: the state directory was set back. The number must not be used twice.
            return _renewed(state, seen.session.number, seen.revision, "the key has a later session of this agent")
        case Tombstone():
            if not _same_identity(seen.dead, state.session):
                return _stranger(state, seen.revision, f"another agent ({seen.dead}) was declared dead on this key")
            if seen.dead.number < state.session.number:
                return Turn(Holding(state.session, seen.revision, state.deadline_s))
            return _renewed(state, seen.dead.number, seen.revision, "the leader declared this session dead")
        case Unreadable():
            return _stranger(state, seen.revision, "the key has something on it that is no heartbeat")
        case _:
            assert_never(seen)


def _stranger(state: Claiming | Doubting, revision: int, who: str) -> Turn:
    """Somebody else's key: a new session, and it is claimed only when it stands still."""
    match state:
        case Doubting() | Claiming(fresh=False):
            session, ended = _successor(state.session), who
            watched, reads = None, 0
        case Claiming():
            session, ended = state.session, ""
            watched, reads = state.watched, state.reads
        case _:
            assert_never(state)
    if watched is None:
        reason = f"{who}; it is taken over if it stays silent"
        return Turn(Claiming(session, fresh=True, watched=revision, reads=1, reason=reason), ended)
    if watched != revision:
        reason = f"{who} and is alive: give one of the two hosts another name"
        return Turn(Claiming(session, fresh=True, watched=revision, reads=1, reason=reason))
    if reads + 1 < CLAIM_READS:
        assert isinstance(state, Claiming)
        return Turn(replace(state, reads=reads + 1))
    return Turn(Holding(session, revision, None))


def _renewed(state: Claiming | Doubting, number: int, revision: int, why: str) -> Turn:
    session = Session(state.session.agent, state.session.boot, max(number, state.session.number) + 1)
    return Turn(Holding(session, revision, None), why)


def _successor(session: Session) -> Session:
    return replace(session, number=session.number + 1)


def _same_identity(one: Session, other: Session) -> bool:
    return (one.agent, one.boot) == (other.agent, other.boot)
