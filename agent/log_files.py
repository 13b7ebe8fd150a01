"""Reading the output of an execution from files that a runner writes and rotates by renaming."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import BinaryIO

CHUNK_BYTES = 64 * 1024
POLL_S = 0.2  # how late a follower sees a line; cheap enough for the few who look


async def follow_log(log: Path, *, tail: int, there: Callable[[], bool] | None) -> AsyncGenerator[bytes, None]:
    """The last `tail` lines of `log` and of what was rotated away, in chunks, oldest first.

    With `there` also what comes, over rotations and restarts, until `there` says that the execution is gone. Ends are
    cut at lines only at the beginning: a chunk may end within one.
    """
    for part in _last_lines(log, tail):
        yield part
    file = _open(log)
    if file is not None:
        file.seek(0, os.SEEK_END)
    try:
        while there is not None:
            gone = not there()
            while file is not None and (chunk := file.read(CHUNK_BYTES)):
                yield chunk
            if gone:
                return
            if file is None or _renamed(file, log):
                fresh = _open(log)
                if fresh is not None:
                    if file is not None:
                        # Written between our last read and the renaming.
                        if rest := file.read(CHUNK_BYTES):
                            yield rest
                        file.close()
                    file = fresh
                    continue
            await asyncio.sleep(POLL_S)
    finally:
        if file is not None:
            file.close()


def rotated(log: Path, number: int) -> Path:
    """The name of the `number`-th file that was rotated away; 1 is the newest."""
    return log.with_name(f"{log.name}.{number}")


def _last_lines(log: Path, tail: int) -> Iterator[bytes]:
    """At most `tail` lines, from as many files as it takes."""
    parts: list[bytes] = []
    wanted = tail
    number = 0
    while wanted > 0:
        path = rotated(log, number) if number else log
        try:
            with path.open("rb") as file:
                part, lines = _end(file, wanted)
        except FileNotFoundError:
            if number:
                break
            part, lines = b"", 0
        parts.append(part)
        wanted -= lines
        number += 1
    return reversed([part for part in parts if part])


def _end(file: BinaryIO, lines_max: int) -> tuple[bytes, int]:
    """The last lines of a file, and how many they are. A line without an end counts."""
    position = file.seek(0, os.SEEK_END)
    data = b""
    while position > 0:
        step = min(CHUNK_BYTES, position)
        position -= step
        file.seek(position)
        data = file.read(step) + data
        # One more line end than lines: that of the line before the first.
        if data.count(b"\n", 0, -1) >= lines_max:
            break
    lines = data.splitlines(keepends=True)[-lines_max:]
    return b"".join(lines), len(lines)


def _open(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None


def _renamed(file: BinaryIO, path: Path) -> bool:
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    opened = os.fstat(file.fileno())
    return (found.st_dev, found.st_ino) != (opened.st_dev, opened.st_ino)
