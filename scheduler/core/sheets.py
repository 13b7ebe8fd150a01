"""The working copy of the documents while one plan is made: the only mutable state behind `plan`.

A `Sheet` is one host's assignment that is being rewritten. The steps change sheets through `Draft`, never documents;
at the end each changed sheet becomes one document with the number of the plan it is committed in. Execution ids and the
plan in which a stop is asked carry that number, so both are filled in only then.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from scheduler.core.indexes import cpu_milli
from scheduler.core.liveness import Liveness, liveness, released, tombstone_due
from scheduler.core.view import Load, Policy, Tombstone, View
from shared.documents import Assigned, Assignment, Event, Observed, Pin, Session, Stopping
from shared.ids import execution_id
from shared.states import Wanted

NOT_APPLIED = 2**62  # stands for the number of the plan being made: no report has got that far
EVENTS_MAX = 100  # of one plan; events are history for people, who cannot read more at once


@dataclass(slots=True)
class Seating:
    """A new execution: which slot of which pipeline goes where. `assigned` appears when its number is known."""

    pipeline: str
    slot: int
    replicas: int
    pin: Pin
    lease_bound: bool
    restart: str
    host: str
    assigned: Assigned | None = None

    def build(self, number: int) -> Assigned:
        pin = self.pin
        self.assigned = Assigned(
            execution=execution_id(self.pipeline, self.slot, number),
            pipeline=self.pipeline,
            slot=self.slot,
            replicas=self.replicas,
            version=pin.version,
            digest=pin.digest,
            wanted=Wanted.RUN,
            overlap=pin.overlap,
            lease_bound=self.lease_bound,
            stop_grace_s=pin.stop_grace_s,
            cpu=pin.cpu,
            memory_bytes=pin.memory_bytes,
            restart=self.restart,
        )
        return self.assigned


@dataclass(slots=True)
class Sheet:
    """One host's assignment in the making."""

    host: str
    session: Session | None
    executions: dict[str, Assigned]
    stopping: dict[str, Stopping]
    accepted: tuple[str, ...]
    seatings: list[Seating] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)  # stops that are asked in this plan
    bound: set[str] = field(default_factory=set)  # executions that become lease-bound in this plan
    changed: bool = False
    forgotten: bool = False  # the document is deleted

    def build(self, view: View, number: int) -> Assignment | None:
        """The document, complete, under the number of the plan that commits it."""
        if self.forgotten:
            return None
        items = [
            replace(item, bound_in=number) if item.execution in self.bound else item
            for item in self.executions.values()
        ]
        items.extend(seating.build(number) for seating in self.seatings)
        items.sort(key=_execution)
        stopping = [
            replace(item, asked_of=self.session, asked_in=number) if item.execution in self.asked else item
            for item in self.stopping.values()
        ]
        stopping.sort(key=_execution)
        return Assignment(
            store_id=view.store_id,
            term=view.term,
            plan=number,
            host=self.host,
            session=self.session,
            executions=tuple(items),
            stopping=tuple(stopping),
            accepted=self.accepted,
        )


class Draft:
    """Everything one plan wants to write so far, over the view it is made from."""

    def __init__(self, view: View, policy: Policy) -> None:
        self.view = view
        self.policy = policy
        self.sheets: dict[str, Sheet] = {}
        self.freed: dict[str, Load] = {}
        self.pins: dict[tuple[str, str], Pin | None] = {}
        self.tombstones: dict[str, Tombstone] = {}
        self.counts: dict[str, int] = {}
        self.adopted: dict[str, list[Assigned]] = {}  # what hosts ran already and was taken over, by pipeline
        self._events: dict[tuple[str, str], str] = {}
        self._alive: dict[str, Liveness] = {}
        self._seen: dict[str, dict[str, Observed]] = {}

    # --- questions

    def alive(self, host: str) -> Liveness:
        known = self._alive.get(host)
        if known is None:
            known = self._alive[host] = liveness(self.view, self.policy, host)
        return known

    def released(self, host: str, item: Assigned | Stopping, *, alone: bool) -> bool:
        """Whether `item` may have another copy elsewhere, which is wanted now: if only a tombstone is missing for that,
        the plan asks for it."""
        if self.alive(host) is Liveness.ALIVE:
            return False
        if released(self.view, self.policy, host, item, alone=alone):
            return True
        due = tombstone_due(self.view, self.policy, host, item) if alone and host not in self.tombstones else None
        if due is not None:
            self.tombstones[host] = due
        return False

    def session(self, host: str) -> Session | None:
        """The session that the host's document will name after this plan."""
        sheet = self.sheets.get(host)
        if sheet is not None:
            return None if sheet.forgotten else sheet.session
        base = self.view.assignments.get(host)
        return None if base is None else base.session

    def observed(self, host: str, execution: str) -> Observed | None:
        """What the session that the document names says of an execution; None: nothing, which is not "stopped"."""
        seen = self._seen.get(host)
        if seen is None:
            report = self.view.reports.get(host)
            valid = report is not None and report.store_id == self.view.store_id
            if report is not None and valid and report.session == self.session(host):
                seen = {item.execution: item for item in report.executions}
            self._seen[host] = seen = seen or {}
        return seen.get(execution)

    # --- changes

    def sheet(self, host: str) -> Sheet:
        """The sheet of a host, opened at its first use."""
        sheet = self.sheets.get(host)
        if sheet is None:
            base = self.view.assignments.get(host)
            if base is None:
                sheet = Sheet(host, None, {}, {}, ())
            else:
                executions = {item.execution: item for item in base.executions}
                stopping = {item.execution: item for item in base.stopping}
                sheet = Sheet(host, base.session, executions, stopping, base.accepted)
            self.sheets[host] = sheet
        return sheet

    def take_off(self, host: str, execution: str, reason: str) -> None:
        """No trace of an execution may remain on its host; the leader remembers it until that is confirmed."""
        sheet = self.sheet(host)
        item = sheet.executions.pop(execution)
        sheet.stopping[execution] = Stopping(
            execution=execution,
            pipeline=item.pipeline,
            slot=item.slot,
            version=item.version,
            overlap=item.overlap,
            cpu=item.cpu,
            memory_bytes=item.memory_bytes,
            asked_of=sheet.session,
            asked_in=0,
            reason=reason,
            lease_bound=item.lease_bound,
            bound_in=item.bound_in,
        )
        sheet.asked.add(execution)
        sheet.changed = True

    def drop(self, host: str, execution: str) -> None:
        """Forget an execution: its stop is confirmed, or an operator said that its host is gone."""
        sheet = self.sheet(host)
        item: Assigned | Stopping | None = sheet.stopping.pop(execution, None) or sheet.executions.pop(execution, None)
        assert item is not None, f"{execution} is not on {host}"
        sheet.asked.discard(execution)
        sheet.changed = True
        was = self.freed.get(host, Load())
        self.freed[host] = Load(
            was.cpu_milli + cpu_milli(item.cpu), was.memory_bytes + item.memory_bytes, was.count + 1
        )

    def rewrite(self, host: str, item: Assigned) -> Assigned:
        """Change an execution where it stands; the entry as it will be, but for the number of the plan."""
        sheet = self.sheet(host)
        if item.lease_bound and not sheet.executions[item.execution].lease_bound:
            sheet.bound.add(item.execution)
            item = replace(item, bound_in=NOT_APPLIED)
        sheet.executions[item.execution] = item
        sheet.changed = True
        return item

    def seat(self, seating: Seating) -> None:
        """Add a new execution."""
        sheet = self.sheet(seating.host)
        sheet.seatings.append(seating)
        sheet.changed = True

    def event(self, kind: str, subject: str, message: str) -> None:
        """One line of history; later words on the same subject replace earlier ones."""
        self._events[kind, subject] = message

    def count(self, what: str, by: int = 1) -> None:
        """Why this plan exists, in numbers: for the journal."""
        self.counts[what] = self.counts.get(what, 0) + by

    def events(self, number: int) -> tuple[Event, ...]:
        lines = [(kind, subject, message) for (kind, subject), message in sorted(self._events.items())]
        if len(lines) > EVENTS_MAX:
            more = ("plan", "cluster", f"{len(lines) - EVENTS_MAX + 1} more changes in plan {number}")
            lines = [*lines[: EVENTS_MAX - 1], more]
        store, term = self.view.store_id, self.view.term
        return tuple(
            Event(store_id=store, kind=kind, subject=subject, at="", term=term, plan=number, message=message)
            for kind, subject, message in lines
        )

    def reasons(self) -> tuple[str, ...]:
        return tuple(f"{what}: {count}" for what, count in sorted(self.counts.items()))


def _execution(item: Assigned | Stopping) -> str:
    return item.execution
