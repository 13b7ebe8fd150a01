"""First step: how alive each host is, in one word, from its silence alone; and what that releases.

    ALIVE ── silent_shareable ──> SILENT ── silent_exclusive ──> LOST ── tombstone ──> its lease-bound work may move
      ^─────────────── any heartbeat ─────────────────────────────┘

Silence is a duration that somebody else counted in pulses; nothing here knows a clock. The two
thresholds are two questions. After the first one a second copy does no harm where copies may overlap, so shareable
executions move. After the second one, which is each host's own (`timings`), an execution that obeys the host lease has
stopped itself. It could be started again by an agent that returns at this very moment, so it moves only when the
session is dead as well: the tombstone was stored over the last heartbeat, and no other of that session can follow. A
plan asks for the tombstone (`tombstone_due`); that it is there is learned from the hosts watch and nowhere else.

An exclusive execution with `on_partition: continue` obeys no lease: no silence ever releases it, only a confirmed stop
or an operator's `confirm-dead` of that session.

A tombstone alone releases nothing: its writer's silence is not this leader's. So one that a deposed leader wrote does
no harm. It was stored over a heartbeat that nobody has followed, so at worst the agent begins a new session; and this
leader counts its own full silence from zero before it believes that the old one has ended.

A host whose key was deleted is silent since then, and one that was never seen for as long as this leader's term is old.
Its tombstone makes the key anew, and its silence is counted from there: nobody knows when its last heartbeat was.
"""

from __future__ import annotations

from enum import IntEnum

from scheduler.core.view import HostView, Policy, Tombstone, View
from shared.documents import Assigned, Assignment, Session, Stopping


class Liveness(IntEnum):
    """Ordered: what is released at one level stays released at the next."""

    ALIVE = 0
    SILENT = 1
    LOST = 2


def liveness(view: View, policy: Policy, host: str) -> Liveness:
    """How alive `host` is."""
    known = view.hosts.get(host)
    level = grade(silence_s(view, host), policy, silent_exclusive_s(view, policy, host))
    return max(level, Liveness.SILENT) if known is not None and known.heartbeat.dead is not None else level


def grade(silence: float, policy: Policy, exclusive_s: float) -> Liveness:
    """What a silence of so many seconds means for a host whose lease-bound work has ended after `exclusive_s`."""
    if silence >= exclusive_s:
        return Liveness.LOST
    return Liveness.SILENT if silence >= policy.silent_shareable_s else Liveness.ALIVE


def silence_s(view: View, host: str) -> float:
    """For how long nobody has been heard on the host's key."""
    known = view.hosts.get(host)
    if known is not None:
        return known.silence_s
    gone = view.gone.get(host)
    return view.term_age_s if gone is None else gone.silence_s


def silence_of_s(known: HostView, identity: Session) -> float:
    """For how long an identity (agent id and boot id) has not been heard on a host's key."""
    return known.heard.get((identity.agent, identity.boot), known.term_age_s)


def silent_exclusive_s(view: View, policy: Policy, host: str) -> float:
    """The silence after which nothing lease-bound runs on a host any more."""
    known = view.hosts.get(host)
    said = None if known is None else known.silent_exclusive_s
    return fallback_s(view, policy) if said is None else said


def silent_exclusive_of_s(view: View, policy: Policy, known: HostView, identity: Session) -> float:
    """The same of one identity; of one that this leader has never heard, the longest that it knows."""
    said = known.silent_exclusive_of.get((identity.agent, identity.boot))
    return fallback_s(view, policy) if said is None else said


def fallback_s(view: View, policy: Policy) -> float:
    """For a host of which nothing is known."""
    return max(view.silent_exclusive_s, policy.silent_exclusive_s)


def ended(view: View, policy: Policy, known: HostView, before: Session) -> bool:
    """Whether nothing lease-bound of a session's identity runs any more: it has been silent for its own time. A
    tombstone makes that no shorter: it stops new heartbeats, not what an earlier one allowed."""
    return silence_of_s(known, before) >= silent_exclusive_of_s(view, policy, known, before)


def released(view: View, policy: Policy, host: str, item: Assigned | Stopping, *, alone: bool) -> bool:
    """Whether the silence of `host` allows another copy of `item` elsewhere. `alone`: the two must never overlap."""
    alive = liveness(view, policy, host)
    if host in view.outage and not given_up(view, host):
        return False
    if not alone:
        return alive >= Liveness.SILENT
    if alive is not Liveness.LOST:
        return False
    if obeys_lease(view, host, item):
        known = view.hosts.get(host)
        return known is not None and known.heartbeat.dead is not None and _predecessor_ended(view, policy, host)
    return confirmed_dead(view, host)


def tombstone_due(view: View, policy: Policy, host: str, item: Assigned | Stopping) -> Tombstone | None:
    """The tombstone that has to be written before `item`, which must run alone, can be placed elsewhere; None: it is
    there already, or it is too early, or it would not help."""
    if liveness(view, policy, host) is not Liveness.LOST or not obeys_lease(view, host, item):
        return None
    if host in view.outage and not given_up(view, host):
        return None
    known = view.hosts.get(host)
    if known is None:
        document, gone = view.assignments.get(host), view.gone.get(host)
        if document is None or document.session is None:
            return None
        return Tombstone(host, document.session, 0 if gone is None else gone.revision, None)
    if known.heartbeat.dead is not None or not _predecessor_ended(view, policy, host):
        return None
    return Tombstone(host, known.heartbeat.session, known.revision, known.heartbeat)


def predecessor(view: View, policy: Policy, host: str) -> Session | None:
    """Who reported last on a host without a document, if somebody else is heard under its name by now and what the
    first one ran may run on. The document that would name the first one is lost; its report is what is left."""
    known, report = view.hosts.get(host), view.reports.get(host)
    if host in view.assignments or known is None or report is None or not report.executions:
        return None
    before, now = report.session, known.heartbeat.session
    same = (before.agent, before.boot) == (now.agent, now.boot)
    return None if same or ended(view, policy, known, before) else before


def _predecessor_ended(view: View, policy: Policy, host: str) -> bool:
    """Whether the session that the host's document names has ended too; another one may have been heard last."""
    known, document = view.hosts[host], view.assignments.get(host)
    before = None if document is None else document.session
    return before is None or ended(view, policy, known, before)


def confirmed_dead(view: View, host: str) -> bool:
    """Whether an operator has said that the session which the host's document names (if none: that was heard last)
    runs nothing any more, and it has not been heard since: that one is silent again later is news that nobody has
    spoken of."""
    intent, document, known = view.host_intents.get(host), view.assignments.get(host), view.hosts.get(host)
    if intent is None or not intent.confirm_dead:
        return False
    beat = None if known is None else known.heartbeat
    session = None if beat is None else beat.session
    if document is not None and document.session is not None:
        session = document.session
    if intent.session is None or (document is None and beat is None):
        return True
    heard = beat is not None and beat.session == intent.session and 0 < intent.sequence < beat.sequence
    return intent.session == session and not heard


def all_ended(view: View, policy: Policy, host: str) -> bool:
    """Whether what a host tells of and no document names has ended too. Nobody knows what of it obeys a lease, so no
    silence ends it, and no word that the host is to be forgotten, or that an agent which was there before is dead."""
    intent, known = view.host_intents.get(host), view.hosts.get(host)
    if intent is None or known is None or intent.session not in (None, known.heartbeat.session):
        return False
    return liveness(view, policy, host) is Liveness.LOST and confirmed_dead(view, host)


def given_up(view: View, host: str) -> bool:
    """Whether an operator has said that a host is gone."""
    intent = view.host_intents.get(host)
    return (intent is not None and intent.forget) or confirmed_dead(view, host)


def obeys_lease(view: View, host: str, item: Assigned | Stopping) -> bool:
    """Whether an execution surely stops itself when its host's lease ends.

    One that became lease-bound while it ran does so only from the moment its agent has applied that plan: an agent that
    fell silent before lets it run on, and what another agent of that name has applied says nothing of it.
    """
    if not item.lease_bound or item.bound_in == 0:
        return item.lease_bound
    report, document = view.reports.get(host), view.assignments.get(host)
    return (
        report is not None
        and document is not None
        and document.session is not None
        and (report.session.agent, report.session.boot) == (document.session.agent, document.session.boot)
        and report.store_id == view.store_id
        and report.plan >= item.bound_in
    )


def wake_s(view: View, policy: Policy) -> float | None:
    """Seconds until the next threshold is crossed that a plan has to act on, if nobody is heard until then.

    Only hosts with executions count, and hosts whose new session waits for the silence of its predecessor.
    """
    nearest: float | None = None
    for host, assignment in view.assignments.items():
        for wait in _waits(view, policy, host, assignment):
            if wait > 0 and (nearest is None or wait < nearest):
                nearest = wait
    for host in view.unanswered:
        before = predecessor(view, policy, host)
        if before is not None:
            known = view.hosts[host]
            wait = silent_exclusive_of_s(view, policy, known, before) - silence_of_s(known, before)
            nearest = wait if nearest is None else min(wait, nearest)
    return nearest


def _waits(view: View, policy: Policy, host: str, assignment: Assignment) -> list[float]:
    known = view.hosts.get(host)
    silence = silence_s(view, host)
    waits = []
    if assignment.executions or assignment.stopping:
        shareable = silence < policy.silent_shareable_s
        waits.append((policy.silent_shareable_s if shareable else silent_exclusive_s(view, policy, host)) - silence)
    if known is not None and assignment.session is not None and assignment.session != known.heartbeat.session:
        before = assignment.session
        waits.append(silent_exclusive_of_s(view, policy, known, before) - silence_of_s(known, before))
    return waits
