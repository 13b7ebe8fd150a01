"""Showing something once, or again whenever it changes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

from cli.cluster import Cluster, run
from cli.options import Options

T = TypeVar("T")

_REFRESH_S = 1.0  # a person reads no faster, and a listing of a large cluster is not free


def live(options: Options, read: Callable[[Cluster], Awaitable[T]], show: Callable[[T], None], watch: bool) -> None:
    """Read and show; with `watch` again each second when what was read has changed, until interrupted."""

    async def command(cluster: Cluster) -> None:
        shown: T | None = None
        while True:
            found = await read(cluster)
            if found != shown:
                if watch and sys.stdout.isatty():
                    print("\033[H\033[2J", end="")
                show(found)
                sys.stdout.flush()
                shown = found
            if not watch:
                return
            await asyncio.sleep(_REFRESH_S)

    run(options, command)
