"""Machines of a test as network namespaces, joined by a bridge in a namespace of its own; and ways to cut them off.

    with Network() as network:
        node = network.add("h1")                    # a namespace with an address, reachable from here and from others
        spawn([*node.prefix, "some-daemon"])
        node.unplug(); node.plug()                  # its cable
        node.drop("10.1.2.3"); node.undrop()        # packets to and from some addresses vanish, nobody is told
        node.reboot()                               # what is spawned afterwards reads another boot id
    node.reboot()                               # what is spawned afterwards reads another boot id

Needs root, iproute2 and iptables. Run inside `sandbox`: whatever happens to the program, the kernel then removes
processes, namespaces, interfaces and mounts together with it, and no name can meet one that exists already.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.components import require

NETNS_DIR = Path("/run/netns")
SHM_DIR = Path("/dev/shm")
SUBNET = "10.213.87"  # ours alone: the sandbox has a network of its own
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
BOOTS_DIR = SHM_DIR / "boot-ids"
_INSIDE = "SHOAL_TEST_SANDBOX"
# What a node runs has a mount namespace of its own, in which the boot id is the node's. It keeps its process id.
_BOOTED = 'mount --bind "$0" "$1" && shift && exec "$@"'


def sandbox(command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a program in process, mount and network namespaces of its own. Whatever it starts ends with it."""
    unshare = shutil.which("unshare")
    assert unshare is not None, "util-linux is part of every Linux"
    inner = [sys.executable, "-m", "tests.support.netns", *map(str, command)]
    options = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    # The kernel ends unshare with this process, and everything inside with unshare.
    setpriv = shutil.which("setpriv")
    dying = [setpriv, "--pdeathsig", "KILL"] if setpriv is not None else []
    return subprocess.Popen([*dying, unshare, *options, *inner], env={**(env or os.environ), _INSIDE: "1"})


def inside_sandbox() -> bool:
    return os.environ.get(_INSIDE) == "1"


def _init(command: Sequence[str]) -> int:
    """Process 1 of a sandbox: prepares it, starts the program, and reaps what lost its parent, as an init does."""
    NETNS_DIR.mkdir(exist_ok=True)
    for directory in (NETNS_DIR, SHM_DIR):  # of its own, so that nothing is left in those of the machine
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=1777", "sandbox", str(directory)], check=True)
    program = subprocess.Popen(command)
    while True:
        pid, status = os.wait()
        if pid == program.pid:
            return os.waitstatus_to_exitcode(status)


@dataclass
class Node:
    """One machine. `address` is its own; `aliases` are further ones, for traffic that is cut off by itself."""

    name: str
    network: Network
    number: int
    aliases: tuple[str, ...] = ()
    _rules: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"{SUBNET}.{self.number}"

    @property
    def prefix(self) -> list[str]:
        """What a command line begins with to run here."""
        boot = ["--mount", "--", "sh", "-c", _BOOTED, str(self._boot), str(BOOT_ID)]
        return [*self._inside, self.network.unshare, *boot]

    def reboot(self) -> None:
        """Another boot id from now on. What runs here must be dead: it would not have survived."""
        self._boot.parent.mkdir(exist_ok=True)
        fresh = self._boot.with_suffix(".new")
        fresh.write_text(f"{uuid.uuid4()}\n")
        fresh.replace(self._boot)

    def unplug(self) -> None:
        """Pull its cable: nothing arrives, nothing leaves, both ends see no carrier."""
        self.network.ip("-n", self.network.switch, "link", "set", self._port, "down")

    def plug(self) -> None:
        self.network.ip("-n", self.network.switch, "link", "set", self._port, "up")

    def drop(self, *addresses: str, arriving: bool = True, leaving: bool = True, share: float = 1.0) -> None:
        """Let packets to and from these addresses (or subnets) vanish: all of them, or a random share; one way only
        too."""
        some = ("-m", "statistic", "--mode", "random", "--probability", str(share)) if share < 1.0 else ()
        for address in addresses:
            for wanted, chain, direction in ((leaving, "OUTPUT", "-d"), (arriving, "INPUT", "-s")):
                if wanted:
                    rule = (chain, direction, address, *some, "-j", "DROP")
                    self._filter("-A", rule)
                    self._rules.append(rule)

    def undrop(self) -> None:
        """End every `drop`."""
        for rule in self._rules:
            self._filter("-D", rule)
        self._rules.clear()

    @property
    def _port(self) -> str:
        return f"port{self.number}"

    @property
    def _boot(self) -> Path:
        return BOOTS_DIR / self.name

    @property
    def _inside(self) -> list[str]:
        return [self.network.nsenter, f"--net={NETNS_DIR / self.name}", "--"]

    def _filter(self, verb: str, rule: Sequence[str]) -> None:
        self.network.run(*self._inside, self.network.iptables, "-w", verb, *rule)


class Network:
    """A switch, and the machines on it. This process is on it too, with the first address."""

    switch = "switch"

    def __init__(self) -> None:
        assert inside_sandbox(), "namespaces of a test belong into `sandbox`"
        self._ip = str(require("ip"))
        self.iptables = str(require("iptables"))
        self.nsenter, self.unshare = shutil.which("nsenter") or "", shutil.which("unshare") or ""
        self.nodes: dict[str, Node] = {}

    def __enter__(self) -> Self:
        self.ip("link", "set", "lo", "up")
        self.ip("netns", "add", self.switch)
        self.ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
        self.ip("-n", self.switch, "link", "set", "br0", "up")
        self._cable("here", 1, "")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in [*self.nodes, self.switch]:
            self.ip("netns", "del", name)

    def add(self, name: str, *, aliases: int = 0) -> Node:
        """Another machine; `aliases` further addresses on the same cable."""
        number = len(self.nodes) + 11
        more = tuple(f"{SUBNET}.{number + 100 * (index + 1)}" for index in range(aliases))
        node = Node(name, self, number, more)
        self.ip("netns", "add", name)
        self.ip("-n", name, "link", "set", "lo", "up")
        self._cable("eth0", number, name)
        for alias in more:
            self.ip("-n", name, "address", "add", f"{alias}/24", "dev", "eth0")
        node.reboot()
        self.nodes[name] = node
        return node

    def ip(self, *arguments: str) -> None:
        self.run(self._ip, *arguments)

    def run(self, *command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"

    def _cable(self, device: str, number: int, namespace: str) -> None:
        """From the switch to `namespace`, or to where this process is."""
        where = ("-n", namespace) if namespace else ()
        peer = ("peer", "name", device, *(("netns", namespace) if namespace else ("netns", str(os.getpid()))))
        self.ip("-n", self.switch, "link", "add", f"port{number}", "type", "veth", *peer)
        self.ip("-n", self.switch, "link", "set", f"port{number}", "master", "br0", "up")
        self.ip(*where, "address", "add", f"{SUBNET}.{number}/24", "dev", device)
        self.ip(*where, "link", "set", device, "up")


if __name__ == "__main__":
    sys.exit(_init(sys.argv[1:]))
