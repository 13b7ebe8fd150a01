"""What an agent does next for each execution, and what it shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agent.core.diff import diff
from agent.core.restarts import End, EndKind, Memory, Waiting
from agent.core.situation import Action, Bundle, Decision, Fetch, Remove, Situation, Start, Stop, Subject
from agent.executor import Found, Life, Spec
from shared.bundle import Runtime
from shared.documents import Assigned, Assignment, Observed, Session
from shared.states import Overlap, Phase, Wanted

BOOT = "boot-1"
SESSION = Session("agent-1", BOOT, 3)
NOW_S = 1000.0
RUNTIME = Runtime(
    pipeline="orders",
    version="1",
    env={"A": "b"},
    volumes=("/data:/data",),
    image="",
    cpu=0.5,
    memory_bytes=1000,
    restart_delay_s=1.0,
    restart_delay_max_s=8.0,
    restart_reset_after_s=60.0,
    stop_grace_s=22.0,
    http="auto",
    config_digest="c" * 64,
)
ITEM = Assigned(
    execution="orders-0-7",
    pipeline="orders",
    slot=0,
    replicas=2,
    version="1",
    digest="d1",
    wanted=Wanted.RUN,
    overlap=Overlap.EXCLUSIVE,
    lease_bound=True,
    stop_grace_s=21.0,
    cpu=0.0,
    memory_bytes=0,
)
PAUSED = replace(ITEM, wanted=Wanted.PAUSE)
FREE = replace(ITEM, lease_bound=False)
LATER = replace(SESSION, number=4)
SUBJECT = Subject(execution="orders-0-7", pipeline="orders", slot=0, version="1", digest="d1")
SPEC = Spec(
    execution="orders-0-7",
    store_id="store-a",
    pipeline="orders",
    slot=0,
    replicas=2,
    version="1",
    digest="d1",
    bundle="/b/d1",
    env={"A": "b"},
    volumes=("/data:/data",),
    image="",
    cpu=0.5,
    memory_bytes=1000,
    stop_grace_s=21.0,
    http="auto",
)
HAVE = {"d1": Bundle("/b/d1", RUNTIME)}
START, FETCH = Start(SUBJECT, SPEC, True), Fetch(SUBJECT)
START_FREE = replace(START, bound=False)
STOP, REMOVE = Stop(SUBJECT, 21.0), Remove(SUBJECT, 22.0)


def health(phase: str, **fields: Any) -> dict[str, Any]:
    return {"phase": phase, "boot_id": BOOT, "runner_pid": 77, "not_ready_reason": "", "exit": None, **fields}


def found(life: Life = Life.ALIVE, **fields: Any) -> Found:
    known: dict[str, Any] = {"runtime": "77", "digest": "d1", "health": {}}
    return Found(
        execution="orders-0-7",
        store_id="store-a",
        pipeline="orders",
        slot=0,
        version="1",
        life=life,
        **{**known, **fields},
    )


def situation(items: tuple[Assigned, ...] | None = (ITEM,), *, has: Found | None = None, **fields: Any) -> Situation:
    assignment = None
    if items is not None:
        assignment = Assignment(store_id="store-a", term=1, plan=7, host="h1", session=SESSION, executions=items)
    granted = {} if has is None or has.life is not Life.ALIVE else {has.execution: True}
    known: dict[str, Any] = {
        "bundles": HAVE,
        "agent": "agent-1",
        "boot": BOOT,
        "found": {} if has is None else {has.execution: has},
        "session": SESSION,
        "granted": granted,
    }
    return Situation(assignment=assignment, **{**known, **fields})


def decide(given: Situation, memory: Memory | None = None, now_s: float = NOW_S) -> Decision:
    return diff(given, {} if memory is None else {"orders-0-7": memory}, now_s)


def only(decision: Decision) -> Observed:
    assert len(decision.observed) == 1
    return decision.observed[0]


CRASH = End(kind=EndKind.CRASHED, reason="it ended with exit code 3", exit_code=3, last_words=("boom",))
OWED = Memory(owed=True, delay_s=4.0, not_before_s=NOW_S + 3, end=CRASH, restarts=2)
SILENT = "its runner has not reported yet"
ALIVE = Memory(alive=True, since_s=NOW_S - 10)
FENCED = Memory(end=End(kind=EndKind.LEASE, reason="x"))


CONTINUES = replace(ITEM, lease_bound=False)


@pytest.mark.parametrize(
    ("given", "starts"),
    [
        pytest.param(situation((CONTINUES,)), True, id="answered"),
        pytest.param(situation((CONTINUES,), session=None), True, id="cut off: it needs no session"),
        pytest.param(
            situation((CONTINUES,), session=replace(SESSION, number=4)), True, id="a session of the same agent"
        ),
        pytest.param(situation((CONTINUES,), agent="agent-2"), False, id="made for another agent of this host name"),
        pytest.param(situation((CONTINUES,), boot="boot-2"), False, id="rebooted: an operator may have called it dead"),
        pytest.param(
            situation((replace(CONTINUES, overlap=Overlap.SHAREABLE),), agent="agent-2"), True, id="it may overlap"
        ),
    ],
)
def test_what_continues_alone_is_started_by_whom_it_was_assigned_to(given: Situation, starts: bool) -> None:
    decision = decide(given)
    assert [type(action) for action in decision.actions] == ([Start] if starts else [])
    assert starts or "another copy may run elsewhere" in only(decision).reason


@pytest.mark.parametrize(
    ("given", "memory", "actions", "phase"),
    [
        # --- wants to run
        pytest.param(situation(bundles={}), None, (FETCH,), Phase.FETCHING, id="new: its bundle first"),
        pytest.param(situation(), None, (START,), Phase.STARTING, id="new, bundle here"),
        pytest.param(situation(has=found(Life.CREATED)), None, (START,), Phase.STARTING, id="created, never started"),
        pytest.param(situation(has=found(Life.EXITED)), None, (START,), Phase.STARTING, id="stopped before"),
        pytest.param(situation(has=found(Life.EXITED)), ALIVE, (), Phase.BACKOFF, id="ended by itself: wait"),
        pytest.param(situation(has=None), ALIVE, (), Phase.BACKOFF, id="vanished: wait, then make it anew"),
        pytest.param(situation(has=found(Life.EXITED)), OWED, (), Phase.BACKOFF, id="still waiting"),
        pytest.param(
            situation(has=found(Life.EXITED)), replace(OWED, not_before_s=NOW_S), (START,), Phase.STARTING, id="due"
        ),
        pytest.param(situation(has=found()), ALIVE, (), Phase.STARTING, id="alive, its runner has said nothing"),
        pytest.param(situation(busy={"orders-0-7": FETCH}), None, (), Phase.FETCHING, id="fetch under way"),
        pytest.param(situation(busy={"orders-0-7": START}), None, (), Phase.STARTING, id="start under way"),
        pytest.param(
            situation(has=found(digest="d0")), None, (Remove(replace(SUBJECT, digest="d0"), 30.0),), Phase.STOPPING,
            id="other bytes under this id: removed first",
        ),
        # --- lease-bound, without a session or a grant of it
        pytest.param(situation(session=None), None, (), Phase.STARTING, id="no session: not started"),
        pytest.param(situation(session=LATER), None, (), Phase.STARTING, id="a session that is not answered yet"),
        pytest.param(situation((FREE,), session=None), None, (START_FREE,), Phase.STARTING, id="not bound: started"),
        pytest.param(situation(has=found(), session=None), ALIVE, (), Phase.STARTING, id="runs under its grant: kept"),
        pytest.param(
            situation(has=found(), granted={}), ALIVE, (Stop(SUBJECT, 2.0),), Phase.STOPPING,
            id="runs, its session is over: killed, not drained",
        ),
        pytest.param(situation((FREE,), has=found(), granted={}), ALIVE, (), Phase.STARTING, id="not bound: runs on"),
        pytest.param(
            situation((), has=found(), granted={}), FENCED, (Remove(SUBJECT, 2.0),), Phase.STOPPING,
            id="its session is over and it runs elsewhere: killed, not drained",
        ),
        # --- wants to be kept stopped
        pytest.param(situation((PAUSED,), has=found()), ALIVE, (STOP,), Phase.STOPPING, id="pause: stop"),
        pytest.param(situation((PAUSED,), has=found(Life.EXITED)), ALIVE, (), Phase.STOPPED, id="paused and stopped"),
        pytest.param(situation((PAUSED,)), None, (), Phase.STOPPED, id="paused, nothing there"),
        pytest.param(
            situation((PAUSED,), uncertain={"orders-0-7": SUBJECT}), None, (), Phase.STOPPING,
            id="paused, a start without an answer",
        ),
        pytest.param(
            situation((PAUSED,), has=found(), busy={"orders-0-7": STOP}), ALIVE, (), Phase.STOPPING, id="stopping"
        ),
        # --- not in the list
        pytest.param(situation((), has=found()), ALIVE, (REMOVE,), Phase.STOPPING, id="not assigned: removed"),
        pytest.param(situation((), has=found(Life.EXITED)), None, (REMOVE,), Phase.STOPPING, id="not assigned, ended"),
        pytest.param(
            situation((), busy={"orders-0-7": START}), None, (), Phase.STOPPING,
            id="not assigned, start under way: listed until it is known and removed",
        ),
        pytest.param(
            situation((), uncertain={"orders-0-7": SUBJECT}), None, (), Phase.STOPPING,
            id="not assigned, a start without an answer: listed until a list settles it",
        ),
        pytest.param(
            situation((), has=found(), bundles={}), None, (Remove(SUBJECT, 30.0),), Phase.STOPPING,
            id="not assigned, bundle lost: default grace",
        ),
    ],
)  # fmt: skip
def test_next_action(given: Situation, memory: Memory | None, actions: tuple[Any, ...], phase: Phase) -> None:
    decision = decide(given, memory)
    assert decision.actions == actions
    assert only(decision).phase is phase


@pytest.mark.parametrize(
    ("items", "busy", "phase"),
    [
        pytest.param((ITEM,), START, Phase.STARTING, id="start"),
        pytest.param((PAUSED,), STOP, Phase.STOPPING, id="stop"),
        pytest.param((), REMOVE, Phase.STOPPING, id="removal"),
        pytest.param((), START, Phase.STOPPING, id="no longer wanted"),
    ],
)
def test_what_takes_long_because_the_engine_does_not_answer_says_so(
    items: tuple[Assigned, ...], busy: Action, phase: Phase
) -> None:
    observed = only(decide(situation(items, busy={"orders-0-7": busy}, problem="the engine is silent")))
    assert (observed.phase, observed.reason) == (phase, "the engine is silent")


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(situation(()), id="nothing assigned, nothing there"),
        pytest.param(situation((), busy={"orders-0-7": FETCH}), id="only a fetch is under way"),
        pytest.param(situation(None, has=found()), id="no document at all: no instruction, nothing is touched"),
    ],
)
def test_nothing_to_do_and_nothing_to_show(given: Situation) -> None:
    decision = decide(given)
    assert (decision.actions, decision.observed, decision.wake_s) == ((), (), None)


@pytest.mark.parametrize(
    ("document", "phase", "reason"),
    [
        pytest.param(health("fetching"), Phase.FETCHING, "", id="the runner fetches the bundle itself"),
        pytest.param(health("starting"), Phase.STARTING, "", id="Bento starts"),
        pytest.param(
            health("running", not_ready_reason="output not connected"), Phase.RUNNING, "output not connected",
            id="upstream is away: not ready, with Bento's words",
        ),
        pytest.param(health("running"), Phase.RUNNING, "Bento lives and is not ready yet", id="not ready"),
        pytest.param(health("ready"), Phase.READY, "", id="ready by the word of its own runner"),
        pytest.param(health("stopping"), Phase.STOPPING, "", id="somebody else stops it"),
        pytest.param(health("exited"), Phase.BACKOFF, "Bento has ended", id="Bento gone, runner about to be"),
        pytest.param({}, Phase.STARTING, SILENT, id="no file"),
        pytest.param(health("ready", boot_id="boot-0"), Phase.STARTING, SILENT, id="boot"),
        pytest.param(health("ready", runner_pid=78), Phase.STARTING, SILENT, id="other runner"),
        pytest.param(health("dancing"), Phase.STARTING, SILENT, id="a phase we do not know"),
        pytest.param({"phase": ["ready"]}, Phase.STARTING, SILENT, id="not a health file"),
    ],
)  # fmt: skip
def test_alive_is_shown_by_the_word_of_its_runner_only(document: dict[str, Any], phase: Phase, reason: str) -> None:
    observed = only(decide(situation(has=found(health=document)), ALIVE))
    assert (observed.phase, observed.reason) == (phase, reason)


@pytest.mark.parametrize("boot", [BOOT, "of-a-virtual-machine"])
def test_a_container_is_not_compared_by_process_id(boot: str) -> None:
    """Its runner is process 1 in its own name space, and its engine's kernel may be another than the agent's."""
    document = health("ready", runner_pid=1, boot_id=boot)
    observed = only(decide(situation(has=found(runtime="c0ffee", health=document)), ALIVE))
    assert observed.phase is Phase.READY


@pytest.mark.parametrize("life", [Life.EXITED, Life.CREATED])
def test_the_health_file_of_a_dead_runner_never_counts(life: Life) -> None:
    observed = only(decide(situation(has=found(life, health=health("ready"))), ALIVE))
    assert observed.phase not in (Phase.READY, Phase.RUNNING)


@pytest.mark.parametrize(
    ("cause", "phase"),
    [
        ("image", Phase.FETCHING),
        ("bundle", Phase.FETCHING),
        ("host", Phase.STARTING),
        ("engine", Phase.STARTING),
        ("configuration", Phase.FAILED),
    ],
)
def test_a_failed_start_waits_visibly_and_is_no_restart(cause: Any, phase: Phase) -> None:
    waiting = Waiting(doing="start", cause=cause, reason="no such image", attempts=2, until_s=NOW_S + 2)
    decision = decide(situation(), Memory(waiting=waiting))
    observed = only(decision)
    assert decision.actions == ()
    assert decision.wake_s == 2.0
    assert (observed.phase, observed.reason, observed.restarts) == (phase, f"waiting: {cause}: no such image", 0)
    later = decide(situation(), Memory(waiting=waiting), NOW_S + 2)
    assert later.actions == (START,)
    assert only(later).reason == f"{cause}: no such image", "still said while it is tried again"


@pytest.mark.parametrize(
    ("doing", "given"),
    [("stop", situation((PAUSED,), has=found())), ("remove", situation((), has=found()))],
)
def test_a_failed_stop_or_removal_waits_and_is_still_listed(doing: Any, given: Situation) -> None:
    waiting = Waiting(doing=doing, cause="engine", reason="no answer", attempts=1, until_s=NOW_S + 1)
    decision = decide(given, Memory(alive=True, waiting=waiting))
    assert decision.actions == ()
    assert (only(decision).phase, only(decision).reason) == (Phase.STOPPING, "waiting: engine: no answer")
    assert len(decide(given, Memory(alive=True, waiting=waiting), NOW_S + 1).actions) == 1


def test_what_hindered_a_start_does_not_hold_up_a_removal() -> None:
    waiting = Waiting(doing="start", cause="image", reason="x", attempts=9, until_s=NOW_S + 30)
    assert decide(situation((), has=found(Life.CREATED)), Memory(waiting=waiting)).actions == (REMOVE,)


def test_a_crash_shows_count_delay_exit_code_and_last_words() -> None:
    words = health("exited", last_words=["one", "two"])
    decision = decide(situation(has=found(Life.EXITED, exit_code=3, health=words)), replace(ALIVE, restarts=4))
    observed = only(decision)
    assert (observed.phase, observed.reason) == (Phase.BACKOFF, "it ended with exit code 3")
    assert (observed.restarts, observed.exit_code, observed.last_words) == (4, 3, ("one", "two"))
    assert decision.wake_s == 1.0
    memory = decision.memory["orders-0-7"]
    again = decide(situation(has=found(Life.EXITED)), memory, NOW_S + 1)
    assert again.actions == (START,)
    running = decide(situation(has=found(health=health("ready"))), again.memory["orders-0-7"], NOW_S + 2)
    assert (only(running).phase, only(running).restarts) == (Phase.READY, 5)
    assert only(running).last_words == ("one", "two"), "why it was restarted can still be read"


def test_resuming_after_a_crash_loop_starts_at_once() -> None:
    paused = decide(situation((PAUSED,), has=found(Life.EXITED)), OWED)
    assert only(paused).phase is Phase.STOPPED
    resumed = decide(situation(has=found(Life.EXITED)), paused.memory["orders-0-7"])
    assert resumed.actions == (START,)
    assert only(resumed).restarts == 2


def test_a_bad_configuration_is_failed_and_tried_at_the_longest_delay() -> None:
    words = health("exited", last_words=["Config lint error: field nonsense"])
    decision = decide(situation(has=found(Life.EXITED, exit_code=1, health=words)), ALIVE)
    assert only(decision).phase is Phase.FAILED
    assert only(decision).reason == "Bento refuses the configuration: Config lint error: field nonsense"
    assert decision.wake_s == 8.0


def test_several_executions_in_the_order_of_their_ids() -> None:
    second = replace(ITEM, execution="orders-1-7", slot=1)
    decision = decide(situation((second, ITEM)))
    assert [action.subject.execution for action in decision.actions] == ["orders-0-7", "orders-1-7"]
    assert [one.execution for one in decision.observed] == ["orders-0-7", "orders-1-7"]


def test_memories_of_what_is_gone_are_dropped() -> None:
    decision = diff(situation(()), {"orders-0-7": OWED}, NOW_S)
    assert decision.memory == {}
