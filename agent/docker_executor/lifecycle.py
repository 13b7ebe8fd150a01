"""What a start, a stop, a removal of an execution consist of on a Docker engine, and which containers are ours.

ensure_running   known and stopped: start (one call). Else directories, create, start (two calls, no look before).
                 Name taken: look whose it is. Image missing: pull it, once for all who wait, and create again.
stop             the engine's own stop: SIGTERM, SIGKILL after the grace
remove           stop, delete the directories, remove the container: in this order, because as long as the container
                 is there an agent that was interrupted comes back to it
list             one call for all; an exited container is inspected once for its exit code
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import structlog

from agent.docker_executor import config
from agent.docker_executor.calls import Absent, Calls, ImageAbsent, Listed, Rejected, Taken
from agent.docker_executor.config import DockerSettings
from agent.docker_executor.directories import Directories
from agent.docker_executor.threads import Threads
from agent.executor import Found, Life, Spec, complete_or_nothing, ordered
from agent.layout import (
    Layout,
    Surroundings,
    allowed_volume,
    boot_id,
    environment,
    read_health,
    split_volume,
)
from shared.documents import Driver
from shared.errors import CannotStart, ExecutorUnavailable

log = structlog.get_logger()

REOPEN_FIRST_S = 0.2  # before an event stream that failed is opened again; doubled up to
REOPEN_MAX_S = 5.0
ATTACH_S = 1.0  # between two looks whether a stopped container whose output is followed runs again


@dataclass(frozen=True, slots=True)
class _Known:
    """A container of ours as it was last seen."""

    id: str
    life: Life


class DockerExecutor:
    """The `Executor` of one host on one Docker engine. Made in the event loop that uses it."""

    def __init__(self, layout: Layout, settings: DockerSettings, surroundings: Surroundings) -> None:
        """Speaks to the engine only when called."""
        self._layout = layout
        self._settings = settings
        self._surroundings = surroundings
        self._accepted: frozenset[str] = frozenset()
        self._strays: tuple[Found, ...] = ()
        self._threads = Threads(settings.url, layout.host)
        self._known: dict[str, _Known] = {}  # by name; a hint that saves a call, never a proof
        self._ended: dict[str, tuple[str, int, bool]] = {}  # container id -> status seen, exit code, out of memory
        self._pulls: dict[str, asyncio.Task[None]] = {}  # by image
        self._other_boot = ""
        self._directories = Directories(layout, settings.owner)

    @property
    def driver(self) -> str:
        return "docker"

    def adopt(self, accepted: frozenset[str]) -> None:
        self._accepted = accepted

    async def check(self) -> Driver:
        """Whether the engine answers, and whether its containers share this machine's boot clock."""
        try:
            await self._threads.look.call(Calls.ping)
        except ExecutorUnavailable as error:
            return Driver(False, str(error))
        return Driver(True, unbound=self._other_boot)

    async def list(self) -> tuple[Found, ...]:
        with complete_or_nothing():
            found, self._known, self._strays = await self._threads.look.call(self._look, self._accepted)
        return found

    @property
    def strays(self) -> tuple[Found, ...]:
        return self._strays

    async def health(self, executions: Mapping[str, str]) -> Mapping[str, Mapping[str, Any]]:
        names = {execution: self._layout.name(store_id, execution) for execution, store_id in executions.items()}
        there = {execution: name for execution, name in names.items() if name in self._known}
        return {execution: read_health(self._layout.execution_dir(name)) for execution, name in there.items()}

    async def ensure_running(self, spec: Spec) -> None:
        # One of an older store, if it was accepted and still has this execution, is the one to go on with.
        name = self._layout.name(spec.store_id, spec.execution)
        existing = [name for name in self._names(spec.execution) if name in self._known]
        if existing and name not in existing:
            name = existing[0]
        image = spec.image or self._settings.image
        try:
            container = await self._threads.start.call(self._start, name, spec)
        except ImageAbsent:
            await self._pull(image)
            try:
                container = await self._threads.start.call(self._start, name, spec)
            except ImageAbsent as error:
                raise CannotStart("image", f"image {image} was pulled, but is not there: {error}") from error
        self._known[name] = _Known(container, Life.ALIVE)

    async def stop(self, execution: str, grace_s: float) -> None:
        for name, container in (await self._resolve(execution)).items():
            await self._threads.end.patiently(grace_s, self._stop, name, container, grace_s)

    async def remove(self, execution: str, grace_s: float) -> None:
        containers = await self._resolve(execution)
        for name in self._names(execution):
            container = containers.get(name)
            await self._threads.end.patiently(grace_s, self._remove, name, container, grace_s)
            self._known.pop(name, None)
            self._directories.forget(name)

    async def logs(self, execution: str, *, tail: int, follow: bool) -> AsyncGenerator[bytes, None]:
        lines: int | None = tail
        since: float | None = None
        while found := await self._resolve(execution):
            container = next(reversed(found.values()))
            try:
                before = await self._threads.look.call(Calls.inspect, container)
                opener = functools.partial(Calls.logs, container=container, tail=lines, since=since, follow=follow)
                stream = self._threads.stream(opener)
                async with contextlib.aclosing(stream):
                    async for chunk in stream:
                        if chunk is not None:
                            yield chunk
                if not follow:
                    return
                lines, since = None, await self._next_start(container, before.started_at)
            except Absent:
                return

    async def events(self) -> AsyncGenerator[None, None]:
        selection = config.selection(self._layout)
        pause_s = REOPEN_FIRST_S
        while True:
            try:
                stream = self._threads.stream(lambda calls: calls.events(selection))
                async with contextlib.aclosing(stream):
                    async for _ in stream:
                        pause_s = REOPEN_FIRST_S
                        yield None
            except ExecutorUnavailable as error:
                log.warning("The event stream of the Docker engine failed; opening it again.", problem=str(error))
            # Also when it just ended: maybe the engine is gone, and what happens until it is back is told by nobody.
            yield None
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, REOPEN_MAX_S)

    async def close(self) -> None:
        pulls = list(self._pulls.values())
        for task in pulls:
            task.cancel()
        await asyncio.gather(*pulls, return_exceptions=True)
        self._threads.close()

    # --- what is there (in threads, except for what is async)

    def _names(self, execution: str) -> tuple[str, ...]:
        """What the execution's container may be called, one name per accepted store."""
        return tuple(self._layout.name(store_id, execution) for store_id in sorted(self._accepted))

    async def _resolve(self, execution: str) -> dict[str, str]:
        """Name -> container id of what exists of an execution and is ours."""
        found = {}
        for name in self._names(execution):
            if name in self._known:
                found[name] = self._known[name].id
                continue
            with contextlib.suppress(Absent):
                one = await self._threads.look.call(Calls.inspect, name)
                if config.belongs(one.labels, self._layout, self._accepted):
                    found[name] = one.id
        return found

    def _look(
        self, calls: Calls, accepted: frozenset[str]
    ) -> tuple[tuple[Found, ...], dict[str, _Known], tuple[Found, ...]]:
        """All of ours, complete, and what is of other stores; sweeps what is left of those of ours that are gone."""
        claimed = self._directories.claimed
        left = self._directories.names(self._layout.ours(accepted))
        listed = calls.list(config.selection(self._layout))
        ours = [one for one in listed if config.belongs(one.labels, self._layout, accepted)]
        found, known, boots = [], {}, set()
        for one in ours:
            name = self._layout.name(one.labels[config.STORE], one.labels[config.EXECUTION])
            left.discard(name)
            health = read_health(self._layout.execution_dir(name))
            if config.life(one.state) is Life.ALIVE or config.refused_lease(health):
                boots.add(str(health.get("boot_id", "")))
            with contextlib.suppress(Absent):
                ended = self._ending(calls, one)
                found.append(config.found(one.labels, runtime=one.id, state=one.state, ended=ended, health=health))
                known[name] = _Known(one.id, config.life(one.state))
        self._other_boot = self._other_kernel(boots - {""})
        self._directories.sweep(left, claimed)
        present = {one.id for one in ours}
        self._ended = {container: ended for container, ended in dict(self._ended).items() if container in present}
        strays = [
            config.found(one.labels, runtime=one.id, state=one.state, ended=None, health={})
            for one in listed
            if config.is_execution(one.labels, self._layout) and one.labels[config.STORE] not in accepted
        ]
        return ordered(found), known, ordered(strays)

    def _ending(self, calls: Calls, one: Listed) -> tuple[int, bool] | None:
        """Exit code and whether memory ran out; asked once per end, because the list does not tell."""
        if config.life(one.state) is not Life.EXITED:
            self._ended.pop(one.id, None)
            return None
        status = one.status.partition(")")[0]  # "Exited (1" of "Exited (1) 3 seconds ago"
        ended = self._ended.get(one.id)
        if ended is None or ended[0] != status:
            seen = calls.inspect(one.id)
            ended = self._ended[one.id] = (status, seen.exit_code, seen.oom)
        return ended[1], ended[2]

    def _other_kernel(self, boots: set[str]) -> str:
        """Why the lease means nothing to containers with these boot ids, if so: their engine is a virtual machine, or
        far away. While no container tells, what the last ones told still holds."""
        ours = boot_id()
        if not boots or ours in boots:
            return "" if boots else self._other_boot
        return (
            f"containers of the engine at {self._settings.url} run on another kernel than this agent "
            f"(boot id {min(boots)}, here {ours}): the deadline of a host lease means nothing to them"
        )

    async def _next_start(self, container: str, before: str) -> float:
        """When the container was started again after a start at `before`. Raises Absent once it is gone."""
        while True:
            seen = await self._threads.look.call(Calls.inspect, container)
            if seen.started_at != before:
                return datetime.fromisoformat(seen.started_at).timestamp()
            await asyncio.sleep(ATTACH_S)

    # --- starting (in threads, except for what is async)

    def _start(self, calls: Calls, name: str, spec: Spec) -> str:
        """The id of the container, which runs now. Raises ImageAbsent, CannotStart, ExecutorUnavailable."""
        try:
            with self._directories.claim(name):
                return self._start_claimed(calls, name, spec)
        except Rejected as error:
            raise _refusal(error) from error
        except OSError as error:
            raise CannotStart("host", f"the directories of {name} cannot be made: {error}") from error
        except (Absent, Taken) as error:
            # It is being removed, by a call of ours that timed out or by somebody else. Look again.
            raise ExecutorUnavailable(f"container {name} cannot be started now: {error}") from error

    def _start_claimed(self, calls: Calls, name: str, spec: Spec) -> str:
        self._directories.prepare(name, Path(spec.bundle).parent)
        known = self._known.get(name)
        if known is not None:
            with contextlib.suppress(Absent):
                self._ended.pop(known.id, None)
                calls.start(known.id)
                return known.id
        return self._create(calls, name, spec)

    def _create(self, calls: Calls, name: str, spec: Spec) -> str:
        volumes = [
            config.Mount(str(allowed_volume(volume, self._settings.volumes)), volume.target, volume.writable)
            for volume in map(split_volume, spec.volumes)
        ]
        own = self._layout.name(spec.store_id, spec.execution)  # as its labels will say
        env = environment(spec, own, self._layout, self._surroundings, config.INSIDE)
        body = config.container(spec, self._layout, self._settings, env=env, volumes=volumes)
        try:
            container = calls.create(name, body)
        except Taken:
            container = self._taken(calls, name, spec)
            calls.start(container)
            return container
        try:
            calls.start(container)
        except Rejected:
            # It never ran; the next try should begin with what is asked for then, not with this.
            calls.remove(container)
            raise
        return container

    def _taken(self, calls: Calls, name: str, spec: Spec) -> str:
        """The id of the container that has our name, if it is what an earlier call of ours made."""
        there = calls.inspect(name)
        if (
            config.belongs(there.labels, self._layout, self._accepted)
            and there.labels[config.EXECUTION] == spec.execution
        ):
            return there.id
        words = f"a container named {name} exists that is not this agent's; rename or remove it"
        raise CannotStart("host", words)

    async def _pull(self, image: str) -> None:
        """Pull an image; whoever needs the same one meanwhile waits for the same pull. Raises CannotStart."""
        task = self._pulls.get(image)
        if task is None:
            log.info("Pulling an image that the engine does not have.", image=image)
            task = asyncio.create_task(self._threads.pull.call(Calls.pull, image), name=f"pull {image}")
            self._pulls[image] = task
            task.add_done_callback(lambda _: self._pulls.pop(image, None))
        try:
            # Shielded: that one start is given up must not take the image from the others.
            await asyncio.shield(task)
        except Rejected as error:
            raise CannotStart("image", f"image {image} cannot be pulled: {error}") from error

    # --- stopping and removing (in threads)

    def _stop(self, calls: Calls, name: str, container: str, grace_s: float) -> None:
        """Stop a container, whose runner must have had the time to listen.

        Process 1 of a container simply loses a SIGTERM that it does not catch, and what was started just now would be
        killed only when its grace is over. A runner catches signals before it says its first word.
        """
        if grace_s:
            self._directories.await_first_word(name)
        calls.stop(container, grace_s)

    def _remove(self, calls: Calls, name: str, container: str | None, grace_s: float) -> None:
        if container is not None:
            self._stop(calls, name, container, grace_s)
        self._directories.delete(name)
        if container is not None:
            try:
                calls.remove(container)
            except Taken as error:
                raise ExecutorUnavailable(f"container {name} is being removed: {error}") from error


def _refusal(error: Rejected) -> CannotStart:
    words = str(error)
    of_the_image = ("no command specified", "executable file not found", "no such file or directory: unknown")
    kind: Literal["image", "host"] = "image" if any(f in words.lower() for f in of_the_image) else "host"
    return CannotStart(kind, words)
