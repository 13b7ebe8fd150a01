"""How the output of an execution is asked for and answered, as core messages between the command line and an agent."""

from __future__ import annotations

from dataclasses import dataclass

from shared.bounds import Execution


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRequest:
    """Asks the agent of a host for the output of one execution, on `Keys.logs(host)`. See `agent.logs`.

    The answers are messages that begin with one of the `LOG_` bytes; an empty message ends them. Who follows publishes
    the same request again (no reply address, same `stream`) at least every `LOG_RENEW_S`, or the stream ends.
    """

    execution: Execution
    tail: int = 100  # lines to begin with; 0 = only what comes from now on
    follow: bool = False
    stream: str = ""  # random name of this stream; needed with `follow`


LOG_DATA = b"+"  # the rest of the message is output, at most 64 KiB, cut anywhere
LOG_ALIVE = b"."  # nothing new; shows that the stream lives
LOG_REFUSED = b"!"  # the rest is a sentence in UTF-8 that says why there is no output
LOG_RENEW_S = 5.0  # who follows asks again this often; the agent ends a stream after four times that
