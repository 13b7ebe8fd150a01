"""What a run found, as a table for people."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.chaos.timetable import Kind


@dataclass(frozen=True, slots=True)
class Burst:
    """One burst that is over. `back_s`: from the end of its last fault until all was well; None: never."""

    kinds: tuple[Kind, ...]
    still_s: float  # the longest time in which a slot that may move sent nothing, from the first fault on
    back_s: float | None
    restarted: int  # copies of slots that began meanwhile


@dataclass
class Findings:
    """What a run has measured so far. `violations` decides whether it is a failure."""

    seed: int
    minutes: float = 0.0
    bursts: list[Burst] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    messages: int = 0
    copies: int = 0
    overlaps: int = 0
    overlap_s: float = 0.0
    gap_s: float | None = None  # the shortest between two copies of one slot
    published: int = 0
    lost: int = 0
    duplicates: int = 0

    def table(self) -> str:
        """Markdown."""
        faults = sum(len(burst.kinds) for burst in self.bursts)
        gap = "none" if self.gap_s is None else f"{self.gap_s:.2f} s"
        lines = [
            f"seed {self.seed}, {self.minutes:.1f} minutes, {len(self.bursts)} bursts with {faults} faults",
            "",
            "| measured | |",
            "|---|---|",
            f"| messages of exclusive pipelines | {self.messages} from {self.copies} copies |",
            f"| overlaps of two copies of one slot | {self.overlaps} ({self.overlap_s:.2f} s) |",
            f"| shortest gap between two copies of one slot | {gap} |",
            f"| messages from stream to stream | {self.published} |",
            f"| lost | {self.lost} |",
            f"| duplicates | {self.duplicates} |",
            f"| violations | {len(self.violations)} |",
            "",
            "Faults that were alone in their burst. *Stood still*: the longest time without a message of a slot that",
            "may move. *Back*: from the end of the fault until everything was as it shall be. Seconds: min / median /",
            "max.",
            "",
            "| fault | n | of them alone | stood still | back | copies started |",
            "|---|---|---|---|---|---|",
        ]
        counts: dict[Kind, int] = defaultdict(int)
        for burst in self.bursts:
            for kind in burst.kinds:
                counts[kind] += 1
        for kind in Kind:
            alone = [burst for burst in self.bursts if burst.kinds == (kind,)]
            if counts[kind]:
                lines.append(_row(kind.value, counts[kind], alone))
        several = [burst for burst in self.bursts if len(burst.kinds) > 1]
        if several:
            lines.append(_row("several at once", len(several), several))
        return "\n".join(lines)


def _row(name: str, count: int, bursts: Sequence[Burst]) -> str:
    still = [burst.still_s for burst in bursts]
    back = [burst.back_s for burst in bursts if burst.back_s is not None]
    restarted = str(sum(burst.restarted for burst in bursts)) if bursts else ""
    return f"| {name} | {count} | {len(bursts)} | {_spread(still)} | {_spread(back)} | {restarted} |"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{min(values):.1f} / {statistics.median(values):.1f} / {max(values):.1f}"
