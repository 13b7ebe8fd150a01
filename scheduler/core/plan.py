"""The planner: what has to be written so that the cluster becomes what its users want.

    view ── settle hosts ── goals ── reconcile ── rollout ── moves ── statuses ── split ──> plan
            (liveness,      (what     (verdict     (pace)    (placement,           (commits)
             sessions)       for)      per slot)              all or nothing)

One pure, deterministic function: the same view gives the same bytes, and planning on the result of a plan gives an
empty plan. It knows no clock; time comes in as silence. It runs in a worker thread, so it reads the view and writes
only its own draft.

A scope names what may have changed. It costs what it touches, and gives the plan that a full pass would give: besides
the named pipelines and those on the named hosts it looks at every pipeline that waits for room (`View.waiting`),
because any change may be what that one waits for.

The steps, in the order in which they are read best: `liveness`, `sessions`, `adoption`, `goals`, `reconcile`,
`rollout`, `filters`, `placement`, `moves`, `refusals`, `statuses`, `batches`; then `audit`, which trusts none of them.
"""

from __future__ import annotations

from dataclasses import replace

from scheduler.core.adoption import adopt, barred, slots_given, strangers
from scheduler.core.batches import split
from scheduler.core.filters import need_of
from scheduler.core.goals import Goal, Run, barrier, resolve
from scheduler.core.liveness import wake_s
from scheduler.core.moves import carry_out
from scheduler.core.placement import Seats
from scheduler.core.reconcile import reconcile
from scheduler.core.refusals import Explainer, refused_by
from scheduler.core.rollout import pace
from scheduler.core.sessions import settle_host
from scheduler.core.sheets import Draft
from scheduler.core.statuses import statuses
from scheduler.core.strays import in_the_way, strays
from scheduler.core.view import Plan, Policy, Scope, View
from shared.documents import HostRefusal
from shared.keys import assign_key, version_key


def plan(view: View, policy: Policy, scope: Scope | None = None) -> Plan:
    """What to commit now. `scope` None looks at everything."""
    draft = Draft(view, policy)
    strange, given = strangers(view), slots_given(view)
    for host in _hosts(view, scope):
        if not adopt(draft, host, strange, given):
            settle_host(draft, host)
        if view.damaged and assign_key(host) in view.damaged:
            draft.sheet(host).changed = True
    if draft.adopted:
        # First that, and nothing else; what follows from it is planned when it is there to be seen.
        rest = Scope(frozenset({*draft.adopted, *_pipelines(view, None)}))
        return split(draft, dict, rest, wake_s(view, policy))

    works = []
    barriers = barred(draft, strange)
    straying = strays(draft) if view.straying else {}
    if scope is not None and not (strange | view.straying).isdisjoint(scope.hosts):
        scope = Scope(frozenset(_pipelines(view, None)), scope.hosts)  # what barred them may have changed
    for pipeline in _pipelines(view, scope):
        goal = resolve(view, policy, pipeline)
        why = barriers.get(pipeline, barriers.get("", "")) or in_the_way(view, goal, straying)
        if why:
            goal = barrier(goal, why)
        _forget_pins(draft, goal)
        _repair_pins(draft, goal)
        case = reconcile(draft, goal)
        works.append((case, pace(draft, case)))

    seats = Seats(draft)
    left = carry_out(draft, seats, works)

    explainer = Explainer(seats)
    done = [case for case, _ in works if case.goal.pipeline not in left]
    # A stranger that is answered bars nothing any more, once that is there to be seen.
    again = left if strange.isdisjoint(draft.sheets) else {*left, *_pipelines(view, None)}
    return split(draft, lambda: statuses(draft, explainer, done), Scope(frozenset(again)), wake_s(view, policy))


def explain(view: View, policy: Policy, pipeline: str) -> tuple[HostRefusal, ...]:
    """Why each host cannot take one more execution of a pipeline now, nearest first; hosts that can are left out.

    For `shoal describe`, when there are more hosts than a status names.
    """
    goal = resolve(view, policy, pipeline)
    if not isinstance(goal.wish, Run):
        return ()
    seats = Seats(Draft(view, policy))
    return refused_by(seats, need_of(goal.wish.record, goal.wish.pin))


def _hosts(view: View, scope: Scope | None) -> list[str]:
    return sorted(view.hosts.keys() | view.assignments.keys() | view.unanswered if scope is None else scope.hosts)


def _pipelines(view: View, scope: Scope | None) -> list[str]:
    if scope is None:
        everything = view.records.keys() | view.places.keys() | view.statuses.keys() | view.pins_of.keys()
        return sorted(everything)
    found = set(scope.pipelines)
    for host in scope.hosts:
        assignment = view.assignments.get(host)
        if assignment is not None:
            found.update(item.pipeline for item in assignment.executions)
            found.update(item.pipeline for item in assignment.stopping)
    if found or scope.hosts:
        found |= view.waiting
    return sorted(found)


def _forget_pins(draft: Draft, goal: Goal) -> None:
    if goal.deleted:
        for version in sorted(draft.view.pins_of.get(goal.pipeline, ())):
            draft.pins[goal.pipeline, version] = None


def _repair_pins(draft: Draft, goal: Goal) -> None:
    """Write again what somebody else has written over."""
    view = draft.view
    if not view.damaged or goal.deleted or goal.pipeline in draft.policy.hold:
        return
    for version in sorted(view.pins_of.get(goal.pipeline, ())):
        if version_key(goal.pipeline, version) in view.damaged:
            known = view.pins[goal.pipeline, version]
            draft.pins[goal.pipeline, version] = replace(known, store_id=view.store_id, term=view.term)
