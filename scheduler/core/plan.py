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

from collections.abc import Set
from dataclasses import replace

from scheduler.core.adoption import adopt, barred, reported_s, slots_given, strangers
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
from scheduler.core.strays import in_the_way, overfull, strays, take_off_strays
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
        take_off_strays(draft, host)
        if view.damaged and assign_key(host) in view.damaged:
            draft.sheet(host).changed = True
    if draft.adopted:
        # First that, and nothing else; what follows from it is planned when it is there to be seen.
        rest = Scope(frozenset({*draft.adopted, *_pipelines(view, None)}), frozenset(strange))
        return split(draft, dict, rest, _soonest(view, policy))

    works = []
    barriers = barred(draft, strange)
    straying = strays(draft) if view.straying else {}
    if scope is not None:
        scope = _with_barred(view, scope, strange | {host for host in view.straying if overfull(view, host)})
    for pipeline in _pipelines(view, scope):
        goal = resolve(view, policy, pipeline)
        why = barriers.get(pipeline, barriers.get("", "")) or in_the_way(draft, goal, straying)
        if why and _known(view, pipeline):
            goal = barrier(goal, why)
        _forget_pins(draft, goal)
        _repair_pins(draft, goal)
        case = reconcile(draft, goal)
        works.append((case, pace(draft, case)))

    seats = Seats(draft)
    left = carry_out(draft, seats, works)

    explainer = Explainer(seats)
    done = [case for case, _ in works if case.goal.pipeline not in left]
    again = Scope(frozenset(left))
    if not strange.isdisjoint(draft.sheets):
        # A stranger that is answered bars nothing any more, and no other stranger, once that is there to be seen.
        again = Scope(frozenset({*left, *_pipelines(view, None)}), frozenset(strange))
    return split(draft, lambda: statuses(draft, explainer, done), again, _soonest(view, policy))


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


def _with_barred(view: View, scope: Scope, strange: Set[str]) -> Scope:
    """A scope with the pipelines that its hosts bar, or barred until now: a stranger bars any, a host without a
    document those of its report, as long as who made that may run them, and any host those of its strays."""
    if not strange.isdisjoint(scope.hosts):
        return Scope(frozenset(_pipelines(view, None)), scope.hosts)
    reports = [view.reports[host] for host in scope.hosts & view.unanswered if host in view.reports]
    found = {seen.pipeline for one in reports for seen in one.executions}
    found.update(one.pipeline for host in scope.hosts & view.straying.keys() for one in view.straying[host][0])
    return Scope(scope.pipelines | found, scope.hosts)


def _soonest(view: View, policy: Policy) -> float | None:
    """Seconds until the next silence is one that counts; None: none will."""
    waits = [wait for wait in (wake_s(view, policy), reported_s(view)) if wait is not None]
    return min(waits, default=None)


def _known(view: View, pipeline: str) -> bool:
    """Whether there is anything to say of a pipeline: a pass over everything looks at those only."""
    return any(pipeline in known for known in (view.records, view.places, view.statuses, view.pins_of))


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
