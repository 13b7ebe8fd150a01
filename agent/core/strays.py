"""What an agent tells of executions that nobody commands: those of stores that it does not obey.

An agent that has lost its state, while the store was lost too, finds executions of which neither it nor the new store
knows anything. They are not its own to stop before an operator has accepted their store; but whoever places what must
not overlap with them has to know.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.core.admit import Admitted
from agent.executor import Found, Life
from shared.documents import STRAYS_MAX, Stray, decode, encode
from shared.errors import BadInput


def strays(found: Iterable[Found], admitted: Admitted | None) -> tuple[tuple[Stray, ...], str]:
    """What of `found` the leader does not know from its own documents, and why that may not be all ("" = it is).

    What has ended is nobody's to start again. What is of the store that is obeyed, or of an accepted one and named by
    the document, is confirmed by reports. Labels and files are read as strangers' words: what no document could say is
    left out.
    """
    obeyed, named = "", set[str]()
    accepted: frozenset[str] = frozenset()
    if admitted is not None:
        obeyed, accepted = admitted.assignment.store_id, admitted.accepted
        named.update(item.execution for item in admitted.assignment.executions)
        named.update(item.execution for item in admitted.assignment.stopping)
    told: dict[Stray, None] = {}
    for one in found:
        # Ids are a store's own: one that was not accepted may have given the same.
        known = one.store_id == obeyed or (one.store_id in accepted and one.execution in named)
        if one.life is Life.EXITED or known:
            continue
        stray = Stray(
            store_id=one.store_id,
            execution=one.execution,
            pipeline=one.pipeline,
            slot=one.slot,
            version=one.version,
            digest=one.digest,
        )
        try:
            told[decode(Stray, encode(stray))] = None
        except BadInput:
            continue
    if len(told) > STRAYS_MAX:
        why = f"it has {len(told)} executions of other stores and can tell {STRAYS_MAX} of them"
        return tuple(told)[:STRAYS_MAX], why
    return tuple(told), ""
