"""What must be true of a cluster that was left in peace: everything that should run runs once, nothing else is left,
the statuses say so, and nobody writes anything but signs of life.

Judged from the store, the machines and what people wanted. A list of complaints, empty when all is well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from shared.documents import Assigned, Assignment, Pin, Status, Stopping, decode
from shared.intents import RestartIntent
from shared.keys import LEASE, PULSE, restart_intent_key, status_key, version_key
from shared.states import State, Wanted

if TYPE_CHECKING:
    from tests.sim.world import World

MAX_SURGE = 1  # slots of a pipeline that may be there twice during a rollout

Running = dict[str, tuple[str, Any]]  # execution -> (host, its spec on the machine)


def complaints(world: World) -> list[str]:
    """Everything that is not as it should be, now."""
    assigned = assignments(world)
    running = _running(world)
    found = [*_strangers(world, assigned, running)]
    for pipeline in sorted(world.users.kinds):
        found.extend(_pipeline(world, pipeline, assigned, running))
    return found


def noise(world: World, since: float) -> Iterator[str]:
    """What was written since then and is no sign of life."""
    keys = world.keys
    for commit in world.server.history:
        names = {entry.key for entry in commit.entries}
        alive = names == {LEASE} if commit.bucket == keys.control else commit.bucket == keys.hosts
        if commit.at >= since and not alive:
            yield f"written while nothing happened: {commit}"
        if commit.at >= since and commit.bucket == keys.hosts and not names <= {PULSE, *world.machines}:
            yield f"an unknown key of the hosts bucket: {commit}"
    for at, (subject, data) in zip(world.server.event_times, world.server.events, strict=True):
        if at >= since:
            yield f"{at:9.3f} an event while nothing happened: {subject} {data[:300]!r}"


def assignments(world: World) -> dict[str, Assignment]:
    """The documents of all hosts, as they lie in the store."""
    live = world.server.live(world.keys.control, "assign.")
    return {key.removeprefix("assign."): decode(Assignment, value) for key, value in live.items()}


def _running(world: World) -> Running:
    found: Running = {}
    for name, machine in world.machines.items():
        specs = {kept.spec.execution: kept.spec for kept in machine.engine._executions.values()}
        found.update({execution: (name, specs[execution]) for execution in machine.engine.alive()})
    return found


def _strangers(world: World, assigned: dict[str, Assignment], running: Running) -> Iterator[str]:
    """Executions on machines that no document lists; stops that are never confirmed; assignments to the dead."""
    for name, machine in world.machines.items():
        document = assigned.get(name)
        listed = {item.execution for item in document.executions} if document is not None else set()
        for execution in machine.engine.present():
            if execution not in listed and machine.on:
                yield f"{execution} is left on {name}, whose assignment does not list it"
        if document is not None and document.stopping and name not in world.lost:
            yield f"{name} has unconfirmed stops: {', '.join(item.execution for item in document.stopping)}"


def _pipeline(world: World, pipeline: str, assigned: dict[str, Assignment], running: Running) -> Iterator[str]:
    data = world.server.value(world.keys.pipelines, pipeline)
    places = [
        (host, item)
        for host, document in sorted(assigned.items())
        for item in document.executions
        if item.pipeline == pipeline
    ]
    copies = {e: host for e, (host, spec) in running.items() if spec.pipeline == pipeline}
    if data is None:
        yield from _gone(world, pipeline, places, copies, deleted=True)
        return
    record = world.users.meaning(data)
    if record is None:
        yield from _odd(world, pipeline, copies)
    elif record["status"] == "draft":
        yield from _gone(world, pipeline, places, copies, deleted=False)
    elif record["status"] == "paused":
        yield from _paused(world, pipeline, places, copies, sound=_sound(world, pipeline, record))
    elif not _sound(world, pipeline, record):
        yield from _odd(world, pipeline, copies)
    else:
        yield from _published(world, pipeline, record, places, running)


def _sound(world: World, pipeline: str, record: dict[str, Any]) -> bool:
    """Whether the record can be put in force as it is: a good configuration lies there or was pinned, and so many
    replicas are allowed."""
    version = record["version"]
    data = world.server.value(world.keys.control, version_key(pipeline, version))
    pin = None if data is None else decode(Pin, data)
    said = (record if pin is None else pin.captured).get("overlap", "auto")
    if record.get("replicas", 1) > 1 and world.users.kinds[pipeline] == "exclusive" and said == "auto":
        return False
    if pin is not None:
        return True
    return bool(world.users.good.get((pipeline, version)))


def _gone(
    world: World, pipeline: str, places: list[tuple[str, Assigned]], copies: dict[str, str], *, deleted: bool
) -> Iterator[str]:
    for execution, host in copies.items():
        yield f"{execution} still runs on {host}, though its pipeline is {'deleted' if deleted else 'a draft'}"
    for host, item in places:
        yield f"{item.execution} is still assigned to {host}, though its pipeline is gone"
    status = _status(world, pipeline)
    if status is not None and (deleted or not status.problems) and not _unconfirmable(world, pipeline):
        yield f"status.{pipeline} is still there ({status.state}), though its pipeline is gone"
    pins = [key for key in world.server.live(world.keys.control, "version.") if key.split(".")[1] == pipeline]
    if deleted and pins:
        yield f"{pins} are still there, though the record is deleted"


def _odd(world: World, pipeline: str, copies: dict[str, str]) -> Iterator[str]:
    """Nonsense, a missing or a bad configuration: what must not overlap runs once, and the status names a problem.

    A rollout that nonsense interrupts stays where it is, for a leader may not know any record that would say how it
    goes on: what may overlap then has one slot with an old and a new execution.
    """
    slots = [execution.rsplit("-", 1)[0] for execution in copies]
    if len(slots) - len(set(slots)) > (0 if world.users.exclusive(pipeline) else MAX_SURGE):
        yield f"{pipeline} runs slots more than once: {sorted(copies)}"
    status = _status(world, pipeline)
    if status is None or not status.problems:
        yield f"{pipeline} has something wrong with it that its status does not tell: {status}"


def _paused(
    world: World, pipeline: str, places: list[tuple[str, Assigned]], copies: dict[str, str], *, sound: bool
) -> Iterator[str]:
    for execution, host in copies.items():
        if host not in world.lost:
            yield f"{execution} runs on {host}, though its pipeline is paused"
    status = _status(world, pipeline)
    refused = not sound and status is not None and bool(status.problems)
    if status is None or not (status.state is State.PAUSED or refused or _unconfirmable(world, pipeline)):
        yield f"{pipeline} is paused, its status says {status}"
    for host, item in places:
        if item.wanted is not Wanted.PAUSE:
            yield f"{item.execution} on {host} is to run, though its pipeline is paused"


def _published(
    world: World,
    pipeline: str,
    record: dict[str, Any],
    places: list[tuple[str, Assigned]],
    running: Running,
) -> Iterator[str]:
    status = _status(world, pipeline)
    open_hosts, serving = _hosts(world, record)
    slots = list(range(record.get("replicas", 1)))
    unmet = _unmet_restarts(world, pipeline, places)
    ok = True
    # Slots go one at a time: while one waits for ever, for a host that is lost, the others stay, as under any budget.
    held = any(_stuck(world, record, places, slot) for slot in slots)
    for slot in slots:
        mine = (pipeline, slot)
        here = [(e, host, spec) for e, (host, spec) in running.items() if (spec.pipeline, spec.slot) == mine]
        stuck = _stuck(world, record, places, slot)
        if not here and (not open_hosts or stuck):
            ok = False
            continue
        if len(here) != 1:
            where = [(e, host) for e, host, _ in here]
            yield f"slot {slot} of {pipeline} runs {len(here)} times: {where}; status {status}"
            ok = False
            continue
        ((execution, host, spec),) = here
        if host not in serving:
            ok = False  # it stays where it should not be, as long as nobody else can have it
            if open_hosts and not held:
                yield f"{execution} is on {host}, which should not have it; {sorted(open_hosts)} could"
        if open_hosts and not any(_stuck(world, record, places, other) for other in slots):
            yield from _version(world, pipeline, record, execution, spec)
            if execution in unmet:
                yield f"{execution} has never been restarted, though that was asked for"
        elif spec.version != record["version"] or execution in unmet:
            ok = False  # what is asked for waits for a host that may take it
    extra = [e for e, (_, spec) in running.items() if spec.pipeline == pipeline and spec.slot >= len(slots)]
    if extra:
        yield f"{extra} run, though {pipeline} has {len(slots)} slots"
    if status is None or (status.state is State.RUNNING) != ok:
        yield f"{pipeline} {'runs' if ok else 'cannot run'} as it should, its status says {status}"


def _unmet_restarts(world: World, pipeline: str, places: list[tuple[str, Assigned]]) -> set[str]:
    """The executions that are not those that the last wish to restart their pipeline asked for."""
    wish = world.server.streams[world.keys.operator].last.get(restart_intent_key(pipeline))
    if wish is None or wish.value is None:
        return set()
    asked = decode(RestartIntent, wish.value).name(wish.revision)
    return {item.execution for _, item in places if item.restart != asked}


def _hosts(world: World, record: dict[str, Any]) -> tuple[set[str], set[str]]:
    """(hosts that can be given a new execution, hosts that may keep one)."""
    required = record.get("placement", {}).get("required", {})
    zones = required.get("zone", [])
    zones = [zones] if isinstance(zones, str) else zones
    serving = {
        name
        for name, machine in world.machines.items()
        if name not in world.lost
        and (not zones or machine.zone in zones)
        and not (name in world.users.intents and world.users.intents[name].drain)
    }
    closed = {name for name, intent in world.users.intents.items() if intent.cordon or intent.drain}
    return serving - closed, serving


def _stuck(world: World, record: dict[str, Any], places: list[tuple[str, Assigned]], slot: int) -> bool:
    """An execution that goes on through partitions, on a machine that never comes back, and must not overlap with the
    next one: only a person can say that it has stopped. The rollout of its pipeline waits for that too."""
    silent = {
        host for host in world.lost if host not in world.users.intents or not world.users.intents[host].confirm_dead
    }
    items: list[Assigned | Stopping] = [item for host, item in places if host in silent]
    for name in sorted(silent & assignments(world).keys()):
        items.extend(item for item in assignments(world)[name].stopping if item.pipeline == record["id"])
    # What was bound while it ran may not have learned it.
    wanted = record.get("overlap")  # of the version that replaces it
    alone = [item for item in items if item.overlap == "exclusive" or wanted == "forbid"]
    alone = [item for item in alone if not item.lease_bound or item.bound_in]
    return any(item.slot == slot for item in alone)


def _unconfirmable(world: World, pipeline: str) -> bool:
    """Whether something of it was to be stopped on a machine that never comes back to say so."""
    documents = [document for host, document in assignments(world).items() if host in world.lost]
    items: list[Assigned | Stopping] = [item for document in documents for item in document.stopping]
    items.extend(item for document in documents for item in document.executions)
    return any(item.pipeline == pipeline for item in items)


def _version(world: World, pipeline: str, record: dict[str, Any], execution: str, spec: Any) -> Iterator[str]:
    version = record["version"]
    if spec.version != version:
        yield f"{execution} runs version {spec.version} of {pipeline}, wanted is {version}"
        return
    data = world.server.value(world.keys.control, version_key(pipeline, version))
    if data is None:
        yield f"{execution} runs version {version} of {pipeline}, which is not pinned"
        return
    pin = decode(Pin, data)
    if pin.digest != spec.digest:
        yield f"{execution} runs {spec.digest[:8]}, version {version} of {pipeline} is pinned to {pin.digest[:8]}"


def _status(world: World, pipeline: str) -> Status | None:
    data = world.server.value(world.keys.control, status_key(pipeline))
    return None if data is None else decode(Status, data)
