"""Processes by identity, and the process file: what the process driver remembers of an execution.

A process id alone is nobody: it is used again. A process is known by its id, its start time in clock ticks, and the
boot id; and it is over as soon as it is a zombie, although a zombie still answers signals. Signals go through a pidfd
that was opened before the identity was checked, so nobody else can be hit.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from agent.layout import NOT_THERE, boot_id
from shared.bounds import Digest, Execution, PipelineId, Slot, StoreId, Version
from shared.documents import decode, encode
from shared.errors import BadInput

PROCESS_FILE = "process.json"
PROCESS_FILE_BYTES_MAX = 64 * 1024
TICKS_PER_S = os.sysconf("SC_CLK_TCK")

_OVER = ("Z", "X", "x")


@dataclass(frozen=True, slots=True)
class Identity:
    """One process and no other, ever."""

    pid: Annotated[int, Field(gt=0, lt=2**31)]
    ticks: Annotated[int, Field(ge=0, lt=2**63)]  # start time in clock ticks after boot
    boot: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFile:
    """The memory of an execution of the process driver. `process` None: never started, or about to be."""

    cluster: str
    host: str
    store_id: StoreId
    execution: Execution
    pipeline: PipelineId
    slot: Slot
    version: Version
    digest: Digest
    process: Identity | None = None


@dataclass(frozen=True, slots=True)
class _Stat:
    state: str  # of the main thread alone
    session: int
    threads: int  # the main thread counts until it is reaped
    ticks: int

    @property
    def over(self) -> bool:
        """Whether all of the process has ended. Its main thread may be a zombie while others still run, or end: a
        SIGKILL ends the threads of a Bento one by one, and the last one closes the files, which gives the lock free."""
        return self.state in _OVER and self.threads <= 1


def write(directory: Path, content: ProcessFile) -> None:
    """Replace the process file of an execution directory, whole. Not synced: it lies on tmpfs."""
    fresh = directory / (PROCESS_FILE + ".new")
    fresh.write_bytes(encode(content))
    fresh.replace(directory / PROCESS_FILE)


def read(directory: Path) -> ProcessFile | None:
    """The process file, or None if there is none that makes sense. OSError: the host cannot read it now."""
    try:
        data = (directory / PROCESS_FILE).read_bytes()
        return decode(ProcessFile, data[: PROCESS_FILE_BYTES_MAX + 1])
    except BadInput:
        return None
    except OSError as error:
        if error.errno not in NOT_THERE:
            raise
        return None


def identify(pid: int) -> Identity | None:
    """The identity of a process that lives now."""
    found = _stat(pid)
    return Identity(pid, found.ticks, boot_id()) if found is not None and not found.over else None


def alive(process: Identity) -> bool:
    """Whether exactly this process lives. A zombie does not."""
    found = _stat(process.pid)
    return found is not None and found.ticks == process.ticks and not found.over and process.boot == boot_id()


def open_pidfd(process: Identity) -> int | None:
    """A pidfd of exactly this process, readable when it ends; the caller closes it. None: it is over."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    if alive(process):
        return descriptor
    os.close(descriptor)
    return None


def send(process: Identity, number: signal.Signals) -> bool:
    """Signal exactly this process; False if it is over."""
    descriptor = open_pidfd(process)
    if descriptor is None:
        return False
    try:
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def session_of(leader: Identity, marker: bytes) -> list[Identity]:
    """What lives in the session that `leader` began, the leader included.

    A session's number is not used again while anything lives in it. So if its leader is still there (a zombie will do)
    all members are its own. If it is not, only members count that carry `marker` in their environment: since its end
    the number may have been given to a stranger, who may be gone too and have left others behind.
    """
    if leader.boot != boot_id():
        return []
    found = []
    for pid in _pids():
        stat = _stat(pid)
        if stat is not None and stat.session == leader.pid and not stat.over:
            found.append(Identity(pid, stat.ticks, leader.boot))
    # Looked at last: if it is there now, it was there during all of the above.
    there = _stat(leader.pid)
    if there is not None and there.ticks == leader.ticks:
        return found
    return [member for member in found if marker in _environment(member.pid)]


def find_leader(marker: bytes) -> Identity | None:
    """The session leader that carries `marker` in its environment, if one lives: a runner whose agent died between
    starting it and writing its process file."""
    return next(_leaders(lambda environment: marker in environment), None)


def leaders(beginning: bytes) -> list[Identity]:
    """The session leaders that live and carry something in their environment that begins like this."""
    return list(_leaders(lambda environment: any(entry.startswith(beginning) for entry in environment)))


def _leaders(ours: Callable[[frozenset[bytes]], bool]) -> Iterator[Identity]:
    for pid in _pids():
        stat = _stat(pid)
        if stat is not None and stat.session == pid and not stat.over and ours(_environment(pid)):
            yield Identity(pid, stat.ticks, boot_id())


def reap(pid: int) -> int | None:
    """The exit code of a child of ours that ended, as a container engine would say it (signal n = 128 + n).

    None: still running, not our child (an agent before us started it), or reaped before.
    """
    with contextlib.suppress(ChildProcessError):
        reaped, status = os.waitpid(pid, os.WNOHANG)
        if reaped == pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
    return None


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold anything, parentheses and spaces included.
    fields = text[text.rindex(")") + 2 :].split()
    return _Stat(state=fields[0], session=int(fields[3]), threads=int(fields[17]), ticks=int(fields[19]))


def _environment(pid: int) -> frozenset[bytes]:
    """Of all threads: one that has ended shows none any more, also if it is the main one. Empty if all have ended, or
    if it is another user's, which nothing of ours is."""
    found: set[bytes] = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found.update((thread / "environ").read_bytes().split(b"\0"))
    return frozenset(found)
