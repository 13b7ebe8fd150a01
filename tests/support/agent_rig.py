"""One agent on virtual time, over the fakes: a store, a machine, and the agent processes that come and go on it."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agent.bundles import Bundles
from agent.core.restarts import Memory
from agent.core.session import LeaseFile
from agent.heartbeat import HostFacts
from agent.host import Host
from agent.loop import Agent
from agent.metrics import AgentMetrics
from agent.state import Saved, in_place
from runner.permits import Grant
from shared.archive import write_archive
from shared.bundle import Runtime
from shared.documents import Assigned, Assignment, Heartbeat, Report, Session, decode, encode
from shared.keys import Keys, assign_key
from shared.log_stream import LogRequest
from shared.states import Overlap, Wanted
from shared.store import Message
from tests.sim.virtual_time import VirtualClock, VirtualLoop
from tests.support.fake_executor import FakeExecutor, FakeHost, Ledger
from tests.support.fake_store import FakeStore, FakeStoreServer

KEYS = Keys("t")
STORE_ID = "store-a"


class Disk:
    """A state directory in memory."""

    def __init__(self, agent: str = "agent-1") -> None:
        self.saved = Saved(agent=agent)
        self.memories: Mapping[str, Memory] = {}
        self.full = False

    def load(self) -> Saved:
        return self.saved

    def save(self, saved: Saved) -> None:
        if self.full:
            raise OSError(28, "no space left on device")
        self.saved = saved

    def load_memories(self) -> Mapping[str, Memory]:
        return self.memories

    def save_memories(self, memories: Mapping[str, Memory]) -> None:
        self.memories = memories


class Tmpfs:
    """The lease directory in memory: `agent.lease.LeaseKeeper`; `grants` is `agent.grants.GrantKeeper`."""

    def __init__(self) -> None:
        self.lease: LeaseFile | None = None
        self.grants = GrantsInMemory()

    def read(self) -> LeaseFile | None:
        return self.lease

    def write(self, lease: LeaseFile) -> None:
        self.lease = lease


class GrantsInMemory:
    """`agent.grants.GrantKeeper`, with a diary."""

    def __init__(self) -> None:
        self.given: dict[str, Grant] = {}
        self.broken = False

    def list(self) -> Mapping[str, Grant]:
        return dict(self.given)

    def give(self, grant: Grant) -> None:
        if self.broken:
            raise OSError(28, "no space left on device")
        self.given[grant.execution] = grant

    def revoke(self, name: str) -> None:
        self.given.pop(name, None)


def bundle(pipeline: str) -> tuple[str, bytes]:
    runtime = Runtime(
        pipeline=pipeline, version="1", env={}, volumes=(), image="", cpu=None, memory_bytes=None, restart_delay_s=1.0,
        restart_delay_max_s=8.0, restart_reset_after_s=60.0, stop_grace_s=5.0, http="auto", config_digest="c" * 64,
    )  # fmt: skip
    data = write_archive([("runtime.json", encode(runtime)), ("pipeline.yaml", b"input: {}\n")])
    return hashlib.sha256(data).hexdigest(), data


@dataclass
class Rig:
    """A store, a machine, and the agent processes that come and go on it."""

    directory: Path
    server: FakeStoreServer = field(default_factory=FakeStoreServer)
    disk: Disk = field(default_factory=Disk)
    tmpfs: Tmpfs = field(default_factory=Tmpfs)

    def __post_init__(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.loop = loop
        if not self.server.streams:
            self.server.create_streams(KEYS)
        self.clock = VirtualClock(loop)
        self.machine = FakeHost("h1", clock=self.clock, ledger=Ledger(loop.time), now=loop.time)
        self.operator = self.server.connect("operator")
        self.stores: list[FakeStore] = []
        self.plan = 0
        self.now: Agent | None = None  # the agent process that runs
        self.told: Assignment | None = None

    @asynccontextmanager
    async def agent(self, **changes: Any) -> AsyncIterator[Agent]:
        """An agent process; leaving the block is SIGTERM."""
        main, heart = self.server.connect("agent"), self.server.connect("heart")
        self.stores = [main, heart]
        host = Host(
            **{
                "name": "h1",
                "boot": self.machine.boot,
                "lease_s": 8.0,
                "facts": HostFacts(cpu=4.0, memory_bytes=2**30, labels={"host": "h1"}, volumes=(), software="test"),
                "keys": KEYS,
                "store": main,
                "heart_store": heart,
                "executor": FakeExecutor(self.machine, cluster="t"),
                "bundles": Bundles(store=main, bucket=KEYS.bundles, directory=self.directory, offload=in_place),
                "durable": self.disk,
                "lease": self.tmpfs,
                "grants": self.tmpfs.grants,
                "clock": self.clock,
                "offload": in_place,
                **changes,
            }
        )
        agent = Agent(host, AgentMetrics(self.clock.monotonic))
        task = asyncio.create_task(agent.run(), name="agent")
        before, self.now = self.now, agent
        try:
            yield agent
            assert not task.done(), task.exception()
        finally:
            self.now = before
            task.cancel()
            await asyncio.wait([task])
            for store in (main, heart):
                await store.close()

    async def assign(self, *wanted: tuple[str, Wanted], bound: bool = True, **changes: Any) -> Assignment:
        """Write the next assignment. It answers the session of the agent that runs. `bound`: all are lease-bound."""
        self.plan += 1
        items = []
        for pipeline, state in wanted:
            digest, data = bundle(pipeline)
            await self.operator.put_object(KEYS.bundles, digest, data)
            items.append(
                Assigned(
                    execution=f"{pipeline}-0-1",
                    pipeline=pipeline,
                    slot=0,
                    replicas=1,
                    version="1",
                    digest=digest,
                    wanted=state,
                    overlap=Overlap.EXCLUSIVE,
                    lease_bound=bound,
                    stop_grace_s=5.0,
                    cpu=0.0,
                    memory_bytes=0,
                )
            )
        document = Assignment(
            store_id=STORE_ID, term=1, plan=self.plan, host="h1", session=self._session(), executions=tuple(items)
        )
        return await self._tell(replace(document, **changes))

    async def answer(self, **changes: Any) -> Assignment:
        """Write what was assigned last again, for the session of the agent that runs now."""
        assert self.told is not None
        self.plan += 1
        return await self._tell(replace(self.told, **{"plan": self.plan, "session": self._session(), **changes}))

    def _session(self) -> Session | None:
        return None if self.now is None else self.now.heart.session

    async def _tell(self, document: Assignment) -> Assignment:
        self.told = document
        await self.operator.write(KEYS.control, assign_key("h1"), encode(document))
        return document

    async def report(self) -> Report | None:
        entry = await self.operator.read(KEYS.reports, "h1")
        return None if entry.value is None else decode(Report, entry.value)

    async def heartbeat(self) -> Heartbeat | None:
        entry = await self.operator.read(KEYS.hosts, "h1")
        return None if entry.value is None else decode(Heartbeat, entry.value)

    async def until(self, holds: Callable[[Report], bool], within_s: float = 30.0) -> Report:
        """Wait for a report of which it holds."""
        seen: Report | None = None
        end = self.loop.time() + within_s
        while self.loop.time() < end:
            seen = await self.report()
            if seen is not None and holds(seen):
                return seen
            await asyncio.sleep(0.005)
        raise AssertionError(f"not within {within_s} s; last: {seen}")

    async def until_true(self, holds: Callable[[], bool], within_s: float = 30.0) -> None:
        """Wait for something that can be looked at without waiting."""
        end = self.loop.time() + within_s
        while not holds():
            assert self.loop.time() < end, f"not within {within_s} s"
            await self.clock.sleep(0.05)


def play(directory: Path, test: Callable[[Rig], Awaitable[None]]) -> None:
    """Run a scenario to its end, on virtual time."""

    async def whole() -> None:
        await test(Rig(directory))

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(whole())


async def answers(rig: Rig, request: LogRequest | bytes, quiet_s: float = 15.0) -> tuple[list[bytes], float]:
    """Everything that answers a request for logs, and when its end came. The fake network does not keep the order of
    core messages (NATS does), so all is collected until it has long been quiet."""
    inbox = await rig.operator.subscribe(f"_INBOX.test.{rig.loop.time()}.{next(_inboxes)}")
    data = request if isinstance(request, bytes) else encode(request)
    rig.server.send(Message(KEYS.logs("h1"), data, inbox.subject))
    found: list[bytes] = []
    ended_s = -1.0
    while True:
        try:
            async with asyncio.timeout(quiet_s):
                message = await inbox.next()
        except TimeoutError:
            break
        if message.data:
            found.append(message.data)
        else:
            ended_s = rig.loop.time()
    await inbox.close()
    assert ended_s >= 0, "a stream ends with an empty message"
    return found, ended_s


_inboxes = itertools.count()


def phases(report: Report) -> dict[str, str]:
    return {one.execution: one.phase.value for one in report.executions}


def is_ready(*names: str) -> Callable[[Report], bool]:
    return lambda report: phases(report) == {f"{name}-0-1": "ready" for name in names}
