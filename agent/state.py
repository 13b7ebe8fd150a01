"""The state directory: what an agent must not forget, durable before it is acted on.

    lock           held exclusively while an agent uses the directory
    agent.json     agent id, last session number, the admitted assignment with its chain of store ids: one file,
                   replaced whole, so that its parts cannot contradict each other
    restarts.json  what is remembered of executions that ended; losing it costs counts and delays, not safety
    bundles/, logs/   see `agent.layout`

A missing or unreadable agent.json is a lost state: a new agent id, nothing admitted. The unreadable file is kept aside
for people. A copy of the directory is not an identity: whoever runs on one beside the original fights it for the name.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self, TypeVar

import structlog

from agent.core.admit import Admitted
from agent.core.restarts import Memory
from shared.documents import decode, encode
from shared.errors import BadInput, Refused

T = TypeVar("T")

AGENT_FILE = "agent.json"
RESTARTS_FILE = "restarts.json"
LOCK_FILE = "lock"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What survives an agent. `number` is that of the last session begun; 0 = none yet."""

    agent: str
    number: int = 0
    admitted: Admitted | None = None


@dataclass(frozen=True, slots=True)
class _Memories:
    executions: Mapping[str, Memory] = field(default_factory=dict)


class Durable(Protocol):
    """What the loops need of a state directory. Calls block until it is on disk. The simulation has its own."""

    def load(self) -> Saved: ...

    def save(self, saved: Saved) -> None: ...

    def load_memories(self) -> Mapping[str, Memory]: ...

    def save_memories(self, memories: Mapping[str, Memory]) -> None: ...


class Offload(Protocol):
    """Runs a blocking call without blocking the loop. The simulation runs it in place."""

    async def __call__(self, call: Callable[[], T], /) -> T: ...


async def in_place(call: Callable[[], T], /) -> T:
    """An `Offload` for tests: blocks."""
    return call()


class Threads:
    """An `Offload` to a bounded pool of threads. A cancelled call goes on to its end in its thread."""

    def __init__(self, count: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(max_workers=count, thread_name_prefix=name)

    async def __call__(self, call: Callable[[], T], /) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for what runs; drops what has not begun."""
        self._pool.shutdown(wait=True, cancel_futures=True)


class Book:
    """The one place that changes `Saved`: reads are plain, changes are serial, and durable when they return."""

    def __init__(self, durable: Durable, offload: Offload) -> None:
        self._durable = durable
        self._offload = offload
        self._turn = asyncio.Lock()
        self.saved = durable.load()
        self.problem = ""  # why the last change could not be made durable

    async def change(self, change: Callable[[Saved], Saved]) -> Saved:
        """Apply `change` to what is saved and make the result durable. Raises OSError; then nothing changed."""
        async with self._turn:
            changed = change(self.saved)
            if changed != self.saved:
                try:
                    await self._offload(lambda: self._durable.save(changed))
                except OSError as error:
                    self.problem = f"the state directory cannot be written: {error}"
                    raise
                self.saved, self.problem = changed, ""
            return changed


class StateDirectory:
    """A `Durable` in a directory, locked for this process until closed."""

    def __init__(self, path: Path, new_id: Callable[[], str]) -> None:
        """Lock `path` (made if needed). Refused if another agent holds it; OSError if it cannot be used."""
        self._path = path
        self._new_id = new_id
        self._lock = ExitStack()
        self._lock.enter_context(locked(path, "state directory"))

    def load(self) -> Saved:
        """What was saved; a new identity, saved at once, if there is none that can be read."""
        file = self._path / AGENT_FILE
        try:
            return decode(Saved, file.read_bytes())
        except FileNotFoundError:
            log.info("A new agent identity begins: the state directory is empty.", state_dir=str(self._path))
        except BadInput as error:
            aside = file.with_suffix(".unreadable")
            file.replace(aside)
            log.error(
                "The agent's state cannot be read; a new agent identity begins.", problem=str(error), kept=str(aside)
            )
        saved = Saved(agent=self._new_id())
        self.save(saved)
        return saved

    def save(self, saved: Saved) -> None:
        replace_durably(self._path / AGENT_FILE, encode(saved))

    def load_memories(self) -> Mapping[str, Memory]:
        try:
            return decode(_Memories, (self._path / RESTARTS_FILE).read_bytes()).executions
        except FileNotFoundError:
            return {}
        except BadInput as error:
            log.warning("Restart counts were forgotten: their file cannot be read.", problem=str(error))
            return {}

    def save_memories(self, memories: Mapping[str, Memory]) -> None:
        replace_durably(self._path / RESTARTS_FILE, encode(_Memories(memories)))

    def close(self) -> None:
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def locked(directory: Path, what: str) -> Iterator[None]:
    """Hold a directory for this process alone; it is made if needed, for our eyes only.

    Refused if another agent holds it; OSError if it cannot be used.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
            raise Refused(
                f"the {what} {directory} is in use by another agent (process {holder or 'unknown'}); "
                "stop that one, or give this one another directory"
            ) from error
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(lock)


def replace_durably(file: Path, data: bytes) -> None:
    """Replace `file` whole; on disk, name included, when this returns. Readers see the old or the new one."""
    fresh = file.with_name(file.name + ".new")
    try:
        with fresh.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
    sync_directory(file.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
