"""Plans that the audit refused, and the pipelines that are held as they are because of them."""

from __future__ import annotations

from collections.abc import Set

import structlog

from scheduler.core.view import View
from scheduler.history import History
from scheduler.metrics import SchedulerMetrics
from scheduler.passes import Decision

log = structlog.get_logger()


class RefusedPlans:
    """Of one leadership. `strict`: a refused plan ends the process, as tests want it; the next leader would meet the
    same input, so nobody else does."""

    def __init__(self, metrics: SchedulerMetrics, history: History, *, strict: bool) -> None:
        self._metrics = metrics
        self._history = history
        self._strict = strict
        self._held: dict[str, int] = {}  # pipeline -> revision of the record that a plan was refused for

    def pipelines(self, view: View) -> frozenset[str]:
        """Those that are held: until their user changes something."""
        for pipeline, revision in list(self._held.items()):
            known = view.records.get(pipeline)
            if known is None or known.revision != revision:
                del self._held[pipeline]
        self._metrics.held_pipelines.set(len(self._held))
        return frozenset(self._held)

    def hold(self, decision: Decision, view: View) -> tuple[Set[str], Set[str]]:
        """Hold the pipelines that the violations of a plan name, and say so; (all of them, those not held before)."""
        told = [str(violation) for violation in decision.violations]
        assert not self._strict, f"the audit refused plan {decision.plan.number}: {told}"
        self._metrics.audit_violations.inc()
        named = {pipeline for violation in decision.violations for pipeline in violation.pipelines}
        fresh = named - self._held.keys()
        log.error("The audit refused a plan.", plan=decision.plan.number, violations=told, held=sorted(fresh))
        for pipeline in sorted(fresh):
            known = view.records.get(pipeline)
            self._held[pipeline] = 0 if known is None else known.revision
            words = f"a plan was refused, the pipeline stays as it is: {told[0]}"
            self._history.tell(view, "audit", pipeline, words)
        return named, fresh
