"""Second step: which session a host's document names, and which stops are confirmed.

    heartbeat of session s2, document names s1
        no document, or s1 None          -> answer: the document names s2
        same agent id and boot id        -> answer at once: a lapse of one agent
        another agent id or boot id      -> answer when s1's identity has been silent for its own silent_exclusive; a
                                            tombstone of s1 makes that no shorter
        another agent id, and s1 has an  -> also an operator has to say that s1 is dead: it may be another machine of
        exclusive execution that goes on    that name, and the old one runs on
        through a partition

Until the answer the document goes on naming s1 whatever else changes in it, so nothing can be placed there and no
report of s2 confirms anything: a second agent would confirm a stop of which it knows nothing. The predecessor is
the session that the *document* names, not the one seen last; otherwise a third session could skip the wait.

Answering asks every unconfirmed stop again, of the new session. An answer to another agent id also takes every
exclusive or lease-bound execution off: an agent that lost its memory may not see a runner that its predecessor spawned,
so it must never get an execution id that the predecessor had. They come back with new serials as soon as the new agent
confirms that nothing of them remains; that is one round trip more than renaming them at once, and never overlaps.

Forgetting. A host that an operator forgets is believed gone once it is silent: shareable executions are dropped
without confirmation then, lease-bound ones when it is LOST and its session has a tombstone; exclusive ones that
continue through a partition only on `confirm-dead`, and so what its heartbeat tells of and no document names. When
nothing is left its document is deleted, and then whoever asked for it deletes the heartbeat. Should it come back while
the intent stands it gets an empty document, so that it removes what it still has, and nothing new.
"""

from __future__ import annotations

from scheduler.core.liveness import Liveness, all_ended, confirmed_dead, ended, obeys_lease
from scheduler.core.sheets import Draft
from scheduler.core.view import NOTHING, HostView, View
from shared.documents import Assigned, Session, Stopping
from shared.states import Overlap


def settle_host(draft: Draft, host: str) -> None:
    """Bring the document of one host up to the session it answers, or forget the host."""
    intent = draft.view.host_intents.get(host)
    if intent is not None and intent.forget and draft.alive(host) is not Liveness.ALIVE:
        _forget(draft, host)
        return
    known = draft.view.hosts.get(host)
    if known is not None and draft.alive(host) is Liveness.ALIVE and belongs(draft.view, known):
        _answer(draft, host, known)


def belongs(view: View, known: HostView) -> bool:
    """Whether an agent obeys this store: it has admitted it, none yet, or one that this store was accepted for."""
    admitted = known.heartbeat.store_id
    return admitted in ("", view.store_id) or admitted in accepted(view)


def accepted(view: View) -> tuple[str, ...]:
    """Older store ids whose agents may obey this store, on an operator's word."""
    intent = view.store_intent
    said = (intent.replaces,) if intent is not None and intent.accept == view.store_id else ()
    return (*view.accepted, *(older for older in said if older not in view.accepted))


def confirmed(view: View, host: str, item: Stopping) -> bool:
    """Whether it is proved that nothing of a stopped execution remains on its host."""
    report, document = view.reports.get(host), view.assignments.get(host)
    return (
        report is not None
        and document is not None
        and item.asked_of is not None
        and report.store_id == view.store_id
        and report.session == item.asked_of == document.session
        and report.plan >= item.asked_in
        and not report.problem
        and all(seen.execution != item.execution for seen in report.executions)
    )


def _answer(draft: Draft, host: str, known: HostView) -> None:
    now = known.heartbeat.session
    base = draft.view.assignments.get(host)
    before = None if base is None else base.session
    chain = tuple(sorted({*accepted(draft.view), *(() if base is None else base.accepted)}))
    if base is None or (before != now and _may_answer(draft, known, before)):
        sheet = draft.sheet(host)
        sheet.session = now
        sheet.changed = True
        sheet.asked.update(sheet.stopping)
        if before is not None and before.agent != now.agent:
            unknown = [i for i in sheet.executions.values() if i.lease_bound or i.overlap is Overlap.EXCLUSIVE]
            for item in unknown:
                draft.take_off(host, item.execution, f"{host} has a new agent, which may not know it")
        draft.count("answered a session")
        draft.event("host-answered", host, f"{host} is in session {now}")
    if base is None or chain != base.accepted:
        sheet = draft.sheet(host)
        sheet.accepted = chain
        sheet.changed = True


def _may_answer(draft: Draft, known: HostView, before: Session | None) -> bool:
    now = known.heartbeat.session
    if before is None or (before.agent, before.boot) == (now.agent, now.boot):
        return True
    if before.agent != now.agent and _goes_on(draft.view, known.heartbeat.host):
        return False
    return ended(draft.view, draft.policy, known, before)


def _goes_on(view: View, host: str) -> bool:
    """Whether something that must not overlap may run on the predecessor of this host for ever, for all we know."""
    base = view.assignments[host]
    items: tuple[Assigned | Stopping, ...] = (*base.executions, *base.stopping)
    alone = any(item.overlap is Overlap.EXCLUSIVE and not obeys_lease(view, host, item) for item in items)
    return alone and not confirmed_dead(view, host)


def _forget(draft: Draft, host: str) -> None:
    base = draft.view.assignments.get(host)
    if base is None:
        return
    items: tuple[Assigned | Stopping, ...] = (*base.executions, *base.stopping)
    gone = [item for item in items if draft.released(host, item, alone=item.overlap is Overlap.EXCLUSIVE)]
    for item in gone:
        draft.drop(host, item.execution)
    straying = bool(draft.view.straying.get(host, NOTHING)[0])
    if len(gone) == len(items) and (not straying or all_ended(draft.view, draft.policy, host)):
        sheet = draft.sheet(host)
        sheet.forgotten = sheet.changed = True
        draft.event("host-forgotten", host, f"{host} is forgotten, with {len(items)} executions that it had")
