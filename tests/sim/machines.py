"""The hosts of a simulated cluster as hardware: what no agent takes along when it dies.

Machine ── clock, boot id           FakeHost ── executions
         └ power, reboot, disks     Disk ────── state directory, bundles
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from agent.bundles import Bundles
from agent.core.restarts import Memory
from agent.core.session import LeaseFile
from agent.core.situation import Bundle
from agent.state import Saved
from runner.permits import Grant
from shared.bundle import read_bundle
from shared.errors import ExecutorUnavailable
from tests.sim.virtual_time import NOBODY, VirtualClock, VirtualLoop
from tests.support.fake_executor import FakeExecutor, FakeHost, Ledger

T = TypeVar("T")

CLUSTER = "shoal"


class Machine:
    """What an agent finds again after a restart, and what a reboot or a replacement takes away.

    `host` is the name that its agent uses; two machines may use the same one.
    """

    def __init__(
        self,
        name: str,
        *,
        loop: VirtualLoop,
        ledger: Ledger,
        zone: str,
        driver: str,
        host: str = "",
        boot_rate: float = 1.0,
    ) -> None:
        self.name, self.host, self.zone, self.driver = name, host or name, zone, driver
        self.clock = VirtualClock(loop, boot_rate=boot_rate)
        self.engine = FakeHost(name, clock=self.clock, ledger=ledger, now=loop.time, boot=f"{name}-boot-1")
        self.lease: LeaseFile | None = None  # tmpfs
        self.grants: dict[str, Grant] = {}  # tmpfs
        self.disk = Disk(f"{name}-agent-1")
        self.on = True
        self.boots: list[tuple[float, str]] = [(0.0, self.engine.boot)]  # (when, boot id)
        self._loop = loop
        self._disks = 1

    def power_off(self) -> None:
        self.on = False
        self.engine.hanging = False  # what it was asked while it hung and had not begun is gone with it
        self.engine.power_off(forget=self.driver == "process")
        self.lease = None
        self.grants.clear()

    def power_on(self) -> None:
        self.on = True
        self.engine.boot = f"{self.name}-boot-{len(self.boots) + 1}"
        self.boots.append((self._loop.time(), self.engine.boot))
        self.clock.reboot()

    def replace_disk(self) -> None:
        """Another machine under the same name."""
        self.engine.power_off(forget=True)
        self.lose_state()

    def lose_state(self) -> None:
        """The state directory is gone, and with it the agent's identity and its bundles; what runs is still seen."""
        self._disks += 1
        self.disk = Disk(f"{self.name}-agent-{self._disks}")


class Disk:
    """A state directory: `agent.state.Durable`, and the bundles."""

    def __init__(self, agent: str) -> None:
        self._saved = Saved(agent=agent)
        self._memories: Mapping[str, Memory] = {}
        self.bundles: dict[str, bytes] = {}

    def load(self) -> Saved:
        return self._saved

    def save(self, saved: Saved) -> None:
        self._saved = saved

    def load_memories(self) -> Mapping[str, Memory]:
        return self._memories

    def save_memories(self, memories: Mapping[str, Memory]) -> None:
        self._memories = memories


class SimLease:
    """`agent.lease.LeaseKeeper` on a machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def read(self) -> LeaseFile | None:
        return self._machine.lease

    def write(self, lease: LeaseFile) -> None:
        self._machine.lease = lease


class SimGrants:
    """`agent.grants.GrantKeeper` on a machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def list(self) -> Mapping[str, Grant]:
        return dict(self._machine.grants)

    def give(self, grant: Grant) -> None:
        self._machine.grants[grant.execution] = grant

    def revoke(self, name: str) -> None:
        self._machine.grants.pop(name, None)


class SimBundles(Bundles):
    """The bundle directory on a simulated disk. What is deleted from `have` is deleted from the disk."""

    def __init__(self, disk: Disk, **options: Any) -> None:
        super().__init__(directory=Path("/nowhere/bundles"), **options)
        self._disk = disk

    def _keep(self, digest: str, data: bytes) -> Bundle:
        runtime, _ = read_bundle(data, digest)
        self._disk.bundles[digest] = data
        return Bundle(f"/nowhere/bundles/{digest}", runtime)

    def _scan(self) -> Mapping[str, Bundle]:
        return {digest: self._keep(digest, data) for digest, data in sorted(self._disk.bundles.items())}

    async def drop_unused(self, *arguments: Any) -> None:
        await super().drop_unused(*arguments)
        for digest in sorted(self._disk.bundles.keys() - self.have.keys()):
            del self._disk.bundles[digest]


class SimEngine(FakeExecutor):
    """The engine of a machine, as one agent process sees it. One that is switched off does not answer.

    Docker does what it was asked, whatever becomes of whoever asked; processes are started by the agent itself, so they
    are started late when it was frozen, and not at all when it died.
    """

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine.engine, cluster=CLUSTER, driver=machine.driver)
        self._machine = machine
        self._boot = machine.engine.boot
        self.dead = False  # the agent process is

    async def _call(self, takes_s: float, effect: Callable[[], T]) -> T:
        docker = self._machine.driver == "docker"

        def still_here() -> T:
            if not self._machine.on or self._machine.engine.boot != self._boot or (self.dead and not docker):
                raise ExecutorUnavailable("the machine was switched off")
            return effect()

        call = super()._call(takes_s, still_here)
        if not docker:
            return await call
        task = asyncio.get_running_loop().create_task(call, name=f"engine of {self._machine.name}", context=NOBODY)
        task.add_done_callback(_heard)
        return await asyncio.shield(task)


def _heard(task: asyncio.Task[Any]) -> None:
    """Whoever asked may be dead; then nobody else asks for the error."""
    with contextlib.suppress(asyncio.CancelledError):
        task.exception()
