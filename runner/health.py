"""The health document (see runner/contract.py): what it holds, how it is written, and Bento's counters for it."""

from __future__ import annotations

import json
import os

from runner import contract
from runner.core import Phase, State
from runner.events import End
from runner.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_FRESH = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LINE_BYTES_MAX = 64 * 1024  # a longer line of metrics is not one that we look for
_REASON_MAX = 500  # characters


@value
class Facts:
    """What the document shows besides the state."""

    boot_id: str
    bento_pid: int | None = None
    http: str = ""
    counters: Mapping[str, int]
    end: End | None = None
    words: tuple[str, ...] = ()


def document(state: State | None, facts: Facts) -> dict[str, object]:
    """The health document without `updated_boot_s`. No state: it ended before any child was started."""
    started = None if state is None or state.fetching else state.started
    end = facts.end
    return {
        "phase": Phase.EXITED if end is not None or state is None else state.phase,
        "ready": state is not None and state.phase is Phase.READY,
        "not_ready_reason": state.reason[:_REASON_MAX] if state is not None and state.phase is Phase.RUNNING else "",
        "runner_pid": os.getpid(),
        "bento_pid": facts.bento_pid,
        "boot_id": facts.boot_id,
        "http": facts.http,
        "started_boot_s": started,
        "ready_boot_s": None if state is None else state.ready_first,
        "stuck": None
        if state is None or state.stuck is None
        else {"since_boot_s": round(state.stuck[0], 3), "reason": state.stuck[1]},
        "counters": dict(facts.counters),
        "exit": None
        if end is None
        else {
            "code": end.code,
            "signal": end.signal,
            "killed_after_grace": state is not None and state.killed,
        },
        "failure": None
        if end is None or end.failure is None
        else dict(zip(("kind", "message"), end.failure, strict=True)),
        "last_words": list(facts.words) if end is not None else [],
    }


class HealthFile:
    """Writes the document when it has changed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._written: dict[str, object] | None = None

    def show(self, current: dict[str, object], now: float) -> str:
        """Replace the file if `current` differs from what it holds. The reason if that failed (tmpfs may be full of
        what the pipeline wrote there; the next call tries again), else ""."""
        if current == self._written:
            return ""
        text = json.dumps({**current, "updated_boot_s": round(now, 3)})
        fresh = f"{self._path}.new"
        try:
            # The pipeline may write into this directory too: nothing that it puts there may lead us away or hold us.
            fd = os.open(fresh, _FRESH, 0o644)
            try:
                os.write(fd, text.encode())
            finally:
                os.close(fd)
            os.replace(fresh, self._path)  # noqa: PTH105
        except OSError as error:
            return str(error)
        self._written = current
        return ""


class Counts:
    """Sums counters out of Bento's metrics while they arrive: a pipeline may have megabytes of them, we have not."""

    def __init__(self) -> None:
        self._sums: dict[bytes, float] = {}
        self._names = frozenset(name.encode() for name in contract.COUNTERS)
        self._rest = b""

    def feed(self, chunk: bytes) -> None:
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()[:_LINE_BYTES_MAX]
        for line in lines:
            name = line.partition(b"{")[0].partition(b" ")[0]
            if name in self._names:
                try:
                    # A label may hold spaces and braces, so the number is what follows the last space.
                    self._sums[name] = self._sums.get(name, 0.0) + float(line.rpartition(b" ")[2])
                except ValueError:
                    continue

    def result(self) -> dict[str, int]:
        """The sums by name; NaN and infinities are left out, they are no counts."""
        self.feed(b"\n")
        return {name.decode(): int(total) for name, total in sorted(self._sums.items()) if total - total == 0}
