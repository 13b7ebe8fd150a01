"""Tailing and following logs that a runner rotates by renaming."""

import asyncio
from pathlib import Path

import pytest

from agent import log_files
from agent.log_files import follow_log, rotated


def tail(log: Path, lines: int) -> bytes:
    async def read() -> bytes:
        return b"".join([chunk async for chunk in follow_log(log, tail=lines, there=None)])

    return asyncio.run(read())


@pytest.mark.parametrize(
    ("old", "new", "lines", "expected"),
    [
        (None, None, 10, b""),
        (None, b"", 10, b""),
        (None, b"1\n2\n3\n", 0, b""),
        (None, b"1\n2\n3\n", 2, b"2\n3\n"),
        (None, b"1\n2\n3\n", 3, b"1\n2\n3\n"),
        (None, b"1\n2\n3\n", 9, b"1\n2\n3\n"),
        (None, b"1\n2\n3", 2, b"2\n3"),
        (b"1\n2\n", b"3\n4\n", 3, b"2\n3\n4\n"),
        (b"1\n2\n", b"3\n4\n", 2, b"3\n4\n"),
        (b"1\n2\n", b"", 1, b"2\n"),
        (b"1\n2\n", None, 1, b"2\n"),
        (None, b"x" * 200_000 + b"\n2\n", 2, b"x" * 200_000 + b"\n2\n"),
        (None, b"1\n" + b"x" * 200_000 + b"\n3\n", 2, b"x" * 200_000 + b"\n3\n"),
    ],
)
def test_last_lines_over_rotations(
    tmp_path: Path, old: bytes | None, new: bytes | None, lines: int, expected: bytes
) -> None:
    log = tmp_path / "output.log"
    if new is not None:
        log.write_bytes(new)
    if old is not None:
        rotated(log, 1).write_bytes(old)
    assert tail(log, lines) == expected


def test_following_sees_every_line_over_rotations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "POLL_S", 0.001)
    log = tmp_path / "output.log"
    lines = [f"line {number}\n".encode() for number in range(300)]

    async def write(gone: asyncio.Event) -> None:
        for number, line in enumerate(lines):
            if number and number % 50 == 0:
                log.replace(rotated(log, 1))
            with log.open("ab") as file:
                file.write(line)
            await asyncio.sleep(0.0005)
        gone.set()

    async def run() -> bytes:
        gone = asyncio.Event()
        heard = bytearray()

        async def follow() -> None:
            async for chunk in follow_log(log, tail=0, there=lambda: not gone.is_set()):
                heard.extend(chunk)

        async with asyncio.TaskGroup() as group:
            group.create_task(follow(), name="follow")
            group.create_task(write(gone), name="write")
        return bytes(heard)

    assert asyncio.run(run()) == b"".join(lines)
