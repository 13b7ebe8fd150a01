"""Starting again what has lost NATS for good: whom, when, and that it is no crash."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agent.core import heal, restarts
from agent.core.diff import diff
from agent.core.health import believed
from agent.core.restarts import Memory
from agent.core.situation import Situation, Start, Stop
from agent.executor import Found, Life
from shared.documents import Assigned, Assignment, Session
from shared.states import Phase, Wanted
from tests.unit.test_agent_diff import BOOT, HAVE, ITEM, NOW_S, found, health

FREE = replace(ITEM, lease_bound=False)
WHY = "Bento has given up a connection to NATS"


def stuck(number: int = 0, life: Life = Life.ALIVE, **fields: Any) -> Found:
    said = health("ready", stuck={"since_boot_s": 800.0, "reason": WHY}, **fields)
    return replace(found(life, health=said), execution=f"orders-{number}-7", slot=number)


def well(number: int = 0) -> Found:
    return replace(found(health=health("ready", stuck=None)), execution=f"orders-{number}-7", slot=number)


def situation(*has: Found, reachable_s: float | None = 10.0, **fields: Any) -> Situation:
    items: tuple[Assigned, ...] = tuple(replace(FREE, execution=one.execution, slot=one.slot) for one in has)
    items = fields.pop("items", items)
    given = {"session": None, "granted": {}, **fields}
    assignment = Assignment(
        store_id="store-a", term=1, plan=7, host="h1", session=Session("agent-1", BOOT, 1), executions=items
    )
    there = {one.execution: one for one in has}
    return Situation(
        assignment=assignment, found=there, bundles=HAVE, agent="agent-1", boot=BOOT, reachable_s=reachable_s, **given
    )


def alive(*has: Found) -> dict[str, Memory]:
    return {one.execution: Memory(alive=True, since_s=NOW_S - 300, restarts=2, delay_s=4.0) for one in has}


def test_it_is_stopped_and_started_and_nothing_is_owed() -> None:
    first = diff(situation(stuck()), alive(stuck()), NOW_S)
    assert [type(action) for action in first.actions] == [Stop]
    assert first.actions[0] == Stop(first.actions[0].subject, heal.GRACE_S), "what it cannot deliver is not waited for"
    assert (first.observed[0].phase, first.observed[0].reason) == (Phase.STOPPING, WHY)
    gone = stuck(life=Life.EXITED, exit={"code": 137})
    second = diff(situation(gone), first.memory, NOW_S + 3)
    assert [type(action) for action in second.actions] == [Start], "no back-off"
    memory = second.memory["orders-0-7"]
    assert (memory.restarts, memory.owed, memory.delay_s, memory.healed) == (2, False, 4.0, 1)
    assert (second.observed[0].restarts, second.observed[0].healed) == (2, 1)
    assert second.observed[0].reason == "its Bento had lost NATS for good"
    third = diff(situation(well()), second.memory, NOW_S + 4)
    assert (third.actions, third.observed[0].phase, third.observed[0].healed) == ((), Phase.READY, 1)
    crashed = diff(situation(stuck(life=Life.EXITED, exit={"code": 2})), third.memory, NOW_S + 9)
    assert crashed.memory["orders-0-7"].owed, "the next end is its own again"


@pytest.mark.parametrize(
    ("reachable_s", "wake_s"), [(None, None), (0.0, 2.0), (1.5, 0.5)], ids=["away", "just back", "back for 1.5 s"]
)
def test_not_before_nats_has_been_back_for_a_while(reachable_s: float | None, wake_s: float | None) -> None:
    decision = diff(situation(stuck(), reachable_s=reachable_s), alive(stuck()), NOW_S)
    assert (decision.actions, decision.wake_s, decision.observed[0].phase) == ((), wake_s, Phase.READY)


def test_who_is_not_stuck_is_not_touched() -> None:
    decision = diff(situation(stuck(0), well(1)), alive(stuck(0), well(1)), NOW_S)
    assert [action.subject.execution for action in decision.actions] == ["orders-0-7"]


def test_a_few_at_a_time_until_all_are_well() -> None:
    ill, healed, memory = {f"orders-{n}-7": n for n in range(11)}, set[str](), alive(*map(stuck, range(11)))
    rounds = 0
    while len(healed) < len(ill):
        rounds += 1
        has = [well(n) if name in healed else stuck(n) for name, n in ill.items()]
        stopping = diff(situation(*has), memory, NOW_S + rounds)
        names = {action.subject.execution for action in stopping.actions}
        assert 0 < len(names) <= heal.AT_ONCE
        busy = {action.subject.execution: action for action in stopping.actions}
        assert diff(situation(*has, busy=busy), stopping.memory, NOW_S + rounds).actions == (), "nobody else meanwhile"
        has = [stuck(one.slot, Life.EXITED) if one.execution in names else one for one in has]
        starting = diff(situation(*has), stopping.memory, NOW_S + rounds)
        assert {action.subject.execution for action in starting.actions if isinstance(action, Start)} == names
        healed |= names
        memory = dict(starting.memory)
    assert rounds == 3


def test_a_stop_that_failed_is_tried_again_later() -> None:
    first = diff(situation(stuck()), alive(stuck()), NOW_S)
    memory = {n: restarts.hindered(one, "stop", "engine", "no answer", NOW_S) for n, one in first.memory.items()}
    second = diff(situation(stuck()), memory, NOW_S + 0.1)
    assert second.actions == ()
    assert second.wake_s == pytest.approx(0.9)
    third = diff(situation(stuck()), second.memory, NOW_S + 1.1)
    assert [type(action) for action in third.actions] == [Stop]


def test_one_that_connected_by_itself_meanwhile_is_left_alone() -> None:
    first = diff(situation(stuck()), alive(stuck()), NOW_S)
    second = diff(situation(well()), first.memory, NOW_S + 1)
    assert second.actions == ()
    assert not second.memory["orders-0-7"].healing, "its place is free for another"


def test_what_is_to_stop_anyway_is_stopped_as_ever() -> None:
    paused = replace(FREE, wanted=Wanted.PAUSE)
    decision = diff(situation(stuck(), items=(paused,)), alive(stuck()), NOW_S)
    assert decision.actions == (Stop(decision.actions[0].subject, 21.0),)
    assert not decision.memory["orders-0-7"].healing


def test_a_bound_one_only_if_it_may_start_again() -> None:
    session = Session("a1", BOOT, 3)
    given = situation(stuck(), items=(ITEM,), session=session, granted={"orders-0-7": True})
    assert diff(given, alive(stuck()), NOW_S).actions == (), "the leader has not answered its session"
    assert given.assignment is not None
    answered = replace(given, assignment=replace(given.assignment, session=session))
    assert [type(action) for action in diff(answered, alive(stuck()), NOW_S).actions] == [Stop]


def test_words_of_an_earlier_run_are_not_believed() -> None:
    old = stuck(boot_id="another boot")
    assert diff(situation(old), alive(old), NOW_S).actions == ()


@pytest.mark.parametrize("said", [None, [], "yes", 7, {"since_boot_s": "x"}, {"reason": 7}, {"reason": "why"}])
def test_whatever_a_health_file_says(said: object) -> None:
    known = believed(found(health=health("ready", stuck=said)), BOOT)
    assert known is not None
    assert bool(known.stuck) == isinstance(said, dict)
