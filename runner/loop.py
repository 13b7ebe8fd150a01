"""The loop of the runner: waits, tells the core what happened, does what the core says. One poll(2).

It decides nothing: what happens is an event here and a rule in the core.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections import deque

from runner import contract, core, events
from runner.events import Action, End, Event, Question
from runner.health import Counts, Facts, HealthFile, document
from runner.launch import Launched, Launcher
from runner.permit_files import boot_id
from runner.probe import HAIL_S, TIMEOUT_S, Hail, Listener, Request, find_listener, listens_nowhere
from runner.pump import LogFile, Pump, Stream
from runner.settings import Failure, Settings
from runner.sockets import Sockets
from runner.spawn import end_orphans
from runner.value import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runner.pump import Sink

ORPHANS_MAX_S = 1.0  # how long what Bento left behind may take to die
DRAIN_MAX_S = 5.0  # how long the end waits for a slow reader of our standard output
FULL_LOOK_S = 2.0  # how often the kernel is asked who has the port, even if Bento has no socket: it goes on without one
BODY_BYTES_MAX = 500  # of an answer of /ready


def supervise(settings: Settings, launcher: Launcher, first: Launched | Failure, signals: int) -> int:
    """Watch over the child that was started until it ends; the exit code. `first` may be why there is none."""
    health = HealthFile(settings.path(contract.HEALTH_FILE))
    try:
        sink: Sink = LogFile(settings.log, settings.log_bytes_max) if settings.log else Stream(1)
    except OSError as error:
        sink = Stream(2)
        # Bento, if it was started, dies with us.
        first = Failure("host", f"the log cannot be opened: {error}")
    pump = Pump(sink)
    if isinstance(first, Failure):
        return _refuse(first, health, pump)
    return _Loop(settings, launcher, first, signals, health, pump).run()


def _refuse(failure: Failure, health: HealthFile, pump: Pump) -> int:
    end = End(code=failure.exit_code, failure=(failure.kind, str(failure)))
    pump.say(f"{failure.kind}: {failure}")
    pump.drain(DRAIN_MAX_S)
    health.show(document(None, Facts(boot_id=boot_id(), counters={}, end=end)), _now())
    return end.code


class _Loop:
    """One execution from its first child to its end."""

    def __init__(
        self, settings: Settings, launcher: Launcher, first: Launched, signals: int, health: HealthFile, pump: Pump
    ) -> None:
        self._settings = settings
        self._launcher = launcher
        self._signals = signals
        self._health = health
        self._health_problem = ""
        self._pump = pump
        self._events: deque[Event] = deque()
        self._request: Request | None = None
        self._request_deadline = 0.0
        self._body = b""
        self._counts = Counts()
        self._listener: Listener | None = None
        self._full_look_at = _now() + FULL_LOOK_S
        self._hail: Hail | None = None
        self._hail_deadline = 0.0
        self._facts = Facts(boot_id=boot_id(), counters={})
        self._launched, self._reaped = first, False
        self._adopt(first)
        self._state = core.begin(
            first.started,
            fetching=first.fetching,
            grace_s=settings.stop_grace_s,
            http_ours=launcher.chooses_port,
            fence=first.fence,
        )

    def run(self) -> int:
        """Until the core says that it is over."""
        self._check()
        # A child may have ended before its signal could be caught.
        self._reap()
        while self._facts.end is None:
            self._look()
            self._events.append(events.Woken())
            while self._events and self._facts.end is None:
                self._state, actions = core.step(self._state, self._events.popleft(), _now())
                self._publish()
                for action in actions:
                    self._do(action)
            if self._facts.end is None:
                self._show()
                self._wait(core.wake_at(self._state))
        end = self._facts.end
        if end.failure is not None and end.failure[0] != "config":
            self._pump.say(": ".join(end.failure))
            self._pump.drain(DRAIN_MAX_S)
        self._show()
        return end.code

    # --- waiting

    def _wait(self, wake_at: float | None) -> None:
        """Sleep until something happens or it is time; append what happened."""
        poll = select.poll()
        poll.register(self._signals, select.POLLIN)
        if (output := self._pump.reads) is not None:
            poll.register(output, select.POLLIN)
        if (blocked := self._pump.sink.waits_for) is not None:
            poll.register(blocked, select.POLLOUT)
        request = self._request
        if request is not None:
            poll.register(request.fileno(), select.POLLOUT if request.writes else select.POLLIN)
            wake_at = self._request_deadline if wake_at is None else min(wake_at, self._request_deadline)
        hail = self._hail
        if hail is not None:
            poll.register(hail.fileno(), select.POLLIN)
            wake_at = self._hail_deadline if wake_at is None else min(wake_at, self._hail_deadline)
        # Rounded up: a millisecond early would mean one more turn for nothing.
        left_ms = None if wake_at is None else max(0.0, (wake_at - _now()) * 1000 + 1)
        ready = {fd for fd, _ in poll.poll(left_ms)}
        if self._signals in ready:
            self._read_signals()
        if blocked in ready:
            self._pump.sink.flush()
        if output in ready and output == self._pump.reads and self._pump.pump():
            self._events.append(events.Spoke())
        if request is not None and request is self._request:
            if request.fileno() in ready and request.advance():
                self._answer(request)
            elif _now() >= self._request_deadline:
                request.problem = f"no answer in {TIMEOUT_S:g} s"
                self._answer(request)

        if hail is not None:
            if hail.fileno() in ready:
                hail.advance()
            elif _now() >= self._hail_deadline:
                hail.greeting = hail.late()
            self._hear()

    def _look(self) -> None:
        """Read grant and lease if it is time. Before all that has happened: a wait, or a write, may have been long."""
        looks_at = core.looks_at(self._state)
        if looks_at is not None and _now() >= looks_at and self._launcher.permits is not None:
            self._events.appendleft(events.Looked(permits=self._launcher.permits.look()))

    def _publish(self) -> None:
        """Tell the backstop what holds, so that it knows no less than the core does."""
        if self._launcher.backstop is not None:
            self._launcher.backstop.fence = self._state.fence

    def _read_signals(self) -> None:
        numbers = os.read(self._signals, 4096)
        if signal.SIGCHLD in numbers:
            self._reap()
        self._events += [events.Signalled(number=number) for number in numbers if number != signal.SIGCHLD]

    def _reap(self) -> None:
        """Collect every child that ended; as process 1 these may be orphans of Bento that we never started."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._launched.child.pid:
                self._reaped = True
                self._drop_request()
                end_orphans(ORPHANS_MAX_S)
                self._pump.drain(DRAIN_MAX_S)
                number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
                code = os.WEXITSTATUS(status) if number is None else 128 + number
                self._events.append(events.Ended(code=code, signal=number, words=self._pump.words()))

    # --- doing

    def _do(self, action: Action) -> None:
        match action:
            case events.Send():
                # Once it was reaped, its number may mean somebody else.
                if not self._reaped:
                    os.kill(self._launched.child.pid, action.number)
            case events.Ask():
                self._ask(action.question)
            case events.LookAtLinks():
                self._events.append(events.Linked(found=self._sockets.look()))
            case events.Greet():
                self._hail, self._hail_deadline = Hail(action.peer), _now() + HAIL_S
                self._hear()
            case events.StartBento():
                self._start_bento()
            case events.End():
                self._facts = replace(self._facts, end=action, words=self._pump.words())

    def _hear(self) -> None:
        """Tell the core who is there, if that is known by now."""
        hail = self._hail
        if hail is not None and hail.greeting is not None:
            hail.close()
            self._hail = None
            self._events.append(events.Greeted(peer=hail.peer, greeting=hail.greeting))

    def _start_bento(self) -> None:
        try:
            launched = self._launcher.bento()
            if launched is None:
                raise Failure("bundle", "the bundle that was fetched is not there")
        except Failure as failure:
            self._fail(failure)
            return
        self._adopt(launched)
        # Before anything that is already waiting: a signal, say, is meant for this Bento.
        self._events.appendleft(events.Started(fence=launched.fence))
        self._check()

    def _adopt(self, launched: Launched) -> None:
        self._launched = launched
        self._reaped = False
        self._sockets = Sockets(launched.child.pid)
        self._pump.attach(launched.output)
        pid = None if launched.fetching else launched.child.pid
        # Where the address is the configuration's, it is known when Bento listens.
        self._listener = None
        if launched.prefix and launched.port is not None:
            self._listener = Listener(host="127.0.0.1", port=launched.port, ours=True)
        http = _address(self._listener) if self._listener is not None else ""
        self._facts = replace(self._facts, bento_pid=pid, http=http, counters={})

    def _check(self) -> None:
        """Whether the program that was forked could be executed at all."""
        try:
            self._launched.child.check()
        except Failure as failure:
            self._fail(failure)

    def _fail(self, failure: Failure) -> None:
        self._facts = replace(
            self._facts, end=End(code=failure.exit_code, failure=(failure.kind, str(failure))), words=self._pump.words()
        )

    def _show(self) -> None:
        problem = self._health.show(document(self._state, self._facts), _now())
        if problem and problem != self._health_problem:
            self._pump.say(f"the health document cannot be written: {problem}")
        self._health_problem = problem

    # --- asking Bento

    def _ask(self, question: Question) -> None:
        port = self._launched.port
        if port is None:
            self._events.append(events.Unanswered(reason=f"no port number can be read from {self._settings.http!r}"))
            return
        if self._listener is None and _now() < self._full_look_at and listens_nowhere(self._launched.child.pid):
            self._events.append(events.Unanswered(reason=_deaf(port), refused=True))
            return
        if self._listener is None:
            self._listener = self._find_listener(port)
        if self._listener is None:
            return
        self._body, self._counts = b"", Counts()
        feed = self._feed if question is Question.READY else self._counts.feed
        self._request = Request(self._listener, self._launched.prefix + question.value, feed)
        self._request_deadline = _now() + TIMEOUT_S
        if self._request.problem:
            self._answer(self._request)

    def _find_listener(self, port: int) -> Listener | None:
        """Where our Bento listens. If it does not, the core is told."""
        at = "127.0.0.1" if self._launched.prefix else ""
        self._full_look_at = _now() + FULL_LOOK_S
        listener = find_listener(self._launched.child.pid, port, at)
        if listener is not None and listener.ours:
            self._facts = replace(self._facts, http=_address(listener))
            return listener
        if listener is None:
            self._events.append(events.Unanswered(reason=_deaf(port), refused=True))
        else:
            self._events.append(events.Displaced(address=f"port {port}"))
        return None

    def _feed(self, chunk: bytes) -> None:
        self._body = (self._body + chunk)[:BODY_BYTES_MAX]

    def _answer(self, request: Request) -> None:
        """The request is over: tell the core, keep the counters."""
        asked, launched = self._state.asking, self._launched
        self._drop_request()
        if not launched.prefix and request.problem:
            self._listener = None  # look for it again
        # Not what Bento says under the secret path: is that our Bento at all?
        strange = launched.prefix and not request.refused and request.status not in (200, 503)
        if strange and launched.port and self._find_listener(launched.port) is None:
            return
        if request.problem:
            reason = f"Bento's HTTP server: {request.problem}"
            self._events.append(events.Unanswered(reason=reason, refused=request.refused))
            return
        if asked is Question.COUNTERS and request.status == 200:
            self._facts = replace(self._facts, counters=self._counts.result())
        body = self._body.decode("utf-8", "replace").strip()
        self._events.append(events.Answered(status=request.status, body=body))

    def _drop_request(self) -> None:
        if self._request is not None:
            self._request.close()
        self._request = None


def _deaf(port: int) -> str:
    return f"Bento's HTTP server does not listen on port {port}"


def _address(listener: Listener) -> str:
    host = f"[{listener.host}]" if ":" in listener.host else listener.host
    return f"{host}:{listener.port}"


def _now() -> float:
    """CLOCK_BOOTTIME: what grace periods and leases are measured on."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
