"""Answers requests for the output of executions, over NATS.

    requester                                   agent
      │ request  LogRequest ─────────────────────>│  on Keys.logs(host), with a reply address
      │<──────────────── LOG_DATA + output ───────│  at most 64 KiB each, cut anywhere
      │<──────────────── LOG_ALIVE ───────────────│  each 2 s while following and nothing is new
      │ publish  the same LogRequest, no reply ──>│  at least each LOG_RENEW_S, while following
      │<──────────────── empty message ───────────│  the end
      │<──────────────── LOG_REFUSED + sentence ──│  instead, or at last: why there is (no more) output; then the end

Nobody tells an agent that a requester is gone. So a stream that is followed ends by itself unless it is renewed (by its
name, `LogRequest.stream`), and one that is not followed ends after a bounded time. Streams are few; more are refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

import structlog

from agent.executor import Executor
from agent.late_store import AgentStore
from shared.clock import Clock
from shared.documents import decode
from shared.errors import BadInput, ExecutorError, StoreError
from shared.keys import Keys
from shared.log_stream import LOG_ALIVE, LOG_DATA, LOG_REFUSED, LOG_RENEW_S, LogRequest
from shared.store import Message

STREAMS_MAX = 16  # each costs the engine a connection or this process a file
CHUNK_BYTES = 64 * 1024
ALIVE_S = 2.0  # a requester gives up after some silence
RENEWED_WITHIN_S = 4 * LOG_RENEW_S  # three renewals may be lost: they travel at most once
PLAIN_WITHIN_S = 60.0  # without `follow`: a tail is short, an engine that hangs is not
TAIL_MAX = 100_000
RESUBSCRIBE_S = 1.0

log = structlog.get_logger()


class Logs:
    """Serves log requests of one host while its name is ours."""

    def __init__(
        self, *, host: str, store: AgentStore, keys: Keys, executor: Executor, clock: Clock, valid: Callable[[], bool]
    ) -> None:
        self._host, self._store, self._keys = host, store, keys
        self._executor, self._clock, self._valid = executor, clock, valid
        self._open = 0
        self._renewed_s: dict[str, float] = {}  # by stream, those that are followed

    async def run(self) -> None:
        """Serve for ever."""
        async with asyncio.TaskGroup() as group:
            while True:
                try:
                    requests = await self._store.subscribe(self._keys.logs(self._host))
                    while True:
                        self._take(group, await requests.next())
                except StoreError as error:
                    log.debug("No requests for logs now.", problem=str(error))
                await self._clock.sleep(RESUBSCRIBE_S)

    def _take(self, group: asyncio.TaskGroup, message: Message) -> None:
        """Begin a stream, or renew one. While another agent has the name, the request is its to answer."""
        if not self._valid():
            return
        try:
            request = decode(LogRequest, message.data)
        except BadInput as error:
            if message.reply:
                group.create_task(self._refuse(message.reply, str(error)), name="refuse logs")
            return
        if request.stream in self._renewed_s:
            self._renewed_s[request.stream] = self._clock.monotonic()
            return
        if not message.reply:
            return  # a renewal of a stream that has ended
        if self._open >= STREAMS_MAX:
            sentence = f"{STREAMS_MAX} log streams of this host are open already; try again later"
            group.create_task(self._refuse(message.reply, sentence), name="refuse logs")
            return
        self._open += 1
        group.create_task(self._serve(request, message.reply), name=f"logs of {request.execution}")

    async def _refuse(self, reply: str, sentence: str) -> None:
        try:
            await self._store.publish(reply, LOG_REFUSED + sentence.encode())
            await self._store.publish(reply, b"")
        except StoreError as error:
            log.debug("A request for logs could not be refused.", problem=str(error))

    async def _serve(self, request: LogRequest, reply: str) -> None:
        """Send one stream to its end, whatever ends it."""
        following = request.follow and request.stream != ""
        if following:
            self._renewed_s[request.stream] = self._clock.monotonic()
        try:
            async with asyncio.timeout(None if following else PLAIN_WITHIN_S):
                await self._send(request, reply, following)
        except ExecutorError as error:
            await self._refuse(reply, str(error))
        except TimeoutError:
            await self._refuse(reply, f"the output was not read within {PLAIN_WITHIN_S:g} s")
        except StoreError as error:
            log.debug("A log stream broke off.", execution=request.execution, problem=str(error))
        finally:
            self._open -= 1
            self._renewed_s.pop(request.stream, None)

    async def _send(self, request: LogRequest, reply: str, following: bool) -> None:
        tail = min(max(request.tail, 0), TAIL_MAX)
        chunks = self._executor.logs(request.execution, tail=tail, follow=following)
        async with aclosing(_with_pauses(chunks, ALIVE_S)) as pieces:
            async for chunk in pieces:
                if following and self._clock.monotonic() - self._renewed_s[request.stream] > RENEWED_WITHIN_S:
                    break
                if chunk is None:
                    await self._store.publish(reply, LOG_ALIVE)
                    continue
                for begin in range(0, len(chunk), CHUNK_BYTES):
                    await self._store.publish(reply, LOG_DATA + chunk[begin : begin + CHUNK_BYTES])
        await self._store.publish(reply, b"")


async def _with_pauses(chunks: AsyncIterator[bytes], pause_s: float) -> AsyncGenerator[bytes | None, None]:
    """The chunks, and None each time that nothing came for `pause_s`. Closes `chunks`."""
    waiting: asyncio.Task[bytes] | None = None
    try:
        while True:
            if waiting is None:
                waiting = asyncio.create_task(_next(chunks), name="next chunk of a log")
            done, _ = await asyncio.wait({waiting}, timeout=pause_s)
            if not done:
                yield None
                continue
            chunk, waiting = waiting.result(), None
            if not chunk:
                return
            yield chunk
    finally:
        if waiting is not None:
            waiting.cancel()
            await asyncio.wait({waiting})
        await chunks.aclose()  # type: ignore[attr-defined]


async def _next(chunks: AsyncIterator[bytes]) -> bytes:
    """The next chunk, b"" at the end."""
    async for chunk in chunks:
        if chunk:
            return chunk
    return b""
