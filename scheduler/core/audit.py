"""The auditor: checks a plan against the view it was made from, and trusts nothing of how it was made.

It imports none of the planner's steps. What it needs to know of silence, sessions, confirmations and labels it works
out again from the documents (`facts`), in its own and simpler way: an error would have to be made twice to pass. A plan
that violates anything is refused; the pipelines that a violation names are held as they are, so that one defect does
not stop everything else. Here is what a plan does to executions; what it says (of sessions, versions and statuses) is
looked at in `claims`.

Checked for every assignment that is written
- it is this store's, this term's, and carries the number of the commit it is in; each host is written once
- the session it names is the one it named, or one that may be answered
- nothing that was there changes its identity; what is gone is being stopped or has a right to be gone
- what is being stopped is asked for in this plan, of this session; what is no longer asked for was confirmed
- what is new has this plan's serial, a pin, a published record, and a live, willing, large enough host, and nothing
  that must not run beside it is told of by another one
Checked for every pipeline it touches
- an exclusive slot has at most one execution, stops that are not confirmed included
- a published, valid pipeline loses an execution only for a reason that `_published` lists
- a healthy shareable execution goes only when another one of its slot is ready
Checked for every tombstone: it is of the session that was heard last, whose host has been silent for its own time
Checked for the rest: pins never change; a status never says more than what was reported; sizes.

Cost: what the plan touches. What a document carries over unchanged is the same object and is not looked at again.
"""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.core import claims
from scheduler.core.claims import Violation
from scheduler.core.facts import Facts, gone, identity, meets, same_version, what
from scheduler.core.view import HostView, Plan, Policy, View
from shared.documents import Assigned, Assignment, Observed, Pin, Session, Stopping
from shared.record import PipelineRecord, PipelineStatus
from shared.states import Overlap, Phase, Wanted

__all__ = ["Violation", "audit"]

VIOLATIONS_MAX = 50  # that are named; one is enough to refuse a plan


def audit(view: View, plan: Plan, policy: Policy | None = None) -> tuple[Violation, ...]:
    """What is wrong with a plan and with the parts behind it; nothing = it may be committed."""
    auditor = _Auditor(view, plan, policy or Policy())
    auditor.parts()
    auditor.pipelines()
    return tuple(auditor.found[:VIOLATIONS_MAX])


@dataclass(slots=True)
class _Slot:
    """What one slot of a pipeline will have."""

    live: list[tuple[str, Assigned]]
    added: list[tuple[str, Assigned]]
    halting: list[tuple[str, Stopping]]
    removed: list[tuple[str, Assigned]]


class _Auditor:
    def __init__(self, view: View, plan: Plan, policy: Policy) -> None:
        self.view = view
        self.policy = policy
        self.all_parts = (plan, *plan.then)
        self.found: list[Violation] = []
        self.written: dict[str, Assignment | None] = {}
        self.pins: dict[tuple[str, str], Pin] = {}
        self.touched: dict[str, dict[int, _Slot]] = {}
        self._facts = Facts(view, policy, self.written)
        self._removing: set[str] = set()  # hosts that executions are taken off
        self._taken: dict[str, list[Assigned]] = {}  # over from hosts that ran it already, by pipeline

    def wrong(self, message: str, *pipelines: str) -> None:
        self.found.append(Violation(message, pipelines))

    # --- commits and documents

    def parts(self) -> None:
        number = max(self.view.plan, self.view.serials)
        for part in self.all_parts:
            number += 1
            if part.number != number:
                self.wrong(f"part {part.number} of the plan should be number {number}")
            writes = 1 + len(part.assignments) + len(part.pins) + len(part.statuses)
            if writes > self.policy.writes_max and writes > 2:
                self.wrong(f"plan {part.number} has {writes} writes; {self.policy.writes_max} fit")
            for name, pin in part.pins.items():
                self.found.extend(claims.pin(self._facts, part, name, pin))
                if pin is not None:
                    self.pins[name] = pin
            for host, document in part.assignments.items():
                if host in self.written:
                    self.wrong(f"{host} is written twice in one pass")
                self.written[host] = document
                self._assignment(part, host, document)
            for pipeline, status in part.statuses.items():
                self.found.extend(claims.status(self._facts, part, pipeline, status))
            for stone in part.tombstones:
                self.found.extend(claims.tombstone(self._facts, stone))
        removing = [part for part in self.all_parts if not self._removing.isdisjoint(part.assignments)]
        replaced = any(slot.removed and slot.added for slots in self.touched.values() for slot in slots.values())
        if len(removing) > 1 and replaced:
            self.wrong("a plan that replaces must be one commit")

    def _assignment(self, part: Plan, host: str, new: Assignment | None) -> None:
        old = self.view.assignments.get(host)
        kept = {} if new is None else {item.execution: item for item in new.executions}
        halting = {} if new is None else {item.execution: item for item in new.stopping}
        if new is not None:
            self.found.extend(claims.header(self._facts, part, host, new, old))
            if len(kept) + len(halting) != len(new.executions) + len(new.stopping) or kept.keys() & halting.keys():
                self.wrong(f"{host} has an execution twice", *sorted({item.pipeline for item in new.executions}))
        elif old is None or not self._facts.forgotten(host):
            self.wrong(f"the assignment of {host} is deleted, but the host is not forgotten")
        before = {} if old is None else {item.execution: item for item in old.executions}
        asked = {} if old is None else {item.execution: item for item in old.stopping}
        for execution, item in before.items():
            if kept.get(execution) is not item:
                self._changed(part, host, new, item, kept.get(execution), halting.get(execution))
        for execution, stop in asked.items():
            self._asked(part, host, new, old, stop, halting.get(execution))
        there = self._facts.runs_already(host) if old is None else {}
        strays = self._facts.strays(host)
        added = [item for execution, item in kept.items() if execution not in before and execution not in there]
        for execution, stop in halting.items():
            if execution not in before.keys() | asked.keys() | there.keys() | strays:
                self.wrong(f"{execution} is to be stopped on {host}, where it never was", stop.pipeline)
        for execution in kept.keys() & there.keys():
            self._adopted(host, kept[execution], there[execution])
        if added and new is not None:
            self._added(part, host, new, added)

    def _changed(
        self, part: Plan, host: str, new: Assignment | None, old: Assigned, now: Assigned | None, stop: Stopping | None
    ) -> None:
        pipeline = old.pipeline
        slots = self._slots(pipeline)
        if now is not None:
            if identity(now) != identity(old):
                self.wrong(f"{old.execution} on {host} becomes another execution under the same name", pipeline)
            return
        slots.setdefault(old.slot, _Slot([], [], [], [])).removed.append((host, old))
        self._removing.add(host)
        if stop is None:
            if not self._facts.may_drop(host, old):
                self.wrong(f"{old.execution} is dropped from {host} without being asked to stop", pipeline)
        elif new is not None and (stop.asked_of, stop.asked_in) != (new.session, part.number):
            self.wrong(
                f"the stop of {old.execution} on {host} is asked of {stop.asked_of} in {stop.asked_in}", pipeline
            )
        elif what(stop) != what(old):
            self.wrong(f"the stop of {old.execution} on {host} is of something else", pipeline)

    def _asked(
        self,
        part: Plan,
        host: str,
        new: Assignment | None,
        old: Assignment | None,
        stop: Stopping,
        now: Stopping | None,
    ) -> None:
        self._slots(stop.pipeline)
        if now is None:
            proved = old is not None and gone(self.view, host, old, stop)
            if not proved and not self._facts.may_drop(host, stop):
                self.wrong(f"the stop of {stop.execution} on {host} is forgotten unconfirmed", stop.pipeline)
        elif now is not stop and new is not None and (now.asked_of, now.asked_in) != (new.session, part.number):
            self.wrong(f"the stop of {stop.execution} on {host} is asked anew of {now.asked_of}", stop.pipeline)
        elif now is stop and new is not None and old is not None and new.session != old.session:
            self.wrong(f"the stop of {stop.execution} on {host} is not asked of its new session", stop.pipeline)

    # --- what is new

    def _added(self, part: Plan, host: str, new: Assignment, added: list[Assigned]) -> None:
        known = self.view.hosts.get(host)
        if known is None or not self._takes(host, known, new.session):
            self.wrong(f"{host} takes nothing now, but gets {added[0].execution}", *{item.pipeline for item in added})
            return
        beat, suffix = known.heartbeat, f"-{part.number}"
        for item in added:
            pipeline, slot = item.pipeline, item.slot
            self._slots(pipeline).setdefault(slot, _Slot([], [], [], [])).added.append((host, item))
            for where in self._facts.beside(item):
                self.wrong(f"{item.execution} is placed on {host} while {where} tells of another copy", pipeline)
            if item.execution != f"{pipeline}-{slot}{suffix}":
                self.wrong(f"{item.execution} on {host} has not the serial of plan {part.number}", pipeline)
            pin = self.view.pins.get((pipeline, item.version)) or self.pins.get((pipeline, item.version))
            if pin is None or not same_version(item, pin):
                self.wrong(f"{item.execution} is not what version '{item.version}' is pinned to", pipeline)
            record = self._facts.record(pipeline)
            if (
                record is None
                or record.status is not PipelineStatus.PUBLISHED
                or slot >= max(record.replicas, item.replicas)
            ):
                self.wrong(f"{item.execution} is placed, but its record does not ask for it", pipeline)
            elif record.placement.required and not meets(record, beat.labels, host):
                self.wrong(f"{item.execution} is placed on {host}, which lacks a label it requires", pipeline)
        self._capacity(host, known, new, added)

    def _adopted(self, host: str, item: Assigned, seen: Observed) -> None:
        """An execution of a host that had no document, which it runs already."""
        if (item.pipeline, item.slot, item.version, item.digest) != (
            seen.pipeline,
            seen.slot,
            seen.version,
            seen.digest,
        ):
            self.wrong(f"{item.execution} is taken over on {host} as another one than runs there", item.pipeline)
        beside = [place.item for place in self.view.places.get(item.pipeline, ()) if isinstance(place.item, Assigned)]
        for other in (*beside, *self._taken.get(item.pipeline, ())):
            if other.slot == item.slot and Overlap.EXCLUSIVE in (other.overlap, item.overlap):
                self.wrong(f"{item.execution} is taken over on {host} beside {other.execution}", item.pipeline)
        self._taken.setdefault(item.pipeline, []).append(item)

    def _capacity(self, host: str, known: HostView, new: Assignment, added: list[Assigned]) -> None:
        cpu = memory = 0
        items: tuple[Assigned | Stopping, ...] = (*new.executions, *new.stopping)
        for item in items:
            cpu += round(item.cpu * 1000)
            memory += item.memory_bytes
        beat = known.heartbeat
        wants_cpu, wants_memory = any(item.cpu for item in added), any(item.memory_bytes for item in added)
        if (wants_cpu and cpu > round(beat.cpu * 1000)) or (wants_memory and memory > beat.memory_bytes):
            self.wrong(f"{host} would have more than it offers", *sorted({item.pipeline for item in added}))

    def _takes(self, host: str, known: HostView, session: Session | None) -> bool:
        intent = self.view.host_intents.get(host)
        unwilling = intent is not None and (intent.cordon or intent.drain or intent.forget)
        beat = known.heartbeat
        working = any(driver.ok for driver in beat.drivers.values())
        return self._facts.is_alive(host) and session == beat.session and not unwilling and working

    # --- pipelines

    def pipelines(self) -> None:
        for pipeline in sorted(self.touched):
            slots = self.touched[pipeline]
            if pipeline in self.policy.hold and any(slot.added for slot in slots.values()):
                self.wrong(f"{pipeline} is on hold, but something of it is placed", pipeline)
            self._complete(pipeline, slots)
            for number in sorted(slots):
                slot = slots[number]
                if slot.added:
                    self._once(pipeline, number, slot)
                for host, item in slot.removed:
                    self._justified(pipeline, slot, host, item)

    def _complete(self, pipeline: str, slots: dict[int, _Slot]) -> None:
        """Add what the slots have on hosts besides what changes."""
        removed = {(host, item.execution) for slot in slots.values() for host, item in slot.removed}
        for place in self.view.places.get(pipeline, ()):
            slot = slots.get(place.item.slot)
            host, item = place.host, place.item
            if slot is None or (host, item.execution) in removed:
                continue
            if isinstance(item, Assigned):
                slot.live.append((host, item))
            elif host not in self.written or self._still_halting(host, item.execution):
                slot.halting.append((host, item))

    def _still_halting(self, host: str, execution: str) -> bool:
        document = self.written[host]
        return document is not None and any(item.execution == execution for item in document.stopping)

    def _once(self, pipeline: str, number: int, slot: _Slot) -> None:
        """At most one execution of an exclusive slot."""
        host, new = slot.added[0]
        if len(slot.added) > 1:
            self.wrong(f"slot {number} of {pipeline} is placed twice", pipeline)
        for where, live in slot.live:
            if live.execution == new.execution:
                self.wrong(f"{new.execution} exists already, on {where}", pipeline)
            if Overlap.EXCLUSIVE in (new.overlap, live.overlap):
                self.wrong(f"{new.execution} on {host} would run beside {live.execution} on {where}", pipeline)
        leaving: list[tuple[str, Assigned | Stopping]] = [*slot.removed, *slot.halting]
        for where, item in leaving:
            exclusive = Overlap.EXCLUSIVE in (new.overlap, item.overlap)
            if exclusive and not self._facts.may_drop(where, item, any_silence=True, alone=True):
                text = f"{new.execution} on {host} would run beside {item.execution}, not confirmed on {where}"
                self.wrong(text, pipeline)

    def _justified(self, pipeline: str, slot: _Slot, host: str, item: Assigned) -> None:
        if self._facts.may_drop(host, item) or self._facts.new_agent(host, item):
            return  # the host's own affair, whatever the record says
        known = self.view.records.get(pipeline)
        if pipeline in self.policy.hold:
            self.wrong(f"{item.execution} is taken off {host}, but {pipeline} is on hold", pipeline)
        if known is None:
            return
        record = known.good
        if known.held or record is None:
            self.wrong(f"{item.execution} is taken off {host}, but the record says nothing valid", pipeline)
            return
        match record.status:
            case PipelineStatus.DRAFT:
                return
            case PipelineStatus.PAUSED:
                intent = self.view.host_intents.get(host)
                leaves = intent is not None and (intent.drain or intent.forget)
                if (
                    not leaves
                    and item.slot < record.replicas
                    and not self._facts.new_agent(host, item)
                    and not slot.live
                ):
                    self.wrong(f"{item.execution} is taken off {host} although it is only paused", pipeline)
            case PipelineStatus.PUBLISHED:
                self._published(pipeline, slot, host, item, record)

    def _published(self, pipeline: str, slot: _Slot, host: str, item: Assigned, record: PipelineRecord) -> None:
        beat = self.view.hosts.get(host)
        intent = self.view.host_intents.get(host)
        elsewhere = slot.live or slot.added
        reasons = (
            item.slot >= record.replicas,
            not self._facts.is_alive(host),
            intent is not None and (intent.drain or intent.forget),
            beat is not None and not meets(record, beat.heartbeat.labels, host),
            item.version != record.version or self._facts.digest(item) != item.digest,
            self.view.restart_intents.get(pipeline, item.restart) != item.restart,
            bool(slot.live),
        )
        if not any(reasons):
            self.wrong(f"{item.execution} is taken off {host} for no reason", pipeline)
        shared = item.overlap is Overlap.SHAREABLE and all(other.overlap is item.overlap for _, other in slot.added)
        wanted = item.slot < record.replicas and item.wanted is Wanted.RUN and self._facts.is_alive(host)
        if (
            shared
            and wanted
            and self._facts.phase(host, item) is Phase.READY
            and not self._exclusive_next(pipeline, record)
            and not self._facts.new_agent(host, item)  # it must never have an execution of its predecessor
        ):
            ready = any(self._facts.phase(where, live) is Phase.READY for where, live in slot.live)
            if not ready:
                beside = f"{len(elsewhere)} beside it" if elsewhere else "nothing beside it"
                self.wrong(f"{item.execution} is taken off {host} while it is ready and {beside} is", pipeline)

    def _exclusive_next(self, pipeline: str, record: PipelineRecord) -> bool:
        name = (pipeline, record.version)
        pin = self.view.pins.get(name) or self.pins.get(name)
        status = self.view.statuses.get(pipeline)
        if pin is None and status is not None:  # there is no verdict yet: the last good version goes on
            pin = self.view.pins.get((pipeline, status.version))
        return pin is not None and pin.overlap is Overlap.EXCLUSIVE

    def _slots(self, pipeline: str) -> dict[int, _Slot]:
        return self.touched.setdefault(pipeline, {})
