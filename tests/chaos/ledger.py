"""What exclusive pipelines have sent, by their own words, in files that no fault can touch; and whether two overlapped.

Each execution appends to a file of its own, `<pipeline>.<slot>/<execution>`, entries of `<execution sequence time;`.
The Bento process counts the sequence from 1, so a file shows each start of an execution, and two processes that write
into one file give themselves away.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

# The last processor of an exclusive pipeline: what it returns is written next.
MAPPING = 'root = "<%s %d %d;".format(env("SHOAL_EXECUTION"), count("sent"), timestamp_unix_nano())'

_ENTRY = re.compile(r"<([a-z0-9_-]+) (\d+) (\d+);")  # found rather than split: SIGKILL may end a line anywhere


@dataclass(frozen=True, slots=True)
class Sent:
    """One message. `at_s`: when, on the wall clock of this machine, which all hosts of the test share."""

    execution: str
    sequence: int
    at_s: float


@dataclass(slots=True)
class Copy:
    """One running process of an execution: everything it sent lies between `first_s` and `last_s`."""

    execution: str
    first_s: float
    last_s: float
    sequence: int  # of the last message

    @property
    def name(self) -> str:
        return f"{self.execution} ({self.first_s:.3f} to {self.last_s:.3f})"


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two copies of one slot that sent during the same time."""

    slot: str
    first: Copy
    second: Copy

    @property
    def key(self) -> str:
        """What stays the same while both go on."""
        return f"{self.slot} {self.first.execution} {self.first.first_s} {self.second.execution} {self.second.first_s}"

    @property
    def seconds(self) -> float:
        return min(self.first.last_s, self.second.last_s) - self.second.first_s


@dataclass(slots=True)
class Slot:
    """All that the copies of one slot have sent, as far as it was read."""

    name: str
    copies: list[Copy] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    strays: list[Sent] = field(default_factory=list)  # that continue no copy: entries were lost or two processes mixed

    def add(self, sent: Sent) -> None:
        """Take the next entry of the file of an execution, in the order of the file."""
        self.times_s.append(sent.at_s)
        if sent.sequence == 1:
            self.copies.append(Copy(sent.execution, sent.at_s, sent.at_s, 1))
            return
        for copy in reversed(self.copies):
            if copy.execution == sent.execution and copy.sequence + 1 == sent.sequence:
                copy.sequence, copy.last_s = sent.sequence, max(copy.last_s, sent.at_s)
                return
        self.strays.append(sent)

    def overlaps(self) -> list[Overlap]:
        """Every pair of copies that sent during the same time, by the time of sending."""
        found: list[Overlap] = []
        running: list[Copy] = []
        for copy in sorted(self.copies, key=lambda copy: copy.first_s):
            running = [earlier for earlier in running if earlier.last_s >= copy.first_s]
            found += [Overlap(self.name, earlier, copy) for earlier in running]
            running.append(copy)
        return found

    def pause_s(self, begin_s: float, end_s: float) -> float:
        """The longest time in which nothing was sent, between two moments."""
        times = sorted(time_s for time_s in self.times_s if begin_s <= time_s <= end_s)
        return longest([begin_s, *times, end_s])

    def gaps_s(self) -> list[float]:
        """Between the last message of each copy and the first of the next one."""
        copies = sorted(self.copies, key=lambda copy: copy.first_s)
        return [later.first_s - earlier.last_s for earlier, later in pairwise(copies)]


def longest(times_s: Sequence[float]) -> float:
    """The longest of the pauses between sorted times."""
    return max((later - earlier for earlier, later in pairwise(times_s)), default=0.0)


def entries(text: str) -> Iterable[Sent]:
    """The entries in a piece of a file."""
    for execution, sequence, nanoseconds in _ENTRY.findall(text):
        yield Sent(execution, int(sequence), int(nanoseconds) / 1e9)


class Ledger:
    """The directory of all files; `read` takes in what was appended since."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.slots: dict[str, Slot] = {}
        self._read: dict[Path, int] = {}

    def configuration(self) -> str:
        """A pipeline that sends ten times a second into this ledger."""
        return f"""input:
  generate:
    interval: 100ms
    mapping: root = ""
pipeline:
  threads: 1
  processors:
    - mapping: |
        {MAPPING}
output:
  file:
    path: {self.directory}/${{SHOAL_PIPELINE}}.${{SHOAL_SLOT}}/${{SHOAL_EXECUTION}}
    codec: lines
"""

    def read(self) -> None:
        """Take in everything that was appended; what has no end yet waits for the next time."""
        for path in sorted(self.directory.glob("*/*")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                data = file.read()
            whole = data[: data.rfind(b";") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            slot = self.slots.setdefault(path.parent.name, Slot(path.parent.name))
            for sent in entries(whole.decode("ascii", "replace")):
                slot.add(sent)

    def counts(self) -> dict[str, tuple[int, int]]:
        """How many copies and how many executions of each slot there have been."""
        self.read()
        return {
            name: (len(slot.copies), len({copy.execution for copy in slot.copies})) for name, slot in self.slots.items()
        }

    def newest_s(self, slot: str) -> float:
        """When the newest message of a slot was sent; 0 if none was."""
        found = self.slots.get(slot)
        return max((copy.last_s for copy in found.copies), default=0.0) if found else 0.0

    def overlaps(self) -> list[Overlap]:
        return [overlap for name in sorted(self.slots) for overlap in self.slots[name].overlaps()]

    def strays(self) -> list[Sent]:
        return [stray for name in sorted(self.slots) for stray in self.slots[name].strays]
