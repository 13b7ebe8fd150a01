"""Taking over what runs already: how a store that knows nothing of a host's executions gets to know them.

The control stream was lost or went back, and with it every assignment; the hosts run on. The store that is made in its
place has another id. Once an operator has accepted it (`shoal store accept`), each host's own report becomes its first
document: the same executions under the same ids, so that nothing is restarted.

    host obeys no store           a document at once, or when it has said what it finds: see `strays`
    another one, not accepted     it is left alone; what it reports is placed nowhere else
    another one, accepted         its report, whole and of the session that is heard, becomes its document
    this store, without document  the same, if it reports anything

Under a host's name somebody else may be heard by now than who reported last: another machine, or the same one after it
lost its state or was started again. It is answered only when nothing lease-bound of the first one can run any more, and
until then what was reported is placed nowhere else: the rule for predecessors, where the document that names one is
lost.

Two things are never guessed. What a version is comes from its pin or, if that is lost, from the bundle that runs
(`View.found`). And a slot is never adopted twice where two copies may not overlap: the one that its store gave it last
keeps it, the others are asked to stop. Silent hosts are taken over last, from what they said last: where somebody else
has their slot, theirs is the old copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import replace

from scheduler.core.goals import lease_bound
from scheduler.core.liveness import Liveness, predecessor
from scheduler.core.sessions import accepted, belongs
from scheduler.core.sheets import Draft
from scheduler.core.strays import must_tell, unpinned
from scheduler.core.view import View
from shared.documents import Assigned, Observed, Pin, Report, Stopping
from shared.ids import parse_execution
from shared.record import MEMORY_DEFAULT_BYTES
from shared.states import Overlap, Phase, Wanted

Running = tuple[str, str, str]  # (pipeline, version, digest)

REPORTED_S = 75.0  # agents look once a minute whether their report is still there
GRACE_S = 30.0  # to stop an execution of which nothing is known: Bento's default is 20 s and a margin


Slots = Mapping[tuple[str, str, int], int]  # (store, pipeline, slot) -> serial of the execution that got it last


def adopt(draft: Draft, host: str, strange: Set[str], given: Slots) -> bool:
    """Take over what a host without a document runs, if that is to be. True also while it must not be answered yet;
    False: nothing of it is to be taken over. `strange` and `given`: `strangers` and `slots_given` of the view."""
    view = draft.view
    known, report = view.hosts.get(host), view.reports.get(host)
    obeys = _obeys(view, host)
    if predecessor(view, draft.policy, host) is not None:
        return True
    if must_tell(view, host):
        return True
    if host in view.assignments or not obeys or (known is not None and not belongs(view, known)):
        return False
    alive = draft.alive(host) is Liveness.ALIVE
    if obeys == view.store_id:
        intent = view.host_intents.get(host)
        if not alive or report is None or not report.executions or (intent is not None and intent.forget):
            return False
    elif obeys not in accepted(view):
        return False
    if report is None or report.problem or report.store_id != obeys:
        return obeys != view.store_id
    if alive and known is not None and report.session != known.heartbeat.session:
        return obeys != view.store_id
    if not alive and any(draft.alive(other) is Liveness.ALIVE for other in strange if other != host):
        return True
    if obeys != view.store_id and any(name not in view.found for name in unknown(view, report)):
        return True
    _take_over(draft, host, report, given)
    return True


def slots_given(view: View) -> Slots:
    """Who was given each slot last, by the stores that hosts without a document name in their reports."""
    found: dict[tuple[str, str, int], int] = {}
    reports = [view.reports[host] for host in view.unanswered - view.assignments.keys() if host in view.reports]
    for report in reports:
        for seen in report.executions:
            slot = (report.store_id, seen.pipeline, seen.slot)
            found[slot] = max(found.get(slot, 0), parse_execution(seen.execution).serial)
    return found


def barred(draft: Draft, strange: Set[str]) -> dict[str, str]:
    """Pipelines that run on hosts which this store does not command, with what to tell people; "" stands for all: of
    some such host nobody knows what it runs."""
    view = draft.view
    found: dict[str, str] = {}
    for host in sorted(view.unanswered):
        before, report = predecessor(view, draft.policy, host), view.reports.get(host)
        if before is not None and report is not None:
            text = f"waits until what {host} ran as {before} must have stopped: another agent is heard there now"
            found.update({seen.pipeline: text for seen in report.executions})
    for host in sorted(strange):
        report, obeys = view.reports.get(host), _obeys(view, host)
        if report is None and (view.term_age_s >= REPORTED_S or draft.alive(host) is Liveness.LOST):
            continue
        if obeys in accepted(view):
            text = f"waits until what runs on {host} is taken over"
        else:
            remedy = f"if that is meant, take it over: shoal store accept {view.store_id}"
            text = f"it may run on {host}, which obeys store {obeys} and not this one; {remedy}"
        if report is None or report.store_id != obeys:
            found.setdefault("", text)
        for seen in () if report is None else report.executions:
            found.setdefault(seen.pipeline, text)
    return found


def reported_s(view: View) -> float | None:
    """Seconds until a stranger that has not said what it runs bars nothing any more; None: there is none."""
    left_s = REPORTED_S - view.term_age_s
    return left_s if left_s > 0 and not strangers(view) <= view.reports.keys() else None


def wanted(view: View) -> set[Running]:
    """What runs under another store and is not what a version is pinned to: its bundle says what it is."""
    reports = [view.reports[host] for host in strangers(view) if host in view.reports]
    return {name for report in reports for name in unknown(view, report)} | set(unpinned(view))


def unknown(view: View, report: Report) -> Iterator[Running]:
    """The versions in a report that no pin explains."""
    for seen in report.executions:
        pin = view.pins.get((seen.pipeline, seen.version))
        if pin is None or pin.digest != seen.digest:
            yield seen.pipeline, seen.version, seen.digest


def strangers(view: View) -> set[str]:
    """Hosts without a document of this store that obey another one: what they run may bar any pipeline."""
    return {host for host in view.unanswered if _obeys(view, host) not in ("", view.store_id)} - view.assignments.keys()


def _obeys(view: View, host: str) -> str:
    known, report = view.hosts.get(host), view.reports.get(host)
    if known is not None:
        return known.heartbeat.store_id
    return "" if report is None else report.store_id


def _take_over(draft: Draft, host: str, report: Report, given: Slots) -> None:
    view = draft.view
    sheet = draft.sheet(host)
    sheet.session = report.session
    sheet.accepted = tuple(sorted(accepted(view)))
    sheet.changed = True
    for seen in sorted(report.executions, key=_order):
        item, pin = _assigned(view, seen)
        if pin is not None and (seen.pipeline, seen.version) not in view.pins:
            draft.pins[seen.pipeline, seen.version] = replace(pin, store_id=view.store_id, term=view.term)
        sheet.executions[item.execution] = item
        if item.lease_bound and (pin is None or seen.pipeline not in view.records):
            # A guess until the agent has applied this: nothing is to be concluded from it before.
            sheet.bound.add(item.execution)
        kept = draft.adopted.setdefault(seen.pipeline, [])
        # Its store gave the slot to somebody else since, whatever either of them runs now: a host that was given up and
        # is back would start it again.
        outdated = given.get((report.store_id, seen.pipeline, seen.slot), 0) > parse_execution(seen.execution).serial
        late = outdated and item.overlap is Overlap.EXCLUSIVE
        if seen.phase is Phase.STOPPING or late or _doubled(draft, item):
            draft.take_off(host, item.execution, f"{host} was taken over, and it was not wanted there")
        else:
            kept.append(item)
    draft.count("adopted a host")
    draft.event("host-adopted", host, f"{host} is taken over with {len(report.executions)} executions as they run")


def _order(seen: Observed) -> tuple[bool, str]:
    return seen.phase is not Phase.READY, seen.execution


def _assigned(view: View, seen: Observed) -> tuple[Assigned, Pin | None]:
    pin = view.pins.get((seen.pipeline, seen.version))
    if pin is None or pin.digest != seen.digest:
        pin = view.found.get((seen.pipeline, seen.version, seen.digest))
    known = view.records.get(seen.pipeline)
    record = None if known is None else known.good
    overlap = Overlap.EXCLUSIVE if pin is None else pin.overlap
    item = Assigned(
        execution=seen.execution,
        pipeline=seen.pipeline,
        slot=seen.slot,
        replicas=seen.slot + 1 if record is None else record.replicas,
        version=seen.version,
        digest=seen.digest,
        wanted=Wanted.PAUSE if seen.phase is Phase.STOPPED else Wanted.RUN,
        overlap=overlap,
        lease_bound=overlap is Overlap.EXCLUSIVE if record is None else lease_bound(record, overlap),
        stop_grace_s=GRACE_S if pin is None else pin.stop_grace_s,
        cpu=0.0 if pin is None else pin.cpu,
        memory_bytes=MEMORY_DEFAULT_BYTES if pin is None else pin.memory_bytes,
        restart=view.restart_intents.get(seen.pipeline, ""),
    )
    return item, pin


def _doubled(draft: Draft, item: Assigned) -> bool:
    """Whether the slot is somebody else's already, and the two may not overlap."""
    others: list[Assigned | Stopping] = [place.item for place in draft.view.places.get(item.pipeline, ())]
    others += draft.adopted.get(item.pipeline, ())
    return any(
        isinstance(other, Assigned) and other.slot == item.slot and Overlap.EXCLUSIVE in (other.overlap, item.overlap)
        for other in others
    )
