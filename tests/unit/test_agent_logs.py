"""One agent on virtual time, over the fakes: how it answers requests for logs."""

from __future__ import annotations

import asyncio
from pathlib import Path

from shared.documents import encode
from shared.log_stream import LOG_ALIVE, LOG_DATA, LOG_REFUSED, LogRequest
from shared.states import Wanted
from tests.support.agent_rig import KEYS, Rig, answers, is_ready, play


def test_logs_are_answered_in_chunks_and_end(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent():
            await rig.assign(("a", Wanted.RUN))
            await rig.until(is_ready("a"))
            rig.machine.write("a-0-1", b"x" * 150_000 + b"\n")
            found, _ = await answers(rig, LogRequest(execution="a-0-1", tail=10))
            assert {message[:1] for message in found} == {LOG_DATA}
            assert max(map(len, found)) <= 64 * 1024 + 1
            assert sum(len(message) - 1 for message in found) == len(b"started\n") + 150_001
            assert (await answers(rig, LogRequest(execution="nobody-0-1")))[0] == []

    play(tmp_path, test)


def test_following_shows_life_and_ends_when_nobody_renews(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent():
            await rig.assign(("a", Wanted.RUN))
            await rig.until(is_ready("a"))
            request = LogRequest(execution="a-0-1", follow=True, stream="one")
            begun = rig.loop.time()
            following = asyncio.create_task(answers(rig, request))
            for _ in range(10):
                await asyncio.sleep(5)
                await rig.operator.publish(KEYS.logs("h1"), encode(request))
            rig.machine.write("a-0-1", b"late\n")
            found, ended_s = await following
            assert 65 <= ended_s - begun <= 75, "50 s renewed, then 20 s of grace"
            assert LOG_ALIVE in found
            assert LOG_DATA + b"late\n" in found

    play(tmp_path, test)


def test_too_many_streams_and_nonsense_are_refused(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.agent():
            await rig.assign(("a", Wanted.RUN))
            await rig.until(is_ready("a"))
            following = [
                asyncio.create_task(answers(rig, LogRequest(execution="a-0-1", follow=True, stream=str(number))))
                for number in range(16)
            ]
            await asyncio.sleep(1)
            (refused,), _ = await answers(rig, LogRequest(execution="a-0-1"), 1.0)
            assert refused.startswith(LOG_REFUSED + b"16 log streams")
            (nonsense,), _ = await answers(rig, b"[]", 1.0)
            assert nonsense.startswith(LOG_REFUSED + b"LogRequest")
            await asyncio.gather(*following)
            (free,), _ = await answers(rig, LogRequest(execution="a-0-1"))
            assert free.startswith(LOG_DATA), "places are free again"

    play(tmp_path, test)
