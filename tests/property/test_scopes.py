"""What changed, and nothing else, has to be planned anew: a plan over the scope that the folds collected is the plan
over everything, whatever changed.

A run is a random history; every event changes one thing. After each the two plans are compared, committed, compared
again, and the agents act one by one. A seed that fails prints as the test's id. What it found is a test of its own, by
the module that was wrong (`tests/unit/test_core_*.py`).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from scheduler.core.candidates import Ready, Rejected, Unavailable
from scheduler.core.world import Source
from shared.documents import Driver, InputMark, Session, Stray, encode
from shared.intents import ConfirmIntent, StoreIntent
from shared.keys import STORE_INTENT, assign_key, confirm_intent_key, status_key, version_key
from shared.states import Overlap, Phase
from shared.store import Change, Entry
from tests.property.test_plan import comes_back, document_bytes
from tests.support.clusters import GIB, Cluster, Machine, digest_of, pin_of

SEEDS = 300
HOSTS = ("h1", "h2", "h3", "h4", "h5")
PIPELINES = ("alpha", "beta", "gamma", "delta")
EXCLUSIVE = {"beta", "delta"}

PLACEMENTS: list[dict[str, Any]] = [
    {},
    {"required": {"zone": "a"}},
    {"required": {"zone": ["a", "b"]}, "spread": "zone"},
    {"required": {"host": "h2"}},
    {"spread": "zone"},
]
Event = tuple[Any, ...]


@dataclass
class Site:
    """A cluster, and what became of the parts of it that it does not know any more."""

    cluster: Cluster
    away: dict[str, Machine] = field(default_factory=dict)  # machines whose key is gone
    stores: int = 1

    def fold(self, source: Source, key: str, data: bytes | None) -> None:
        self.cluster.revision += 1
        self.cluster.world.fold_change(source, Change(Entry(key, data, self.cluster.revision)))


def new_site(lag: bool, hosts: int) -> Site:
    cluster = Cluster(lag=lag)
    for number, name in enumerate(HOSTS[:hosts]):
        cluster.host(name, labels={"zone": "ab"[number % 2]}, memory_bytes=4 * GIB)
    return Site(cluster)


# --- what may happen


def happen(site: Site, event: Event) -> None:
    cluster = site.cluster
    match event:
        case (str(kind), str(name), *rest) if name in HOSTS:
            if name in cluster.machines:
                _to_host(site, kind, name, rest)
            elif kind in ("back", "new"):
                _appears(site, kind, name)
        case (str(kind), str(name), *rest) if name in PIPELINES:
            _to_pipeline(site, kind, name, rest)
        case ("time", float(seconds)):
            cluster.pass_time(seconds)
        case ("lose the store",):
            site.stores += 1
            new = cluster.successor(f"store-{site.stores}")
            new.gone, new.age_s, new.broken = cluster.gone, 0.0, cluster.broken
            site.cluster = new
            for name in PIPELINES:
                _admit(new, name)
        case ("accept",) if site.stores > 1:
            older = "store-0123456789" if site.stores == 2 else f"store-{site.stores - 1}"
            site.fold(Source.OPERATOR, STORE_INTENT, encode(StoreIntent(accept=cluster.store_id, replaces=older)))
        case ("accept no more",):
            site.fold(Source.OPERATOR, STORE_INTENT, None)
        case ("find",):
            cluster.find({(name, version): _pin(name, version) for name in PIPELINES for version in "123"})
        case ("give up hosts",):
            word = ConfirmIntent(store_id="", plan=0, created="", heard=InputMark("hosts", cluster.revision))
            site.fold(Source.OPERATOR, confirm_intent_key("hosts"), encode(word))
        case _:
            pass


def _appears(site: Site, kind: str, name: str) -> None:
    cluster = site.cluster
    if kind == "back" and name in site.away:
        cluster.machines[name] = site.away.pop(name)
        cluster.gone.pop(name, None)
        cluster.up(name)
    elif kind == "new":
        cluster.gone.pop(name, None)
        cluster.host(name, agent=f"agent-{cluster.revision}", labels={"zone": "a"})


def _to_host(site: Site, kind: str, name: str, rest: list[Any]) -> None:
    cluster, machine = site.cluster, site.cluster.machines[name]
    match kind, rest:
        case "down", []:
            cluster.down(name)
        case "up", [how] if not machine.up:
            comes_back(cluster, name, how)
        case "impostor", []:
            now = machine.heartbeat.session
            cluster.up(name, session=Session(now.agent + "x", now.boot, 1), kept=False)
            cluster.relabel(name, store_id="")
        case "strays", [store, pipelines, unknown] if machine.up:
            strays = tuple(_stray(store or cluster.store_id, pipeline) for pipeline in pipelines)
            cluster.relabel(name, store_id="", strays=strays, strays_unknown=unknown)  # its agent lost its state
        case "key lost", []:
            site.away[name] = machine
            cluster.lose_key(name)
        case "said while silent", [] if not machine.up:
            machine.up = True
            try:
                cluster.act(name)
            finally:
                machine.up = False
        case "intent", [word]:
            cluster.intend(name, **({word: True} if word else {}))
        case "dead", []:
            cluster.intend(name, confirm_dead=True, session=machine.heartbeat.session)
        case "relabel", [fields] if machine.up:
            cluster.relabel(name, **fields)
        case "stuck", [stuck]:
            machine.reporting = not stuck
        case "problem", [text] if machine.up:
            machine.problem = text
            cluster.report(name)
        case "phase", [phase, reason] if machine.up and machine.items:
            execution = min(machine.items)
            machine.phases[execution], machine.reasons[execution] = phase, reason
            cluster.report(name)
        case "report deleted", []:
            site.fold(Source.REPORTS, name, None)
        case "document deleted", []:
            site.fold(Source.CONTROL, assign_key(name), None)
        case "document damaged", []:
            site.fold(Source.CONTROL, assign_key(name), b"?")
        case "acts", []:
            cluster.act(name)
        case _:
            pass


def _to_pipeline(site: Site, kind: str, name: str, rest: list[Any]) -> None:
    cluster = site.cluster
    match kind, rest:
        case "publish", [version, replicas, placement, size]:
            fields = {"replicas": replicas, "placement": placement, "resources": {"memory": size}}
            fields |= {"overlap": "forbid"} if name == "delta" else {}
            cluster.publish(name, version, derived=_derived(name), **fields)
        case "edit", [fields] if name in cluster.records:
            cluster.edit(name, **fields)
            _admit(cluster, name)
        case "verdict", [verdict] if name in cluster.records:
            version = str(cluster.records[name]["version"])
            if (name, version) not in cluster.view.pins:
                cluster.candidate(name, version, verdict)
        case "delete", []:
            cluster.delete(name)
        case "invalid", []:
            cluster.put(name, b'{"id": "x", "status": "runing"}')
        case "restart", []:
            cluster.restart(name)
        case "breaks", [version]:
            cluster.broken ^= {(name, version)}
        case "configuration", [version, there]:
            cluster.config(name, version, digest_of(name, version) + "x" if there else None)
        case "status deleted", []:
            site.fold(Source.CONTROL, status_key(name), None)
        case "status damaged", []:
            site.fold(Source.CONTROL, status_key(name), b"?")
        case "pin damaged", [version]:
            site.fold(Source.CONTROL, version_key(name, version), b"?")
        case _:
            pass


def _stray(store_id: str, name: str) -> Stray:
    pin = _pin(name, "1")
    return Stray(store_id=store_id, execution=f"{name}-0-1", pipeline=name, slot=0, version="1", digest=pin.digest)


def _derived(name: str) -> Overlap:
    return Overlap.EXCLUSIVE if name in EXCLUSIVE else Overlap.SHAREABLE


def _pin(name: str, version: str) -> Any:
    return pin_of({"id": name, "status": "published", "version": version}, _derived(name))


def _admit(cluster: Cluster, name: str) -> None:
    """What admission finds in the end, if it has not been said yet."""
    fields = cluster.records.get(name)
    if fields is not None and (name, fields["version"]) not in cluster.view.pins:
        cluster.candidate(name, fields["version"], Ready(pin_of(fields, _derived(name))))


# --- drawing


def event(dice: random.Random) -> Event:
    name, host = dice.choice(PIPELINES), dice.choice(HOSTS)
    kinds = [
        (
            "publish",
            name,
            dice.choice("123"),
            dice.randint(0, 4),
            dice.choice(PLACEMENTS),
            dice.choice(["64MiB", "3GiB"]),
        ),
        ("edit", name, {"status": dice.choice(["published", "paused", "draft"])}),
        ("edit", name, {"replicas": dice.randint(0, 5)}),
        ("edit", name, {"placement": dice.choice(PLACEMENTS)}),
        ("edit", name, {"on_partition": dice.choice(["auto", "stop", "continue"])}),
        ("edit", name, {"version": dice.choice("123")}),
        ("verdict", name, dice.choice([None, Rejected(("no",)), Unavailable("away"), Unavailable("missing", True)])),
        *[(kind, name) for kind in ("delete", "invalid", "restart", "status deleted", "status damaged")],
        *[(kind, name, dice.choice("123")) for kind in ("breaks", "pin damaged")],
        ("configuration", name, dice.choice("123"), dice.random() < 0.5),
        *[
            ("down", host),
            ("down", dice.choice(HOSTS)),
            ("down", dice.choice(HOSTS)),
            ("impostor", host),
            ("key lost", host),
            ("said while silent", host),
        ],
        *[("up", host, how) for how in ("same", "lapse", "boot", "agent")],
        *[("back", host), ("new", host), ("dead", host), ("report deleted", host)],
        *[("document deleted", host), ("document damaged", host), ("acts", host)],
        *[("intent", host, word) for word in ("", "", "cordon", "drain", "forget", "confirm_dead")],
        ("relabel", host, {"labels": {"zone": dice.choice("ab")}}),
        ("relabel", host, {"lease_s": dice.choice([1.0, 8.0, 12.0])}),
        ("relabel", host, {"poll_s": dice.choice([0.25, 99.0])}),
        ("relabel", host, {"drivers": {"process": Driver(dice.random() < 0.5, "sick")}}),
        ("relabel", host, {"memory_bytes": dice.choice([1, 4]) * GIB}),
        ("stuck", host, dice.random() < 0.5),
        (
            "strays",
            host,
            dice.choice(["", "store-0123456789", "store-x"]),
            dice.sample(PIPELINES, dice.randint(0, 2)),
            dice.choice(["", "it has not looked yet"]),
        ),
        ("strays", host, "", (), dice.choice(["", "the engine does not answer", "it has not looked yet"])),
        ("problem", host, dice.choice(["", "the engine does not answer"])),
        ("phase", host, dice.choice(list(Phase)), dice.choice(["", "upstream away"])),
        *[("time", seconds) for seconds in (1.0, 3.0, 5.0, 13.0, 20.0)],
        dice.choice([("lose the store",), ("accept",), ("find",), ("accept no more",), ("give up hosts",)]),
        dice.choice([("accept",), ("find",)]),
    ]
    return dice.choice(kinds)


# --- the comparison


def compare(site: Site, after: object) -> None:
    """Plan over what changed and over everything; commit; until there is no more to do."""
    cluster = site.cluster
    for _ in range(20):
        scope = cluster.world.take_scope()
        made, full = cluster.plan(scope), cluster.plan(None)
        assert document_bytes(made) == document_bytes(full), f"the scope missed something after {after}: {scope}"
        assert made.tombstones == full.tombstones, f"the scope missed a tombstone after {after}: {scope}"
        cluster.commit(full)
        let_go = [host for host, document in full.assignments.items() if document is None]
        for host in let_go:
            _forgotten(site, host)
        if not cluster.bury(full) and full.rest is None and not let_go:
            break
    else:
        raise AssertionError("it does not come to an end")


def _forgotten(site: Site, name: str) -> None:
    """What `shoal hosts forget` does when the leader has let go of a host."""
    if name in site.cluster.machines:
        site.away[name] = site.cluster.machines[name]
        site.cluster.lose_key(name)
    site.fold(Source.REPORTS, name, None)


def play(history: list[Event], lag: bool, hosts: int) -> None:
    site = new_site(lag, hosts)
    compare(site, "the beginning")
    for one in history:
        happen(site, one)
        compare(site, one)
        for name in HOSTS:
            if name in site.cluster.machines and site.cluster.act(name):
                compare(site, f"{name} acted on {one}")


def drawn(seed: int) -> tuple[list[Event], bool, int]:
    dice = random.Random(seed)
    lag, hosts = dice.random() < 0.5, dice.randint(1, 5)
    published: list[Event] = [
        ("publish", name, "1", dice.randint(1, 4), dice.choice(PLACEMENTS), "64MiB")
        for name in PIPELINES
        if dice.random() < 0.7
    ]
    return published + [event(dice) for _ in range(dice.randint(10, 60))], lag, hosts


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_plan_over_what_changed_is_the_plan_over_everything(seed: int) -> None:
    play(*drawn(seed))
