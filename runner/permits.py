"""What an execution needs to run on a host: the host's lease, and a grant of its own. Both are small text files.

    <lease directory>/lease             until when this host's session is valid, renewed by each heartbeat
    <lease directory>/grants/<name>     what one execution may do; no grant, no Bento

Written by the agent, read by runners: the format stands here once. Lines of `key=value`, in this order, nothing else;
text rather than JSON because the runner reads both before Bento starts, and importing a JSON parser takes longer than
all the rest of it. `cat` shows them to people. Standard library only, no imports.

Times are seconds on CLOCK_BOOTTIME of the boot that the session names.
"""

from __future__ import annotations

from runner.value import value

LEASE_FILE = "lease"
GRANTS_DIR = "grants"
BYTES_MAX = 4096  # of either file; a longer one is not ours


@value
class Lease:
    """The last extension of a session's lease: the session is valid until `deadline_s`, at most `lease_s` from now."""

    agent: str
    boot: str
    number: int
    deadline_s: float
    lease_s: float


@value
class Grant:
    """What a session lets one execution do. `bound`: only while the lease of this very session is valid.

    One that is not bound may start because it has a grant, and then runs on whatever happens to grant and lease.
    """

    agent: str
    boot: str
    number: int
    execution: str  # `<cluster>-<store id, 8 characters>-<execution>`: the name of the file
    bound: bool


def lease_text(lease: Lease) -> str:
    """What the lease file holds."""
    return (
        f"agent={lease.agent}\nboot={lease.boot}\nnumber={lease.number}\n"
        f"deadline_s={lease.deadline_s!r}\nlease_s={lease.lease_s!r}\n"
    )


def grant_text(grant: Grant) -> str:
    """What a grant file holds."""
    return (
        f"agent={grant.agent}\nboot={grant.boot}\nnumber={grant.number}\n"
        f"execution={grant.execution}\nbound={'yes' if grant.bound else 'no'}\n"
    )


def parse_lease(text: str) -> Lease | None:
    """The lease in a file; None if it is anything else, a truncated one included."""
    found = _fields(text, ("agent", "boot", "number", "deadline_s", "lease_s"))
    if found is None:
        return None
    try:
        number, deadline_s, lease_s = int(found[2]), float(found[3]), float(found[4])
    except ValueError:
        return None
    # Written so that NaN and infinities fail too.
    if not (number >= 0 and 0 <= deadline_s < 1e12 and 0 < lease_s < 1e6):
        return None
    return Lease(agent=found[0], boot=found[1], number=number, deadline_s=deadline_s, lease_s=lease_s)


def parse_grant(text: str) -> Grant | None:
    """The grant in a file; None if it is anything else."""
    found = _fields(text, ("agent", "boot", "number", "execution", "bound"))
    if found is None or found[4] not in ("yes", "no"):
        return None
    try:
        number = int(found[2])
    except ValueError:
        return None
    return Grant(agent=found[0], boot=found[1], number=number, execution=found[3], bound=found[4] == "yes")


def _fields(text: str, keys: tuple[str, ...]) -> list[str] | None:
    """The values of exactly these keys, none of them empty."""
    lines = text.split("\n")
    if len(lines) != len(keys) + 1 or lines[-1]:
        return None
    values = []
    for key, line in zip(keys, lines, strict=False):
        name, mark, found = line.partition("=")
        if name != key or not mark or not found:
            return None
        values.append(found)
    return values
