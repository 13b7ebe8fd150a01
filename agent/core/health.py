"""The health file of an execution, as far as an agent believes it.

A runner leaves its last health behind when it dies, and an executor deletes it before it starts the next one. So a file
is of the last run; of a process that lives only if the executor sees it alive, on this boot and under the same number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from agent.executor import Found

TEXT_CHARS_MAX = 500  # of one text or line; a report is one message with those of all executions
LINES_MAX = 20
_CODE_MAX = 2**31


class RunnerPhase(StrEnum):
    """Where a runner is in its life; the words are those of `runner.contract`."""

    FETCHING = "fetching"
    STARTING = "starting"
    RUNNING = "running"  # Bento lives and is not ready (yet, or any more)
    READY = "ready"
    STOPPING = "stopping"
    EXITED = "exited"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A failure of the runner itself, before or instead of Bento."""

    kind: str  # one of runner.contract.FAILURES, or one that a newer runner knows
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What a runner says of its run."""

    phase: RunnerPhase
    reason: str  # why it is not ready, in Bento's words
    failure: Failure | None
    exit_code: int | None
    last_words: tuple[str, ...]
    stuck: str  # why Bento has lost NATS for good; "" = it has not


def believed(found: Found, boot: str) -> Health | None:
    """The word of the runner of the run that `found` speaks of. None: it has not said anything yet."""
    raw = found.health
    # A container's processes have numbers of their own, and its engine perhaps a kernel of its own: there is nothing to
    # compare, and nothing else that can have its id.
    if found.runtime.isdecimal() and (raw.get("boot_id", boot), raw.get("runner_pid")) != (boot, int(found.runtime)):
        return None
    try:
        phase = RunnerPhase(raw.get("phase", ""))
    except ValueError:
        return None
    return Health(
        phase=phase,
        reason=_text(raw.get("not_ready_reason")),
        failure=_failure(raw.get("failure")),
        exit_code=_exit_code(raw.get("exit")),
        last_words=_lines(raw.get("last_words")),
        stuck=_stuck(raw.get("stuck")),
    )


def _failure(raw: object) -> Failure | None:
    if not isinstance(raw, Mapping):
        return None
    return Failure(kind=_text(raw.get("kind")) or "unknown", message=_text(raw.get("message")))


def _stuck(raw: object) -> str:
    if not isinstance(raw, Mapping):
        return ""
    return _text(raw.get("reason")) or "Bento has lost NATS for good"


def _exit_code(raw: object) -> int | None:
    """What the runner ends with: Bento's code, or 128 and the signal that ended it."""
    code = raw.get("code") if isinstance(raw, Mapping) else None
    return code if isinstance(code, int) and abs(code) < _CODE_MAX else None


def _lines(raw: object) -> tuple[str, ...]:
    lines = raw.splitlines() if isinstance(raw, str) else raw if isinstance(raw, list | tuple) else ()
    return tuple(_text(line) for line in lines[-LINES_MAX:])


def _text(raw: object) -> str:
    """A text that can be reported: not too long, and without halves of characters, which JSON has and UTF-8 has not."""
    return raw[:TEXT_CHARS_MAX].encode("utf-8", "replace").decode() if isinstance(raw, str) else ""
