"""What the runner decides, without doing anything: `step(state, event, now) -> (state, actions)`.

    starting ──▶ running ◀──▶ ready          each ──▶ stopping ──▶ exited
    fetching ──▶ starting                    (a child that ends by itself: straight to exited)

The loop around it (runner/loop.py) turns what happens into events, applies the actions, and wakes at `wake_at(state)`.
`now` is always CLOCK_BOOTTIME: grace periods go on while a machine is suspended. A new reason to stop Bento is one more
event and, if it has a deadline, one more time in `wake_at`; `_stop` is the only way to it.
"""

from __future__ import annotations

import signal
from enum import StrEnum

from runner import contract, fence, links
from runner.events import (
    Action,
    Answered,
    Ask,
    Displaced,
    End,
    Ended,
    Event,
    Greet,
    Greeted,
    Linked,
    LookAtLinks,
    Looked,
    Question,
    Send,
    Signalled,
    Spoke,
    StartBento,
    Started,
    Unanswered,
    Woken,
)
from runner.fence import Fence, Permits
from runner.links import Links, Peer
from runner.value import replace, value

STARTING_MAX_S = 5.0  # without an answer it is shown as running from then on
FETCH_MAX_S = 60.0  # the fetching child has time-outs of its own that end before
POLL_MIN_S, POLL_MAX_S = 0.01, 1.0  # how often /ready is asked
POLL_MIN_STATED_S = 0.05  # at an address that the configuration states: looking for the listener costs 4 ms each time
POLL_SHARE = 0.04  # while starting: of the time since the start, so a slow host is not made slower by asking
POLL_STEADY_S, STEADY_S = 2.0, 60.0  # interval once it was ready for so long
HINT_GAP_S = 0.003  # Bento's output while it starts means "ask now", but not more often than this
COUNTERS_EVERY_S = 2.0
PORT_TRIES = 10
TOLD_TO_STOP = 128 + int(signal.SIGTERM)  # exit code if Bento had not started


class Phase(StrEnum):
    """How far an execution is."""

    FETCHING = "fetching"
    STARTING = "starting"
    RUNNING = "running"
    READY = "ready"
    STOPPING = "stopping"
    EXITED = "exited"


class Stop(StrEnum):
    """Why the child is being stopped."""

    TOLD = "told"  # a signal: the end
    PORT = "port"  # its port was taken away: it is started again on another
    LATE = "late"  # the fetching child took too long
    FENCED = "fenced"  # grant or lease: the end


@value
class State:
    """What the runner knows about its child. `started` and the other times are on the boot clock."""

    phase: Phase
    fetching: bool  # the child is the one that fetches the bundle, not Bento
    started: float
    grace_s: float
    http_ours: bool  # the port was chosen by us, so another one will do as well
    fence: Fence | None  # None: it needs no grant
    look_at: float = 0.0  # when to look at grant and lease next
    links: Links
    hailing: Peer | None = None  # whose greeting is being heard
    stuck: tuple[float, str] | None = None  # since when Bento has lost NATS for good, and why that is known
    answered: bool = False  # Bento's HTTP server has answered since the start
    ready_since: float | None = None
    ready_first: float | None = None
    reason: str = ""  # why it is not ready
    asking: Question | None = None  # one request at a time
    asked: float = 0.0  # when /ready was asked last
    ready_at: float = 0.0  # when to ask /ready next
    counters_at: float = 0.0  # when to ask /metrics next
    stop: Stop | None = None
    fenced: str = ""  # why its time here is over
    kill_at: float | None = None  # when the grace ends; None after SIGKILL was sent
    killed: bool = False
    starts: int = 1


# --- deciding


def begin(now: float, *, fetching: bool, grace_s: float, http_ours: bool, fence: Fence | None) -> State:
    """The state right after the first child was started."""
    phase = Phase.FETCHING if fetching else Phase.STARTING
    return State(
        phase=phase,
        fetching=fetching,
        started=now,
        grace_s=grace_s,
        http_ours=http_ours,
        fence=fence,
        look_at=now,
        links=links.begin(now),
        ready_at=now,
        counters_at=now + COUNTERS_EVERY_S,
    )


def step(state: State, event: Event, now: float) -> tuple[State, list[Action]]:
    """The state after `event`, and what to do about it. Call it with Woken when `wake_at` has come."""
    actions: list[Action] = []
    match event:
        case Signalled():
            state = _signalled(state, event.number, now, actions)
        case Ended():
            # Whatever time would bring about now was meant for the child that is gone, not for the next one.
            return _ended(state, event, actions), actions
        case Answered() | Unanswered():
            state = _answered(state, event, now)
        case Displaced():
            state = _displaced(state, event, now, actions)
        case Spoke():
            if state.phase is Phase.STARTING:
                state = replace(state, ready_at=min(state.ready_at, max(now, state.asked + HINT_GAP_S)))
        case Linked():
            state = _watched(replace(state, links=links.looked(state.links, event.found, now)), now)
        case Greeted():
            heard = links.heard(state.links, event.peer, event.greeting, now)
            state = _watched(replace(state, links=heard, hailing=None), now)
        case Looked():
            state = _looked(state, event.permits, now, actions)
        case Started():
            fresh = begin(now, fetching=False, grace_s=state.grace_s, http_ours=state.http_ours, fence=event.fence)
            state = replace(fresh, starts=state.starts)
        case Woken():
            pass
    return _due(state, now, actions), actions


def wake_at(state: State) -> float | None:
    """When to call `step` with Woken at the latest; None = only events can change anything."""
    times = [_kill_time(state), looks_at(state)]
    if state.phase is Phase.FETCHING:
        times.append(state.started + FETCH_MAX_S)
    if _asks(state) and state.asking is None:
        times += [state.ready_at, state.counters_at if state.answered else None]
    if _asks(state):
        hails = state.hailing is None and links.whom_to_ask(state.links) is not None
        times += [state.links.look_at, state.links.ask_at if hails else None]
    if state.phase is Phase.STARTING:
        times.append(state.started + STARTING_MAX_S)
    return min((time for time in times if time is not None), default=None)


def looks_at(state: State) -> float | None:
    """When grant and lease are to be read. From then on they are read before anything else is looked at: a runner that
    was stopped for an hour, or slept with its machine, begins with them. None = they do not matter."""
    if state.fence is None or state.phase is Phase.EXITED:
        return None
    # At the deadline itself, too: it may have been moved since the last look.
    ends = state.fence.bound and not state.fenced
    return min(state.look_at, state.fence.deadline_s) if ends else state.look_at


def _due(state: State, now: float, actions: list[Action]) -> State:
    """What time alone brings about."""
    if state.fence is not None and (reason := fence.over(state.fence, now)):
        state = _fenced(state, reason, now, actions)
    if (kill_time := _kill_time(state)) is not None and now >= kill_time:
        actions.append(Send(number=signal.SIGKILL))
        state = replace(state, kill_at=None, killed=True)
    if state.phase is Phase.FETCHING and now >= state.started + FETCH_MAX_S:
        state = _stop(state, Stop.LATE, now, actions)
    if state.phase is Phase.STARTING and (state.answered or now >= state.started + STARTING_MAX_S):
        state = replace(state, phase=Phase.RUNNING)
    if _asks(state) and state.asking is None:
        # /ready first: it says more, and both are due together right after Bento has become ready.
        if now >= state.ready_at:
            actions.append(Ask(question=Question.READY))
            state = replace(state, asking=Question.READY, asked=now)
        elif state.answered and now >= state.counters_at:
            actions.append(Ask(question=Question.COUNTERS))
            state = replace(state, asking=Question.COUNTERS)
    return _watch(state, now, actions) if _asks(state) else state


def _watch(state: State, now: float, actions: list[Action]) -> State:
    """Look after Bento's connections."""
    if now >= state.links.look_at:
        actions.append(LookAtLinks())
        state = replace(state, links=replace(state.links, look_at=now + links.LOOK_S))
    peer = links.whom_to_ask(state.links)
    if peer is not None and state.hailing is None and now >= state.links.ask_at:
        actions.append(Greet(peer=peer))
        state = replace(state, hailing=peer)
    return state


def _watched(state: State, now: float) -> State:
    found = links.stuck(state.links, ready=state.phase is Phase.READY, now=now) if _asks(state) else None
    return replace(state, stuck=found)


def _signalled(state: State, number: int, now: float, actions: list[Action]) -> State:
    if number in (signal.SIGTERM, signal.SIGINT):
        return _stop(state, Stop.TOLD, now, actions)
    if not state.fetching:
        actions.append(Send(number=number))
    return state


def _looked(state: State, permits: Permits, now: float, actions: list[Action]) -> State:
    if state.fence is None or state.phase is Phase.EXITED:
        return state
    followed = fence.follow(state.fence, permits, now)
    pause = contract.POLL_S if followed.bound else contract.POLL_UNBOUND_S
    state = replace(state, fence=followed, look_at=now + pause)
    reason = fence.lost(followed, permits)
    return _fenced(state, reason, now, actions) if reason else state


def _fenced(state: State, reason: str, now: float, actions: list[Action]) -> State:
    if state.phase is Phase.EXITED or state.fenced:
        return state
    return _stop(replace(state, fenced=reason), Stop.FENCED, now, actions)


def _kill_time(state: State) -> float | None:
    """When SIGKILL is due: at the end of the grace, but in a bound run never later than the fence allows, however late
    the SIGTERM was."""
    if state.kill_at is None or state.fence is None or not state.fence.bound:
        return state.kill_at
    return min(state.kill_at, state.fence.deadline_s + contract.FENCE_KILL_S)


def _stop(state: State, why: Stop, now: float, actions: list[Action]) -> State:
    """Stop the child: SIGTERM now, SIGKILL after the grace. Again, it only makes a restart into an end."""
    if state.phase is Phase.EXITED:
        return state
    if state.stop is not None:
        restarts = state.stop in (Stop.PORT, Stop.LATE)
        return replace(state, stop=why) if restarts and why in (Stop.TOLD, Stop.FENCED) else state
    actions.append(Send(number=signal.SIGTERM))
    # The fetching child has nothing to finish.
    grace_s = 0.0 if state.fetching else state.grace_s
    return replace(
        state, phase=Phase.STOPPING, stop=why, kill_at=now + grace_s, ready_since=None, reason="", stuck=None
    )


def _ended(state: State, event: Ended, actions: list[Action]) -> State:
    over = replace(state, phase=Phase.EXITED, kill_at=None, ready_since=None, reason="", asking=None, stuck=None)
    if state.stop is Stop.TOLD:
        actions.append(End(code=TOLD_TO_STOP) if state.fetching else End(code=event.code, signal=event.signal))
    elif state.stop is Stop.FENCED:
        ended_by = None if state.fetching else event.signal
        actions.append(End(code=contract.EXIT_LEASE, signal=ended_by, failure=("lease", state.fenced)))
    elif state.fetching and event.code != 0:
        last = event.words[-1] if event.words else f"fetching it ended with {event.code}"
        message = f"it was not fetched in {FETCH_MAX_S:g} s" if state.stop is Stop.LATE else last
        actions.append(End(code=contract.EXIT_BUNDLE, failure=("bundle", message)))
    elif state.fetching:
        actions.append(StartBento())
        return state
    elif state.stop is Stop.PORT and state.starts < PORT_TRIES:
        actions.append(StartBento())
        return replace(state, starts=state.starts + 1)
    elif state.stop is Stop.PORT:
        message = f"{state.starts} ports in turn were taken by other processes before Bento could listen on them"
        actions.append(End(code=contract.EXIT_PORT, failure=("port", message)))
    else:
        refused = "" if state.ready_first is not None or event.code != 1 else refusal(event.words)
        failure = ("config", refused) if refused else None
        actions.append(End(code=event.code, signal=event.signal, failure=failure))
    return over


def _answered(state: State, event: Answered | Unanswered, now: float) -> State:
    question, state = state.asking, replace(state, asking=None)
    if question is Question.COUNTERS:
        return replace(state, counters_at=now + COUNTERS_EVERY_S)
    if not _asks(state):
        return state
    if isinstance(event, Unanswered):
        # While Bento starts, nobody listening is no news.
        if not (event.refused and state.phase is Phase.STARTING):
            state = replace(state, reason=event.reason)
        return _unready(state, now)
    state = replace(state, answered=True)
    if event.status != 200:
        words = "; ".join(event.body.split("\n"))
        known = event.status == 503 and bool(words)
        return _unready(replace(state, reason=words if known else f"/ready answers {event.status}: {words}"), now)
    since = now if state.ready_since is None else state.ready_since
    first = since if state.ready_first is None else state.ready_first
    steady = POLL_STEADY_S if now - since > STEADY_S else POLL_MAX_S
    if state.ready_first is None:
        # Its connections stand: an outage that begins now must not find us without knowing them.
        state = replace(state, counters_at=now, links=replace(state.links, look_at=now))
    return replace(
        state,
        phase=Phase.READY,
        ready_since=since,
        ready_first=first,
        reason="",
        ready_at=now + steady,
    )


def _unready(state: State, now: float) -> State:
    pause = POLL_MAX_S
    if state.ready_first is None:
        least = POLL_MIN_S if state.http_ours else POLL_MIN_STATED_S
        pause = min(POLL_MAX_S, max(least, POLL_SHARE * (now - state.started)))
    phase = Phase.RUNNING if state.phase is Phase.READY else state.phase
    return replace(state, phase=phase, ready_since=None, ready_at=now + pause)


def _displaced(state: State, event: Displaced, now: float, actions: list[Action]) -> State:
    state = replace(state, asking=None)
    if not _asks(state):
        return state
    if state.answered and state.http_ours:
        # It was there, so nobody has displaced it: it has closed its server, which it does at its end.
        return _unready(state, now)
    if state.http_ours:
        # Bento goes on without its HTTP server when it cannot listen; unseen, it is worth nothing to us.
        return _stop(state, Stop.PORT, now, actions)
    reason = f"Bento's HTTP server does not listen on {event.address}: another process of this host does"
    return _unready(replace(state, answered=True, reason=reason), now)


def refusal(words: tuple[str, ...]) -> str:
    """The lines in which Bento says that it refuses its configuration; "" if there is none."""
    marks = ("Configuration file read error", "Config lint error", "Service closing due to: failed to ")
    return "\n".join(line for line in words if any(mark in line for mark in marks))


def _asks(state: State) -> bool:
    return state.phase in (Phase.STARTING, Phase.RUNNING, Phase.READY)
