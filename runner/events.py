"""What can happen to a runner, and what it can do about it: the words between runner/loop.py and runner/core.py."""

from __future__ import annotations

from enum import StrEnum

from runner.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeAlias

    from runner.fence import Fence, Permits
    from runner.links import Greeting, Peer


class Question(StrEnum):
    """What Bento's HTTP server can be asked. The value is the path."""

    READY = "/ready"
    COUNTERS = "/metrics"


# --- what happens


@value
class Signalled:
    """The runner got a signal."""

    number: int


@value
class Ended:
    """The child has ended: `code` is an exit code, or 128 + the number of the signal that ended it."""

    code: int
    signal: int | None
    words: tuple[str, ...]


@value
class Answered:
    """Bento answered the question that was asked, with this HTTP status and the beginning of the body."""

    status: int
    body: str


@value
class Unanswered:
    """The question could not be asked, or there was no answer in time. `refused`: nothing listens there yet."""

    reason: str
    refused: bool = False


@value
class Displaced:
    """Bento does not listen where it should, and another process does."""

    address: str


@value
class Spoke:
    """Bento wrote something."""


@value
class Looked:
    """Grant and lease were read. Whatever else happened since `looks_at`, this comes first."""

    permits: Permits


@value
class Linked:
    """Bento's own connections, by socket."""

    found: Mapping[str, Peer]


@value
class Greeted:
    """What somebody said to whom connected."""

    peer: Peer
    greeting: Greeting


@value
class Started:
    """A child was started: Bento, after it was fetched or for another port."""

    fence: Fence | None


@value
class Woken:
    """Nothing happened but time."""


Heard: TypeAlias = Answered | Unanswered | Displaced | Spoke
Event: TypeAlias = Signalled | Ended | Heard | Looked | Linked | Greeted | Started | Woken


# --- what to do


@value
class Send:
    """Send a signal to the child."""

    number: int


@value
class Ask:
    """Ask Bento's HTTP server; answered by Answered, Unanswered or Displaced."""

    question: Question


@value
class LookAtLinks:
    """Look at Bento's connections; answered by Linked at once."""


@value
class Greet:
    """Connect to somebody and hear what he says; answered by Greeted."""

    peer: Peer


@value
class StartBento:
    """Verify, unpack, start Bento (on a new port if it is ours to choose). Started must be the very next event."""


@value
class End:
    """End with this code. `failure` is (kind, message) of the health document."""

    code: int
    signal: int | None = None
    failure: tuple[str, str] | None = None


Action: TypeAlias = Send | Ask | LookAtLinks | Greet | StartBento | End
