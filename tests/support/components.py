"""Programs that the tests need and Python does not bring.

A test that cannot have one of them is skipped with the reason, so that a newcomer without root sees the rest pass.
Where `SHOAL_STRICT=1` is set (CI), it fails instead: a skipped test proves nothing.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"
STRICT = os.environ.get("SHOAL_STRICT") == "1"


@dataclass(frozen=True, slots=True)
class Component:
    """Where a program may stand, first match wins, and what a person does who lacks it."""

    candidates: Callable[[], list[Path | None]]
    remedy: str


def _which(name: str) -> Path | None:
    found = shutil.which(name)
    return Path(found) if found else None


COMPONENTS: dict[str, Component] = {
    "nats-server": Component(lambda: [ROOT / ".venv/bin/nats-server", _which("nats-server")], "run `make setup`"),
    # The oldest server that the product accepts; never taken from PATH, where its version is anybody's guess.
    "nats-server-2.12": Component(lambda: [CACHE / "nats-server-2.12/bin/nats-server"], "run `make components`"),
    "nats": Component(lambda: [CACHE / "bin/nats"], "run `make components` (needs Go modules)"),
    "bento": Component(lambda: [ROOT / ".venv/bin/bento"], "run `make setup` (needs Go modules)"),
    # Absolute paths before PATH: a stand-in client may shadow the distribution's.
    "dockerd": Component(lambda: [Path("/usr/sbin/dockerd"), Path("/usr/bin/dockerd")], "install docker.io as root"),
    "docker": Component(lambda: [Path("/usr/bin/docker")], "install docker.io as root"),
    "docker-compose": Component(lambda: [Path("/usr/bin/docker-compose")], "install docker-compose as root"),
    "debootstrap": Component(lambda: [Path("/usr/sbin/debootstrap")], "install debootstrap as root"),
    "ip": Component(
        lambda: [Path("/usr/sbin/ip"), Path("/sbin/ip"), Path("/usr/bin/ip"), _which("ip")], "install iproute2"
    ),
    "iptables": Component(lambda: [Path("/usr/sbin/iptables"), _which("iptables")], "install iptables"),
}


def find(name: str) -> Path | None:
    """The program's path, or None. For benches and helpers that run outside pytest."""
    for candidate in COMPONENTS[name].candidates():
        if candidate is not None and candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate
    return None


def require(name: str) -> Path:
    """The program's path; without it the calling test is skipped, or fails under SHOAL_STRICT=1."""
    found = find(name)
    if found is None:
        unavailable(f"{name} is not available: {COMPONENTS[name].remedy}")
    return found


def require_root(why: str) -> None:
    """Skip (or fail under SHOAL_STRICT=1) unless the tests run as root."""
    if os.geteuid() != 0:
        unavailable(f"needs root: {why}")


def unavailable(reason: str) -> NoReturn:
    """End the calling test: skipped with the reason, or failed under SHOAL_STRICT=1."""
    if STRICT:
        pytest.fail(f"{reason} (SHOAL_STRICT=1 turns this skip into a failure)", pytrace=False)
    pytest.skip(reason)
