"""What must be true of a real cluster after strangers have written into it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.hostile import VALUES, written
from tests.support.real import SHARED, TICK, RealCluster, Running, real_cluster, until

GROWTH_BYTES_MAX = 400 * 1024 * 1024  # of any daemon, over everything that is done to it here; leaks are far above
QUIET_S = 3.0
QUIET_LOG_BYTES = 20_000  # in that time
QUIET_CPU_S = 1.5  # in that time; a loop that spins takes all of it, and an idle daemon some hundredths
SETTLE_S = 120.0


@contextmanager
def steady_cluster(directory: Path) -> Iterator[RealCluster]:
    """Two hosts and two schedulers with what a `Watch` expects to go on: `steady` and `shared`."""
    with real_cluster(directory, hosts=2, schedulers=2) as running:
        running.publish("steady", TICK)
        running.publish("shared", SHARED, replicas=2)
        running.until_state("steady", "running")
        running.until_state("shared", "running")
        yield running


class Watch:
    """What must be true after a flood over a `steady_cluster`. Made before it."""

    def __init__(self, cluster: RealCluster) -> None:
        self._cluster = cluster
        self._pids = {name: child.pid for name, child in cluster.local.children.items() if name != "nats"}
        self._memory = {name: _memory(pid) for name, pid in self._pids.items()}
        self._kept = {pipeline: cluster.found(pipeline) for pipeline in ("steady", "shared")}

    def over(self, name: str, *, kept: bool = True) -> None:
        """A good pipeline runs, and everything comes to rest. `kept`: what ran before is what runs now."""
        cluster = self._cluster
        cluster.publish(name, TICK)
        cluster.until_state(name, "running", SETTLE_S)
        cluster.delete_record(name)
        until(lambda: not cluster.status(name) and not cluster.found(name), f"{name} is gone", SETTLE_S)
        if kept:
            assert self._running() == self._kept, "nobody touched what ran"
        until(self.rests, "every daemon is quiet", SETTLE_S)
        cluster.assert_all_alive()
        assert {key: child.pid for key, child in cluster.local.children.items() if key != "nats"} == self._pids
        grown = {key: _memory(pid) - self._memory[key] for key, pid in self._pids.items()}
        assert max(grown.values()) < GROWTH_BYTES_MAX, grown

    def _running(self) -> dict[str, list[Running]]:
        return {pipeline: self._cluster.found(pipeline) for pipeline in self._kept}

    def rests(self) -> bool:
        before = [(_cpu_s(pid), _log_bytes(self._cluster, name)) for name, pid in self._pids.items()]
        time.sleep(QUIET_S)  # the figure is a rate
        after = [(_cpu_s(pid), _log_bytes(self._cluster, name)) for name, pid in self._pids.items()]
        return all(
            now[0] - was[0] < QUIET_CPU_S and now[1] - was[1] < QUIET_LOG_BYTES
            for was, now in zip(before, after, strict=True)
        )


def _memory(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _log_bytes(cluster: RealCluster, name: str) -> int:
    return cluster.local.log(name).stat().st_size


def variants(good: dict[str, Any]) -> Iterator[bytes]:
    """The document with each of its fields replaced by each hostile value, one at a time."""
    for number, field in enumerate(good):
        for value in VALUES:
            if number == 0 or len(written(value)) < 1000:
                yield written({**good, field: value})
    yield b'{"x":' + b"[" * 900_000
    yield written({**good, "reason": "x" * 900_000, "description": "x" * 900_000})
    yield b"{" + b",".join(b'"k%d":{}' % n for n in range(70_000)) + b"}"
