"""Blocking calls to one engine, made from an event loop: bounded threads, and a deadline for whoever waits.

Calls of one kind share a pool: starts wait for starts, and neither for a list nor for pipelines that drain slowly. Each
thread owns a client, because a shared one serialises on its connection pool. A thread comes back from an engine that
hangs because every request in `calls` has a time-out; until then the callers that wait for a thread get
ExecutorUnavailable at their own deadline. Other engines have other threads.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Concatenate, ParamSpec, TypeVar

from agent.docker_executor.calls import PULL_DEADLINE_S, QUIET_S, Answer, Calls, Stream
from shared.errors import ExecutorUnavailable

T = TypeVar("T")
P = ParamSpec("P")

LOOK_THREADS, LOOK_TIMEOUT_S = 4, 10.0  # list, inspect, ping: milliseconds each on an engine that works
# A start is 0.4 s of computing for engine, runner and Bento: three engines on two cores had 60 of them ready a fifth
# sooner with 5 at a time each than with 16. Not fewer than 6, because one that hangs holds its place for 30 s.
START_THREADS = max(6, min(16, 2 * (os.cpu_count() or 1)))
START_TIMEOUT_S = 30.0  # 0.1 s alone; on two cores that start 100 Bentos at once up to 10 s
END_THREADS, END_TIMEOUT_S = 32, 30.0  # stops mostly wait for Bento to drain; the grace comes on top
PULL_THREADS = 4
STREAMS_MAX = 64  # logs that are followed at once, each in a thread


class Threads:
    """The threads of one engine, in pools. Made in the loop that uses them."""

    def __init__(self, url: str, name: str) -> None:
        self._connections = _Connections(url)
        self._name = name
        self._streams = 0
        pool = self._connections.pool
        # Two requests each at most, and as long again in the queue.
        self.look = pool(f"docker-{name}-look", LOOK_THREADS, LOOK_TIMEOUT_S, deadline_s=3 * LOOK_TIMEOUT_S)
        self.start = pool(f"docker-{name}-start", START_THREADS, START_TIMEOUT_S, deadline_s=3 * START_TIMEOUT_S)
        self.end = pool(f"docker-{name}-end", END_THREADS, END_TIMEOUT_S, deadline_s=3 * END_TIMEOUT_S)
        self.pull = pool(f"docker-{name}-pull", PULL_THREADS, QUIET_S, deadline_s=PULL_DEADLINE_S + QUIET_S)

    async def stream(self, open_stream: Callable[[Calls], Stream]) -> AsyncGenerator[Any, None]:
        """None once it is open, then the items of a blocking stream, read only as fast as they are taken.

        Closing the iterator closes the stream.
        """
        if self._streams >= STREAMS_MAX:
            raise ExecutorUnavailable(f"{STREAMS_MAX} streams of this engine are open already")
        self._streams += 1
        thread = ThreadPoolExecutor(1, thread_name_prefix=f"docker-{self._name}-stream")
        opening = thread.submit(self._open, open_stream)
        try:
            stream, _ = await within(3 * LOOK_TIMEOUT_S, opening)
            yield None
            while (item := await asyncio.wrap_future(thread.submit(stream.read))) is not None:
                yield item
        finally:
            self._streams -= 1
            # Also if the opening was given up: whenever it comes through, nobody wants it any more.
            opening.add_done_callback(_interrupt)
            thread.submit(_release, opening)
            thread.shutdown(wait=False)

    def close(self) -> None:
        """Let go of the engine. Calls that are under way end by their time-outs, unseen."""
        for pool in (self.look, self.start, self.end, self.pull):
            pool.close()
        self._connections.close()

    def _open(self, open_stream: Callable[[Calls], Stream]) -> tuple[Stream, Calls]:
        calls = self._connections.make(LOOK_TIMEOUT_S)
        try:
            return open_stream(calls), calls
        except BaseException:
            calls.close()
            raise


class Pool:
    """A bounded number of threads, each with a client of its own. Made by `_Connections`."""

    def __init__(self, connections: _Connections, name: str, threads: int, timeout_s: float, deadline_s: float) -> None:
        self._connections = connections
        self._timeout_s = timeout_s
        self._deadline_s = deadline_s
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._local = threading.local()

    async def call(self, work: Callable[Concatenate[Calls, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`work(calls, ...)` in a thread. ExecutorUnavailable at the deadline; `work` may then still happen."""
        return await self.patiently(0.0, work, *args, **kwargs)

    async def patiently(
        self, more_s: float, work: Callable[Concatenate[Calls, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As `call`, when `work` needs `more_s` by its nature."""
        future = self._threads.submit(lambda: self._with_calls(lambda calls: work(calls, *args, **kwargs)))
        return await within(self._deadline_s + more_s, future)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _with_calls(self, work: Callable[[Calls], T]) -> T:
        calls: Calls | None = getattr(self._local, "calls", None)
        try:
            if calls is None:
                calls = self._local.calls = self._connections.keep(self._timeout_s)
            return work(calls)
        except Answer:
            raise
        except ExecutorUnavailable:
            # Whatever is wrong with it, the next call begins with a fresh one.
            self._local.calls = None
            if calls is not None:
                self._connections.drop(calls)
            raise


class _Connections:
    """The clients of all threads, and the version of the engine's language that they speak."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._version = "auto"
        self._kept: list[Calls] = []
        self._closed = False

    def pool(self, name: str, threads: int, timeout_s: float, *, deadline_s: float) -> Pool:
        return Pool(self, name, threads, timeout_s, deadline_s)

    def make(self, timeout_s: float) -> Calls:
        calls = Calls(self._url, self._version, timeout_s=timeout_s)
        with self._lock:
            self._version = calls.api_version
        return calls

    def keep(self, timeout_s: float) -> Calls:
        """One that is closed with all others."""
        calls = self.make(timeout_s)
        with self._lock:
            if not self._closed:
                self._kept.append(calls)
        return calls

    def drop(self, calls: Calls) -> None:
        """This one failed. The version is asked for again: the engine may have been replaced by an older one."""
        with self._lock:
            self._version = "auto"
            if calls in self._kept:
                self._kept.remove(calls)
        calls.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            kept, self._kept = self._kept, []
        for calls in kept:
            calls.close()


async def within(deadline_s: float, future: Future[T]) -> T:
    """The future's result, or ExecutorUnavailable at the deadline."""
    try:
        async with asyncio.timeout(deadline_s):
            return await asyncio.wrap_future(future)
    except TimeoutError as error:
        raise ExecutorUnavailable(f"the Docker engine did not answer within {deadline_s:.0f} s") from error


def _interrupt(opening: Future[tuple[Stream, Calls]]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        stream, _ = opening.result()
        stream.interrupt()


def _release(opening: Future[tuple[Stream, Calls]]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        stream, calls = opening.result()
        stream.close()
        calls.close()
