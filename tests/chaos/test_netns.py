"""The machines that chaos is made of can be reached, cut off, and booted again."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.components import ROOT, require, require_root

_INSIDE = """
import socket, subprocess, sys
from tests.support.netns import NETNS_DIR, Network

def reached(client, address):
    code = f"import socket; socket.create_connection(('{address}', 7000), timeout=1)"
    return subprocess.run([*client.prefix, sys.executable, "-c", code], stderr=subprocess.DEVNULL).returncode == 0

def boot_id(node=None):
    command = [*(node.prefix if node else []), "cat", "/proc/sys/kernel/random/boot_id"]
    return subprocess.run(command, capture_output=True, check=True).stdout

with Network() as network:
    one, two = network.add("one"), network.add("two", aliases=1)
    code = "import socket; s = socket.create_server(('0.0.0.0', 7000)); print(flush=True)\\nwhile True: s.accept()"
    server = subprocess.Popen([*two.prefix, sys.executable, "-c", code], stdout=subprocess.PIPE)
    server.stdout.readline()
    assert reached(one, two.address) and reached(one, two.aliases[0])
    socket.create_connection((two.address, 7000), timeout=5).close()
    one.drop(two.address)
    assert not reached(one, two.address) and reached(one, two.aliases[0])
    one.undrop()
    assert reached(one, two.address)
    two.unplug()
    assert not reached(one, two.address)
    two.plug()
    assert reached(one, two.address)
    one.drop(two.address, leaving=False)
    assert not reached(one, two.address)
    one.undrop()
    one.drop(two.address, share=0.2)
    assert any(reached(one, two.address) for _ in range(20))
    one.undrop()
    boots = [boot_id(one), boot_id(one), boot_id(two), boot_id()]
    one.reboot()
    boots.append(boot_id(one))
    assert boots[0] == boots[1] and len(set(boots)) == 4, boots
    server.kill()
assert not list(NETNS_DIR.iterdir())
print("well")
"""


@pytest.mark.slow
def test_machines_can_be_cut_off_and_leave_nothing_behind() -> None:
    require_root("network namespaces")
    require("ip"), require("iptables")
    before = subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout
    inside = f"sandbox([sys.executable, '-c', {_INSIDE!r}]).wait()"
    code = f"import sys; from tests.support.netns import sandbox; sys.exit({inside})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "well\n"), done.stderr
    assert subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout == before
