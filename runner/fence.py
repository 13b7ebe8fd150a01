"""Whether an execution may run on this host, by grant and lease alone: pure rules, for the start and for every moment
after it. What the files hold stands in runner/permits.py; who reads them, in runner/permit_files.py.

Whatever the agent does, or whatever happens to it, these rules end a lease-bound Bento in time: the leader places it
elsewhere only after they must have.

Imported before Bento starts: standard library only, and none of it.
"""

from __future__ import annotations

from runner.permits import Grant, Lease
from runner.value import replace, value

Session = tuple[str, str, int]  # agent id, boot id, number


@value
class Permits:
    """What was found of both files: their content, or in words why there is none."""

    grant: Grant | str
    lease: Lease | str


@value
class Place:
    """Who asks, and where it is. None of it changes while a runner lives."""

    execution: str  # the name of its grant
    boot: str  # of the running kernel
    shifted: bool  # in a time namespace of its own: its boot clock is not the agent's


@value
class Fence:
    """What holds for one run: the session of its own grant, and until when that is known to be valid.

    `deadline_s` (D below) is the last deadline that was read in a lease of this very session, on the boot clock. A
    lease of any other session never moves it: a later agent that knows nothing of this run renews its own for ever.
    Without meaning while not bound.
    """

    place: Place
    session: Session
    bound: bool
    deadline_s: float


def admit(place: Place, permits: Permits, now: float) -> Fence | str:
    """The fence of a run that may start now; else why it may not."""
    grant, lease = permits.grant, permits.lease
    if isinstance(grant, str):
        return grant
    if reason := _of_another(place, grant):
        return reason
    if not grant.bound:  # nothing is measured, so it does not matter on which kernel the agent runs
        return Fence(place=place, session=_session(grant), bound=False, deadline_s=now)
    if reason := _elsewhere(place, grant):
        return reason
    if place.shifted:
        return "it is lease-bound and in a time namespace of its own, where the host's lease cannot be measured"
    if isinstance(lease, str):
        return lease
    if _session(lease) != _session(grant):
        return f"the host's lease is of another session ({_named(lease)}) than its grant ({_named(grant)})"
    if now >= lease.deadline_s:
        return f"the host's lease has been over for {now - lease.deadline_s:.1f} s"
    if lease.deadline_s > now + lease.lease_s:
        return f"the host's lease ends in {lease.deadline_s - now:.1f} s, further ahead than its {lease.lease_s:g} s"
    return Fence(place=place, session=_session(grant), bound=True, deadline_s=lease.deadline_s)


def follow(fence: Fence, permits: Permits, now: float) -> Fence:
    """The fence after another look at the files.

    While it is bound only a grant of its own session can release it. While it is not, any grant of its own can bind it:
    sessions come and go over such a run. Bound without a valid lease of that session, its time is over at once; so it
    is where the grant is of another boot.
    """
    grant, lease = permits.grant, permits.lease
    if isinstance(grant, Grant) and not _of_another(fence.place, grant):
        if fence.bound and not grant.bound and _session(grant) == fence.session:
            fence = replace(fence, bound=False)
        elif not fence.bound and grant.bound:
            fence = replace(fence, session=_session(grant), bound=True, deadline_s=now)
    # One that ends further ahead than a lease can was not written by an agent. (Cutting it to what is possible would
    # move the deadline on with every look, for ever.)
    possible = isinstance(lease, Lease) and lease.deadline_s <= now + lease.lease_s and lease.boot == fence.place.boot
    if fence.bound and isinstance(lease, Lease) and possible and _session(lease) == fence.session:
        fence = replace(fence, deadline_s=lease.deadline_s)
    return fence


def over(fence: Fence, now: float) -> str:
    """Why the time of a run is over by the clock alone; "" while it is not."""
    if not fence.bound or now < fence.deadline_s:
        return ""
    return f"the host's lease has been over for {now - fence.deadline_s:.1f} s"


def lost(fence: Fence, permits: Permits) -> str:
    """Why a bound run has lost what let it start; "" if it has not."""
    if not fence.bound:
        return ""
    grant = permits.grant
    if isinstance(grant, str):
        return grant
    if reason := _of_another(fence.place, grant) or _elsewhere(fence.place, grant):
        return reason
    if _session(grant) != fence.session:
        return f"its grant is of another session ({_named(grant)}) than the one that it was started in"
    if fence.place.shifted:
        return "it has become lease-bound in a time namespace of its own, where the host's lease cannot be measured"
    return ""


def _of_another(place: Place, grant: Grant) -> str:
    """Why this is not a grant for this execution; "" if it is."""
    return "" if grant.execution == place.execution else f"its grant is for another execution ({grant.execution})"


def _elsewhere(place: Place, grant: Grant) -> str:
    """Why the lease of a grant's session means nothing here; "" if it does: it was an earlier boot, or the agent runs
    on another kernel, as beside an engine in a virtual machine."""
    return (
        "" if grant.boot == place.boot else f"its grant is of another boot ({grant.boot}, and this one is {place.boot})"
    )


def _session(permit: Grant | Lease) -> Session:
    return permit.agent, permit.boot, permit.number


def _named(permit: Grant | Lease) -> str:
    return f"agent {permit.agent}, number {permit.number}"
