"""The wall clock is for people: nobody asks for it but the clock that is passed in, and what is stored for display."""

import re

import pytest

from tests.support.components import ROOT

ASKED = re.compile(r"\btime\.time(_ns)?\(|CLOCK_REALTIME|\b(now|utcnow|today)\(|\bst_[amc]time\b|\b(gm|local)time\(")
FOR_PEOPLE = {
    "shared/clock.py",
    "shared/nats_objects.py",
}  # Clock.wall; when an object was stored, as its format has it


@pytest.mark.parametrize("folder", ["shared", "scheduler", "agent", "runner", "cli"])
def test_nobody_asks_the_wall_clock(folder: str) -> None:
    asking = {
        str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.py") if ASKED.search(path.read_text("utf-8"))
    }
    assert asking <= FOR_PEOPLE
    assert asking == {path for path in FOR_PEOPLE if path.startswith(f"{folder}/")}
