"""The end of a bound run whose runner cannot see to it: a thread that does nothing else.

The loop of the runner is what stops Bento in time, gracefully. But it also writes: a log on a disk that hangs (a dead
NFS server, a failing device) holds it for as long as that takes, and modules that it imports may lie on such a disk as
well. This thread touches nothing but grant and lease, which lie on tmpfs, and knows one answer: SIGKILL.

A thread and not a process: it costs 30 us and no memory to speak of, and needs nobody to watch over it in turn. It
cannot help where the runner as a whole stands still (SIGSTOP).
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found,unused-ignore]
import _thread
import os
import time

from runner import contract
from runner.fence import follow
from runner.spawn import children

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runner.fence import Fence
    from runner.permit_files import PermitFiles

# How much later than the loop, which says why it killed; less than the poll that the leader waits for besides.
_LATER_S = contract.POLL_S / 2
_AGAIN_S = 0.005  # what Bento leaves behind becomes ours when Bento has died; rarer from time to time


class Backstop:
    """Kills all children of the runner when the deadline of a bound run, as the files show it, and FENCE_KILL_S after
    it are over. `fence` is the loop's: what holds for the run as the loop knows it, replaced whenever it learns more,
    and before a child is forked."""

    def __init__(self, permits: PermitFiles) -> None:
        self.fence: Fence | None = None
        self._permits = permits  # nobody else's: it keeps what it has read
        self._runner = os.getpid()

    def start(self) -> None:
        """From now on. Call it after the first fork, which need not wait for it."""
        _thread.start_new_thread(self._watch, ())

    def _watch(self) -> None:
        again_s = _AGAIN_S
        known = followed = self.fence
        while True:
            if self.fence is not known:
                known = followed = self.fence
            pause_s = contract.FENCE_KILL_S  # of a run that is not bound: soon enough if that has just changed
            if followed is not None:
                now = time.clock_gettime(time.CLOCK_BOOTTIME)
                followed = follow(followed, self._permits.look(), now)
                if followed.bound:
                    pause_s = followed.deadline_s + contract.FENCE_KILL_S + _LATER_S - now
            if pause_s > 0:
                again_s = _AGAIN_S
                time.sleep(pause_s)
                continue
            _kill(children(self._runner))
            time.sleep(again_s)
            again_s = min(2 * again_s, contract.POLL_S)


def _kill(pids: list[int]) -> None:
    """Right after they were listed: one that the loop reaps meanwhile has a number that nobody else has got so soon."""
    for pid in pids:
        try:
            os.kill(pid, _signal.SIGKILL)
        except ProcessLookupError:
            continue
