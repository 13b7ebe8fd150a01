"""Whole schedulers on virtual time over a store that can fail: what they write, and what they do not."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from scheduler.core.audit import Violation
from scheduler.core.view import Plan
from scheduler.passes import Decision
from shared import documents
from shared.documents import Assignment, Driver, Heartbeat, Pin, Session, Status, decode, encode
from shared.errors import OutcomeUnknown
from shared.intents import StoreIntent
from shared.keys import JOURNAL, LEASE, PULSE, STORE_INTENT, Keys, assign_key, status_key, version_key
from shared.states import State
from shared.store import Entry
from tests.sim.virtual_time import VirtualClock, VirtualLoop
from tests.support.fake_store import FakeStore, FakeStoreServer
from tests.support.scheduler_instance import Instance, in_place

KEYS = Keys("c")
CONFIG = b"input:\n  generate: {mapping: 'root = 1'}\noutput:\n  drop: {}\n"


@dataclass
class Process:
    """A scheduler and its connections."""

    instance: Instance
    stores: list[FakeStore]
    task: asyncio.Task[None]

    def freeze(self, held: bool = True) -> None:
        for store in self.stores:
            store.faults.held = held

    async def crash(self) -> None:
        for store in self.stores:
            await store.close()
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


class Cluster:
    """A store, schedulers, and one agent that does nothing but beat."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.clock = VirtualClock(loop)
        self.server = FakeStoreServer(self.clock, seed=4)
        self.server.create_streams(KEYS)
        self.user: FakeStore = self.server.connect("user")
        self.processes: list[Process] = []
        self._tokens = itertools.count()

    def start(self, name: str, **options: Any) -> Process:
        stores = [self.server.connect(f"{name}.{role}") for role in ("loop", "lease", "pulse")]
        instance = Instance(
            stores[0],
            stores[1],
            stores[2],
            KEYS,
            self.clock,
            name=name,
            token=lambda: f"token-{next(self._tokens)}",
            **options,
        )
        process = Process(instance, stores, asyncio.create_task(instance.run(), name=name))
        self.processes.append(process)
        return process

    async def leader(self, name: str = "a", **options: Any) -> Process:
        process = self.start(name, **options)
        await self.until(lambda: process.instance.leading, 5.0)
        return process

    async def until(self, condition: Callable[[], bool], seconds: float, *, poll_s: float = 0.01) -> None:
        end = self.loop.time() + seconds
        while not condition():
            assert self.loop.time() < end, f"not within {seconds} s"
            for process in self.processes:
                if process.task.done() and not process.task.cancelled():
                    process.task.result()
            await asyncio.sleep(poll_s)

    async def beat(self, host: str) -> None:
        beat = Heartbeat(
            store_id="",
            host=host,
            session=Session("agent-" + host, "boot", 1),
            sequence=0,
            lease_s=8,
            fence_kill_s=2,
            poll_s=0.25,
            cpu=4,
            memory_bytes=2**33,
            drivers={"process": Driver(True)},
        )
        while True:
            beat = replace(beat, sequence=beat.sequence + 1)
            await self.user.write(KEYS.hosts, host, encode(beat))
            await asyncio.sleep(1.0)

    async def publish(self, pipeline: str, status: str = "published") -> None:
        await self.user.put_object(KEYS.configs, f"{pipeline}/1", CONFIG)
        record = b'{"id": "%s", "status": "%s", "version": "1"}' % (pipeline.encode(), status.encode())
        await self.user.write(KEYS.pipelines, pipeline, record)

    def document(self, kind: type[Any], key: str) -> Any:
        entry = self.server.streams[KEYS.control].last.get(key)
        return None if entry is None or entry.value is None else decode(kind, entry.value)

    def placed(self, pipeline: str, host: str = "h") -> bool:
        found = self.document(Assignment, assign_key(host))
        return found is not None and any(item.pipeline == pipeline for item in found.executions)

    def control(self, since: int = 0) -> list[tuple[Entry, str]]:
        """What was written into the control bucket, and over which connection, but for leases and keys of terms."""
        return [
            (entry, writer)
            for bucket, entry, writer in self.server.writes[since:]
            if bucket == KEYS.control and entry.key != LEASE and not entry.key.startswith("term.")
        ]

    def journals(self) -> list[documents.Journal]:
        return [decode(documents.Journal, entry.value or b"") for entry, _ in self.control() if entry.key == JOURNAL]

    def check(self) -> None:
        """What holds in every run: plan numbers and marks of inputs never go back."""
        journals = self.journals()
        for store_id in {journal.store_id for journal in journals}:
            plans = [journal.plan for journal in journals if journal.store_id == store_id]
            assert plans == sorted(set(plans))
        for before, after in itertools.pairwise(journals):
            for name, mark in before.inputs.items():
                if before.store_id == after.store_id and mark.created == after.inputs[name].created:
                    assert after.inputs[name].sequence >= mark.sequence, name


def run(scenario: Callable[[Cluster], Awaitable[None]], *, hosts: tuple[str, ...] = ("h",)) -> None:
    async def main(loop: VirtualLoop) -> None:
        cluster = Cluster(loop)
        beating = [asyncio.create_task(cluster.beat(host)) for host in hosts]
        try:
            await scenario(cluster)
            cluster.check()
        finally:
            for process in cluster.processes:
                await process.crash()
            for task in beating:
                task.cancel()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualLoop)
        runner.run(main(loop))


def test_publishing_is_one_commit() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.leader()
        await asyncio.sleep(2)
        before = len(cluster.server.writes)
        began = cluster.loop.time()
        await cluster.publish("p")
        await cluster.until(lambda: cluster.placed("p"), 1.0)
        assert cluster.loop.time() - began < 0.1
        keys = [entry.key for entry, _ in cluster.control(before)]
        assert keys == [JOURNAL, version_key("p", "1"), assign_key("h"), status_key("p")]
        assert cluster.document(Status, status_key("p")).state is State.STARTING

    run(scenario)


def test_a_configuration_that_comes_late_is_said_and_then_admitted() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.leader()
        await cluster.user.write(KEYS.pipelines, "p", b'{"id": "p", "status": "published", "version": "1"}')
        await cluster.until(lambda: cluster.document(Status, status_key("p")) is not None, 1.0)
        assert "p/1" in cluster.document(Status, status_key("p")).reason
        await cluster.user.put_object(KEYS.configs, "p/1", CONFIG)
        await cluster.until(lambda: cluster.placed("p"), 1.0)

    run(scenario)


def test_a_quiet_cluster_writes_pulses_heartbeats_and_renewals_only() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.leader()
        cluster.start("b")
        await cluster.publish("p")
        await cluster.until(lambda: cluster.placed("p"), 2.0)
        await asyncio.sleep(5)
        before = len(cluster.server.writes)
        await asyncio.sleep(600)
        written = {(bucket, entry.key) for bucket, entry, _ in cluster.server.writes[before:]}
        assert written == {(KEYS.control, LEASE), (KEYS.hosts, PULSE), (KEYS.hosts, "h")}
        assert leader.instance.registry.get_sample_value("shoal_scheduler_full_pass_findings_total") == 0
        assert (
            leader.instance.registry.get_sample_value("shoal_scheduler_pass_seconds_count", {"kind": "full"}) or 0
        ) > 8

    run(scenario)


def test_a_takeover_changes_nothing_and_goes_on() -> None:
    async def scenario(cluster: Cluster) -> None:
        a = await cluster.leader()
        await cluster.publish("p")
        await cluster.until(lambda: cluster.placed("p"), 2.0)
        b = cluster.start("b")
        await asyncio.sleep(2)
        before = len(cluster.server.writes)
        await a.crash()
        await cluster.until(lambda: b.instance.leading, 3.5)
        await asyncio.sleep(1)
        assert [entry.key for entry, _ in cluster.control(before)] == [JOURNAL], "the takeover itself"
        await cluster.publish("q")
        await cluster.until(lambda: cluster.placed("q"), 1.0)

    run(scenario)


def test_leaving_hands_over_at_once() -> None:
    async def scenario(cluster: Cluster) -> None:
        a = await cluster.leader()
        b = cluster.start("b")
        await asyncio.sleep(2)
        began = cluster.loop.time()
        await a.instance.leave()
        await cluster.until(lambda: b.instance.leading, 0.2)
        assert cluster.loop.time() - began <= 0.2
        await asyncio.wait_for(a.task, 1.0)

    run(scenario)


@pytest.mark.parametrize("after_s", [0.0, 0.002, 0.004, 0.006, 0.008, 0.012, 0.02, 0.05])
def test_nothing_of_a_frozen_leader_lands_after_the_takeover(after_s: float) -> None:
    async def scenario(cluster: Cluster) -> None:
        a = await cluster.leader()
        b = cluster.start("b")
        await asyncio.sleep(2)
        await cluster.publish("p")
        await asyncio.sleep(after_s)
        a.freeze()
        await cluster.until(lambda: b.instance.leading, 3.5)
        term = b.instance.loop.term
        await cluster.publish("q")
        a.freeze(False)
        await cluster.until(lambda: cluster.placed("p") and cluster.placed("q"), 5.0)
        await cluster.until(lambda: a.instance.loop.term == 0, 5.0)
        assert not [entry for entry, writer in cluster.control() if writer == "a.loop" and entry.revision > term]
        executions = cluster.document(Assignment, assign_key("h")).executions
        assert sorted(item.pipeline for item in executions) == ["p", "q"]

    run(scenario)


def test_a_deposed_leader_does_not_say_that_the_stream_went_back() -> None:
    """It hears of its successor's plan before it hears of its successor."""

    async def scenario(cluster: Cluster) -> None:
        a = cluster.start("a")
        await cluster.until(lambda: bool(cluster.journals()), 5.0, poll_s=0.0001)
        a.stores[0].faults.held = True  # it leads, and knows nothing more yet
        journal = cluster.journals()[-1]
        successor = replace(journal, term=journal.term + 5, plan=journal.plan + 5, holder="somebody")
        report = documents.Report(
            store_id=journal.store_id,
            host="h",
            session=Session("agent-h", "boot", 1),
            term=successor.term,
            plan=successor.plan,
        )
        await asyncio.gather(
            cluster.user.write(KEYS.control, JOURNAL, encode(successor)),
            cluster.user.write(KEYS.reports, "h", encode(report)),
        )
        a.stores[0].faults.held = False
        await cluster.until(lambda: a.instance.loop.term == 0, 5.0)
        assert not [subject for subject, _ in cluster.server.events if ".alarm." in subject]
        assert cluster.journals()[-1] == successor

    run(scenario)


def test_a_new_leader_never_plans_from_older_input_than_its_predecessor() -> None:
    async def scenario(cluster: Cluster) -> None:
        a = await cluster.leader()
        b = cluster.start("b")
        await asyncio.sleep(2)
        b.stores[0].faults.watch_delay_s = 6.0  # of b's loop alone: it sees everything late
        await cluster.publish("p")
        await cluster.until(lambda: cluster.placed("p"), 2.0)
        began = cluster.loop.time()
        await a.crash()
        await cluster.until(lambda: b.instance.leading, 3.5)
        await cluster.user.write(KEYS.operator, "restart.p", b"{}")
        await cluster.until(lambda: len({journal.term for journal in cluster.journals()}) > 2, 30.0)
        assert cluster.loop.time() - began > 5.0
        # cluster.check() compares the marks

    run(scenario)


@pytest.mark.parametrize("bucket", [KEYS.reports, KEYS.hosts, KEYS.operator, KEYS.pipelines])
def test_an_input_that_was_made_anew_is_taken_as_it_is_after_three_answers(bucket: str) -> None:
    async def scenario(cluster: Cluster) -> None:
        a = await cluster.leader()
        await cluster.user.write(KEYS.operator, "host.other", b"{}")
        await cluster.publish("p")
        await cluster.until(lambda: cluster.placed("p"), 2.0)
        await a.crash()
        cluster.server.recreate(bucket)
        b = await cluster.leader("b")
        began = cluster.loop.time()
        await cluster.publish("q")
        await cluster.until(lambda: cluster.placed("q"), 10.0)
        assert 2.0 < cluster.loop.time() - began < 6.0
        assert b.instance.leading

    run(scenario)


@pytest.mark.parametrize("bucket", [KEYS.reports, KEYS.control, KEYS.hosts])
def test_a_stream_that_is_made_anew_under_a_running_leader_is_followed(bucket: str) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.leader()
        await cluster.publish("p")
        await cluster.until(lambda: cluster.placed("p"), 2.0)
        store_id = cluster.journals()[-1].store_id
        cluster.server.recreate(bucket)
        await asyncio.sleep(30)
        await cluster.publish("q")
        await cluster.until(lambda: cluster.placed("q"), 10.0)
        assert (cluster.journals()[-1].store_id == store_id) is (bucket != KEYS.control)

    run(scenario)


def test_records_are_kept_when_their_stream_is_made_anew() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.leader()
        await cluster.publish("p")
        await cluster.until(lambda: cluster.placed("p"), 2.0)
        cluster.server.recreate(KEYS.pipelines)
        await asyncio.sleep(300)
        assert cluster.placed("p")

    run(scenario)


def test_an_accepted_store_goes_into_the_journal_and_the_assignments() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.leader()
        await cluster.publish("p")
        await cluster.until(lambda: cluster.placed("p"), 2.0)
        store_id = cluster.journals()[-1].store_id
        other = StoreIntent(accept="another-store", replaces="no")
        await cluster.user.write(KEYS.operator, STORE_INTENT, encode(other))
        await asyncio.sleep(2)
        assert cluster.journals()[-1].accepted == ()
        await cluster.user.write(KEYS.operator, STORE_INTENT, encode(StoreIntent(accept=store_id, replaces="older")))
        await cluster.until(lambda: cluster.journals()[-1].accepted == ("older",), 2.0)
        await cluster.until(lambda: cluster.document(Assignment, assign_key("h")).accepted == ("older",), 2.0)
        b = cluster.start("b")
        await asyncio.sleep(2)
        await cluster.processes[0].crash()
        await cluster.until(lambda: b.instance.leading, 3.5)
        assert cluster.journals()[-1].accepted == ("older",)

    run(scenario)


class Meddler:
    """A worker that changes decisions."""

    def __init__(self, change: Callable[[Decision], Decision]) -> None:
        self.change = change

    async def __call__(self, work: Callable[[], Any], /) -> Any:
        return self.change(await in_place(work))


def test_a_refused_plan_holds_the_pipelines_it_names_and_the_rest_goes_on() -> None:
    def refuse(decision: Decision) -> Decision:
        wrong = any(("bad", "1") in part.pins for part, _ in decision.parts)
        return replace(decision, parts=(), violations=(Violation("bad is bad", ("bad",)),)) if wrong else decision

    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.leader(worker=Meddler(refuse), strict=False)
        await asyncio.sleep(1)
        await cluster.publish("bad")
        await asyncio.sleep(1)
        await cluster.publish("good")
        await cluster.until(lambda: cluster.placed("good"), 2.0)
        assert not cluster.placed("bad")
        value = leader.instance.registry.get_sample_value
        assert 1 <= (value("shoal_scheduler_audit_violations_total") or 0) <= 10
        assert value("shoal_scheduler_held_pipelines") == 1
        await cluster.until(
            lambda: any(subject.startswith("c.event.audit.bad") for subject, _ in cluster.server.events), 2
        )

    run(scenario)


def test_strict_crashes_on_a_violation() -> None:
    async def scenario(cluster: Cluster) -> None:
        always = Meddler(lambda decision: replace(decision, violations=(Violation("no"),)))
        process = cluster.start("a", worker=always)
        await asyncio.wait([process.task], timeout=10)
        with pytest.raises(BaseExceptionGroup) as caught:
            process.task.result()
        assert caught.group_contains(AssertionError, match="the audit refused")

    run(scenario)


def test_a_full_pass_that_finds_something_says_so() -> None:
    def blind(decision: Decision) -> Decision:
        """Scoped passes see nothing of p."""
        if decision.parts and any("p" in part.statuses for part, _ in decision.parts) and not opened:
            return Decision(Plan(number=decision.plan.number), (), ())
        return decision

    opened: list[bool] = []

    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.leader(worker=Meddler(blind))
        await asyncio.sleep(1)
        await cluster.publish("p")
        await asyncio.sleep(30)
        assert not cluster.placed("p")
        opened.append(True)
        await cluster.until(lambda: cluster.placed("p"), 62.0)
        assert leader.instance.registry.get_sample_value("shoal_scheduler_full_pass_findings_total") == 1
        await cluster.until(lambda: any(".event.alarm." in subject for subject, _ in cluster.server.events), 2.0)

    run(scenario)


def test_bundles_without_a_version_are_deleted_later(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_s = 900.0  # a virtual day has a million pulses and renewals
    monkeypatch.setattr("scheduler.garbage.KEEP_S", keep_s)

    async def scenario(cluster: Cluster) -> None:
        await cluster.leader()
        await cluster.publish("p")
        await cluster.until(lambda: cluster.document(Pin, version_key("p", "1")) is not None, 2.0)
        digest = cluster.document(Pin, version_key("p", "1")).digest
        await cluster.user.write(KEYS.pipelines, "p", None)
        bundles = cluster.server.streams[KEYS.bundles].objects
        await asyncio.sleep(keep_s - 100)
        assert digest in bundles
        await cluster.until(lambda: digest not in bundles, 300.0)

    run(scenario, hosts=())


def test_a_missing_bundle_is_made_again() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.leader()
        await cluster.publish("p")
        await cluster.until(lambda: cluster.placed("p"), 2.0)
        digest = cluster.document(Pin, version_key("p", "1")).digest
        await cluster.user.delete_object(KEYS.bundles, digest)
        bundles = cluster.server.streams[KEYS.bundles].objects
        await cluster.until(lambda: digest in bundles, 200.0)
        assert any(".event.bundle-missing.p" in subject for subject, _ in cluster.server.events)

    run(scenario)


# -- tombstones --------------------------------------------------------------------------------------------------------


def dead(cluster: Cluster, host: str) -> Session | None:
    entry = cluster.server.streams[KEYS.hosts].last[host]
    return None if entry.value is None else decode(Heartbeat, entry.value).dead


async def lose(cluster: Cluster) -> tuple[asyncio.Task[None], asyncio.Task[None]]:
    """An exclusive pipeline on `h1`, whose heart has just stopped; `h2` lives."""
    hearts = [asyncio.create_task(cluster.beat(host)) for host in ("h1", "h2")]
    await cluster.leader()
    await asyncio.sleep(2.0)
    await cluster.publish("alone")
    await cluster.until(lambda: cluster.placed("alone", "h1") or cluster.placed("alone", "h2"), 5.0)
    if cluster.placed("alone", "h2"):
        hearts.reverse()
    hearts[0].cancel()
    return hearts[0], hearts[1]


def test_what_is_lease_bound_moves_after_its_time_and_behind_the_tombstone() -> None:
    async def scenario(cluster: Cluster) -> None:
        _, living = await lose(cluster)
        lost, other = ("h1", "h2") if cluster.placed("alone", "h1") else ("h2", "h1")
        began = cluster.loop.time()
        await cluster.until(lambda: cluster.placed("alone", other), 20.0)
        assert cluster.loop.time() - began > 11.0
        assert dead(cluster, lost) == Session("agent-" + lost, "boot", 1)
        stone = next(
            number
            for number, (bucket, entry, _) in enumerate(cluster.server.writes)
            if bucket == KEYS.hosts and entry.key == lost and b'"dead":{' in (entry.value or b"")
        )
        move = next(
            number
            for number, (_, entry, _) in enumerate(cluster.server.writes)
            if entry.key == assign_key(other) and b"alone-0" in (entry.value or b"")
        )
        assert stone < move
        assert [writer for _, _, writer in cluster.server.writes[stone : stone + 1]] == ["a.loop"]
        living.cancel()

    run(scenario, hosts=())


def test_a_tombstone_that_cannot_be_written_moves_nothing_until_it_can() -> None:
    async def scenario(cluster: Cluster) -> None:
        _, living = await lose(cluster)
        lost, other = ("h1", "h2") if cluster.placed("alone", "h1") else ("h2", "h1")
        loop = cluster.processes[0].stores[0]
        write = loop.write

        async def unanswered(bucket: str, key: str, *known: Any, **named: Any) -> int:
            if bucket == KEYS.hosts:
                raise OutcomeUnknown("no answer")
            return await write(bucket, key, *known, **named)

        loop.write = unanswered  # type: ignore[method-assign]
        await asyncio.sleep(30.0)
        assert cluster.placed("alone", lost)
        assert not cluster.placed("alone", other)
        loop.write = write  # type: ignore[method-assign]
        await cluster.until(lambda: cluster.placed("alone", other), 5.0)
        assert dead(cluster, lost) is not None
        living.cancel()

    run(scenario, hosts=())


# -- a leader that cannot commit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["down", "held"])
def test_a_leader_whose_own_connection_is_broken_lets_another_lead(fault: str) -> None:
    async def scenario(cluster: Cluster) -> None:
        a = await cluster.leader()
        b = cluster.start("b")
        await asyncio.sleep(12.0)
        setattr(a.stores[0].faults, fault, True)
        await cluster.publish("p")
        await cluster.until(lambda: b.instance.leading, 20.0)
        await cluster.until(lambda: cluster.placed("p"), 5.0)
        assert not a.instance.leading
        setattr(a.stores[0].faults, fault, False)
        await asyncio.sleep(20.0)
        assert b.instance.leading
        assert (a.instance.leading, a.instance.loop.term) == (False, 0)
        assert a.instance.loop.eligible, "it stands by again"

    run(scenario)


def test_alone_it_does_not_claim_again_before_its_commit_is_certain() -> None:
    async def scenario(cluster: Cluster) -> None:
        a = await cluster.leader()
        await asyncio.sleep(12.0)
        faults = a.stores[0].faults
        await cluster.publish("p")
        faults.lose_replies = 1.0  # what it asks is answered never; what it watches comes
        await asyncio.sleep(40.0)
        assert not a.instance.leading
        claims = len(cluster.journals())
        await asyncio.sleep(60.0)
        assert len(cluster.journals()) == claims
        faults.lose_replies = 0.0
        await cluster.until(lambda: a.instance.leading, 10.0)

    run(scenario)


def test_nobody_resigns_because_the_whole_store_is_away() -> None:
    async def scenario(cluster: Cluster) -> None:
        a = await cluster.leader()
        await asyncio.sleep(12.0)
        term = a.instance.loop.term
        for store in a.stores:
            store.faults.down = True
        await asyncio.sleep(120.0)
        for number in (1, 2, 0):  # the loop's own comes back last
            a.stores[number].faults.down = False
            await asyncio.sleep(2.0)
        await asyncio.sleep(20.0)
        assert (a.instance.leading, a.instance.loop.term) == (True, term)

    run(scenario)
