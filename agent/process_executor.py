"""The process driver: executions as plain processes of this machine, the embedded default. No container engine needed.

    ensure_running   directory + process file -> runner as leader of a session of its own -> its identity in the file
    stop             SIGTERM to the runner; SIGKILL to whatever is left of its session
    remove           stop, then delete directory and logs

Everything is remembered in the execution's directory on tmpfs, so executions survive their agent and the next agent
finds them; only a reboot, which ends them anyway, loses it. Only processes that a process file names are ever
signalled, by identity, never by number.

What it cannot do: enforce `cpu` and `memory` (that takes a cgroup; RLIMIT_AS would count the address space that Go
reserves, not memory), mount volumes elsewhere than where they are, run another image. The first is accepted, because
requests are counted when executions are placed; the others are refused. Executions run as the agent's user and see the
machine's files: it separates pipelines by directories, not by security.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from agent import process_table
from agent.executor import Found, Life, Spec, complete_or_nothing, ordered
from agent.layout import Layout, Surroundings, exit_code, lock_held, read_health
from agent.log_files import follow_log
from agent.process_ends import Ends
from agent.process_starter import ProcessSettings, Starter
from agent.process_table import Identity, ProcessFile
from runner import contract
from shared.documents import Driver
from shared.errors import CannotStart, ExecutorUnavailable

T = TypeVar("T")

FILE_DEADLINE_S = 10.0  # for what touches a disk; a healthy one needs milliseconds
FILE_THREADS = 4
KILL_DEADLINE_S = 5.0  # SIGKILL is immediate, unless a process hangs in the kernel
KILL_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class _Seen:
    name: str
    content: ProcessFile
    health: Mapping[str, Any]


class ProcessExecutor:
    """The `Executor` of one host without containers. Made in the event loop that uses it."""

    def __init__(self, layout: Layout, settings: ProcessSettings, surroundings: Surroundings) -> None:
        self._layout = layout
        self._settings = settings
        self._starter = Starter(layout, settings, surroundings)
        self._accepted: frozenset[str] = frozenset()
        self._strays: tuple[Found, ...] = ()
        self._starting: set[str] = set()  # names whose directories are being made
        self._ends = Ends()
        self._files = ThreadPoolExecutor(FILE_THREADS, thread_name_prefix="process-files")
        layout.logs_dir.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(ExecutorUnavailable):  # lists and starts say so
            self._make_directory()

    @property
    def driver(self) -> str:
        return "process"

    def adopt(self, accepted: frozenset[str]) -> None:
        self._accepted = accepted

    async def check(self) -> Driver:
        """Whether Bento and the directories are there."""
        if not os.access(self._settings.bento, os.X_OK):
            return Driver(False, f"Bento is not at {self._settings.bento}")
        if not os.access(self._layout.executions_dir, os.W_OK):
            return Driver(False, f"{self._layout.executions_dir} cannot be written")
        return Driver(True)

    async def list(self) -> tuple[Found, ...]:
        with complete_or_nothing():
            seen, orphans, others = await self._in_thread(self._look)
            self._sweep(orphans)
            self._ends.forget_others({one.content.process for one in seen if one.content.process is not None})
            found = ordered(map(self._found, seen))
            self._strays = ordered(map(self._stray, others))
            return found

    @property
    def strays(self) -> tuple[Found, ...]:
        return self._strays

    async def health(self, executions: Mapping[str, str]) -> Mapping[str, Mapping[str, Any]]:
        names = {execution: self._layout.name(store_id, execution) for execution, store_id in executions.items()}
        with complete_or_nothing():
            there = {execution: name for execution, name in names.items() if self._read(name) is not None}
            return {execution: read_health(self._layout.execution_dir(name)) for execution, name in there.items()}

    async def ensure_running(self, spec: Spec) -> None:
        self._starter.refuse(spec)
        self._make_directory()
        # One of an older store, if it was accepted and still has this execution, is the one to go on with.
        name, existing = self._layout.name(spec.store_id, spec.execution), self._existing(spec.execution)
        if existing and name not in existing:
            name = existing[0]
        content = self._read(name)
        if content is not None and (leader := self._leader(name, content)) is not None:
            if process_table.alive(leader):
                return
            await self._end_session(spec.execution, leader)
        self._starting.add(name)
        try:
            await self._in_thread(lambda: self._layout.log_dir(name).mkdir(parents=True, exist_ok=True))
            self._ends.watch(self._starter.start(name, spec))
        except OSError as error:
            raise CannotStart("host", f"the process cannot be started: {error}") from error
        finally:
            self._starting.discard(name)

    async def stop(self, execution: str, grace_s: float) -> None:
        for name in self._existing(execution):
            await self._stop(name, grace_s)

    async def remove(self, execution: str, grace_s: float) -> None:
        for name in self._existing(execution):
            await self._stop(name, grace_s)
            # The directory last: it is what makes the next agent come back to this if we do not get through.
            await self._in_thread(lambda name=name: self._delete(name))  # type: ignore[misc]
        self._ends.wake()

    async def logs(self, execution: str, *, tail: int, follow: bool) -> AsyncGenerator[bytes, None]:
        for name in self._existing(execution)[-1:]:
            directory = self._layout.execution_dir(name)
            lines = follow_log(self._layout.log(name), tail=tail, there=directory.exists if follow else None)
            async with contextlib.aclosing(lines):
                async for chunk in lines:
                    yield chunk

    async def events(self) -> AsyncGenerator[None, None]:
        async with contextlib.aclosing(self._ends.events()) as events:
            async for event in events:
                yield event

    async def close(self) -> None:
        self._ends.close()
        self._files.shutdown(wait=False, cancel_futures=True)

    # --- what is there

    def _look(self) -> tuple[tuple[_Seen, ...], tuple[str, ...], tuple[_Seen, ...]]:
        """Everything that is ours, the names of what is left of executions of ours that are not there any more, and
        what is of stores that are not accepted."""
        self._make_directory()
        prefixes = self._layout.ours(self._accepted)
        directories = [p.name for p in self._layout.executions_dir.iterdir()]
        left = {p.name for p in self._layout.logs_dir.iterdir() if p.name.startswith(prefixes)}
        seen, others = [], []
        for name in directories:
            content = self._read_any(name)
            if content is not None and content.store_id in self._accepted:
                seen.append(_Seen(name, content, read_health(self._layout.execution_dir(name))))
            elif content is not None:
                others.append(_Seen(name, content, {}))
            elif name.startswith(prefixes):
                left.add(name)
        return tuple(seen), tuple(sorted(left - {one.name for one in (*seen, *others)})), tuple(others)

    def _make_directory(self) -> None:
        """Make the directory of all executions, if it is not there. ExecutorUnavailable: somebody deleted it, and what
        ran there goes on without its files, though a new directory would show nothing."""
        directory = self._layout.executions_dir
        if directory.is_dir():
            return
        if going_on := process_table.leaders(f"{contract.DIR}={directory}/".encode()):
            pids = ", ".join(str(leader.pid) for leader in going_on)
            words = f"{directory} was deleted while processes {pids} ran there: end them, and it is made again"
            raise ExecutorUnavailable(words)
        directory.mkdir(parents=True, exist_ok=True)

    def _read(self, name: str) -> ProcessFile | None:
        """The process file under this name, if it is ours."""
        content = self._read_any(name)
        return None if content is None or content.store_id not in self._accepted else content

    def _read_any(self, name: str) -> ProcessFile | None:
        """The process file under this name, if it is of this cluster and host, in any store."""
        content = process_table.read(self._layout.execution_dir(name))
        if content is None or (content.cluster, content.host) != (self._layout.cluster, self._layout.host):
            return None
        return content

    def _existing(self, execution: str) -> tuple[str, ...]:
        """The names under which this execution is there: one, or one per accepted store."""
        names = (self._layout.name(store_id, execution) for store_id in sorted(self._accepted))
        return tuple(name for name in names if self._read(name) is not None)

    def _found(self, seen: _Seen) -> Found:
        content, health = seen.content, seen.health
        leader = self._leader(seen.name, content)
        life, code = Life.CREATED, None
        if leader is not None and process_table.alive(leader):
            life = Life.ALIVE
            self._ends.watch(leader)
        elif leader is not None:
            life = Life.EXITED
            code = self._ends.exit_code(leader)
            if code is None:
                code = exit_code(health)  # what the runner wrote before it ended
        return Found(
            execution=content.execution,
            store_id=content.store_id,
            pipeline=content.pipeline,
            slot=content.slot,
            version=content.version,
            digest=content.digest,
            life=life,
            runtime=str(leader.pid) if leader is not None else "",
            started_s=leader.ticks / process_table.TICKS_PER_S if leader is not None else None,
            exit_code=code,
            health=health,
        )

    def _stray(self, seen: _Seen) -> Found:
        """What is of another store. Its files are left as they are, and how it ended is for whoever obeys that one."""
        process = seen.content.process
        if (process is not None and process_table.alive(process)) or lock_held(self._layout.execution_dir(seen.name)):
            life = Life.ALIVE
        else:
            life = Life.CREATED if process is None else Life.EXITED
        return Found(
            execution=seen.content.execution,
            store_id=seen.content.store_id,
            pipeline=seen.content.pipeline,
            slot=seen.content.slot,
            version=seen.content.version,
            digest=seen.content.digest,
            life=life,
            runtime="" if process is None else str(process.pid),
        )

    def _leader(self, name: str, content: ProcessFile) -> Identity | None:
        """The runner of the last start; None if there never was one.

        A file without a process was written by an agent that meant to start one; if it died in between, the runner may
        live, known to nobody. And if somebody holds the run lock though the named process is over, that one was refused
        because of another. Both are found by what only a start of ours can have put into their environment.
        """
        directory = self._layout.execution_dir(name)
        if name in self._starting or (content.process is not None and process_table.alive(content.process)):
            return content.process
        if content.process is None or lock_held(directory):
            leader = process_table.find_leader(f"{contract.DIR}={directory}".encode())
            if leader is not None:
                process_table.write(directory, replace(content, process=leader))
                return leader
        return content.process

    def _sweep(self, names: tuple[str, ...]) -> None:
        """Delete what is left without a process file: of a start or removal that was cut short, or of another boot.

        Asked again just before, because the list is older than what was started while it was made: deleting that would
        leave a process running of which nobody knows, and a second one would be started beside it. The same if its
        process file was damaged, or is of an agent that wrote it in another way.
        """
        for name in names:
            if name in self._starting or self._read(name) is not None:
                continue
            directory = self._layout.execution_dir(name)
            if lock_held(directory):
                words = f"{directory / process_table.PROCESS_FILE} makes no sense, and something runs that holds the "
                raise ExecutorUnavailable(f"{words}{contract.LOCK_FILE} beside it: end that, and it is deleted")
            self._delete(name)

    # --- stopping

    async def _stop(self, name: str, grace_s: float) -> None:
        while (content := self._read(name)) is not None and (leader := self._leader(name, content)) is not None:
            if process_table.send(leader, signal.SIGTERM):
                await _ended(leader, grace_s)
            await self._end_session(content.execution, leader)
            self._ends.exit_code(leader)
            if not lock_held(self._layout.execution_dir(name)):
                return
            if self._leader(name, content) == leader:
                words = f"something still runs that holds the {contract.LOCK_FILE} of {name}, and it is not known"
                raise ExecutorUnavailable(words)

    async def _end_session(self, execution: str, leader: Identity) -> None:
        """Kill what is left of the session of a runner, Bento's own children included, and see that nothing is."""
        # What Bento started has this from Bento; what belongs to the runner alone is not passed on.
        marker = f"SHOAL_EXECUTION={execution}".encode()
        deadline = asyncio.get_running_loop().time() + KILL_DEADLINE_S
        while members := await self._in_thread(lambda: process_table.session_of(leader, marker)):
            if asyncio.get_running_loop().time() > deadline:
                left = ", ".join(str(member.pid) for member in members)
                raise ExecutorUnavailable(
                    f"processes {left} of {execution} do not end {KILL_DEADLINE_S} s after SIGKILL"
                )
            for member in members:
                process_table.send(member, signal.SIGKILL)
            await asyncio.sleep(KILL_POLL_S)

    def _delete(self, name: str) -> None:
        shutil.rmtree(self._layout.log_dir(name), ignore_errors=True)
        shutil.rmtree(self._layout.execution_dir(name), ignore_errors=True)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Run what touches files, with a deadline."""
        future = self._files.submit(work)
        try:
            async with asyncio.timeout(FILE_DEADLINE_S):
                return await asyncio.wrap_future(future)
        except TimeoutError as error:
            raise ExecutorUnavailable(f"the file system did not answer within {FILE_DEADLINE_S} s") from error


async def _ended(process: Identity, timeout_s: float) -> None:
    """Return when the process has ended, or after `timeout_s`."""
    descriptor = process_table.open_pidfd(process)
    if descriptor is None:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        async with asyncio.timeout(timeout_s):
            await ended.wait()
    except TimeoutError:
        pass
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
