"""The checkers bite: each of these defects, put into the product by hand, is found within a few seeds by the checker
that is there for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from agent.core import diff
from runner import fence
from runner.value import replace
from scheduler import passes, roll
from scheduler.core import plan, reconcile, sessions, sheets, timings
from scheduler.core.reconcile import Verdict
from scheduler.core.view import Policy
from shared.keys import JOURNAL
from shared.states import Phase
from shared.store import Write
from tests.sim import world
from tests.sim.run import simulate
from tests.sim.test_model_traces import SEEDS as SEEDS_OF_TRACES
from tests.sim.test_model_traces import TRACES, play
from tests.support.fake_store_state import StoreState

SEEDS = 60  # looked at, from the one on that found it first: that one, unless the simulation draws otherwise by now

Patch = pytest.MonkeyPatch


def drop_the_fence(patch: Patch) -> None:
    """The store accepts a journal whatever it was expected to succeed."""
    apply = StoreState.apply

    def careless(self: StoreState, bucket: str, writes: Any, writer: str, now: float) -> int:
        unfenced = [Write(w.key, w.value, None if w.key == JOURNAL else w.expected) for w in writes]
        return apply(self, bucket, unfenced, writer, now)

    patch.setattr(StoreState, "apply", careless)


def start_before_the_stop_is_confirmed(patch: Patch) -> None:
    """An exclusive execution is replaced as soon as its stop was asked for."""
    patch.setattr(reconcile, "confirmed", lambda *_: True)


def report_a_removal_before_it_is_done(patch: Patch) -> None:
    """An agent leaves out of its report what it is only about to remove."""
    unwanted = diff._unwanted
    patch.setattr(diff, "_unwanted", lambda *known: dataclasses.replace(unwanted(*known), phase=None))


def call_alive_ready(patch: Patch) -> None:
    """An agent takes an execution that lives for one that works."""
    alive = diff._alive
    patch.setattr(diff, "_alive", lambda *known: dataclasses.replace(alive(*known), phase=Phase.READY))


def forget_to_delete_statuses(patch: Patch) -> None:
    """The planner never deletes the status of what is gone."""
    statuses: Any = vars(plan)["statuses"]

    def kept(*known: Any) -> Any:
        return {pipeline: status for pipeline, status in statuses(*known).items() if status is not None}

    patch.setattr(plan, "statuses", kept)


def prefer_another_host(patch: Patch) -> None:
    """The planner moves what runs to where it would place it today."""

    def better(question: Any) -> str | None:
        known = [host for host in question.draft.view.hosts if host < question.live.host]
        return "another host would be nicer" if known else None

    patch.setattr(reconcile, "RULES", (*reconcile.RULES, (Verdict.REPLACE, better)))


def lose_patience(patch: Patch) -> None:
    """Exclusive executions are placed elsewhere as early as shareable ones."""
    patch.setattr(roll, "silent_exclusive_s", lambda _: 4.0)
    patch.setattr(world, "Policy", lambda **known: Policy(silent_exclusive_s=4.0, **known))


def use_serials_twice(patch: Patch) -> None:
    """An execution id without the number of its plan."""
    patch.setattr(sheets, "execution_id", lambda pipeline, slot, _number: f"{pipeline}-{slot}-1")


def never_remove(patch: Patch) -> None:
    """An agent leaves what it no longer should have."""

    def left(_subject: Any, _situation: Any, memory: Any, _now_s: float) -> Any:
        return diff._Look(memory, phase=Phase.STOPPING)

    patch.setattr(diff, "_removal", left)


def say_it_again(patch: Patch) -> None:
    """A plan that is made from its own result is not empty: statuses are written anew in every pass."""
    statuses: Any = vars(plan)["statuses"]

    def chatty(draft: Any, explainer: Any, cases: Any) -> Any:
        found = statuses(draft, explainer, cases)
        for case in cases:
            known = draft.view.statuses.get(case.goal.pipeline)
            if known is not None:
                found.setdefault(case.goal.pipeline, known)
        return found

    patch.setattr(plan, "statuses", chatty)


def be_impatient_by_one_lease(patch: Patch) -> None:
    """The silence after which exclusive executions move is one lease shorter."""
    exact = timings.silent_exclusive_s
    patch.setattr(roll, "silent_exclusive_s", lambda heartbeat: exact(heartbeat) - heartbeat.lease_s)
    patch.setattr(world, "Policy", lambda **known: Policy(silent_exclusive_s=4.0, **known))


def ignore_the_lease(patch: Patch) -> None:
    """A runner looks at its grant only: the lease never ends for it."""
    follow = fence.follow

    def endless(known: Any, permits: Any, now: float) -> Any:
        return replace(follow(known, permits, now), deadline_s=now + 1e6)

    patch.setattr(fence, "follow", endless)


def answer_a_second_agent_at_once(patch: Patch) -> None:
    """Nobody waits for the silence of a predecessor."""
    patch.setattr(sessions, "_may_answer", lambda *_: True)


DEFECTS: list[tuple[Callable[[Patch], None], set[str], int]] = [
    (drop_the_fence, {"chain"}, 3),
    (start_before_the_stop_is_confirmed, {"overlap"}, 8),
    (report_a_removal_before_it_is_done, {"overlap"}, 17),
    (call_alive_ready, {"honesty"}, 0),
    (forget_to_delete_statuses, {"convergence"}, 2),
    (prefer_another_host, {"moves"}, 2),
    (lose_patience, {"overlap", "moves"}, 9),
    (use_serials_twice, {"ids"}, 0),
    (never_remove, {"convergence"}, 0),
    (say_it_again, {"quiet"}, 0),
]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("defect", "checkers", "first"), DEFECTS, ids=[defect.__name__ for defect, _, _ in DEFECTS])
def test_the_simulation_finds(
    defect: Callable[[Patch], None], checkers: set[str], first: int, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(passes, "audit", lambda *_: ())  # it would stop most of them, and shall not be what is tested
    defect(monkeypatch)
    for seed in range(first, first + SEEDS):
        if checkers & simulate(seed).checkers:
            print(f"found by seed {seed}")
            return
    pytest.fail(f"{SEEDS} seeds did not find it")


TRACED: list[tuple[Callable[[Patch], None], str]] = [
    (be_impatient_by_one_lease, "host cut off, both ways"),
    (ignore_the_lease, "agent frozen"),
    (answer_a_second_agent_at_once, "V2: the predecessor of the predecessor"),
]


@pytest.mark.parametrize(("defect", "trace"), TRACED, ids=[defect.__name__ for defect, _ in TRACED])
def test_a_written_trace_finds(defect: Callable[[Patch], None], trace: str, monkeypatch: Patch) -> None:
    """What random runs find only now and then; with the rule in place the same trace is safe (test_model_traces)."""
    monkeypatch.setattr(passes, "audit", lambda *_: ())
    defect(monkeypatch)
    result, _ = play(TRACES[trace], SEEDS_OF_TRACES[0])
    assert "overlap" in result.checkers, result.report(lines=60)
