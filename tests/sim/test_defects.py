"""The checkers bite: each of these defects, put into the product by hand, is found within a few seeds by the checker
that is there for it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import pytest

from agent import instructions
from agent.core import admit, diff, session
from agent.core.situation import Situation
from agent.grants import Grants
from runner import fence
from runner.value import replace
from scheduler import passes, roll
from scheduler.catchup import CatchUp
from scheduler.core import liveness, plan, reconcile, sessions, sheets, timings
from scheduler.core.reconcile import Verdict
from scheduler.core.view import Policy
from scheduler.tally import Tally
from shared.keys import JOURNAL
from shared.states import Phase
from shared.store import Write
from tests.sim import world
from tests.sim.run import simulate
from tests.sim.test_model_traces import SEEDS as SEEDS_OF_TRACES
from tests.sim.test_model_traces import TRACES
from tests.sim.traces import play
from tests.support.fake_store import FakeStore
from tests.support.fake_store_state import StoreState

SEEDS = 60  # looked at, from the one on that found it first: that one, unless the simulation draws otherwise by now

Patch = pytest.MonkeyPatch


def drop_the_fence(patch: Patch) -> None:
    """The store accepts a commit whatever it was expected to succeed."""
    apply = StoreState.apply

    def careless(self: StoreState, bucket: str, writes: Any, writer: str, now: float) -> int:
        unfenced = [
            Write(w.key, w.value, None if w.key == JOURNAL or w.key.startswith("term.") else w.expected) for w in writes
        ]
        return apply(self, bucket, unfenced, writer, now)

    patch.setattr(StoreState, "apply", careless)


def forget_which_term_it_is(patch: Patch) -> None:
    """The store accepts the key of a term whatever it was expected to succeed: revisions alone tell streams apart."""
    apply = StoreState.apply

    def careless(self: StoreState, bucket: str, writes: Any, writer: str, now: float) -> int:
        unfenced = [Write(w.key, w.value, None if w.key.startswith("term.") else w.expected) for w in writes]
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


def write_no_tombstones(patch: Patch) -> None:
    """What obeys a lease moves after the silence, whether its host is there again or not."""
    released = liveness.released

    def early(view: Any, policy: Any, host: str, item: Any, *, alone: bool) -> bool:
        lost = liveness.liveness(view, policy, host) is liveness.Liveness.LOST
        return released(view, policy, host, item, alone=alone) or (lost and item.lease_bound)

    patch.setattr(sheets, "released", early)
    patch.setattr(sheets, "tombstone_due", lambda *_: None)


def write_tombstones_over_whatever_is_there(patch: Patch) -> None:
    """A tombstone without a compare-and-set. No second copy follows from it, for a leader believes only what its watch
    shows, and counts from there; but a host that is heard loses its session."""
    write = FakeStore.write

    async def careless(self: FakeStore, bucket: str, key: str, value: Any, **options: Any) -> int:
        if value is not None and b'"dead":{' in value:
            options["expected"] = None
        return await write(self, bucket, key, value, **options)

    patch.setattr(FakeStore, "write", careless)


def leave_grants(patch: Patch) -> None:
    """An agent stops and reports without taking grants away."""
    patch.setattr(Grants, "_revoke", lambda *_: None)


def ignore_sessions_in_grants(patch: Patch) -> None:
    """A grant is good under whatever session the lease is, and it goes on through them all."""
    patch.setattr(fence, "_session", lambda _: ("", "", 0))
    patch.setattr(Grants, "revoke_bound", lambda _: None)


def start_under_any_session(patch: Patch) -> None:
    """An agent does not look at whom its assignment answers."""
    patch.setattr(Situation, "answered", property(lambda self: self.session is not None))


def count_the_lease_from_the_acknowledgement(patch: Patch) -> None:
    """A lease begins when the answer is read."""
    settle = session.settle

    def late(state: Any, outcome: Any, lease_s: float, now_s: float) -> Any:
        if isinstance(outcome, session.Acknowledged):
            outcome = dataclasses.replace(outcome, sent_s=now_s)
        return settle(state, outcome, lease_s, now_s)

    patch.setattr(session, "settle", late)


def obey_older_plans(patch: Patch) -> None:
    """An agent does what it reads."""

    def any_plan(host: str, current: Any, document: Any) -> Any:
        if document is None or (current is not None and document == current.assignment):
            return admit.Unchanged()
        return admit.Admit(admit.Admitted(assignment=document))

    patch.setattr(instructions, "admit", any_plan)


def remember_old_silences(patch: Patch) -> None:
    """A leader goes on counting where it, or a list, interrupted."""
    patch.setattr(roll.Roll, "zero", lambda *_, **__: None)


def count_by_the_clock(patch: Patch) -> None:
    """Silence is time since the last heartbeat that was seen."""
    seen: dict[tuple[int, Any], float] = {}

    def note(self: Any, key: Any) -> None:
        seen[id(self), key] = asyncio.get_running_loop().time()

    hear, meet = Tally.hear, Tally.meet

    def hears(self: Any, key: Any) -> None:
        note(self, key)
        hear(self, key)

    def meets(self: Any, key: Any) -> None:
        if (id(self), key) not in seen:
            note(self, key)
        meet(self, key)

    def silence_s(self: Any, key: Any) -> float:
        return asyncio.get_running_loop().time() - seen[id(self), key]

    patch.setattr(Tally, "hear", hears)
    patch.setattr(Tally, "meet", meets)
    patch.setattr(Tally, "silence_s", silence_s)


def believe_a_first_list(patch: Patch) -> None:
    """A list is complete when the client says so, which it now and then says at once."""
    list_ = FakeStore._list

    async def hasty(self: FakeStore, bucket: str, watch: Any) -> Any:
        found = await list_(self, bucket, watch)
        return found if self._chance.random() < 0.8 else dataclasses.replace(found, entries={}, deleted={})

    patch.setattr(FakeStore, "_list", hasty)


def keep_execution_ids(patch: Patch) -> None:
    """A new agent goes on with the executions of its predecessor."""
    patch.setattr(sheets.Draft, "take_off", _take_off_but_for_new_agents(sheets.Draft.take_off))


def _take_off_but_for_new_agents(take_off: Any) -> Any:
    def kept(self: Any, host: str, execution: str, reason: str) -> None:
        if "has a new agent" not in reason:
            take_off(self, host, execution, reason)

    return kept


def follow_any_lease(patch: Patch) -> None:
    """A runner's deadline is that of the lease file, whosever it is."""
    follow = fence.follow

    def other(known: Any, permits: Any, now: float) -> Any:
        found = follow(known, permits, now)
        return found if isinstance(permits.lease, str) else replace(found, deadline_s=permits.lease.deadline_s)

    patch.setattr(fence, "follow", other)


def write_over_strangers(patch: Patch) -> None:
    """An agent that reads a tombstone only asks whether it is its own."""
    observe = session.observe

    def careless(state: Any, seen: Any) -> Any:
        if isinstance(seen, session.Tombstone) and seen.dead != state.session:
            return session.Turn(session.Holding(state.session, seen.revision, state.deadline_s))
        return observe(state, seen)

    patch.setattr(session, "observe", careless)


def compare_numbers_of_different_stores(patch: Patch) -> None:
    """An accepted store has to count on from where the lost one was."""
    other = admit._other_store

    def counted(current: Any, document: Any) -> Any:
        known = current.assignment
        if (document.term, document.plan) < (known.term, known.plan):
            return admit.Reject("it is older")
        return other(current, document)

    patch.setattr(admit, "_other_store", counted)


def look_for_no_strays(patch: Patch) -> None:
    """What heartbeats tell of executions that no store commands is not listened to."""
    patch.setattr(plan, "strays", lambda _: {})
    patch.setattr(plan, "take_off_strays", lambda *_: None)


def lead_with_what_is_there(patch: Patch) -> None:
    """A new leader plans from what it has read so far."""
    patch.setattr(CatchUp, "behind", lambda *_: ())


def begin_without_grants(patch: Patch) -> None:
    """An agent that starts takes away what the one before has granted."""
    adopt = Grants.adopt

    def careless(self: Grants, accepted: frozenset[str], unanswered: Collection[str] = ()) -> None:
        adopt(self, accepted, unanswered)
        self.revoke_all()

    patch.setattr(Grants, "adopt", careless)


def have_one_thread(patch: Patch) -> None:
    """A scheduler renews its lease in the thread that plans."""
    for name in ("begin", "end"):
        patch.setattr(world.World, name, _of_the_whole_process(getattr(world.World, name)))


def _of_the_whole_process(happens: Any) -> Any:
    async def also_to_the_other_thread(self: Any, fault: Any) -> None:
        await happens(self, dataclasses.replace(fault, how="" if fault.how == "main" else fault.how))

    return also_to_the_other_thread


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
    (believe_a_first_list, {"convergence", "moves", "alarms", "process"}, 0),
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
        if checkers & simulate(seed, accidental=False).checkers:
            print(f"found by seed {seed}")
            return
    pytest.fail(f"{SEEDS} seeds did not find it")


TRACED: list[tuple[Callable[[Patch], None], str, str]] = [
    (be_impatient_by_one_lease, "host cut off, both ways", "overlap"),
    (ignore_the_lease, "agent frozen", "overlap"),
    (answer_a_second_agent_at_once, "V2: the predecessor of the predecessor", "overlap"),
    (write_over_strangers, "behind a stranger's tombstone", "overlap"),
    (follow_any_lease, "V4: the lease of another session", "overlap"),
    (keep_execution_ids, "V5: a start that is forgotten", "overlap"),
    (write_no_tombstones, "a heartbeat after the silence", "overlap"),
    (start_under_any_session, "back behind its tombstone", "overlap"),
    (count_the_lease_from_the_acknowledgement, "acknowledged late", "overlap"),
    (leave_grants, "started late", "overlap"),
    (ignore_sessions_in_grants, "started in a session that is over", "overlap"),
    (obey_older_plans, "read from a deposed server", "overlap"),
    (remember_old_silences, "led before", "overlap"),
    (count_by_the_clock, "hosts out of sight", "tombstones"),
    (compare_numbers_of_different_stores, "taken over by another store", "convergence"),
    (look_for_no_strays, "found by a new agent", "overlap"),
    (forget_which_term_it_is, "made anew in the middle of a commit", "chain"),
    (lead_with_what_is_there, "read late", "simulation"),
    (begin_without_grants, "agent away for a second", "restarts"),
    (have_one_thread, "a leader that computes", "simulation"),
    (write_tombstones_over_whatever_is_there, "a heartbeat after the silence", "tombstones"),
]


@pytest.mark.parametrize(("defect", "trace", "checker"), TRACED, ids=[defect.__name__ for defect, _, _ in TRACED])
def test_a_written_trace_finds(defect: Callable[[Patch], None], trace: str, checker: str, monkeypatch: Patch) -> None:
    """What random runs find only now and then; with the rule in place the same trace is safe (test_model_traces)."""
    monkeypatch.setattr(passes, "audit", lambda *_: ())
    defect(monkeypatch)
    result, _ = play(TRACES[trace], SEEDS_OF_TRACES[0])
    assert checker in result.checkers, result.report(lines=60)
