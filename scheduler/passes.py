"""What one pass decides, as one pure function: made in a worker, so that planning holds up neither watches nor answers.

View ── plan ──> Plan ── audit ──> agreed? ── encode ──> batches for the journal, one per part
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from scheduler.core.audit import Violation, audit
from scheduler.core.blast import Kept, holds, trusted
from scheduler.core.plan import plan
from scheduler.core.sessions import accepted
from scheduler.core.view import Plan, Policy, Scope, View
from scheduler.journal import Batch
from shared.documents import Hold, InputMark, encode
from shared.record import PipelineRecord, PipelineStatus
from shared.store import Write

Version = tuple[str, str]  # (pipeline, version)


@dataclass(frozen=True, slots=True)
class Decision:
    """A plan, and each part of it with the batch that commits it. With `violations` there is nothing to commit."""

    plan: Plan
    parts: tuple[tuple[Plan, Batch], ...]
    violations: tuple[Violation, ...]


@dataclass(frozen=True, slots=True)
class Link:
    """What the last journal says beside the plan, or the next one is to say."""

    inputs: Mapping[str, InputMark]
    accepted: tuple[str, ...] = ()
    holds: Mapping[str, Hold] = field(default_factory=dict)


def decide(
    view: View,
    policy: Policy,
    scope: Scope | None,
    last: Link,
    marks: Mapping[str, InputMark],
    kept: Mapping[str, Kept],
) -> Decision:
    """Plan on `view` and have it audited. `marks`: how far the inputs are read. `kept`: what is kept of them."""
    found = plan(view, policy, scope)
    violations = audit(view, found, policy)
    if violations:
        return Decision(found, (), violations)
    accepts = (*last.accepted, *(older for older in accepted(view) if older not in last.accepted))
    link = Link(trusted(marks, kept), accepts, holds(kept, last.holds, found.number))
    parts = [part for part in (found, *found.then) if not part.empty]
    if not parts and (link.accepted, link.holds) != (last.accepted, last.holds):
        parts = [Plan(number=found.number, reasons=("what is held or accepted",))]
    return Decision(found, tuple((part, _batch(part, link)) for part in parts), ())


def _batch(part: Plan, link: Link) -> Batch:
    writes = tuple(Write(key, None if document is None else encode(document)) for key, document in part.documents())
    return Batch(part.number, writes, part.reasons, link.inputs, link.accepted, link.holds)


def unpinned(view: View, pipelines: Iterable[str]) -> dict[str, tuple[Version, PipelineRecord] | None]:
    """For each of `pipelines` the version that its record wants and that has no pin yet; None: there is none."""
    return {pipeline: _unpinned(view, pipeline) for pipeline in pipelines}


def _unpinned(view: View, pipeline: str) -> tuple[Version, PipelineRecord] | None:
    known = view.records.get(pipeline)
    record = None if known is None or known.held else known.good
    if record is None or record.status is PipelineStatus.DRAFT or (pipeline, record.version) in view.pins:
        return None
    return (pipeline, record.version), record
