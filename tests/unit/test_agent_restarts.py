"""How an execution ended, and when it is started again."""

from __future__ import annotations

from typing import Any

import pytest

from agent.core.health import believed
from agent.core.restarts import (
    NOTHING,
    START_DELAY_MAX_S,
    End,
    EndKind,
    Memory,
    Policy,
    classify,
    ended,
    held,
    hindered,
    recalled,
    rested,
    seen_alive,
    unhindered,
)
from agent.executor import Found, Life

POLICY = Policy(delay_s=1.0, delay_max_s=5.0, reset_after_s=60.0)
CRASH = End(kind=EndKind.CRASHED, reason="it ended with exit code 3", exit_code=3)


def crash_after(memory: Memory, now_s: float, ran_s: float, end: End = CRASH) -> Memory:
    return ended(seen_alive(memory, now_s), end, POLICY, now_s + ran_s)


def test_delays_double_up_to_the_largest() -> None:
    memory, now_s, delays = NOTHING, 100.0, []
    for _ in range(5):
        memory = crash_after(memory, now_s, 0.1)
        delays.append(memory.delay_s)
        assert memory.not_before_s == now_s + 0.1 + memory.delay_s
        now_s = memory.not_before_s
    assert delays == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert memory.restarts == 4, "the fifth end is not restarted yet"
    assert seen_alive(memory, now_s).restarts == 5


def test_a_good_period_begins_the_delays_anew_and_keeps_the_count() -> None:
    memory = crash_after(crash_after(crash_after(NOTHING, 0, 1), 10, 1), 20, 1)
    assert memory.delay_s == 4.0
    memory = crash_after(memory, 30, 60.0)
    assert (memory.delay_s, memory.restarts) == (1.0, 3)


def test_a_bad_configuration_waits_longest_at_once() -> None:
    end = End(kind=EndKind.CONFIGURATION, reason="x")
    assert crash_after(NOTHING, 0, 1, end).delay_s == 5.0


def test_looking_again_counts_nothing() -> None:
    alive = seen_alive(crash_after(NOTHING, 0, 1), 10)
    assert seen_alive(alive, 11) is alive


def test_stopped_on_purpose_owes_nothing_and_keeps_the_count() -> None:
    assert rested(seen_alive(crash_after(NOTHING, 0, 1), 5)) == Memory(restarts=1)
    assert rested(NOTHING) is NOTHING


def test_hindrances_back_off_by_what_is_tried() -> None:
    memory, waits = NOTHING, []
    for _ in range(7):
        memory = hindered(memory, "start", "image", "no such image", 100.0)
        assert memory.waiting is not None
        waits.append(memory.waiting.until_s - 100.0)
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, START_DELAY_MAX_S, START_DELAY_MAX_S]
    memory = hindered(memory, "remove", "engine", "no answer", 100.0)
    assert held(memory, "remove", 100.9) is not None
    assert held(memory, "remove", 101.0) is None, "another action counts its own attempts"
    assert held(memory, "start", 100.9) is None
    assert unhindered(memory) == NOTHING


@pytest.mark.parametrize("cause", ["bundle", "engine"])
def test_what_comes_back_by_itself_is_asked_for_often(cause: Any) -> None:
    memory = NOTHING
    for _ in range(9):
        memory = hindered(memory, "start", cause, "away", 100.0)
    assert memory.waiting is not None
    assert memory.waiting.until_s - 100.0 == 5.0


def test_an_end_for_want_of_a_lease_is_no_crash() -> None:
    end = End(kind=EndKind.LEASE, reason="x")
    alive = seen_alive(crash_after(NOTHING, 0, 1), 5)
    resumed = ended(alive, end, Policy(), 100)
    assert (resumed.owed, resumed.not_before_s, resumed.restarts, resumed.delay_s) == (False, 100, 1, alive.delay_s)
    assert seen_alive(resumed, 101).restarts == 1
    short = ended(alive, end, Policy(), 7)
    assert (short.owed, short.not_before_s) == (False, 8), "what never really ran does not spin"


def test_times_of_another_boot_are_cut() -> None:
    memory = crash_after(crash_after(NOTHING, 9000, 1), 9010, 1)
    recalled_ = recalled(memory, 20.0)
    assert recalled_.not_before_s == 22.0
    assert recalled_.restarts == memory.restarts
    assert recalled(memory, 9012.0) == memory
    assert recalled(Memory(alive=True, since_s=9000.0), 20.0).since_s == 20.0


def found(**fields: Any) -> Found:
    known: dict[str, Any] = {"life": Life.EXITED, "runtime": "5", "exit_code": 1, "health": {}}
    return Found(execution="p-0-1", store_id="s", pipeline="p", slot=0, version="1", digest="d", **{**known, **fields})


def health(**fields: Any) -> dict[str, Any]:
    return {
        "phase": "exited",
        "boot_id": "b",
        "runner_pid": 5,
        "exit": None,
        "failure": None,
        "last_words": [],
        **fields,
    }


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        pytest.param(found(exit_code=137, oom=True), EndKind.MEMORY, "raise resources.memory", id="out of memory"),
        pytest.param(
            found(health=health(failure={"kind": "config", "message": "unknown field"})), EndKind.CONFIGURATION,
            "Bento refuses the configuration: unknown field", id="the runner saw a refused configuration",
        ),
        pytest.param(
            found(health=health(last_words=["x", "failed to init input <no label> path root.input: no such field"])),
            EndKind.CONFIGURATION, "failed to init input", id="Bento's words on the configuration",
        ),
        pytest.param(
            found(exit_code=66, health=health(failure={"kind": "bundle", "message": "gone"})), EndKind.HOST,
            "its bundle cannot be had: gone", id="no bundle",
        ),
        pytest.param(
            found(exit_code=65, health=health(failure={"kind": "digest", "message": "other bytes"})), EndKind.HOST,
            "its bundle is damaged", id="damaged bundle",
        ),
        pytest.param(
            found(exit_code=69, health=health(failure={"kind": "bento-missing", "message": "/bento"})), EndKind.HOST,
            "no Bento to start", id="no Bento",
        ),
        pytest.param(
            found(exit_code=71, health=health(failure={"kind": "host", "message": "no space"})), EndKind.HOST,
            "no space", id="disk full",
        ),
        pytest.param(
            found(health=health(failure={"kind": "later", "message": "new {} thing"})), EndKind.HOST, "new {} thing",
            id="a failure of a newer runner",
        ),
        pytest.param(
            found(exit_code=77, health=health(failure={"kind": "lease", "message": "it has no grant"})), EndKind.LEASE,
            "stopped itself: it has no grant", id="its runner may not let it run here",
        ),
        pytest.param(
            found(exit_code=77), EndKind.LEASE, "stopped itself: the host lease ended", id="the same, without a word"
        ),
        pytest.param(found(exit_code=75), EndKind.HOST, "another copy", id="run.lock is held"),
        pytest.param(found(exit_code=137), EndKind.HOST, "killed from outside", id="SIGKILL"),
        pytest.param(found(exit_code=143), EndKind.HOST, "ended from outside", id="SIGTERM by somebody else"),
        pytest.param(found(exit_code=139), EndKind.CRASHED, "signal 11", id="segmentation fault"),
        pytest.param(found(exit_code=None), EndKind.HOST, "with its runner", id="nobody knows"),
        pytest.param(found(exit_code=0), EndKind.FINISHED, "a service must go on", id="exit 0 is a crash too"),
        pytest.param(found(exit_code=1), EndKind.CRASHED, "exit code 1", id="exit 1 without words"),
        pytest.param(found(exit_code=2), EndKind.CRASHED, "exit code 2", id="panic"),
        pytest.param(
            found(exit_code=None, health=health(exit={"code": 4, "signal": None})), EndKind.CRASHED, "exit code 4",
            id="the runner's own word where the executor has none",
        ),
    ],
)  # fmt: skip
def test_why_it_ended(given: Found, kind: EndKind, words: str) -> None:
    end = classify(given, believed(given, "b"))
    assert end.kind is kind
    assert words in end.reason


def test_vanished() -> None:
    assert classify(None, None).kind is EndKind.HOST


def test_last_words_are_bounded() -> None:
    given = found(health=health(last_words=["x" * 10_000] * 100))
    end = classify(given, believed(given, "b"))
    assert len(end.last_words) == 20
    assert max(map(len, end.last_words)) == 500
