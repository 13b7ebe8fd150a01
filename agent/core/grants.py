"""What becomes of the grants that there are. New ones are given by starts alone."""

from __future__ import annotations

from enum import Enum

from agent.core.situation import Situation
from agent.executor import Life
from shared.documents import Assigned
from shared.states import Wanted


class Verdict(Enum):
    """What becomes of a grant that there is."""

    KEEP = "keep"
    REVOKE = "revoke"
    REBIND = "rebind"
    LATER = "later"  # to be bound, and there is no session yet to bind it to


def judge(name: str, item: Assigned | None, situation: Situation) -> Verdict:
    """A grant is only for what is wanted running with these bytes, and as bound as it is wanted."""
    bound = situation.granted.get(name)
    if bound is None:
        return Verdict.KEEP
    found = situation.found.get(name)
    if item is None or item.wanted is not Wanted.RUN or (found is not None and found.digest != item.digest):
        return Verdict.REVOKE
    if bound == item.lease_bound:
        return Verdict.KEEP
    if not item.lease_bound or situation.answered:
        return Verdict.REBIND
    return Verdict.LATER if found is not None and found.life is Life.ALIVE else Verdict.REVOKE
