"""Executions that nobody commands: hosts tell of them, no document of this store names them.

An agent that lost its state while the control stream was lost too obeys no store when it is back, and what it finds is
of one that this store does not know or was not accepted for. As long as that runs, nothing may be placed beside it that
must not overlap with it.

    an agent that obeys no store
        has not said what it has  its host is not answered; what its last report names stands for it
        has said it               it is answered
    strays of other stores        their pipelines wait for `shoal store accept`, or for their end
    of stores accepted just now   the document that says so asks the agent to stop them; from then on that one tells
    found later                   their pipelines wait until the agent has removed them

    more than a heartbeat holds   everything waits, for nobody knows of what the others are. An accepted store's are
                                  stopped all the same: that makes room in the heartbeat for the others

Only what would overlap waits: of a pipeline that runs, slots that exist, and never where both copies may overlap.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from scheduler.core.goals import Goal, Run
from scheduler.core.liveness import Liveness, all_ended
from scheduler.core.sessions import accepted
from scheduler.core.sheets import Draft
from scheduler.core.view import NOTHING, View
from shared.documents import STRAYS_MAX, Pin, Stopping, Stray
from shared.record import MEMORY_DEFAULT_BYTES
from shared.states import Overlap

Found = Mapping[str, list[tuple[str, Stray]]]  # hosts with what strays there, by pipeline


def must_tell(view: View, host: str) -> bool:
    """Whether a host is not to be answered before its agent has said what it finds."""
    known = view.hosts.get(host)
    if known is None or known.heartbeat.store_id or host in view.assignments:
        return False
    told, unknown = view.straying.get(host, NOTHING)
    ours = {view.store_id, *accepted(view)}
    stoppable = overfull(view, host) and any(stray.store_id in ours for stray in told)
    return bool(unknown) and not stoppable


def overfull(view: View, host: str) -> bool:
    """Whether a host may have strays that it will not tell of before others are gone."""
    told, unknown = view.straying.get(host, NOTHING)
    return bool(unknown) and len(told) >= STRAYS_MAX


def take_off_strays(draft: Draft, host: str) -> None:
    """Make stops of the strays on a host, in the very document with which its agent gets to know that they are its own:
    what it may not touch cannot be asked of it earlier, and later its word and the document could cross."""
    view, sheet = draft.view, draft.sheets.get(host)
    if sheet is None or sheet.forgotten or host not in view.straying:
        return
    base = view.assignments.get(host)
    ours = {view.store_id, *sheet.accepted} if base is None else {*sheet.accepted} - {*base.accepted}
    known = [stray for stray in _of(view, host) if stray.store_id in ours]
    for stray in known:
        draft.adopted.setdefault(stray.pipeline, [])  # it is in nobody's way any more, or is being stopped
    named = sheet.executions.keys() | sheet.stopping.keys()
    ended = [stray for stray in known if stray.execution not in named]
    for stray in ended:
        pin = _pin(view, stray)
        sheet.stopping[stray.execution] = Stopping(
            execution=stray.execution,
            pipeline=stray.pipeline,
            slot=stray.slot,
            version=stray.version,
            overlap=Overlap.EXCLUSIVE if pin is None else pin.overlap,
            cpu=0.0 if pin is None else pin.cpu,
            memory_bytes=MEMORY_DEFAULT_BYTES if pin is None else pin.memory_bytes,
            asked_of=None,
            asked_in=0,
            reason=f"{host} was found with it, and its agent does not know it",
            lease_bound=False,  # nobody knows
        )
        sheet.asked.add(stray.execution)
        sheet.changed = True
    if ended:
        draft.count("found executions of a store that was lost", len(ended))
        draft.event("host-adopted", host, f"{host} is taken over; {len(ended)} executions that it does not know end")


def strays(draft: Draft) -> Found:
    """All that hosts tell of and no document names; under "" one for each host that has more."""
    found: dict[str, list[tuple[str, Stray]]] = {}
    for host in sorted(draft.view.straying):
        if not all_ended(draft.view, draft.policy, host):
            for stray in _of(draft.view, host):
                found.setdefault(stray.pipeline, []).append((host, stray))
            if overfull(draft.view, host):
                ours = {draft.view.store_id, *accepted(draft.view)}
                told = min(draft.view.straying[host][0], key=lambda stray: stray.store_id in ours)
                found.setdefault("", []).append((host, told))
    return found


def in_the_way(draft: Draft, goal: Goal, found: Found) -> str:
    """Why nothing of a pipeline may be placed now, "" if it may."""
    view, wish = draft.view, goal.wish
    if not isinstance(wish, Run):
        return ""
    for host, stray in found.get(goal.pipeline, ()):
        pin = _pin(view, stray)
        shared = pin is not None and pin.overlap is wish.pin.overlap is Overlap.SHAREABLE
        if stray.slot < wish.replicas and not shared:
            return f"{stray.execution} may run on {host}{_until(draft, host, stray)}"
    for host, stray in found.get("", ()):
        return f"more may run on {host} than it can tell of, such as {stray.execution}{_until(draft, host, stray)}"
    return ""


def unpinned(view: View) -> Iterator[tuple[str, str, str]]:
    """The versions of strays that no pin explains."""
    for host in view.straying:
        for stray in _of(view, host):
            if stray.digest and _pinned(view, stray) is None:
                yield stray.pipeline, stray.version, stray.digest


def _of(view: View, host: str) -> Iterator[Stray]:
    document, report = view.assignments.get(host), view.reports.get(host)
    told, unknown = view.straying[host]
    named: set[str] = set()
    if document is not None:
        named.update(item.execution for item in document.executions)
        named.update(item.execution for item in document.stopping)
    for stray in told:
        # Ids are a store's own: one that was not accepted may have given the same.
        known = document is not None and (
            stray.store_id == view.store_id or (stray.store_id in document.accepted and stray.execution in named)
        )
        if not known:
            yield stray
    if unknown and document is None and report is not None and not view.hosts[host].heartbeat.store_id:
        for seen in report.executions:
            yield Stray(
                store_id=report.store_id,
                execution=seen.execution,
                pipeline=seen.pipeline,
                slot=seen.slot,
                version=seen.version,
                digest=seen.digest,
            )


def _until(draft: Draft, host: str, stray: Stray) -> str:
    """What ends it. Of a host that is not heard that is an operator's word on the host: no other reaches its agent."""
    view, (told, unknown) = draft.view, draft.view.straying[host]
    silent = draft.alive(host) is not Liveness.ALIVE
    dead = f"; {host} is silent; if it is dead: shoal hosts forget {host} --confirm-dead" if silent else ""
    if unknown and stray not in told:
        return f", which does not tell: {unknown}{dead}"
    if stray.store_id in (view.store_id, *accepted(view)):
        untold = f", and it does not tell of all: {unknown}" if must_tell(view, host) else ""
        return f" until its agent has removed it{untold}{dead}"
    accept = f"; if that one is gone for good: shoal store accept {view.store_id} --replaces {stray.store_id}"
    return f" under store {stray.store_id}, which it does not obey{dead or accept}"


def _pin(view: View, stray: Stray) -> Pin | None:
    """What a stray is, if anything says so."""
    return _pinned(view, stray) or view.found.get((stray.pipeline, stray.version, stray.digest))


def _pinned(view: View, stray: Stray) -> Pin | None:
    pin = view.pins.get((stray.pipeline, stray.version))
    return pin if pin is not None and pin.digest == stray.digest else None
