"""First process of an execution: verify, start Bento as early as possible, then watch over it.

    __main__ ── supervise.main
                   ├ settings, spawn (lock), launch (bundle, port, fork)      before Bento runs: as little as possible
                   ├ backstop (a thread)                                      from the first fork on
                   └ loop ── core (decides), pump, probe, health              imported while Bento starts

Two stages, because everybody who publishes a pipeline waits for the first, and Bento needs 60 ms for itself in which
the second can be imported. See runner/contract.py for what is promised to executors.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found,unused-ignore]
import os

from runner import contract
from runner.launch import Launched, Launcher
from runner.settings import Failure, read_settings
from runner.spawn import take_lock

_HANDLED = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP, _signal.SIGUSR1, _signal.SIGUSR2, _signal.SIGCHLD)


def main() -> int:
    """Run one execution to its end; the exit code as contract.py says."""
    signals = _catch_signals()
    try:
        settings = read_settings(os.environ)
        take_lock(settings.path(contract.LOCK_FILE))
    except Failure as failure:
        return _refuse(failure)
    except OSError as error:
        return _refuse(Failure("host", f"the lock cannot be taken: {error}"))
    launcher = Launcher(settings, os.environ)
    try:
        first: Launched | Failure = launcher.first()
    except Failure as failure:
        first = failure
    if launcher.backstop is not None:
        launcher.backstop.start()
    from runner.loop import supervise

    return supervise(settings, launcher, first, signals)


def _catch_signals() -> int:
    """From here on signals wait in a pipe; its reading end. As process 1 an uncaught SIGTERM would simply be lost."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    _signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in _HANDLED:
        _signal.signal(number, _ignore)
    return read


def _ignore(*_: object) -> None:
    """The wake-up pipe has it."""


def _refuse(failure: Failure) -> int:
    """End without a health document: it may belong to another runner, or nobody knows where it should be."""
    os.write(2, f"[runner] {failure.kind}: {failure}\n".encode("utf-8", "replace"))
    return failure.exit_code
