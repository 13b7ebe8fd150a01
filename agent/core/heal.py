"""Which executions to start again because their Bento has lost NATS for good (see `runner.links`). Pure.

Nothing can be delivered through connections that are closed, so there is nothing to wait for but NATS itself; and since
all of a host notice its return in the same second, they go a few at a time.
"""

from __future__ import annotations

from collections.abc import Iterable

AT_ONCE = 4  # on one host: a start is mostly processor time, and who was fine all along needs some too
REACHABLE_S = 2.0  # so long NATS must have been reachable again
GRACE_S = 3.0  # for what else such a Bento has in hand; what it cannot deliver it would hold back for 20 s


def choose(stuck: Iterable[str], under_way: frozenset[str], reachable_s: float | None) -> frozenset[str]:
    """Whom to stop and start now, of those that are stuck. `under_way` are being started again already, and are chosen
    again as long as they are not stopped. `reachable_s`: since when the store is; None = it is not."""
    if reachable_s is None or reachable_s < REACHABLE_S:
        return frozenset()
    names = sorted(stuck)
    begun = [name for name in names if name in under_way]
    others = [name for name in names if name not in under_way]
    return frozenset(begun + others[: max(0, AT_ONCE - len(under_way))])


def wait_s(stuck: bool, reachable_s: float | None) -> float | None:
    """When to choose again at the latest; None = other things than time decide."""
    soon = stuck and reachable_s is not None and reachable_s < REACHABLE_S
    return REACHABLE_S - reachable_s if soon and reachable_s is not None else None
