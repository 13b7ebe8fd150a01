"""What one leadership asks of the admission, and for how long its plans wait for the verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable

from scheduler.admission import Admission
from scheduler.core.view import Scope, View
from scheduler.passes import Version, unpinned
from shared.clock import Clock
from shared.record import PipelineRecord

ADMIT_WAIT_S = 0.25  # for the admission of a version that was just asked for: publishing is then one commit, not two


class Requests:
    """By pipeline, the version that its record wants and that has no pin yet."""

    def __init__(self, admission: Admission, clock: Clock) -> None:
        self._admission = admission
        self._clock = clock
        self._wanted: dict[str, tuple[Version, PipelineRecord]] = {}
        self._waiting: dict[str, float] = {}  # pipeline -> until when its plan waits for the verdict

    @property
    def waiting(self) -> bool:
        """Whether a plan waits for a verdict."""
        return bool(self._waiting)

    @property
    def due_s(self) -> float:
        """When the first plan waits no longer."""
        return min(self._waiting.values(), default=math.inf)

    def admitted(self, view: View, scope: Scope) -> Scope:
        """`scope` without the pipelines whose version was asked for only just now; they come again with the verdict, or
        when it takes too long."""
        self._want(view, scope)
        now_s = self._clock.monotonic()
        ready = set(scope.pipelines)
        for pipeline in scope.pipelines:
            wanted = self._wanted.get(pipeline)
            if wanted is None or wanted[0] in view.candidates:
                self._waiting.pop(pipeline, None)
            elif self._waiting.setdefault(pipeline, now_s + ADMIT_WAIT_S) > now_s:
                ready.discard(pipeline)
        for pipeline, until_s in list(self._waiting.items()):
            if until_s <= now_s:
                del self._waiting[pipeline]
                ready.add(pipeline)
        return Scope(frozenset(ready), scope.hosts)

    def renew(self, view: View) -> None:
        """For a pass over everything, which waits for nothing: ask for all that is wanted now."""
        self._waiting.clear()
        self._want(view, None)

    def pinned(self, versions: Iterable[Version]) -> None:
        """These are wanted no more: a plan has pinned them."""
        for pipeline, version in versions:
            if pipeline in self._wanted and self._wanted[pipeline][0] == (pipeline, version):
                del self._wanted[pipeline]

    def _want(self, view: View, scope: Scope | None) -> None:
        """Tell the admission which versions are wanted and not pinned, as far as that may have changed."""
        for pipeline, wanted in unpinned(view, sorted(view.records if scope is None else scope.pipelines)).items():
            if wanted is None:
                self._wanted.pop(pipeline, None)
            else:
                self._wanted[pipeline] = wanted
        if scope is None:
            self._wanted = {pipeline: found for pipeline, found in self._wanted.items() if pipeline in view.records}
        self._admission.want(dict(self._wanted.values()))
