"""The host as its agent sees it, passed in from the composition root."""

from __future__ import annotations

from dataclasses import dataclass

from agent.bundles import Bundles
from agent.executor import Executor
from agent.grants import GrantKeeper
from agent.heartbeat import HostFacts
from agent.late_store import AgentStore
from agent.lease import LeaseKeeper
from agent.state import Durable, Offload
from shared.clock import Clock
from shared.keys import Keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Who this agent is and what it works with: the ports, real or simulated."""

    name: str
    boot: str  # boot id of the machine
    lease_s: float
    facts: HostFacts
    keys: Keys
    store: AgentStore  # for assignments, bundles, reports and logs
    heart_store: AgentStore  # a connection of its own, which nothing else can keep busy
    executor: Executor
    bundles: Bundles
    durable: Durable
    lease: LeaseKeeper
    grants: GrantKeeper
    clock: Clock
    offload: Offload
