"""What a new leader must have read before it plans: never less than its predecessor had.

The journal holds {created-at, last sequence} of every input that the last plan was made from. A new leader whose watch
of an input is behind would decide from older input than was decided from already. So it waits. Where the stream leader
says three times, 1 s apart, that there is no more to wait for, because the stream was created anew or is shorter, the
new leader takes the stream as it is, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from shared.documents import InputMark
from shared.store import Mark

ASK_GAP_S = 1.0
ANSWERS = 3


def reached(wanted: InputMark, have: InputMark | None) -> bool:
    """Whether an input that was read up to `have` covers `wanted`."""
    return have is not None and have.created == wanted.created and have.sequence >= wanted.sequence


@dataclass(frozen=True, slots=True)
class CatchUp:
    """What is still waited for: marks by input, and how often in a row the stream leader said that it is gone."""

    wanted: Mapping[str, InputMark]
    said: Mapping[str, int] = field(default_factory=dict)
    changed: frozenset[str] = frozenset()  # inputs that are not what the predecessor had read

    def behind(self, progress: Mapping[str, InputMark]) -> tuple[str, ...]:
        """The inputs that are not read far enough."""
        return tuple(sorted(name for name, mark in self.wanted.items() if not reached(mark, progress.get(name))))

    def answered(self, name: str, mark: Mark) -> CatchUp:
        """After the stream leader's word on an input. Waiting for it ends with the third word that it is no more what
        it was; any other word means that only our watch is late."""
        if reached(self.wanted[name], InputMark(mark.created, mark.sequence)):
            return replace(self, said={**self.said, name: 0})
        said = self.said.get(name, 0) + 1
        if said < ANSWERS:
            return replace(self, said={**self.said, name: said})
        wanted = {other: kept for other, kept in self.wanted.items() if other != name}
        return replace(self, wanted=wanted, changed=self.changed | {name})
