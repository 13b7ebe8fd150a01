"""Starting a child so that it never outlives the runner, and what it needs before: the lock and a port.

Everything here happens before Bento runs, so it uses the small C modules below `socket`, `signal` and `ctypes`, whose
Python halves take 20 ms to import together (`enum`, `selectors`, ...).
"""

from __future__ import annotations

import _ctypes
import _signal  # type: ignore[import-not-found,unused-ignore]
import _socket
import fcntl
import os
import time

from runner.settings import Failure
from runner.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_ORPHANS_POLL_S = 0.005
_LOOK_S = 0.25  # the longest that who only looks holds the lock, and more
_EXEC_FAILED = 127  # of a child that could not exec; the reason comes through a pipe


def take_lock(path: str) -> int:
    """The lock of this execution, as a descriptor that children inherit: held until the last of them has ended.
    Failure("already-running") if somebody holds it for longer than a look: an agent asks whether it is held by taking
    it for an instant, and must not be mistaken for a runner."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    give_up = time.monotonic() + _LOOK_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= give_up:
                os.close(fd)
                raise Failure("already-running", f"another runner or its Bento holds {path}") from None
            time.sleep(_LOOK_S / 50)
        else:
            os.set_inheritable(fd, True)
            return fd


def reserve_port() -> tuple[_socket.socket, int]:
    """A loopback port for Bento, kept for it as long as the socket that is returned stays open.

    Bound but not listening, with SO_REUSEADDR: Linux then gives this port to nobody who asks for any port (neither
    another runner's reservation nor an outgoing connection), yet Bento, whose listener has SO_REUSEADDR too, may take
    it. Only somebody who names exactly this port can still come in between.
    """
    reservation = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    reservation.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
    reservation.bind(("127.0.0.1", 0))
    port: int = reservation.getsockname()[1]
    return reservation, port


@value
class Child:
    """A started process. `exec_error` is the reading end of a pipe: empty at its end = the program was executed."""

    pid: int
    exec_error: int

    def check(self) -> None:
        """Wait until the program was executed (some milliseconds after the start). Failure("bento-missing") if not."""
        try:
            problem = os.read(self.exec_error, 1000)
        finally:
            os.close(self.exec_error)
        if problem:
            raise Failure("bento-missing", problem.decode("utf-8", "replace"))


def start(argv: list[str], env: Mapping[str, str], *, cwd: str, output: int) -> Child:
    """Fork and exec, in our process group, with `output` as standard output and error. Call it in the main thread: the
    kernel kills the child when the *thread* that forked it ends.

    The child begins with default signal dispositions and nothing blocked, as if a shell had started it.
    """
    # Looked up before the fork: the child does as little as possible between fork and exec.
    # None: this very program, which has the C library in it; the stubs do not know that.
    prctl = _ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl")  # type: ignore[arg-type]
    # What a child leaves behind becomes ours instead of process 1's, so that `end_orphans` can find it.
    _ctypes.call_function(prctl, (_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
    parent = os.getpid()
    told, tell = os.pipe()
    # Blocked around the fork: until the child has reset its dispositions, our handlers would run in it and write into
    # the wake-up pipe that it shares with us.
    mask = _signal.pthread_sigmask(_signal.SIG_SETMASK, _signal.valid_signals())
    pid = os.fork()
    if pid:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
        os.close(tell)
        return Child(pid=pid, exec_error=told)
    try:
        if _ctypes.call_function(prctl, (_PR_SET_PDEATHSIG, int(_signal.SIGKILL), 0, 0, 0)) != 0:
            raise OSError(0, "the parent-death signal cannot be set")
        # Had the runner died before prctl took effect, the signal would never come.
        if os.getppid() != parent:
            os._exit(_EXEC_FAILED)
        for number in _signal.valid_signals():
            # Python itself ignores SIGPIPE and SIGXFSZ, which exec would hand down.
            if _signal.getsignal(number) not in (_signal.SIG_DFL, None):
                _signal.signal(number, _signal.SIG_DFL)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(cwd)
        os.execve(argv[0], argv, dict(env))
    except OSError as error:
        os.write(tell, f"{argv[0]} cannot be executed: {error.strerror}".encode())
    finally:
        os._exit(_EXEC_FAILED)


def end_orphans(seconds: float) -> None:
    """Kill and reap all that an ended child left behind (a `subprocess` of a pipeline, say), for at most so long: what
    cannot be killed waits for a disk, and no signal helps there."""
    pid, deadline = os.getpid(), time.monotonic() + seconds
    while orphans := children(pid):
        for orphan in orphans:
            os.kill(orphan, _signal.SIGKILL)
        while _reaped():
            pass
        if time.monotonic() > deadline:
            return
        time.sleep(_ORPHANS_POLL_S)


def children(pid: int) -> list[int]:
    """The processes that this one, in its main thread, has started or inherited, those not reaped included."""
    try:
        fd = os.open(f"/proc/{pid}/task/{pid}/children", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return []  # a kernel without it
    try:
        return [int(number) for number in os.read(fd, 65536).split()]
    finally:
        os.close(fd)


def _reaped() -> bool:
    """Whether one more child was collected."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def find_program(name: str, path: str) -> str:
    """The absolute path of a program, looked up as a shell would. Failure("bento-missing") if there is none."""
    candidates = [name] if "/" in name else [f"{directory or '.'}/{name}" for directory in path.split(":")]
    for candidate in candidates:
        if os.access(candidate, os.X_OK) and not os.path.isdir(candidate):  # noqa: PTH112
            return os.path.abspath(candidate)  # noqa: PTH100
    raise Failure("bento-missing", f"there is no program {name!r}" + ("" if "/" in name else f" in PATH={path}"))
