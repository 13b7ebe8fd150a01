"""How a plan is cut into commits: at most so many writes and bytes each.

A plan that removes or replaces must be one commit, because an old execution and the one that takes its place are one
value. So its changes are admitted one by one (`Batch.admit`) while its documents still fit; what does not fit is the
`rest` of another pass. A plan that only adds is made whole and split afterwards (`split`), document by document: each
document is written once, however many commits it takes. A slot that is added is in exactly one assignment, so no commit
depends on a later one. Pins come first, because assignments need them; statuses last, because they speak of both.

Sizes are estimated, on the safe side: encoding everything twice would cost more than deciding it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from scheduler.core.sheets import Draft, Sheet
from scheduler.core.view import Plan, Policy, Scope
from shared.documents import Assigned, Assignment, Pin, Status, Stopping, encode

DOCUMENT_BYTES = 400  # of any document, its key and the headers of its message, without what is in it
ITEM_BYTES = 340  # of an execution in an assignment, without its names
CHARACTER_BYTES = 6  # of a character in a text for people, at worst (escaped)


@dataclass(slots=True)
class Batch:
    """Fills one commit with changed assignments; pins count when they are drafted."""

    draft: Draft
    _writes: int = 1  # the journal
    _bytes: int = DOCUMENT_BYTES
    _hosts: dict[str, int] = field(default_factory=dict)
    begun: bool = False

    def admit(self, hosts: set[str], pin: Pin | None, items: int) -> bool:
        """Whether a change fits that touches the documents of these hosts, adds so many items and writes a pin."""
        policy = self.draft.policy
        if not self.begun:
            self.begun = True
            self._writes += len(self.draft.pins)  # of deleted records; those of new versions come with their change
            self._bytes += len(self.draft.pins) * DOCUMENT_BYTES
            for sheet in self.draft.sheets.values():
                if sheet.changed:
                    self._count(sheet.host)
        new = sorted(hosts - self._hosts.keys())
        writes, size = len(new), items * 2 * ITEM_BYTES + sum(self._size(host) for host in new)
        if pin is not None and (pin.pipeline, pin.version) not in self.draft.pins:
            writes, size = writes + 1, size + pin_bytes(pin)
        if self._writes + writes > policy.writes_max or self._bytes + size > policy.bytes_max:
            return False
        self._writes += writes
        self._bytes += size
        for host in new:
            self._hosts[host] = 0
        return True

    def _count(self, host: str) -> None:
        self._hosts[host] = 0
        self._writes += 1
        self._bytes += self._size(host)

    def _size(self, host: str) -> int:
        base = self.draft.view.assignments.get(host)
        if base is None:
            return DOCUMENT_BYTES
        return DOCUMENT_BYTES + sum(map(item_bytes, base.executions)) + sum(map(item_bytes, base.stopping))


def item_bytes(item: Assigned | Stopping) -> int:
    """Of one execution in an assignment."""
    names = len(item.execution) + len(item.pipeline) + len(item.version)
    return ITEM_BYTES + names + (CHARACTER_BYTES * len(item.reason) if isinstance(item, Stopping) else 0)


def pin_bytes(pin: Pin) -> int:
    """Of one pin. Pins are few and may hold a large environment, so they are measured."""
    return DOCUMENT_BYTES + len(encode(pin))


def status_bytes(status: Status) -> int:
    """Of one status."""
    texts = [status.reason, *status.problems, *status.notes]
    size = DOCUMENT_BYTES + sum(CHARACTER_BYTES * len(text) for text in texts)
    for row in status.slots:
        size += 130 + len(row.execution) + len(row.host) + len(row.version) + CHARACTER_BYTES * len(row.reason)
    for refusal in status.refusals:
        size += 60 + len(refusal.host) + sum(8 + CHARACTER_BYTES * len(reason) for reason in refusal.reasons)
    return size


def split(draft: Draft, statuses: Callable[[], dict[str, Status | None]], rest: Scope, wake_s: float | None) -> Plan:
    """The plan that commits a draft: its first part, with the others behind it in `then`.

    `statuses` is asked for the statuses to write once every execution has its id. Their plan number is filled in here.
    """
    parts = [_Part(max(draft.view.plan, draft.view.serials) + 1)]

    def part_for(size: int) -> _Part:
        if not parts[-1].takes(size, draft.policy):
            parts.append(_Part(parts[-1].number + 1))
        parts[-1].writes += 1
        parts[-1].size += size
        return parts[-1]

    for name in sorted(draft.pins):
        pin = draft.pins[name]
        part = part_for(DOCUMENT_BYTES if pin is None else pin_bytes(pin))
        part.pins[name] = None if pin is None else replace(pin, plan=part.number)
    for host in sorted(draft.sheets):
        sheet = draft.sheets[host]
        if sheet.changed:
            part = part_for(_sheet_bytes(sheet))
            part.assignments[host] = sheet.build(draft.view, part.number)
    for pipeline, status in sorted(statuses().items()):
        part = part_for(DOCUMENT_BYTES if status is None else status_bytes(status))
        part.statuses[pipeline] = None if status is None else replace(status, term=draft.view.term, plan=part.number)
    return _joined(draft, parts, rest, wake_s)


@dataclass(slots=True)
class _Part:
    """One commit in the making."""

    number: int
    assignments: dict[str, Assignment | None] = field(default_factory=dict)
    pins: dict[tuple[str, str], Pin | None] = field(default_factory=dict)
    statuses: dict[str, Status | None] = field(default_factory=dict)
    writes: int = 1  # the journal
    size: int = DOCUMENT_BYTES

    def takes(self, size: int, policy: Policy) -> bool:
        """Whether one more document fits; a document that is too large by itself goes alone."""
        return self.writes == 1 or (self.writes < policy.writes_max and self.size + size <= policy.bytes_max)


def _joined(draft: Draft, parts: list[_Part], rest: Scope, wake_s: float | None) -> Plan:
    reasons = draft.reasons()
    plans = [
        Plan(
            number=part.number,
            assignments=part.assignments,
            pins=part.pins,
            statuses=part.statuses,
            reasons=reasons,
            events=draft.events(part.number) if part is parts[-1] else (),
        )
        for part in parts
    ]
    left = None if rest.empty else rest
    tombstones = tuple(draft.tombstones[host] for host in sorted(draft.tombstones))
    more = bool(plans[1:] or left)
    return replace(plans[0], tombstones=tombstones, then=tuple(plans[1:]), rest=left, more=more, wake_s=wake_s)


def _sheet_bytes(sheet: Sheet) -> int:
    size = (
        DOCUMENT_BYTES + sum(map(item_bytes, sheet.executions.values())) + sum(map(item_bytes, sheet.stopping.values()))
    )
    for seating in sheet.seatings:
        size += ITEM_BYTES + 2 * len(seating.pipeline) + len(seating.pin.version) + 40
    return size
