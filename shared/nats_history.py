"""The recent past of a stream, for people: the last messages under a subject, and what follows."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from nats.aio.msg import Msg

from shared.errors import StoreUnavailable
from shared.nats_consumer import SILENCE_S, Consumer
from shared.nats_link import Link
from shared.store import REQUEST_TIMEOUT_S, Message

WINDOW = 256  # sequences looked at first for each wanted message's worth; widened fourfold while too few match
RETRY_PAUSE_S = 0.5


async def history(link: Link, stream: str, subject: str, *, last: int, follow: bool) -> AsyncIterator[Message]:
    """See `Store.history`."""
    reader, skip = await _reader(link, stream, subject, last)
    left = reader.consumer.found
    while True:
        try:
            while follow or left > 0:
                message = await reader.next(None if left <= 0 else SILENCE_S)
                if message is None:
                    break
                left -= 1
                if skip > 0:
                    skip -= 1
                else:
                    yield message
        finally:
            await reader.consumer.close(link)
        if not follow:
            return
        reader = await _again(link, stream, subject, reader.position + 1)
        left = 0


class _Reader:
    """A consumer from a sequence on."""

    def __init__(self, consumer_from: int) -> None:
        self.position = consumer_from - 1  # sequence of the last message handed out
        self.consumer: Consumer
        self._messages: deque[Message] = deque()

    @classmethod
    async def start(cls, link: Link, stream: str, subject: str, sequence: int) -> _Reader:
        reader = cls(sequence)
        policy = {"deliver_policy": "by_start_sequence", "opt_start_seq": sequence}
        reader.consumer = Consumer(await link.usable(), stream, subject, policy, reader._take)
        try:
            await reader.consumer.start(link)
        except BaseException:
            await reader.consumer.close(link)
            raise
        return reader

    async def next(self, patience_s: float | None) -> Message | None:
        """The next message; None when the consumer broke or nothing came for `patience_s`."""
        loop = asyncio.get_running_loop()
        until = float("inf") if patience_s is None else loop.time() + patience_s
        while not self._messages:
            if self.consumer.broken or loop.time() >= until:
                return None
            await self.consumer.wait(until)
        message = self._messages.popleft()
        self.position = message.sequence
        return message

    def _take(self, msg: Msg, sequence: int) -> None:
        self._messages.append(Message(msg.subject, msg.data, "", sequence))
        self.consumer.wake()


async def _reader(link: Link, stream: str, subject: str, last: int) -> tuple[_Reader, int]:
    """A reader that begins at or before the `last` last messages, and how many of its first to skip.

    JetStream cannot begin "n messages before the end" under a filter; a consumer says how many it has pending, so the
    start moves back until they are enough.
    """
    answer = await link.api(f"STREAM.INFO.{stream}", timeout=REQUEST_TIMEOUT_S)
    first, end = max(int(answer["state"]["first_seq"]), 1), int(answer["state"]["last_seq"])
    window = last + WINDOW if last > 0 else 0
    while True:
        start = max(first, end + 1 - window)
        reader = await _Reader.start(link, stream, subject, start)
        found = reader.consumer.found
        if found >= last or start == first:
            return reader, max(0, found - last)
        await reader.consumer.close(link)
        window *= 4


async def _again(link: Link, stream: str, subject: str, sequence: int) -> _Reader:
    while True:
        try:
            return await _Reader.start(link, stream, subject, sequence)
        except StoreUnavailable:
            if link.closed:
                raise
        await asyncio.sleep(RETRY_PAUSE_S)
