"""The buckets that are folded by key, and where each one's keys stand."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from scheduler.core.blast import Kept


class Source(StrEnum):
    """The buckets that are folded by key."""

    PIPELINES = "pipelines"
    CONFIGS = "configs"
    OPERATOR = "operator"
    REPORTS = "reports"
    CONTROL = "control"


BLAST = frozenset({Source.PIPELINES, Source.OPERATOR})  # what they no longer say would remove or move what runs


@dataclass(slots=True)
class Bucket:
    """The keys of one bucket. `live`: those that have a value. `held`: those that a listing lacked without a marker.
    `kept`: what goes on as it was after an accident to the bucket."""

    revisions: dict[str, int] = field(default_factory=dict)
    live: set[str] = field(default_factory=set)
    held: set[str] = field(default_factory=set)
    kept: Kept | None = None

    def at(self, key: str) -> int:
        """The revision a key is at; 0 = nothing is known of it."""
        return self.revisions.get(key, 0)

    def newer(self, key: str, revision: int, *, there: bool) -> bool:
        """Take note that a key was written (`there`) or deleted. False: older than what is known, nothing changed."""
        if revision <= self.at(key):
            return False
        self.revisions[key] = revision
        (self.live.add if there else self.live.discard)(key)
        if self.kept is not None and self.kept.pending.pop(key, None) is not None and not self.kept.pending:
            self.kept = None  # nothing is missing any more
        return True
