"""The runners of a simulated machine: the real rules (`runner.core`, `runner.fence`) on virtual time, and a Bento.

    engine ── starts, signals, kills ──> Runner ── the real core ──> Bento: a stretch of time in the ledger
                                            └── reads grant and lease of the machine's Tmpfs

A runner belongs to no process that can be frozen or killed with an agent. It looks at grant and lease when the real one
would, but is woken only for looks that can find something new.
"""

from __future__ import annotations

import asyncio
import math
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

from runner import contract, core, events, fence, permits
from runner.fence import Permits, Place
from runner.value import replace
from tests.sim.virtual_time import NOBODY, VirtualClock


class Tmpfs:
    """What a machine has in memory: lease and grants. Lost by a reboot only. Content is text, as the real files."""

    def __init__(self) -> None:
        self.lease: str | None = None
        self.grants: dict[str, str] = {}
        self.watchers: list[Callable[[str], None]] = []  # told the name of the grant that changed, "" = the lease

    def put_lease(self, text: str | None) -> None:
        self.lease = text
        self._tell("")

    def put_grant(self, name: str, text: str | None) -> None:
        if text is None:
            self.grants.pop(name, None)
        else:
            self.grants[name] = text
        self._tell(name)

    def look(self, name: str) -> Permits:
        """What a runner finds."""
        grant = permits.parse_grant(self.grants[name]) if name in self.grants else "it has no grant"
        lease = "there is no lease of this host" if self.lease is None else permits.parse_lease(self.lease)
        return Permits(grant=grant or "its grant is unreadable", lease=lease or "the host's lease is unreadable")

    def _tell(self, name: str) -> None:
        for watcher in list(self.watchers):
            watcher(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long one run takes for what."""

    verify_s: float  # from the runner's start until it looks at grant and lease, right before it starts Bento
    ready_s: float  # from Bento's start until it is ready
    drain_s: float  # from SIGTERM until Bento has ended
    crash_s: float = math.inf  # Bento ends by itself so long after its start


class Runner:
    """One run of one execution. `began` is told when Bento starts, `over` when all is over (exit code, failure)."""

    def __init__(
        self,
        *,
        place: Place,
        tmpfs: Tmpfs,
        clock: VirtualClock,
        grace_s: float,
        pace: Pace,
        began: Callable[[], None],
        over: Callable[[int, tuple[str, str] | None], None],
    ) -> None:
        self._place, self._tmpfs, self._clock, self._pace = place, tmpfs, clock, pace
        self._grace_s, self._began, self._over = grace_s, began, over
        self._loop = asyncio.get_running_loop()
        self._state: core.State | None = None  # None: it has not started Bento yet
        self._timers: list[asyncio.TimerHandle] = []  # of Bento: ready, crash, drained
        self._timer: asyncio.TimerHandle | None = None  # of the runner: wake_at
        self._told = False
        self._news = False  # something changed in a file since the last look
        self._ended = False
        self._after(pace.verify_s, self._start)

    @property
    def running(self) -> bool:
        """Whether Bento runs."""
        return self._state is not None and not self._ended

    @property
    def ready(self) -> bool:
        return self._state is not None and self._state.phase is core.Phase.READY

    def tell(self, number: int) -> None:
        """The runner gets a signal."""
        if number == signal.SIGKILL:
            self._end(128 + signal.SIGKILL, None)  # and Bento with it, by the parent-death signal
        elif self._state is None:
            self._told = True
        else:
            self._step(events.Signalled(number=number))

    def crash(self, code: int) -> None:
        """Bento ends by itself, now."""
        self._child_ended(code)

    # --- inside

    def _start(self) -> None:
        if self._told:
            self._end(core.TOLD_TO_STOP, None)
            return
        admitted = fence.admit(self._place, self._tmpfs.look(self._place.execution), self._clock.boot())
        if isinstance(admitted, str):
            self._end(contract.EXIT_LEASE, ("lease", admitted))
            return
        self._state = core.begin(
            self._clock.boot(), fetching=False, grace_s=self._grace_s, http_ours=True, fence=admitted
        )
        self._tmpfs.watchers.append(self._changed)
        self._began()
        self._after(self._pace.ready_s, self._answer)
        if self._pace.crash_s < math.inf:
            self._after(self._pace.crash_s, lambda: self._child_ended(1))
        self._step(events.Woken())

    def _changed(self, name: str) -> None:
        """A file changed. A lease means nothing to a run that is not bound."""
        bound = self._state is not None and self._state.fence is not None and self._state.fence.bound
        if name == self._place.execution or (name == "" and bound):
            self._news = True
            self._sleep()

    def _answer(self) -> None:
        if self._state is not None and self._state.asking is events.Question.READY:
            self._step(events.Answered(status=200, body="OK"))

    def _wake(self) -> None:
        self._timer = None
        self._step(events.Woken())

    def _step(self, event: events.Event) -> None:
        if self._ended or self._state is None:
            return
        happened: list[events.Event] = [event]
        looks_at = core.looks_at(self._state)
        if looks_at is not None and self._clock.boot() >= looks_at:
            self._news = False
            happened.insert(0, events.Looked(permits=self._tmpfs.look(self._place.execution)))
        for each in happened:
            self._state, actions = core.step(self._state, each, self._clock.boot())
            for action in actions:
                self._do(action)
                if self._ended:
                    return
        self._sleep()

    def _do(self, action: events.Action) -> None:
        match action:
            case events.Send(number=number):
                if number == signal.SIGKILL:
                    self._soon(lambda: self._child_ended(128 + signal.SIGKILL))
                elif number == signal.SIGTERM:
                    self._after(self._pace.drain_s, lambda: self._child_ended(0))
            case events.Ask():
                pass  # answered once, when it is ready; a question without an answer keeps the rest of them away
            case events.LookAtLinks() | events.Greet():
                pass  # a simulated Bento has no connections to look after
            case events.End(code=code, failure=failure):
                self._end(code, failure)
            case events.StartBento():
                raise AssertionError("no simulated port is taken away, and bundles are on the host")
            case _:
                assert_never(action)

    def _child_ended(self, code: int) -> None:
        number = code - 128 if code > 128 else None
        self._step(events.Ended(code=code, signal=number, words=()))

    def _sleep(self) -> None:
        """Be woken when the core wants to be, but for looks at files that have not changed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        state = self._state
        if state is None or self._ended:
            return
        wake_at = core.wake_at(state)
        if not self._news and wake_at is not None and wake_at == state.look_at and state.fence is not None:
            # As if it had looked as often as it should, and found the same each time.
            quiet = replace(state, look_at=math.inf)
            wake_at = core.wake_at(quiet)
        elif wake_at == state.look_at and wake_at < self._clock.boot():
            pause_s = contract.POLL_S if state.fence is not None and state.fence.bound else contract.POLL_UNBOUND_S
            wake_at += math.ceil((self._clock.boot() - wake_at) / pause_s) * pause_s
        if wake_at is not None and wake_at < math.inf:
            self._timer = self._loop.call_at(
                max(self._loop.time(), self._clock.real(wake_at)) + 1e-6, self._wake, context=NOBODY
            )

    def _end(self, code: int, failure: tuple[str, str] | None) -> None:
        if self._ended:
            return
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        for timer in self._timers:
            timer.cancel()
        if self._changed in self._tmpfs.watchers:
            self._tmpfs.watchers.remove(self._changed)
        self._over(code, failure)

    def _after(self, seconds: float, call: Callable[[], None]) -> None:
        self._timers.append(self._loop.call_later(seconds, call, context=NOBODY))

    def _soon(self, call: Callable[[], None]) -> None:
        self._after(0.001, call)
