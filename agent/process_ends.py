"""Noticing when processes end, and how: also those that are not our children, because an earlier agent started them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator

from agent import process_table
from agent.process_table import Identity


class Ends:
    """Wakes whoever waits for events when a watched process ends, and remembers exit codes of children, which the
    kernel tells once. Made in the event loop that uses it."""

    def __init__(self) -> None:
        self._exit_codes: dict[Identity, int] = {}
        self._watched: dict[Identity, int] = {}  # pidfds
        self._wakes: set[asyncio.Event] = set()

    async def events(self) -> AsyncGenerator[None, None]:
        """One item when something may have changed, for ever."""
        wake = asyncio.Event()
        self._wakes.add(wake)
        try:
            while True:
                await wake.wait()
                wake.clear()
                yield None
        finally:
            self._wakes.discard(wake)

    def wake(self) -> None:
        """Something may have changed."""
        for wake in self._wakes:
            wake.set()

    def watch(self, process: Identity) -> None:
        """Wake when this process ends."""
        if process in self._watched:
            return
        try:
            descriptor = process_table.open_pidfd(process)
        except OSError:
            return  # out of descriptors: the agent's regular look finds it, only later
        if descriptor is None:
            self.wake()
            return
        self._watched[process] = descriptor
        asyncio.get_running_loop().add_reader(descriptor, self._gone, process)

    def exit_code(self, process: Identity) -> int | None:
        """Of a process that has ended; None if the kernel has not told us, because it was no child of ours."""
        code = process_table.reap(process.pid)
        if code is not None:
            self._exit_codes[process] = code
        return self._exit_codes.get(process)

    def forget_others(self, named: set[Identity]) -> None:
        """Keep the exit codes of these only: no file names the others any more."""
        self._exit_codes = {process: code for process, code in self._exit_codes.items() if process in named}

    def close(self) -> None:
        """Watch nothing any more."""
        loop = asyncio.get_running_loop()
        for descriptor in self._watched.values():
            loop.remove_reader(descriptor)
            os.close(descriptor)
        self._watched.clear()

    def _gone(self, process: Identity) -> None:
        descriptor = self._watched.pop(process)
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        self.exit_code(process)
        self.wake()
