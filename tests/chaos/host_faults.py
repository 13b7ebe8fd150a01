"""What can be done to a host: its agent, its runners and Bentos, its line, its files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.site import Site
from tests.chaos.users import Users
from tests.support.netns import SUBNET

DYING_S = 10.0  # a process that was killed is gone within this, on a busy machine
LOST_SHARE = 1 / 3  # of the packets of a bad line


@dataclass
class HostFaults:
    """Each is there while it is entered."""

    site: Site
    users: Users

    @asynccontextmanager
    async def agent_kill(self, host: str) -> AsyncIterator[None]:
        self.site.hosts[host].agent.kill()
        yield
        self.site.hosts[host].agent.start()

    @asynccontextmanager
    async def agent_freeze(self, host: str) -> AsyncIterator[None]:
        self.site.hosts[host].agent.freeze()
        yield
        self.site.hosts[host].agent.thaw()

    @asynccontextmanager
    async def agent_restart(self, host: str) -> AsyncIterator[None]:
        await self.site.hosts[host].agent.stop()
        yield
        self.site.hosts[host].agent.start()

    @asynccontextmanager
    async def agent_cut(self, host: str) -> AsyncIterator[None]:
        node = self.site.hosts[host].node
        node.drop(*(server.address for server in self.site.server_nodes.values()))
        yield
        node.undrop()

    @asynccontextmanager
    async def host_kill(self, host: str) -> AsyncIterator[None]:
        self.site.hosts[host].kill()
        yield
        self.site.hosts[host].agent.start()

    @asynccontextmanager
    async def host_reboot(self, host: str) -> AsyncIterator[None]:
        """Its processes end, its tmpfs is empty, its boot id is another one; its disk is as it was."""
        self.site.hosts[host].kill()
        yield
        await self._emptied(self.site.hosts[host].run_dir)
        self.site.hosts[host].node.reboot()
        self.site.hosts[host].agent.start()

    @asynccontextmanager
    async def host_dead(self, host: str) -> AsyncIterator[None]:
        """An operator says so while it is, and is wrong in so far as it comes back."""
        self.site.hosts[host].kill()
        await self.users.confirm_dead(host)
        yield
        self.site.hosts[host].agent.start()

    @asynccontextmanager
    async def host_new(self, host: str) -> AsyncIterator[None]:
        """Another machine takes its name, and an operator says that the old one is dead."""
        old = self.site.hosts[host]
        old.kill()
        yield
        await self._emptied(old.state_dir, old.run_dir)
        old.node.reboot()
        old.agent.start()
        await self.users.confirm_dead(host)

    @asynccontextmanager
    async def state_lost(self, host: str) -> AsyncIterator[None]:
        """While its agent is dead. What runs goes on; an operator ends what no lease ends, and then says so."""
        lost = self.site.hosts[host]
        lost.agent.kill()
        yield
        await self._emptied(lost.state_dir)
        lost.kill_executions("stay")
        lost.agent.start()
        await self.users.confirm_dead(host)

    async def _emptied(self, *directories: Path) -> None:
        """They are gone. A process that was killed may be writing its last file."""
        for directory in directories:
            deadline_s = time.monotonic() + DYING_S
            while directory.exists():
                shutil.rmtree(directory, ignore_errors=True)
                assert time.monotonic() < deadline_s, f"{directory} cannot be removed"
                await asyncio.sleep(0.05)

    @asynccontextmanager
    async def host_cut(self, host: str) -> AsyncIterator[None]:
        node = self.site.hosts[host].node
        node.drop(f"{SUBNET}.0/24")
        yield
        node.undrop()

    @asynccontextmanager
    async def unplug(self, host: str) -> AsyncIterator[None]:
        node = self.site.hosts[host].node
        node.unplug()
        yield
        node.plug()

    @asynccontextmanager
    async def host_deaf(self, host: str) -> AsyncIterator[None]:
        node = self.site.hosts[host].node
        node.drop(f"{SUBNET}.0/24", leaving=False)
        yield
        node.undrop()

    @asynccontextmanager
    async def host_mute(self, host: str) -> AsyncIterator[None]:
        node = self.site.hosts[host].node
        node.drop(f"{SUBNET}.0/24", arriving=False)
        yield
        node.undrop()

    @asynccontextmanager
    async def host_lossy(self, host: str) -> AsyncIterator[None]:
        node = self.site.hosts[host].node
        node.drop(f"{SUBNET}.0/24", share=LOST_SHARE)
        yield
        node.undrop()

    @asynccontextmanager
    async def hosts_cut(self, spared: str) -> AsyncIterator[None]:
        cut = [host.node for name, host in self.site.hosts.items() if name != spared]
        for node in cut:
            node.drop(f"{SUBNET}.0/24")
        yield
        for node in cut:
            node.undrop()

    @asynccontextmanager
    async def stranger(self, host: str) -> AsyncIterator[None]:
        stranger = self.site.claim(host)
        yield
        stranger.kill()
        await self._emptied(stranger.state_dir, stranger.run_dir)

    @asynccontextmanager
    async def lease_gone(self, host: str) -> AsyncIterator[None]:
        (self.site.hosts[host].run_dir / "lease" / "lease").unlink(missing_ok=True)
        yield

    @asynccontextmanager
    async def runner_kill(self, host: str) -> AsyncIterator[None]:
        _signal(self.site.hosts[host].runners()[-1:], signal.SIGKILL)  # the youngest: another one each time
        yield

    @asynccontextmanager
    async def bento_kill(self, host: str) -> AsyncIterator[None]:
        _signal(self.site.hosts[host].bentos()[-1:], signal.SIGKILL)
        yield

    @asynccontextmanager
    async def runners_freeze(self, host: str) -> AsyncIterator[None]:
        """While one is frozen, nothing stops its Bento at the end of a lease: this host's agent must go on."""
        frozen = self.site.hosts[host].runners()
        _signal(frozen, signal.SIGSTOP)
        yield
        _signal(frozen, signal.SIGCONT)

    @asynccontextmanager
    async def bentos_freeze(self, host: str) -> AsyncIterator[None]:
        frozen = self.site.hosts[host].bentos()
        _signal(frozen, signal.SIGSTOP)
        yield
        _signal(frozen, signal.SIGCONT)

    @asynccontextmanager
    async def grants_gone(self, host: str) -> AsyncIterator[None]:
        for grant in (self.site.hosts[host].run_dir / "lease" / "grants").iterdir():
            grant.unlink(missing_ok=True)
        yield


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
