"""What the server's refusals mean: the only place that knows JetStream's error numbers.

Measured on nats-server 2.12 and 2.15 (the numbers are stable API). The question that matters for a write is whether it
may have happened; a numbered refusal says that it surely did not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from shared.errors import Busy, Conflict, Missing, StoreError, StoreUnavailable, Unfit

NO_MESSAGE = 10037  # the only number that means "key absent"
NO_STREAM = 10059  # the only number that means "stream absent"
STREAM_EXISTS = 10058  # with another configuration
WRONG_SEQUENCE = 10071  # the verdict on an expectation; its text holds the actual sequence
JETSTREAM_OFF = frozenset({10039, 10076})  # not enabled for the account, or not at all
NO_PEERS = frozenset({10005, 10023, 10074})  # not enough servers or resources for the replicas; may pass while starting
NO_ROOM = frozenset({10002, 10026, 10027, 10028, 10047})  # limits of the account or the server are reached

# Refused without a verdict on the expectation. 10164 is a conflict inside the batch or with a write that is still in
# flight on R3, 10163 a leader that is not ready yet, 10008 a cluster without leader, 10176 a batch whose messages
# were lost on the way (a server or its leader changed in the middle), 10210 too many open batches.
_AGAIN = frozenset({10004, 10008, 10163, 10164, 10176, 10210})
_ATOMIC_OFF = 10174


class NobodyAnswers(StoreUnavailable):
    """No responders: there is no stream or, for the moment, no leader of it. The message reached nobody."""


class NoMessage(Missing):
    """The stream is there and has no message under that subject: the key was never written, or purged."""


def refusal(error: Mapping[str, Any], what: str) -> StoreError:
    """The error for a numbered refusal of `what` (words that name the request)."""
    code = error.get("err_code", 0)
    words = f"{what}: {error.get('description', 'refused')} ({code or error.get('code', '?')})"
    if code == WRONG_SEQUENCE:
        found = re.search(r"wrong last sequence: (\d+)", str(error.get("description", "")))
        return Conflict(words, int(found.group(1)) if found else None)
    if code in _AGAIN:
        return Busy(words)
    if code == NO_MESSAGE:
        return NoMessage(words)
    if code == NO_STREAM:
        return Missing(words)
    if code == _ATOMIC_OFF:
        return Unfit(f"{words}; set allow_atomic on the stream, or start a scheduler, which does")
    return StoreUnavailable(words)


def read_refusal(error: Mapping[str, Any], what: str) -> StoreError:
    """As `refusal`, for requests that change nothing: there is nothing to be uncertain about, only to ask again."""
    found = refusal(error, what)
    return StoreUnavailable(str(found)) if isinstance(found, Busy) else found
