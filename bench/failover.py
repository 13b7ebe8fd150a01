"""How long nobody leads, how long a lost host's pipelines stand still, and how far apart two copies of one slot are.

    python -m bench.failover [--servers 1 3] [--cases host-killed agent-frozen ...] [--runs 10]

Servers, schedulers and hosts are real processes in network namespaces of their own (needs root), as in `make chaos`.
What an exclusive pipeline sends goes to a file, by which the gap is measured: from the last message of the old copy to
the first of the new one. Each case is bounded; one that does not get there is named, and counts as missed.

| case | from | to |
|---|---|---|
| leader-killed | SIGKILL of the leading scheduler | the next commit of another one |
| leader-stopped | SIGTERM | the same |
| host-killed | SIGKILL of agent, runners and Bentos | a shareable, and an exclusive pipeline ready elsewhere |
| both-killed | the leading scheduler and a host at once | an exclusive pipeline ready elsewhere |
| agent-frozen | SIGSTOP of the agent | gap |
| host-cut | all packets of the host dropped | gap |
| agent-restarted | SIGTERM of an agent, and its start | number of executions that were started again |
| agent-killed | SIGKILL of an agent, and its start | the same |
| stream-leader-killed | SIGKILL of the server that leads the hosts stream | the same (three servers only) |
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from bench.cluster import delete_record, put_configuration, put_record, until_state
from bench.harness import Bar, Series, show
from shared.connection import ConnectionSettings
from shared.documents import Assignment, Heartbeat, Journal, Lease, Status, decode
from shared.errors import StoreError
from shared.keys import JOURNAL, LEASE, Keys, assign_key, status_key
from shared.nats_store import NatsStore, connect
from shared.states import State
from tests.chaos.ledger import Ledger
from tests.chaos.site import Host, Site, running_site
from tests.support.netns import SUBNET, inside_sandbox, sandbox

DEADLINE_S = 90.0  # of one wait; ends a hang
SETTLED_S = 15.0  # after which a restart that was going to happen has happened
STANDBY_S = 4.0  # until a scheduler that was started is a warm standby
KEYS = Keys()

SHAREABLE = b"""input:
  nats:
    urls: [ "${NATS_URL}" ]
    subject: bench.failover
    queue: bench
output:
  drop: {}
"""


@dataclass
class Bench:
    """A running cluster, and what was measured on it."""

    site: Site
    store: NatsStore
    ledger: Ledger
    replicated: bool
    rows: dict[str, tuple[Series, Bar]] = field(default_factory=dict)
    count: int = 0

    def add(self, name: str, value: float, bar: Bar, unit: str = "s") -> None:
        series, _ = self.rows.setdefault(name, (Series(name, unit), bar))
        series.add(value)

    # --- what the cluster says

    async def leader(self) -> str:
        return decode(Lease, (await self.read(KEYS.control, LEASE)) or b"{}").name

    async def read(self, bucket: str, key: str) -> bytes | None:
        """A document; while the store is between two leaders, asked for again."""
        deadline_s = time.monotonic() + DEADLINE_S
        while True:
            try:
                return (await self.store.read(bucket, key)).value
            except StoreError:
                if time.monotonic() > deadline_s:
                    raise
            await asyncio.sleep(0.01)

    async def place(self, pipeline: str) -> str:
        """Host of the one slot of a pipeline, "" while it is not ready anywhere."""
        value = await self.read(KEYS.control, status_key(pipeline))
        slots = decode(Status, value).slots if value is not None else ()
        return slots[0].host if slots and slots[0].phase == "ready" else ""

    async def elsewhere(self, pipeline: str, than: str) -> float:
        """When (monotonic) a pipeline was first seen ready on another host."""
        deadline_s = time.monotonic() + DEADLINE_S
        while await self.place(pipeline) in ("", than):
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{pipeline} was never ready on another host than {than}")
            await asyncio.sleep(0.01)
        return time.monotonic()

    async def answered(self, host: str) -> None:
        """Return when a host that was away has a session that the leader answered."""
        deadline_s = time.monotonic() + DEADLINE_S
        first = await self.read(KEYS.hosts, host)
        while True:
            beat, document = await self.read(KEYS.hosts, host), await self.read(KEYS.control, assign_key(host))
            if beat is not None and document is not None and beat != first:
                heartbeat = decode(Heartbeat, beat)
                if heartbeat.dead is None and decode(Assignment, document).session == heartbeat.session:
                    return
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{host} did not come back")
            await asyncio.sleep(0.1)

    async def publish(self, host: str) -> tuple[str, str]:
        """A shareable and an exclusive pipeline on one host."""
        self.count += 1
        names = (f"shared-{self.count}", f"solo-{self.count}")
        placement = {"preferred": {"host": host}}
        for name, data in zip(names, (SHAREABLE, self.ledger.configuration().encode()), strict=True):
            await put_configuration(self.store, name, data)
            await put_record(self.store, name, placement=placement)
        for name in names:
            await until_state(self.store, name, State.RUNNING)
            if await self.place(name) != host:
                raise RuntimeError(f"{name} is not on {host}, where there is room")
        return names

    async def remove(self, names: Sequence[str]) -> None:
        for name in names:
            await delete_record(self.store, name)

    async def gap_s(self, pipeline: str) -> float:
        """From the last message of the old copy to the first of the new one."""
        deadline_s = time.monotonic() + DEADLINE_S
        while True:
            self.ledger.read()
            gaps = self.ledger.slots[f"{pipeline}.0"].gaps_s()
            if gaps:
                return min(gaps)
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{pipeline} has sent nothing from its new place")
            await asyncio.sleep(0.1)

    def copies(self) -> int:
        self.ledger.read()
        return sum(len(slot.copies) for slot in self.ledger.slots.values())

    def host(self, run: int) -> Host:
        names = sorted(self.site.hosts)
        return self.site.hosts[names[run % len(names)]]


# --- cases


async def _next_leader(bench: Bench, number: signal.Signals, name: str, bar: Bar) -> None:
    leader = await bench.leader()
    before = decode(Journal, (await bench.read(KEYS.control, JOURNAL)) or b"{}")
    daemon = bench.site.schedulers[leader]
    started_s = time.monotonic()
    daemon.signal(number)
    while decode(Journal, (await bench.read(KEYS.control, JOURNAL)) or b"{}").holder == before.holder:
        if time.monotonic() - started_s > DEADLINE_S:
            raise TimeoutError("nobody took over")
        await asyncio.sleep(0.002)
    bench.add(name, time.monotonic() - started_s, bar)
    await daemon.stop()
    daemon.start()
    await asyncio.sleep(STANDBY_S)


async def leader_killed(bench: Bench, _: int) -> None:
    await _next_leader(bench, signal.SIGKILL, "leader killed -> next leader's commit", Bar(3.5))


async def leader_stopped(bench: Bench, _: int) -> None:
    await _next_leader(bench, signal.SIGTERM, "leader stopped -> next leader's commit", Bar(0.2))


async def host_killed(bench: Bench, run: int) -> None:
    host = bench.host(run)
    shared, solo = names = await bench.publish(host.name)
    started_s = time.monotonic()
    host.agent.kill()
    host.kill_executions()
    bench.add(
        "host killed -> shareable ready elsewhere", await bench.elsewhere(shared, host.name) - started_s, Bar(6.0)
    )
    bar = Bar(20.0 if bench.replicated else 15.0)
    bench.add("host killed -> exclusive ready elsewhere", await bench.elsewhere(solo, host.name) - started_s, bar)
    host.agent.start()
    await bench.answered(host.name)
    await bench.remove(names)


async def both_killed(bench: Bench, run: int) -> None:
    host = bench.host(run)
    _, solo = names = await bench.publish(host.name)
    leader = bench.site.schedulers[await bench.leader()]
    started_s = time.monotonic()
    leader.kill()
    host.agent.kill()
    host.kill_executions()
    bar = Bar(22.0 if bench.replicated else 17.0)
    bench.add(
        "leader and host killed -> exclusive ready elsewhere", await bench.elsewhere(solo, host.name) - started_s, bar
    )
    leader.start()
    host.agent.start()
    await bench.answered(host.name)
    await bench.remove(names)
    await asyncio.sleep(STANDBY_S)


async def agent_frozen(bench: Bench, run: int) -> None:
    host = bench.host(run)
    _, solo = names = await bench.publish(host.name)
    host.agent.freeze()
    try:
        await bench.elsewhere(solo, host.name)
    finally:
        host.agent.thaw()
    await bench.answered(host.name)
    bench.add("agent frozen -> gap between two copies", await bench.gap_s(solo), Bar(0.5, at_most=False))
    await bench.remove(names)


async def host_cut(bench: Bench, run: int) -> None:
    host = bench.host(run)
    _, solo = names = await bench.publish(host.name)
    host.node.drop(f"{SUBNET}.0/24")
    try:
        await bench.elsewhere(solo, host.name)
    finally:
        host.node.undrop()
    await bench.answered(host.name)
    bench.add("host cut off -> gap between two copies", await bench.gap_s(solo), Bar(0.5, at_most=False))
    await bench.remove(names)


async def _agent_away(bench: Bench, run: int, leave: Callable[[Host], Awaitable[None]], name: str) -> None:
    host = bench.host(run)
    names = await bench.publish(host.name)
    before = bench.copies()
    await leave(host)
    host.agent.start()
    await bench.answered(host.name)
    await asyncio.sleep(SETTLED_S)
    bench.add(name, bench.copies() - before, Bar(0.0), "")
    await bench.remove(names)


async def agent_restarted(bench: Bench, run: int) -> None:
    await _agent_away(bench, run, lambda host: host.agent.stop(), "agent restarted -> executions restarted")


async def agent_killed(bench: Bench, run: int) -> None:
    async def leave(host: Host) -> None:
        host.agent.kill()

    await _agent_away(bench, run, leave, "agent killed and started -> executions restarted")


async def stream_leader_killed(bench: Bench, run: int) -> None:
    host = bench.host(run)
    names = await bench.publish(host.name)
    before = bench.copies()
    server = bench.site.nats.stream_leader(f"KV_{KEYS.hosts}")
    if server is None:
        raise RuntimeError("the hosts stream has no leader although nothing has failed")
    server.kill()
    await asyncio.sleep(SETTLED_S)
    await asyncio.to_thread(server.start)
    await asyncio.sleep(SETTLED_S)
    await bench.answered(host.name)
    bench.add("stream leader killed -> executions restarted", bench.copies() - before, Bar(0.0), "")
    await bench.remove(names)


CASES: Mapping[str, Callable[[Bench, int], Awaitable[None]]] = {
    "leader-killed": leader_killed,
    "leader-stopped": leader_stopped,
    "host-killed": host_killed,
    "both-killed": both_killed,
    "agent-frozen": agent_frozen,
    "host-cut": host_cut,
    "agent-restarted": agent_restarted,
    "agent-killed": agent_killed,
    "stream-leader-killed": stream_leader_killed,
}
REPLICATED_ONLY = frozenset({"stream-leader-killed"})


# --- running


async def measure(directory: Path, servers: int, cases: Sequence[str], runs: int) -> bool:
    """All cases on a cluster of its own; prints the table. Whether all bars were met."""
    failed: list[str] = []
    with running_site(directory, directory / "run", hosts=3, servers=servers) as site:
        store = await connect(ConnectionSettings(servers=tuple(site.urls)), name="bench")
        try:
            bench = Bench(site, store, Ledger(directory / "ledger"), servers > 1)
            await bench.remove(await _first(bench))
            for case in cases:
                if case in REPLICATED_ONLY and servers == 1:
                    continue
                for run in range(runs):
                    try:
                        await CASES[case](bench, run)
                    except (TimeoutError, StoreError, RuntimeError) as error:
                        failed.append(f"{case}, run {run + 1}: {error}")
                        print(f"FAILED: {failed[-1]}", flush=True)
                        break  # the cluster is not as the next run needs it, maybe; other cases try their luck
        finally:
            await store.close()
    met = show(f"failover, {servers} nats-server{'s' * (servers > 1)}", list(bench.rows.values()))
    return met and not failed


async def _first(bench: Bench) -> Sequence[str]:
    """Pipelines on every host: then everything has come up."""
    names: list[str] = []
    deadline_s = time.monotonic() + DEADLINE_S
    for host in bench.site.hosts:
        while True:
            beat = await bench.read(KEYS.hosts, host)
            if beat is not None and any(driver.ok for driver in decode(Heartbeat, beat).drivers.values()):
                break
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{host} did not come up")
            await asyncio.sleep(0.1)
        names += await bench.publish(host)
    return names


def main() -> int:
    """Run it, in a sandbox of its own. Exit code 1 when a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--servers", type=int, nargs="+", choices=(1, 3), default=(1, 3))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=tuple(CASES))
    arguments = parser.parse_args()
    if not inside_sandbox():
        if os.geteuid() != 0:
            print("bench.failover needs root, for network namespaces", file=sys.stderr)
            return 2
        child = sandbox([sys.executable, "-m", "bench.failover", *sys.argv[1:]])
        try:
            return child.wait()
        finally:
            child.kill()
            child.wait()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))  # servers are lost by intention
    met = True
    for servers in arguments.servers:
        with tempfile.TemporaryDirectory(prefix="shoal-bench-") as directory:
            met = asyncio.run(measure(Path(directory), servers, arguments.cases, arguments.runs)) and met
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
