"""Health documents as a runner writes them, for fakes. The words are those of `runner.contract`."""

from __future__ import annotations

from typing import Any


def health(
    *,
    alive: bool,
    ready: bool,
    started: float,
    exit_code: int | None,
    boot: str,
    failure: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """The document in this situation. `failure` is (kind, message)."""
    phase = ("ready" if ready else "running") if alive else "exited"
    return {
        "phase": phase,
        "ready": ready,
        "not_ready_reason": "not connected yet" if alive and not ready else "",
        "runner_pid": 1,
        "bento_pid": 2,
        "boot_id": boot,
        "http": "127.0.0.1:4195",
        "started_boot_s": started,
        "ready_boot_s": started if ready else None,
        "updated_boot_s": started,
        "stuck": None,
        "counters": {},
        "exit": None if exit_code is None else {"code": exit_code, "signal": None, "killed_after_grace": False},
        "failure": None if failure is None else {"kind": failure[0], "message": failure[1]},
        "last_words": [],
    }
