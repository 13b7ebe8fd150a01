"""Situations that random runs came upon once, each written down: seeds change what they draw, these do not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

import pytest

from scheduler import pulse
from shared.documents import Event, Status, decode
from shared.intents import HostIntent
from shared.keys import LEASE, status_key
from shared.states import State
from tests.sim import final
from tests.sim.faults import FOREVER, Fault, Shape
from tests.sim.moves import assignments_of, items_of
from tests.sim.run import Result, simulate
from tests.sim.users import Users
from tests.sim.world import Directed, World

SEED = 2  # an even one listens for silence, see `world`

Edit = Callable[[Users], Awaitable[None]]


def play(
    kinds: Mapping[str, str],
    *,
    hosts: Sequence[str],
    faults: Sequence[Fault] = (),
    first: Edit | None = None,
    edits: Sequence[tuple[float, Edit]] = (),
    faults_s: float = 40.0,
    schedulers: Sequence[str] = ("s0",),
    driver: str = "",
) -> tuple[Result, World]:
    """One run; it ends in peace. `driver`: of all hosts; "" = any."""
    shape = Shape(schedulers=list(schedulers), hosts=list(hosts), faults_s=faults_s, edit_gap_s=FOREVER)
    worlds: list[World] = []

    def prepare(world: World) -> None:
        worlds.append(world)
        for machine in world.machines.values():
            machine.driver = driver or machine.driver

    directed = Directed(shape=shape, faults=faults, kinds=kinds, first=first, edits=edits)
    result = simulate(SEED, prepare=prepare, directed=directed)
    return result, worlds[0]


def status(world: World, pipeline: str) -> Status:
    data = world.server.value(world.keys.control, status_key(pipeline))
    assert data is not None
    return decode(Status, data)


def events(world: World, kind: str) -> list[tuple[float, str]]:
    """When something was told of the history, and what."""
    found = zip(world.server.event_times, world.server.events, strict=True)
    return [(at, decode(Event, data).message) for at, (subject, data) in found if f".event.{kind}." in subject]


def leaders(world: World) -> set[str]:
    """Who has held the lease."""
    return {commit.writer.split(".")[0] for commit in world.server.of(world.keys.control) if commit.get(LEASE)}


async def close(users: Users) -> None:
    """So that everything begins on h0."""
    await users.intend("h1", HostIntent(cordon=True))


async def open_again(users: Users) -> None:
    await users.intend("h1", HostIntent())


def test_a_list_of_hosts_does_not_bring_a_dead_one_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something was to be stopped on a host that died with it. Every list of the hosts looked like news of it: the
    pipeline was pausing again for 12 s, and what waited for room could be given to the dead host."""
    monkeypatch.setattr(pulse, "RELIST_S", 20.0)

    async def pause(users: Users) -> None:
        await users.edit("p0", status="paused")

    result, world = play(
        {"p0": "exclusive"},
        hosts=["h0", "h1"],
        first=close,
        faults=[Fault(8.0, FOREVER, "host crash", "h0")],
        edits=[(7.0, open_again), (30.0, pause)],
        faults_s=45.0,
    )
    assert not result.violations, result.report(lines=80)
    assert world.lost == {"h0"}
    assert status(world, "p0").state is State.PAUSED


NEW_LEADERS = (Fault(30.0, 35.0, "scheduler crash", "s0"), Fault(45.0, 50.0, "scheduler crash", "s1"))


def test_a_new_leader_does_not_bring_a_dead_host_back() -> None:
    """It counts every silence from zero: for some seconds what died long ago was shown as running, and the history said
    that its host was heard again."""
    result, world = play(
        {"p0": "shareable"},
        hosts=["h0", "h1"],
        first=close,
        faults=[Fault(8.0, FOREVER, "host crash", "h0"), *NEW_LEADERS],
        schedulers=["s0", "s1"],
    )
    assert not result.violations, result.report(lines=80)
    assert leaders(world) == {"s0", "s1"}
    assert not events(world, "host-returned")
    assert not [words for at, words in events(world, "state") if at > 8.0 and words.startswith("running")]


def test_a_host_that_a_new_leader_hears_is_back_at_once() -> None:
    result, world = play(
        {"p0": "shareable"},
        hosts=["h0", "h1"],
        first=close,
        faults=[Fault(8.0, 33.5, "host cut off", "h0", how="held"), *NEW_LEADERS],
        schedulers=["s0", "s1"],
    )
    assert not result.violations, result.report(lines=80)
    assert [words for _, words in events(world, "host-returned")] == ["h0 is heard again"]
    back = next(at for at, words in events(world, "state") if at > 8.0 and words.startswith("running"))
    assert 33.5 < back < 35.6, "the new leader leads since 32; it would call the host silent at 36"
    assert not events(world, "alarm"), "no full pass had to find it"


def test_the_end_of_an_outage_may_be_told_late() -> None:
    """All hosts fall silent at once, and are long back when the leader can say so."""
    hosts = ["h0", "h1", "h2"]
    result, world = play(
        {"p0": "exclusive"},
        hosts=hosts,
        faults=[
            *(Fault(10.0, 22.0, "host cut off", host, how="held") for host in hosts),
            Fault(20.0, 55.0, "scheduler cut off", "s0", how="held"),
        ],
        faults_s=60.0,
    )
    assert not result.violations, result.report(lines=80)
    begun, ended = events(world, "outage")
    assert "fell silent at once" in begun[1]
    assert (ended[1], ended[0] > 55.0) == ("held no longer", True)


def test_a_commit_that_was_held_up_says_what_was_true_when_it_was_made() -> None:
    """It is sent again, as it is, through two illnesses that follow each other; what it shows as ready broke then."""

    async def scale(users: Users) -> None:
        await users.edit("p0", replicas=4)

    result, world = play(
        {"p0": "shareable"},
        hosts=["h0"],
        faults=[
            Fault(10.0, 40.0, "scheduler cut off", "s0", how="mute"),
            Fault(14.2, 59.9, "agent crash", "h0"),
            Fault(14.0, 14.0, "execution crash", "h0"),
            Fault(38.0, 60.0, "scheduler cut off", "s0", how="down"),
        ],
        edits=[(9.995, scale)],
        faults_s=62.0,
    )
    assert not result.violations, result.report(lines=80)
    late = next(
        commit for commit in world.server.of(world.keys.control) if commit.at > 60.0 and commit.get("status.p0")
    )
    entry = late.get("status.p0")
    assert entry is not None
    assert entry.value is not None
    assert [row.phase for row in decode(Status, entry.value).slots][:2] == ["ready", "ready"]


def test_what_was_asked_while_a_commit_was_held_up_is_a_reason() -> None:
    """A restart is asked for while the commit is under way that places what is to be restarted."""

    async def scale(users: Users) -> None:
        await users.edit("p0", replicas=4)

    async def restart(users: Users) -> None:
        await users.restart("p0")

    result, world = play(
        {"p0": "shareable"},
        hosts=["h0"],
        faults=[Fault(9.0, 36.0, "scheduler cut off", "s0", how="mute")],
        edits=[(9.5, scale), (11.0, restart)],
    )
    assert not result.violations, result.report(lines=80)
    placed = [at for at, words in events(world, "placed") if "slot 3" in words]
    assert len(placed) == 2
    assert placed[0] > 36.0


def test_a_restart_that_no_host_can_take_is_told() -> None:
    """The old copy goes on, and the status says that what was asked for waits."""

    async def cordon(users: Users) -> None:
        await users.intend("h0", HostIntent(cordon=True))

    async def restart(users: Users) -> None:
        await users.restart("p0")

    result, world = play({"p0": "exclusive"}, hosts=["h0"], edits=[(8.0, cordon), (10.0, restart)], faults_s=15.0)
    assert not result.violations, result.report(lines=80)
    told = status(world, "p0")
    assert (told.state, [row.phase for row in told.slots]) == (State.WAITING, ["ready"])
    assert "is cordoned" in told.reason


def test_a_rollout_that_nonsense_interrupts_stays_where_it_is() -> None:
    """A new leader knows no record that would say how it goes on, and what may overlap does no harm."""

    async def restart(users: Users) -> None:
        await users.restart("p0")

    async def nonsense(users: Users) -> None:
        await users.write_nonsense("p0")

    result, world = play(
        {"p0": "shareable"},
        hosts=["h0"],
        faults=[Fault(9.0, 20.0, "cannot start", "h0"), Fault(11.0, 14.0, "scheduler crash", "s0")],
        edits=[(10.0, restart), (12.0, nonsense)],
        faults_s=25.0,
    )
    assert not result.violations, result.report(lines=80)
    assert status(world, "p0").problems
    document = final.assignments(world)["h0"]
    assert len(document.executions) == len({item.slot for item in document.executions}) + 1


def test_there_is_no_peace_before_an_engine_has_done_what_it_was_asked() -> None:
    """It starts what was removed long ago, so late that a look around in between would find nothing wrong."""

    async def restart(users: Users) -> None:
        await users.restart("p0")

    async def draft(users: Users) -> None:
        await users.edit("p0", status="draft")

    result, world = play(
        {"p0": "exclusive"},
        hosts=["h0"],
        driver="docker",
        faults=[Fault(8.0, 11.0, "late starts", "h0", 38.0)],
        edits=[(9.0, restart), (12.0, draft)],
        faults_s=14.0,
    )
    assert not result.violations, result.report(lines=80)
    assert world.converged_at > 9.0 + 38.0


def test_an_operator_forgets_no_host_whose_document_is_lost() -> None:
    """Its document was to be deleted by the leader and is gone with the stream. Heartbeat and report are all that is
    known of it then: had the operator deleted them, another agent would have been given what runs there."""
    result, world = play(
        {"p0": "exclusive"},
        hosts=["h0", "h1"],
        first=close,
        faults=[
            Fault(8.0, 13.0, "heartbeats cut off", "h0", how="down"),
            Fault(9.0, 9.0, "host forgotten", "h0"),
            Fault(13.8, 40.0, "second agent", "h0"),
            Fault(14.0, 14.0, "stream made anew", "control"),
        ],
    )
    assert not result.violations, result.report(lines=80)
    assert "operator: h0 is forgotten" not in "".join(world.story)


def test_another_store_may_give_a_number_again_that_nobody_reports() -> None:
    """Documents and reports are lost, and other agents have the names of the hosts: no number of the old store is
    known, and none of them means anything in the new one."""
    hosts = ["h0", "h1"]

    async def close_the_other(users: Users) -> None:
        await users.intend("h1", HostIntent())
        await users.intend("h0", HostIntent(cordon=True))

    result, world = play(
        {"p0": "shareable"},
        hosts=hosts,
        first=close,
        faults=[
            *(Fault(10.0, 60.0, "host cut off", host, how="held") for host in hosts),
            *(Fault(11.0, 62.0, "second agent", host) for host in hosts),
            Fault(13.0, 13.0, "stream made anew", "reports"),
            Fault(13.1, 13.1, "stream made anew", "control"),
        ],
        edits=[(9.0, close_the_other)],
        faults_s=65.0,
    )
    assert not result.violations, result.report(lines=80)
    ids = [(host, item.execution) for _, host, document in assignments_of(world) for item in items_of(document)]
    assert {host for host, execution in ids if execution == "p0-0-3"} == {"h0", "h1"}
