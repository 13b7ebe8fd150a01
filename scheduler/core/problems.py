"""What is wrong with documents that strangers wrote: said, and bounded."""

from __future__ import annotations

from scheduler.core.sources import Source
from shared.errors import BadInput, problem

PROBLEM_CHARS_MAX = 500  # kept of one document's problem; there is at most one per key
PROBLEMS_MAX = 10_000  # kept at once


class Problems:
    """`by_key`: what is wrong under a key now. Of what a stranger writes only so much is kept."""

    def __init__(self) -> None:
        self.by_key: dict[tuple[Source, str], str] = {}

    def keep(self, source: Source, key: str, words: str) -> None:
        """Remember what is wrong under a key, "" = nothing."""
        name = (source, key[:PROBLEM_CHARS_MAX])
        if not words:
            self.by_key.pop(name, None)
        elif name in self.by_key or len(self.by_key) < PROBLEMS_MAX:
            self.by_key[name] = words[:PROBLEM_CHARS_MAX]


def same(field: str, named: str, key: str) -> None:
    """BadInput unless a document speaks of what its key names."""
    if named != key:
        raise BadInput(problem(field, named, f"it stands under '{key[:PROBLEM_CHARS_MAX]}'"))
