"""What an agent remembers of an execution between its runs: how it ended, how often, and when to try again.

    not known ── seen alive ──> alive ── found ended ──> owed a restart, due at `not_before_s` ── seen alive ──> alive
                                  ├── stopped on purpose ──> nothing owed
                                  └── stopped for want of a lease, by its runner or by us ──> nothing owed

Ends are counted on the way from alive to ended, so one end is counted once however often it is looked at. Memories are
kept in the state directory; times are of the boot clock and mean nothing after a reboot (see `recalled`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from agent.core.health import Health
from agent.executor import Found
from runner import contract

START_DELAY_S = 1.0  # before an action that failed is tried again; doubled each time
START_DELAY_MAX_S = 30.0  # an image that appears in the registry, a disk that has room again: noticed this fast
AWAY_DELAY_MAX_S = 5.0  # a store or an engine that is away comes back by itself, and asking costs it little
LEASE_RUN_S = 5.0  # what its runner stopped for want of a lease sooner than this was not really started
LEASE_PAUSE_S = 1.0  # then, before it is started again: a host where no runner finds its lease must not spin
WORDS_MAX = 20  # lines of last words kept
WORD_CHARS_MAX = 500  # of one line

KILLED, TERMINATED = 9, 15  # signals
_BY_SIGNAL = 128  # exit codes of what a signal ended, as shells and engines count them


class EndKind(StrEnum):
    """Why an execution ended: each deserves something else."""

    CONFIGURATION = "configuration"  # only a new version helps
    MEMORY = "memory"  # more memory helps, or less of it used
    HOST = "host"  # something of the host ended it, or kept it from running
    LEASE = "lease"  # it may not run here now: no crash, and no restart when it may again
    FINISHED = "finished"  # exit 0: a crash like any other, for a service
    CRASHED = "crashed"


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a run ended."""

    kind: EndKind
    reason: str  # for people
    exit_code: int | None = None
    last_words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How an execution is started again: the `restart` section of its runtime.json."""

    delay_s: float = 1.0
    delay_max_s: float = 60.0
    reset_after_s: float = 120.0


Doing = Literal["start", "stop", "remove"]  # a fetch is part of starting
Cause = Literal["image", "configuration", "host", "bundle", "engine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """What kept an execution from being started, stopped or removed when that was tried last."""

    doing: Doing
    cause: Cause
    reason: str
    attempts: int  # in a row
    until_s: float  # when to try again


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What is remembered of one execution."""

    alive: bool = False  # when it was last looked at
    since_s: float = 0.0  # since when
    restarts: int = 0  # started again after ending by itself
    owed: bool = False  # it ended by itself and was not started again yet
    delay_s: float = 0.0  # waited before the last restart; 0 = none yet, or a good period since
    not_before_s: float = 0.0  # when the owed restart is due
    end: End | None = None  # the last one that was not on purpose
    waiting: Waiting | None = None
    healing: bool = False  # it is stopped and started because Bento has lost NATS: no end of its own
    healed: int = 0  # how often that was done


NOTHING = Memory()


SESSION_OVER = "stopped: the session of this host under which it ran is over"


def recalled(memory: Memory, now_s: float) -> Memory:
    """A memory that was read from disk: times that cannot be of this boot are cut to what they allow at most."""
    return replace(
        memory,
        since_s=min(memory.since_s, now_s),
        not_before_s=min(memory.not_before_s, now_s + max(memory.delay_s, LEASE_PAUSE_S)),
        waiting=None,  # the first attempt of a new process is free
    )


def seen_alive(memory: Memory, now_s: float) -> Memory:
    """It runs. Pays an owed restart."""
    if memory.alive:
        return replace(memory, waiting=None, healing=False) if memory.waiting or memory.healing else memory
    restarts = memory.restarts + (1 if memory.owed else 0)
    return replace(memory, alive=True, since_s=now_s, restarts=restarts, owed=False, waiting=None, healing=False)


def healing(memory: Memory) -> Memory:
    """It is to be stopped and started again, for NATS."""
    return replace(memory, healing=True)


def stopped_to_heal(memory: Memory) -> Memory:
    """It has ended while it was to: nothing is owed, and nothing is counted but this."""
    return replace(memory, alive=False, healed=memory.healed + 1)


def ended(memory: Memory, end: End, policy: Policy, now_s: float) -> Memory:
    """It ended by itself, after having been seen alive."""
    assert memory.alive, "an end is counted once"
    if end.kind is EndKind.LEASE:
        short = now_s - memory.since_s < LEASE_RUN_S
        return replace(
            memory, alive=False, not_before_s=now_s + LEASE_PAUSE_S if short else now_s, end=end, waiting=None
        )
    good = now_s - memory.since_s >= policy.reset_after_s
    doubled_s = policy.delay_s if good or memory.delay_s == 0 else memory.delay_s * 2
    # Trying again is hopeless until something outside changes, such as a file that the configuration names.
    delay_s = policy.delay_max_s if end.kind is EndKind.CONFIGURATION else min(doubled_s, policy.delay_max_s)
    return replace(memory, alive=False, owed=True, delay_s=delay_s, not_before_s=now_s + delay_s, end=end, waiting=None)


def fenced(memory: Memory) -> Memory:
    """It may not run here now, and we stop it for that: no end of its own is to be counted."""
    return replace(memory, alive=False, end=End(kind=EndKind.LEASE, reason=SESSION_OVER))


def rested(memory: Memory) -> Memory:
    """It is stopped on purpose: nothing is owed, and the next start begins with a clean slate."""
    if not (memory.alive or memory.owed or memory.waiting or memory.end):
        return memory
    return Memory(restarts=memory.restarts, healed=memory.healed)


def hindered(memory: Memory, doing: Doing, cause: Cause, reason: str, now_s: float) -> Memory:
    """Starting, stopping or removing it failed: no restart, and tried again later."""
    again = memory.waiting is not None and memory.waiting.doing == doing
    attempts = memory.waiting.attempts + 1 if memory.waiting is not None and again else 1
    most_s = AWAY_DELAY_MAX_S if cause in ("bundle", "engine") else START_DELAY_MAX_S
    delay_s = min(START_DELAY_S * 2.0 ** min(attempts - 1, 16), most_s)
    waiting = Waiting(
        doing=doing, cause=cause, reason=reason[:WORD_CHARS_MAX], attempts=attempts, until_s=now_s + delay_s
    )
    return replace(memory, waiting=waiting)


def unhindered(memory: Memory) -> Memory:
    """What was tried has succeeded."""
    return memory if memory.waiting is None else replace(memory, waiting=None)


def held(memory: Memory, doing: Doing, now_s: float) -> Waiting | None:
    """Why this must not be tried again yet."""
    waiting = memory.waiting
    return waiting if waiting is not None and waiting.doing == doing and now_s < waiting.until_s else None


def classify(found: Found | None, health: Health | None) -> End:
    """Why a run ended that nobody stopped. None = it vanished, with all that is kept of it."""
    words = _words(health.last_words) if health else ()
    if found is None:
        return End(kind=EndKind.HOST, reason="what is kept of it vanished from the host: something else removed it")
    code = found.exit_code
    if code is None and health is not None:
        code = health.exit_code
    kind, reason = _why(found, health, words, code)
    return End(kind=kind, reason=reason, exit_code=code, last_words=words)


def _why(found: Found, health: Health | None, words: Sequence[str], code: int | None) -> tuple[EndKind, str]:
    if found.oom:
        return EndKind.MEMORY, "it used more memory than its limit: raise resources.memory, or let it use less"
    if health is not None and health.failure is not None:
        kind, message = health.failure.kind, health.failure.message
        if kind == "lease":
            return EndKind.LEASE, f"stopped itself: {message or _LEASE_OVER}"
        owner = EndKind.CONFIGURATION if kind == "config" else EndKind.HOST
        return owner, _RUNNER_FAILURES.get(kind, f"its runner failed ({kind}): {{}}").replace("{}", message)
    if code == _LEASE:
        return EndKind.LEASE, f"stopped itself: {_LEASE_OVER}"
    if code == _ALREADY_RUNNING:
        return EndKind.HOST, "another copy of it still runs on this host"
    if code == 1 and (line := _configuration_words(words)):
        return EndKind.CONFIGURATION, f"Bento refuses the configuration: {line}"
    if code is None:
        return EndKind.HOST, "it was ended with its runner, from outside"
    signal = code - _BY_SIGNAL if code > _BY_SIGNAL else -code
    if code > _BY_SIGNAL or code < 0:
        if signal == KILLED:
            return EndKind.HOST, "it was killed from outside (signal 9), by a person or for want of memory on the host"
        if signal == TERMINATED:
            return EndKind.HOST, "it was ended from outside (signal 15)"
        return EndKind.CRASHED, f"it crashed with signal {signal}"
    if code == 0:
        return EndKind.FINISHED, "it ended by itself (exit code 0); a service must go on"
    return EndKind.CRASHED, f"it ended with exit code {code}"


# By kind of failure in `runner.contract`. Only the configuration is its owner's; all else is the host's.
_RUNNER_FAILURES: Mapping[str, str] = {
    "already-running": "another copy of it still runs on this host: {}",
    "bundle": "its bundle cannot be had: {}",
    "digest": "its bundle is damaged: {}",
    "bento-missing": "there is no Bento to start on this host: {}",
    "host": "the host refuses to run it: {}",
    "port": "no port of this host stays free for it: {}",
    "settings": "agent and runner do not understand each other, are they of one version? {}",
    "config": "Bento refuses the configuration: {}",
}

# Bento says these when it does not accept what it was given. Nothing that happens while it runs looks so.
_REFUSALS = re.compile(
    r"lint error|linter errors|unable to (infer|parse)|config(uration)? (file )?(read|parse|error)"
    r"|failed to (read|parse|init\w*) (config|stream|\w+ config)"
    r"|failed to init (input|output|processor|pipeline|buffer)",
    re.IGNORECASE,
)

# What the runner ends with, also when it cannot even write a health file.
_ALREADY_RUNNING = contract.EXIT_ALREADY_RUNNING
_LEASE = contract.EXIT_LEASE
_LEASE_OVER = "the host lease ended"


def _configuration_words(words: Sequence[str]) -> str:
    return next((word for word in words if _REFUSALS.search(word)), "")


def _words(lines: Sequence[str]) -> tuple[str, ...]:
    return tuple(line[:WORD_CHARS_MAX] for line in lines[-WORDS_MAX:])


def trimmed(memories: Mapping[str, Memory]) -> Mapping[str, Memory]:
    """Only those that say something."""
    return {execution: memory for execution, memory in memories.items() if memory != NOTHING}
