"""The runner's decisions, as tables. Times are seconds on an imagined boot clock."""

import signal

import pytest

from runner import core, events
from runner.core import Phase, State, Stop
from runner.events import Answered, Ask, Displaced, End, Ended, Question, Send, Signalled, Woken
from runner.value import replace

GRACE_S = 20.0
TERM, KILL = int(signal.SIGTERM), int(signal.SIGKILL)


def begun(*, fetching: bool = False, http_ours: bool = True) -> State:
    state = core.begin(0.0, fetching=fetching, grace_s=GRACE_S, http_ours=http_ours, fence=None)
    return replace(state, links=replace(state.links, look_at=1e9))


def run(state: State, *happened: tuple[float, events.Event]) -> tuple[State, list[events.Action]]:
    actions: list[events.Action] = []
    for now, event in happened:
        state, more = core.step(state, event, now)
        actions += more
    return state, actions


def ready() -> State:
    state, _ = run(begun(), (0.0, Woken()), (0.1, Answered(status=200, body="OK")))
    return replace(state, asking=None, counters_at=1e9, links=replace(state.links, look_at=1e9))


def ended(code: int = 0, number: int | None = None, *words: str) -> Ended:
    return Ended(code=code, signal=number, words=words)


# --- readiness


def test_first_turn_asks_whether_it_is_ready() -> None:
    state, actions = run(begun(), (0.0, Woken()))
    assert actions == [Ask(question=Question.READY)]
    assert state.phase is Phase.STARTING


def test_one_question_at_a_time() -> None:
    _, actions = run(begun(), (0.0, Woken()), (5.0, Woken()))
    assert actions == [Ask(question=Question.READY)]


def test_ready_then_counters_are_asked_and_connections_looked_at_at_once() -> None:
    state, actions = run(begun(), (0.0, Woken()), (0.1, Answered(status=200, body="OK")))
    assert (state.phase, state.ready_first) == (Phase.READY, 0.1)
    assert actions[-2:] == [Ask(question=Question.COUNTERS), events.LookAtLinks()]


@pytest.mark.parametrize(
    ("event", "phase", "reason"),
    [
        pytest.param(
            Answered(status=503, body="input not connected\noutput not connected"),
            Phase.RUNNING,
            "input not connected; output not connected",
            id="bento says why",
        ),
        pytest.param(Answered(status=401, body="no"), Phase.RUNNING, "/ready answers 401: no", id="wants a password"),
        pytest.param(events.Unanswered(reason="nobody", refused=True), Phase.STARTING, "", id="not listening yet"),
        pytest.param(events.Unanswered(reason="no answer in 2 s"), Phase.STARTING, "no answer in 2 s", id="hangs"),
    ],
)
def test_not_ready(event: events.Event, phase: Phase, reason: str) -> None:
    state, _ = run(begun(), (0.0, Woken()), (0.1, event))
    assert (state.phase, state.reason, state.ready_first) == (phase, reason, None)


def test_starting_becomes_running_after_a_while_without_answer() -> None:
    state, _ = run(begun(), (core.STARTING_MAX_S, Woken()))
    assert state.phase is Phase.RUNNING


def test_ready_is_lost_and_comes_back_with_the_first_time_kept() -> None:
    state, _ = run(ready(), (2.0, Woken()), (2.0, Answered(status=503, body="input not connected")))
    assert (state.phase, state.reason) == (Phase.RUNNING, "input not connected")
    state, _ = run(state, (3.0, Woken()), (3.0, Answered(status=200, body="OK")))
    assert (state.phase, state.reason, state.ready_first, state.ready_since) == (Phase.READY, "", 0.1, 3.0)


@pytest.mark.parametrize(
    ("now", "ours", "pause"), [(0.05, True, 0.01), (0.05, False, 0.05), (5.0, True, 0.2), (100.0, True, 1.0)]
)
def test_asking_slows_down_with_the_time_that_the_start_takes(now: float, ours: bool, pause: float) -> None:
    state, _ = run(begun(http_ours=ours), (0.0, Woken()), (now, events.Unanswered(reason="", refused=True)))
    assert state.ready_at == pytest.approx(now + pause)


def test_output_while_starting_means_ask_now() -> None:
    state, _ = run(begun(), (0.0, Woken()), (4.0, events.Unanswered(reason="", refused=True)))
    state, actions = run(state, (4.01, events.Spoke()))
    assert actions == [Ask(question=Question.READY)]


# --- stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_then_killed_after_the_grace(number: int) -> None:
    state, actions = run(ready(), (10.0, Signalled(number=number)))
    assert (actions, state.phase, core.wake_at(state)) == ([Send(number=TERM)], Phase.STOPPING, 10.0 + GRACE_S)
    state, actions = run(state, (29.9, Woken()))
    assert actions == []
    state, actions = run(state, (30.0, Woken()), (31.0, Woken()))
    assert actions == [Send(number=KILL)], "once"
    state, actions = run(state, (31.0, ended(137, KILL)))
    assert actions == [End(code=137, signal=KILL)]
    assert state.killed


def test_told_again_does_nothing() -> None:
    state, actions = run(ready(), (10.0, Signalled(number=TERM)), (15.0, Signalled(number=TERM)))
    assert actions == [Send(number=TERM)]
    assert state.kill_at == 10.0 + GRACE_S


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_other_signals_are_passed_on(number: int) -> None:
    _, actions = run(ready(), (1.0, Signalled(number=number)))
    assert Send(number=number) in actions


def test_an_answer_that_comes_late_does_not_undo_stopping() -> None:
    state, _ = run(begun(), (0.0, Woken()), (0.1, Signalled(number=TERM)), (0.2, Answered(status=200, body="OK")))
    assert state.phase is Phase.STOPPING


def test_nothing_is_asked_while_stopping() -> None:
    state, _ = run(ready(), (10.0, Signalled(number=TERM)))
    _, actions = run(state, (12.0, Woken()))
    assert actions == []


# --- ending


@pytest.mark.parametrize(
    ("event", "end"),
    [
        pytest.param(ended(0), End(code=0), id="input ended"),
        pytest.param(ended(1, None, "panic"), End(code=1), id="failed"),
        pytest.param(ended(139, 11), End(code=139, signal=11), id="crashed"),
        pytest.param(
            ended(1, None, "hello", 'level=error msg="Config lint error" lint="field x not recognised"'),
            End(code=1, failure=("config", 'level=error msg="Config lint error" lint="field x not recognised"')),
            id="refused its configuration",
        ),
    ],
)
def test_ended_by_itself(event: Ended, end: End) -> None:
    state, actions = run(begun(), (0.5, event))
    assert (state.phase, actions) == (Phase.EXITED, [end])


def test_a_lint_line_of_something_that_ran_is_no_refusal() -> None:
    _, actions = run(ready(), (9.0, ended(1, None, "Config lint error")))
    assert actions == [End(code=1)]


def test_nothing_happens_after_the_end() -> None:
    state, _ = run(ready(), (9.0, ended(0)))
    _, actions = run(state, (9.0, Signalled(number=TERM)), (99.0, Woken()), (99.0, Displaced(address="x")))
    assert actions == []
    assert core.wake_at(state) is None


# --- fetching


def test_fetched_then_started() -> None:
    state, actions = run(begun(fetching=True), (0.0, Woken()), (1.0, ended(0)))
    assert actions == [events.StartBento()]
    state, actions = run(state, (1.1, events.Started(fence=None)))
    assert (state.phase, state.fetching, state.started) == (Phase.STARTING, False, 1.1)
    assert actions == [Ask(question=Question.READY)]


def test_fetch_failed_says_its_last_words() -> None:
    _, actions = run(begun(fetching=True), (1.0, ended(1, None, "warning", "object not found")))
    assert actions == [End(code=66, failure=("bundle", "object not found"))]


def test_fetch_that_hangs_is_killed() -> None:
    state = begun(fetching=True)
    assert core.wake_at(state) == core.FETCH_MAX_S
    state, actions = run(state, (core.FETCH_MAX_S, Woken()), (core.FETCH_MAX_S, Woken()))
    assert actions == [Send(number=TERM), Send(number=KILL)]
    assert core.wake_at(state) is None
    _, actions = run(state, (61.0, ended(137, KILL)))
    assert actions == [End(code=66, failure=("bundle", "it was not fetched in 60 s"))]


def test_told_to_stop_while_fetching() -> None:
    state, actions = run(begun(fetching=True), (1.0, Signalled(number=TERM)))
    assert actions == [Send(number=TERM), Send(number=KILL)], "it has nothing to finish"
    _, actions = run(state, (1.1, ended(0)))
    assert actions == [End(code=143)], "Bento is not started any more"


# --- ports


def test_port_taken_starts_again_elsewhere_without_counting_as_a_crash() -> None:
    state, actions = run(begun(), (0.0, Woken()), (0.1, Displaced(address="port 1")))
    assert actions[-1] == Send(number=TERM)
    state, actions = run(state, (0.2, ended(0)))
    assert actions == [events.StartBento()]
    state, _ = run(state, (0.3, events.Started(fence=None)))
    assert (state.phase, state.starts, state.stop) == (Phase.STARTING, 2, None)


def test_a_bento_that_has_answered_is_not_started_again() -> None:
    """It closes its HTTP server at its end; whoever gets the port then displaces nobody."""
    state, _ = run(ready(), (5.0, Woken()))
    state, actions = run(state, (5.1, Displaced(address="port 1")), (5.2, ended(0)))
    assert actions == [End(code=0)]


def test_told_to_stop_while_changing_the_port_ends_it() -> None:
    state, _ = run(begun(), (0.0, Woken()), (0.1, Displaced(address="port 1")), (0.1, Signalled(number=TERM)))
    assert state.stop is Stop.TOLD
    _, actions = run(state, (0.2, ended(0)))
    assert actions == [End(code=0)]


def test_ports_taken_again_and_again_is_a_failure() -> None:
    state = replace(begun(), starts=core.PORT_TRIES)
    _, actions = run(state, (0.0, Woken()), (0.1, Displaced(address="port 1")), (0.2, ended(0)))
    assert isinstance(actions[-1], End)
    assert (actions[-1].code, (actions[-1].failure or ("", ""))[0]) == (76, "port")


def test_a_stated_address_that_another_process_holds_is_said_not_changed() -> None:
    state, actions = run(begun(http_ours=False), (0.0, Woken()), (0.1, Displaced(address="port 4195")))
    assert Send(number=TERM) not in actions
    assert (state.phase, "port 4195" in state.reason) == (Phase.RUNNING, True)


def test_what_was_due_for_the_old_child_does_not_hit_the_new_one() -> None:
    """Bento ends in the very moment in which the grace does."""
    state, _ = run(begun(), (0.0, Woken()), (0.1, Displaced(address="port 1")))
    state, actions = run(state, (0.1 + GRACE_S, ended(0)))
    assert actions == [events.StartBento()]
    state, actions = run(state, (30.0, events.Started(fence=None)), (30.0, Signalled(number=TERM)))
    assert (state.phase, state.kill_at) == (Phase.STOPPING, 30.0 + GRACE_S)
    assert Send(number=KILL) not in actions
