"""How long nobody leads, and how long a lost host's pipelines stand still.

    python -m bench.failover [--runs 10]

- leader killed: SIGKILL of the leading scheduler -> the journal's next revision by another one
- leader stopped: SIGTERM -> the same
- host lost: SIGKILL of agent, runners and Bentos -> a shareable pipeline ready on another host
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import time

from bench.cluster import DEADLINE_S, delete_record, local_cluster, put_configuration, put_record, store_of, until_state
from bench.harness import Bar, Series, show
from cli.cluster import Cluster, picture
from cli.leader import leadership
from cli.local import LocalCluster
from shared.documents import Journal, Lease, decode
from shared.keys import JOURNAL, LEASE, Keys
from shared.states import State
from shared.store import Store

SHAREABLE = b"""input:
  nats:
    urls: [ "${NATS_URL}" ]
    subject: bench.failover
    queue: bench
output:
  drop: {}
"""


async def next_leader(local: LocalCluster, store: Store, number: signal.Signals) -> float:
    """Seconds from the signal to the first journal entry of another instance. The ended one is started again."""
    lease = decode(Lease, (await store.read(Keys().control, LEASE)).value or b"{}")
    started = time.monotonic()
    local.children[lease.name].send_signal(number)
    while True:
        journal = decode(Journal, (await store.read(Keys().control, JOURNAL)).value or b"{}")
        if journal.holder != lease.holder:
            break
        if time.monotonic() - started > DEADLINE_S:
            raise TimeoutError("nobody took over")
        await asyncio.sleep(0.002)
    taken = time.monotonic() - started
    local.children.pop(lease.name).wait()
    local.start_scheduler(lease.name)
    await asyncio.sleep(4.0)  # until the new one is a warm standby
    return taken


async def host_lost(local: LocalCluster, store: Store, run: int) -> float:
    """Seconds from the death of a host to its shareable pipeline being ready elsewhere."""
    name = f"shared-{run}"
    await put_configuration(store, name, SHAREABLE)
    await put_record(store, name)
    await until_state(store, name, State.RUNNING)
    cluster = Cluster(store, Keys())
    seen = await picture(cluster)
    host = next(h for h, a in seen.assignments.items() if any(i.pipeline == name for i in a.executions))
    started = time.monotonic()
    local.kill(host)
    for observed in seen.reports[host].executions:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(observed.runtime), signal.SIGKILL)
    while True:
        seen = await picture(cluster)
        slots = seen.statuses[name].slots
        if slots and slots[0].phase == "ready" and slots[0].host != host:
            break
        if time.monotonic() - started > DEADLINE_S:
            raise TimeoutError(f"{name} never ran elsewhere")
        await asyncio.sleep(0.01)
    taken = time.monotonic() - started
    local.start_agent(host, {"zone": "a"})
    await asyncio.sleep(3.0)
    await delete_record(store, name)
    return taken


async def measure(local: LocalCluster, runs: int) -> bool:
    """All three, and the table."""
    killed = Series("leader killed (SIGKILL) -> next leader's commit", "s")
    stopped = Series("leader stopped (SIGTERM) -> next leader's commit", "s")
    lost = Series("host killed -> shareable pipeline ready elsewhere", "s")
    async with store_of(local) as store:
        await asyncio.sleep(4.0)
        print(f"{(await leadership(Cluster(store, Keys())))['name']} leads")
        for run in range(runs):
            killed.add(await next_leader(local, store, signal.SIGKILL))
            stopped.add(await next_leader(local, store, signal.SIGTERM))
            lost.add(await host_lost(local, store, run))
    return show("failover", [(killed, Bar(3.5)), (stopped, Bar(0.2)), (lost, Bar(6.0))])


def main() -> int:
    """Run it. Exit code 1 when a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    arguments = parser.parse_args()
    with local_cluster(hosts=3, schedulers=3) as local:
        return 0 if asyncio.run(measure(local, arguments.runs)) else 1


if __name__ == "__main__":
    sys.exit(main())
