"""What an agent knows of its executor: lists, corrected by its own actions; and how much of it a report can hold."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.inventory import Inventory, done, failed, healthy, listed, starting
from agent.core.situation import Fetch, Remove, Start, Stop, Subject
from agent.executor import Found, Life, Spec
from agent.report import BYTES_MAX, fitted
from shared.documents import Observed, Report, Session, decode
from shared.states import Phase

SUBJECT = Subject(execution="a-0-1", pipeline="a", slot=0, version="1", digest="d")
SPEC = Spec(
    execution="a-0-1", store_id="s", pipeline="a", slot=0, replicas=1, version="1", digest="d", bundle="/b", env={},
    volumes=(), image="", cpu=None, memory_bytes=None, stop_grace_s=5.0, http="auto",
)  # fmt: skip
START, STOP, REMOVE, FETCH = Start(SUBJECT, SPEC, True), Stop(SUBJECT, 5.0), Remove(SUBJECT, 5.0), Fetch(SUBJECT)


def found(life: Life = Life.ALIVE, runtime: str = "7") -> Found:
    return Found(
        execution="a-0-1", store_id="s", pipeline="a", slot=0, version="1", digest="d", life=life, runtime=runtime
    )


HAS = Inventory(found={"a-0-1": found()})


def test_what_was_started_is_known_before_it_is_listed() -> None:
    after = done(Inventory(), START)
    assert after.found["a-0-1"] == found(runtime="")


@pytest.mark.parametrize(("before", "runtime"), [("c0ffee", "c0ffee"), ("1234", "")])
def test_a_container_that_is_started_again_is_the_same_a_process_is_not(before: str, runtime: str) -> None:
    stopped = Inventory(found={"a-0-1": replace(found(Life.EXITED, before), health={"phase": "ready"})})
    after = done(stopped, START).found["a-0-1"]
    assert (after.life, after.runtime, after.health) == (Life.ALIVE, runtime, {}), "the old health is of the old run"


def test_of_one_execution_under_two_stores_the_one_that_lives_is_believed_and_of_two_the_older() -> None:
    lives, ended = replace(found(), started_s=5.0), replace(found(Life.EXITED), store_id="lost")
    late = replace(found(), store_id="lost", started_s=9.0)
    silent = replace(late, started_s=None)  # a container whose runner has not said anything yet
    for other in (ended, late, silent):
        for items in ((lives, other), (other, lives)):
            assert listed(Inventory(), items, asked=0, busy=()).found == {"a-0-1": lives}
    # Where nothing tells them apart, it stays what it was.
    for one, other in ((ended, replace(ended, store_id="s")), (silent, replace(silent, store_id="s"))):
        before = Inventory(found={"a-0-1": one})
        for items in ((one, other), (other, one)):
            assert listed(before, items, asked=0, busy=()).found == {"a-0-1": one}


def test_stopped_removed_fetched() -> None:
    assert done(HAS, STOP).found["a-0-1"].life is Life.EXITED
    assert done(HAS, REMOVE).found == {}
    assert done(HAS, FETCH) == HAS


@pytest.mark.parametrize(
    ("action", "items", "kept"),
    [
        pytest.param(START, (), True, id="started while the list was made: not lost because of it"),
        pytest.param(REMOVE, (found(),), False, id="removed while the list was made: not back because of it"),
    ],
)
def test_a_list_is_older_than_what_was_done_meanwhile(
    action: Start | Remove, items: tuple[Found, ...], kept: bool
) -> None:
    before = HAS if action is REMOVE else Inventory()
    asked = before.number
    after = done(before, action)
    assert ("a-0-1" in listed(after, items, asked=asked, busy=()).found) is kept
    assert ("a-0-1" in listed(after, items, asked=after.number, busy=()).found) is not kept, "the next list is believed"


def test_a_list_says_nothing_of_what_is_under_way() -> None:
    assert listed(HAS, (), asked=HAS.number, busy={"a-0-1"}).found == HAS.found


def test_a_start_without_an_answer_counts_as_there_until_a_list_settles_it() -> None:
    asked = 0
    after = failed(Inventory(), START, known=False)
    assert after.uncertain == {"a-0-1": SUBJECT}
    assert listed(after, (), asked=asked, busy=()).uncertain, "that list was asked for before"
    assert not listed(after, (), asked=after.number, busy=()).uncertain, "it did not come true"
    came = listed(after, (found(),), asked=after.number, busy=())
    assert (came.uncertain, came.found) == ({}, {"a-0-1": found()})


@pytest.mark.parametrize(
    "after",
    [failed(Inventory(), START, known=True), failed(HAS, START, known=False), failed(Inventory(), REMOVE, known=False)],
)
def test_what_surely_had_no_effect_or_is_seen_anyway_is_not_uncertain(after: Inventory) -> None:
    assert after.uncertain == {}


def test_health_is_taken_over_when_it_has_changed() -> None:
    after = healthy(HAS, {"a-0-1": {"phase": "ready"}, "b-0-1": {"phase": "ready"}})
    assert after.found["a-0-1"].health == {"phase": "ready"}
    assert "b-0-1" not in after.found
    assert healthy(after, {"a-0-1": {"phase": "ready"}}) is after


def test_when_a_start_began_is_forgotten_with_the_execution() -> None:
    begun = starting(HAS, "a-0-1", 5.0)
    assert listed(begun, (found(),), asked=begun.number, busy=()).begun_s == {"a-0-1": 5.0}
    assert listed(begun, (), asked=begun.number, busy=()).begun_s == {}


def observed(number: int, lines: int) -> Observed:
    return Observed(
        execution=f"p{number}-0-1", pipeline=f"p{number}", slot=0, version="1", digest="d" * 64, phase=Phase.BACKOFF,
        reason="it ended with exit code 1", last_words=tuple("x" * 400 for _ in range(lines)),
    )  # fmt: skip


@pytest.mark.parametrize(("count", "lines"), [(10, 20), (500, 20), (1000, 20)])
def test_a_report_fits_into_a_message_and_loses_last_words_first(count: int, lines: int) -> None:
    report = Report(
        store_id="s", host="h", session=Session("a", "b", 1), term=1, plan=1,
        executions=tuple(observed(number, lines) for number in range(count)),
    )  # fmt: skip
    data = fitted(report)
    assert len(data) <= BYTES_MAX
    back = decode(Report, data)
    assert [one.execution for one in back.executions] == [one.execution for one in report.executions]
    assert back.executions[0].last_words == report.executions[0].last_words[: {10: 20, 500: 3, 1000: 1}[count]]
