"""First step: how alive each host is, in one word, from its silence alone.

    ALIVE ── silent_shareable ──> SILENT ── silent_exclusive ──> LOST
      ^─────────────── any heartbeat ─────────────────────────────┘

Silence is a duration that somebody else counted in pulses (design section 6); nothing here knows a clock. The two
thresholds are two questions. After the first one a second copy does no harm where copies may overlap, so shareable
executions move. After the second one an execution that obeys the host lease has stopped itself, so exclusive ones may
move too. An exclusive execution with `on_partition: continue` obeys no lease: no silence ever releases it, only a
confirmed stop or an operator's `confirm-dead`.

A host that has an assignment but no heartbeat key (deleted, or never seen by this leader) is as silent as this
leader's term is old. A tombstone in the place of a heartbeat is the end of that session: such a host is LOST.
"""

from __future__ import annotations

from enum import IntEnum

from scheduler.core.view import HostView, Policy, View
from shared.documents import Assigned, Assignment, Session, Stopping


class Liveness(IntEnum):
    """Ordered: what is released at one level stays released at the next."""

    ALIVE = 0
    SILENT = 1
    LOST = 2


def liveness(view: View, policy: Policy, host: str) -> Liveness:
    """How alive `host` is."""
    known = view.hosts.get(host)
    if known is not None and known.heartbeat.dead is not None:
        return Liveness.LOST
    return grade(silence_s(view, host), policy)


def grade(silence: float, policy: Policy) -> Liveness:
    """What a silence of so many seconds means."""
    if silence >= policy.silent_exclusive_s:
        return Liveness.LOST
    return Liveness.SILENT if silence >= policy.silent_shareable_s else Liveness.ALIVE


def silence_s(view: View, host: str) -> float:
    """For how long nobody has been heard on the host's key."""
    known = view.hosts.get(host)
    return view.term_age_s if known is None else known.silence_s


def silence_of_s(known: HostView, identity: Session) -> float:
    """For how long an identity (agent id and boot id) has not been heard on a host's key."""
    return known.heard.get((identity.agent, identity.boot), known.term_age_s)


def released(view: View, policy: Policy, host: str, item: Assigned | Stopping, *, alone: bool) -> bool:
    """Whether the silence of `host` allows another copy of `item` elsewhere. `alone`: the two must never overlap.

    Until the next issue by time alone; then a tombstone has to be accepted first for what is lease-bound.
    """
    alive = liveness(view, policy, host)
    if not alone:
        return alive >= Liveness.SILENT
    if obeys_lease(view, host, item):
        return alive is Liveness.LOST
    intent = view.host_intents.get(host)
    return alive is Liveness.LOST and intent is not None and intent.confirm_dead


def obeys_lease(view: View, host: str, item: Assigned | Stopping) -> bool:
    """Whether an execution surely stops itself when its host's lease ends.

    One that became lease-bound while it ran does so only from the moment its agent has applied that plan: an agent that
    fell silent before lets it run on.
    """
    if not item.lease_bound or item.bound_in == 0:
        return item.lease_bound
    report = view.reports.get(host)
    return report is not None and report.store_id == view.store_id and report.plan >= item.bound_in


def wake_s(view: View, policy: Policy) -> float | None:
    """Seconds until the next threshold is crossed that a plan has to act on, if nobody is heard until then.

    Only hosts with executions count, and hosts whose new session waits for the silence of its predecessor.
    """
    nearest: float | None = None
    for host, assignment in view.assignments.items():
        for wait in _waits(view, policy, host, assignment):
            if wait > 0 and (nearest is None or wait < nearest):
                nearest = wait
    return nearest


def _waits(view: View, policy: Policy, host: str, assignment: Assignment) -> list[float]:
    known = view.hosts.get(host)
    silence = view.term_age_s if known is None else known.silence_s
    waits = []
    if assignment.executions or assignment.stopping:
        edge = policy.silent_shareable_s if silence < policy.silent_shareable_s else policy.silent_exclusive_s
        waits.append(edge - silence)
    if known is not None and assignment.session is not None and assignment.session != known.heartbeat.session:
        waits.append(policy.silent_exclusive_s - silence_of_s(known, assignment.session))
    return waits
