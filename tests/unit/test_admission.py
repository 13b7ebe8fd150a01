"""Admission on virtual time, over the fake store: which verdict, for which question, and when it is made again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

import pytest

from scheduler.admission import JOBS_MAX, RETRY_MAX_S, Admission
from scheduler.core.candidates import Ready, Rejected, Unavailable, admit, rebuild, rejected
from scheduler.lint import LintUnavailable
from shared.bundle import read_bundle
from shared.configuration import Configuration, derive, read_configuration
from shared.documents import encode
from shared.errors import BadInput
from shared.keys import CONFIG_BYTES_MAX, Keys
from shared.record import PipelineRecord, parse_record
from shared.states import Overlap
from shared.store import Change, Entry
from tests.sim.virtual_time import VirtualClock, VirtualLoop
from tests.support.fake_store import FakeStore, FakeStoreServer

KEYS = Keys("shoal")
PLAIN = b"input: {generate: {}}\n"


def record(pipeline: str = "orders", **fields: Any) -> PipelineRecord:
    data = {"id": pipeline, "status": "published", "version": "1", **fields}
    return parse_record(pipeline, json.dumps(data).encode())


class FakeLinter:
    """Refuses what says `bad:`, has no verdict while it is `down`."""

    def __init__(self) -> None:
        self.linted: list[tuple[str, Mapping[str, str]]] = []
        self.down = False
        self.lasts_s = 0.01
        self.running = self.running_max = 0

    async def lint(
        self, configurations: Sequence[Configuration], env: Mapping[str, str] | None = None
    ) -> list[tuple[str, ...]]:
        self.running += 1
        self.running_max = max(self.running_max, self.running)
        try:
            await asyncio.sleep(self.lasts_s)
        finally:
            self.running -= 1
        if self.down:
            raise LintUnavailable("Bento's lint did not finish in 20 s")
        self.linted += [(found.digest, dict(env or {})) for found in configurations]
        return [
            ("pipeline.yaml line 1 is 'bad: 1': field bad not recognised",) if "bad" in f.document else ()
            for f in configurations
        ]


class Rig:
    """An admission that leads, fed by its watch."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        clock = VirtualClock(loop)
        self.server = FakeStoreServer(clock)
        self.server.create_streams(KEYS)
        self.store: FakeStore = self.server.connect("scheduler")
        self.user: FakeStore = self.server.connect("user")
        self.linter = FakeLinter()
        self.bundles: set[str] = set()
        self.puts = 0
        self.admission = Admission(self, KEYS, self.linter, clock, has_bundle=self.bundles.__contains__)
        self.reads: list[str] = []

    async def get_object(self, bucket: str, name: str, *, bytes_max: int, timeout: float = 5.0) -> bytes:
        self.reads.append(name)
        return await self.store.get_object(bucket, name, bytes_max=bytes_max, timeout=timeout)

    async def put_object(self, bucket: str, name: str, data: bytes, *, timeout: float = 5.0) -> Any:
        self.puts += 1
        return await self.store.put_object(bucket, name, data, timeout=timeout)

    async def put(self, name: str, data: bytes) -> None:
        await self.user.put_object(KEYS.configs, name, data)

    async def watch(self) -> None:
        async with aclosing(self.store.watch_objects(KEYS.configs)) as items:  # type: ignore[type-var]
            async for item in items:
                self.admission.fold(item)

    async def candidate(self) -> Any:
        """The verdict on orders/1, as soon as there is one."""
        while ("orders", "1") not in self.admission.candidates():
            self.admission.changed.clear()
            await self.admission.changed.wait()
        return self.admission.candidates()["orders", "1"]

    async def change(self) -> Mapping[tuple[str, str], Any]:
        """The next changes."""
        while not (changes := self.admission.take_changes()):
            self.admission.changed.clear()
            await self.admission.changed.wait()
        return changes


@contextmanager
def virtual_loop() -> Iterator[VirtualLoop]:
    loop = VirtualLoop()
    try:
        yield loop
    finally:
        loop.close()


def simulate(scenario: Callable[[Rig], Coroutine[Any, Any, None]], *, leading: bool = True) -> None:
    """Run a scenario beside a watch and, if it leads, the admission."""

    async def main() -> None:
        rig = Rig()
        async with asyncio.timeout(3600), asyncio.TaskGroup() as group:
            tasks = [group.create_task(rig.watch())]
            if leading:
                tasks.append(group.create_task(rig.admission.run()))
            await asyncio.sleep(1.0)
            await scenario(rig)
            for task in tasks:
                task.cancel()
        await rig.server.settle()

    with virtual_loop() as loop:
        loop.run_until_complete(main())


# --- verdicts


def test_a_version_becomes_ready_once_its_bundle_is_stored() -> None:
    async def scenario(rig: Rig) -> None:
        await rig.put("orders/1", PLAIN)
        rig.admission.want({("orders", "1"): record(env={"A": "1"}, resources={"cpu": 0.5})})
        found = await rig.candidate()
        assert isinstance(found, Ready)
        pin = found.pin
        assert (pin.store_id, pin.term, pin.plan, pin.pipeline, pin.version) == ("", 0, 0, "orders", "1")
        assert (pin.overlap, pin.inputs, pin.stop_grace_s, pin.cpu) == (Overlap.EXCLUSIVE, ("generate",), 22.0, 0.5)
        assert pin.captured["env"] == {"A": "1"}
        stored = await rig.user.get_object(KEYS.bundles, pin.digest, bytes_max=10**8)
        runtime, files = read_bundle(stored, pin.digest)
        assert dict(runtime.env) == {"A": "1"}
        assert files == (("pipeline.yaml", PLAIN),)

    simulate(scenario)


def test_a_missing_object_says_how_to_put_it_and_its_arrival_is_noticed() -> None:
    async def scenario(rig: Rig) -> None:
        rig.admission.want({("orders", "1"): record()})
        found = await rig.candidate()
        assert isinstance(found, Unavailable)
        assert found.missing
        assert found.reason == (
            "configuration object orders/1 is not in the bucket shoal_configs: "
            "`nats object put shoal_configs FILE --name orders/1`"
        )
        rig.admission.take_changes()
        await rig.put("orders/1", PLAIN)
        assert await rig.change() == {("orders", "1"): None}
        assert isinstance(await rig.candidate(), Ready)

    simulate(scenario)


def test_lint_and_unreadable_settings_are_refused_together() -> None:
    async def scenario(rig: Rig) -> None:
        await rig.put("orders/1", b"bad: 1\nshutdown_timeout: soon\n")
        rig.admission.want({("orders", "1"): record()})
        found = await rig.candidate()
        assert isinstance(found, Rejected)
        assert len(found.problems) == 2
        assert found.problems[0].startswith("shutdown_timeout is 'soon': ")
        assert "field bad not recognised" in found.problems[1]
        assert found.config_digest == read_configuration(b"bad: 1\nshutdown_timeout: soon\n").digest
        assert rig.puts == 0

    simulate(scenario)


def test_another_object_under_a_rejected_name_is_looked_at_anew() -> None:
    async def scenario(rig: Rig) -> None:
        await rig.put("orders/1", b"- no mapping\n")
        rig.admission.want({("orders", "1"): record()})
        assert isinstance(await rig.candidate(), Rejected)
        rig.admission.take_changes()
        await rig.put("orders/1", PLAIN)
        assert await rig.change() == {("orders", "1"): None}
        assert isinstance(await rig.candidate(), Ready)

    simulate(scenario)


def test_a_large_object_is_refused_unread() -> None:
    async def scenario(rig: Rig) -> None:
        await rig.put("orders/1", bytes(CONFIG_BYTES_MAX + 1))
        await asyncio.sleep(1.0)
        rig.admission.want({("orders", "1"): record()})
        found = await rig.candidate()
        assert isinstance(found, Rejected)
        assert f"at most {CONFIG_BYTES_MAX} bytes" in found.problems[0]
        assert rig.reads == []

    simulate(scenario)


def test_missing_chunks_are_named_and_looked_at_again() -> None:
    async def scenario(rig: Rig) -> None:
        await rig.put("orders/1", PLAIN)
        rig.server.lose_chunks(KEYS.configs, "orders/1")
        rig.admission.want({("orders", "1"): record()})
        found = await rig.candidate()
        assert isinstance(found, Rejected)
        assert "chunk" in found.problems[0]
        reads = len(rig.reads)
        await asyncio.sleep(130.0)
        assert len(rig.reads) == reads + 2

    simulate(scenario)


# --- trouble


def test_trouble_with_the_store_is_tried_again_with_growing_pauses() -> None:
    async def scenario(rig: Rig) -> None:
        await rig.put("orders/1", PLAIN)
        await asyncio.sleep(1.0)
        rig.admission._configurations._kept.clear()  # forget what the arrival brought
        rig.store.faults.down = True
        rig.admission.want({("orders", "1"): record()})
        found = await rig.candidate()
        assert isinstance(found, Unavailable)
        assert not found.missing
        assert "could not be read" in found.reason
        await asyncio.sleep(600.0)
        tried = len(rig.reads)
        assert 10 < tried < 40
        rig.store.faults.down = False
        await asyncio.sleep(RETRY_MAX_S + 20.0)
        assert isinstance(await rig.candidate(), Ready)

    simulate(scenario)


def test_lint_that_does_not_finish_is_no_refusal() -> None:
    async def scenario(rig: Rig) -> None:
        rig.linter.down = True
        await rig.put("orders/1", PLAIN)
        rig.admission.want({("orders", "1"): record()})
        found = await rig.candidate()
        assert isinstance(found, Unavailable)
        assert "could not be checked: Bento's lint did not finish" in found.reason
        rig.linter.down = False
        await asyncio.sleep(2.0)
        assert isinstance(await rig.candidate(), Ready)

    simulate(scenario)


def test_a_bundle_that_cannot_be_stored_is_stored_later() -> None:
    async def scenario(rig: Rig) -> None:
        await rig.put("orders/1", PLAIN)
        await asyncio.sleep(1.0)  # read on arrival
        rig.store.faults.down = True
        rig.admission.want({("orders", "1"): record()})
        found = await rig.candidate()
        assert isinstance(found, Unavailable)
        assert "the bundle of orders/1 could not be stored" in found.reason
        rig.store.faults.down = False
        await asyncio.sleep(5.0)
        assert isinstance(await rig.candidate(), Ready)

    simulate(scenario)


# --- what a verdict is for


def test_an_edit_of_captured_fields_is_another_question() -> None:
    async def scenario(rig: Rig) -> None:
        await rig.put("orders/1", PLAIN)
        rig.admission.want({("orders", "1"): record(env={"A": "1"})})
        first = await rig.candidate()
        rig.admission.take_changes()
        rig.admission.want({("orders", "1"): record(env={"A": "2"})})
        assert rig.admission.take_changes() == {("orders", "1"): None}
        second = await rig.candidate()
        assert isinstance(first, Ready)
        assert isinstance(second, Ready)
        assert first.pin.digest != second.pin.digest
        assert second.pin.captured["env"] == {"A": "2"}

    simulate(scenario)


def test_an_edit_while_it_is_looked_at_drops_the_old_answer() -> None:
    async def scenario(rig: Rig) -> None:
        rig.linter.lasts_s = 1.0
        await rig.put("orders/1", PLAIN)
        await asyncio.sleep(5.0)
        rig.linter.lasts_s = 3.0
        rig.admission.want({("orders", "1"): record(env={"A": "1"})})
        await asyncio.sleep(1.0)
        rig.admission.want({("orders", "1"): record(env={"A": "2"})})
        found = await rig.candidate()
        assert isinstance(found, Ready)
        assert found.pin.captured["env"] == {"A": "2"}
        assert len(rig.admission.take_changes()) == 1

    simulate(scenario)


def test_an_edit_of_other_fields_changes_nothing() -> None:
    async def scenario(rig: Rig) -> None:
        await rig.put("orders/1", PLAIN)
        rig.admission.want({("orders", "1"): record()})
        first = await rig.candidate()
        rig.admission.take_changes()
        rig.admission.want({("orders", "1"): record(replicas=5, name="Other")})
        await asyncio.sleep(5.0)
        assert rig.admission.take_changes() == {}
        assert await rig.candidate() is first

    simulate(scenario)


def test_what_is_no_longer_wanted_is_forgotten() -> None:
    async def scenario(rig: Rig) -> None:
        await rig.put("orders/1", PLAIN)
        rig.admission.want({("orders", "1"): record()})
        await rig.candidate()
        rig.admission.take_changes()
        rig.admission.want({})
        assert rig.admission.candidates() == {}
        assert rig.admission.take_changes() == {("orders", "1"): None}

    simulate(scenario)


# --- cost


def test_an_object_that_arrives_is_read_and_linted_before_a_record_asks() -> None:
    async def scenario(rig: Rig) -> None:
        await rig.put("orders/1", PLAIN)
        await asyncio.sleep(1.0)
        assert rig.reads == ["orders/1"]
        assert len(rig.linter.linted) == 1
        rig.admission.want({("orders", "1"): record()})
        assert isinstance(await rig.candidate(), Ready)
        assert rig.reads == ["orders/1"]

    simulate(scenario)


def test_one_read_serves_an_arrival_and_the_record_that_comes_with_it() -> None:
    async def scenario(rig: Rig) -> None:
        info = await rig.user.put_object(KEYS.configs, "orders/1", PLAIN)
        rig.admission.fold(Change(Entry(info.name, encode(info), info.revision)))
        await asyncio.sleep(0)
        assert not rig.admission.candidates()
        rig.admission.want({("orders", "1"): record()})
        assert isinstance(await rig.candidate(), Ready)
        assert rig.reads == ["orders/1"]

    simulate(scenario)


def test_a_standby_reads_nothing() -> None:
    async def scenario(rig: Rig) -> None:
        await rig.put("orders/1", PLAIN)
        rig.admission.want({("orders", "1"): record()})
        await asyncio.sleep(10.0)
        assert rig.reads == []
        leading = asyncio.create_task(rig.admission.run())
        assert isinstance(await rig.candidate(), Ready)
        leading.cancel()
        await asyncio.wait([leading])

    simulate(scenario, leading=False)


def test_leadership_lost_in_the_middle_leaves_nothing_half_done() -> None:
    async def scenario(rig: Rig) -> None:
        rig.linter.lasts_s = 5.0
        await rig.put("orders/1", PLAIN)
        rig.admission.want({("orders", "1"): record()})
        for pause_s in (0.0, 0.001, 1.0):
            leading = asyncio.create_task(rig.admission.run())
            await asyncio.sleep(pause_s)
            leading.cancel()
            await asyncio.wait([leading])
        leading = asyncio.create_task(rig.admission.run())
        assert isinstance(await rig.candidate(), Ready)
        leading.cancel()
        await asyncio.wait([leading])

    simulate(scenario, leading=False)


def test_a_known_bundle_is_not_stored_again() -> None:
    async def scenario(rig: Rig) -> None:
        await rig.put("orders/1", PLAIN)
        rig.admission.want({("orders", "1"): record()})
        found = await rig.candidate()
        assert rig.puts == 1
        rig.bundles.add(found.pin.digest)
        rig.admission.want({})
        rig.admission.want({("orders", "1"): record()})
        assert await rig.candidate() == found
        assert rig.puts == 1

    simulate(scenario)


def test_many_are_looked_at_a_few_at_a_time() -> None:
    async def scenario(rig: Rig) -> None:
        wanted = {}
        for number in range(200):
            await rig.put(f"p{number}/1", PLAIN + b"# %d\n" % number)
            wanted[f"p{number}", "1"] = record(f"p{number}")
        rig.linter.running_max = 0
        rig.admission.want(wanted)
        while len(rig.admission.candidates()) < 200:
            await rig.change()
        assert all(isinstance(found, Ready) for found in rig.admission.candidates().values())
        assert rig.linter.running_max <= JOBS_MAX

    simulate(scenario)


def test_names_that_are_no_versions_are_passed_over() -> None:
    async def scenario(rig: Rig) -> None:
        for name in ("readme", "Orders/1", "orders/a b", "orders/../x", "/", "orders/"):
            await rig.put(name, PLAIN)
        await asyncio.sleep(5.0)
        assert rig.reads == []

    simulate(scenario)


def test_a_quiet_admission_does_nothing() -> None:
    async def scenario(rig: Rig) -> None:
        await rig.put("orders/1", PLAIN)
        rig.admission.want({("orders", "1"): record()})
        await rig.candidate()
        rig.admission.take_changes()
        before = (len(rig.reads), rig.puts, len(rig.linter.linted))
        await asyncio.sleep(1200.0)
        assert (len(rig.reads), rig.puts, len(rig.linter.linted)) == before
        assert rig.admission.take_changes() == {}

    simulate(scenario)


def test_a_lost_bundle_is_restored_from_the_object_that_was_pinned() -> None:
    async def scenario(rig: Rig) -> None:
        await rig.put("orders/1", PLAIN)
        rig.admission.want({("orders", "1"): record(env={"A": "1"})})
        pin = (await rig.candidate()).pin
        await rig.user.delete_object(KEYS.bundles, pin.digest)
        assert await rig.admission.restore(pin)
        assert await rig.user.get_object(KEYS.bundles, pin.digest, bytes_max=10**8)
        await rig.put("orders/1", PLAIN + b"# edited")
        assert not await rig.admission.restore(pin)
        await rig.user.delete_object(KEYS.configs, "orders/1")
        assert not await rig.admission.restore(pin)

    simulate(scenario)


# --- the pure part


CONFIGURATION = read_configuration(b"input: {nats: {queue: q}}\n")


@pytest.mark.parametrize(
    ("overlap", "expected", "reason"),
    [
        ("auto", Overlap.SHAREABLE, "nats with a queue"),
        ("forbid", Overlap.EXCLUSIVE, "the record says 'overlap: forbid'"),
        ("allow", Overlap.SHAREABLE, "the record says 'overlap: allow'"),
    ],
)
def test_the_record_overrides_what_is_derived(overlap: str, expected: Overlap, reason: str) -> None:
    found = admit(record(overlap=overlap), CONFIGURATION, derive(CONFIGURATION), ())
    assert not isinstance(found, Rejected)
    assert found.pin.overlap is expected
    assert reason in found.pin.overlap_reason


def test_requests_and_volumes_as_the_planner_counts_them() -> None:
    wanted = record(volumes=["/a:/x", "/b:/y:ro", "/a:/z"], resources={"memory": 0})
    found = admit(wanted, CONFIGURATION, derive(CONFIGURATION), ())
    assert not isinstance(found, Rejected)
    assert (found.pin.volumes, found.pin.memory_bytes, found.pin.cpu) == (("/a", "/b"), 0, 0.0)
    least = admit(record(), CONFIGURATION, derive(CONFIGURATION), ())
    assert not isinstance(least, Rejected)
    assert least.pin.memory_bytes == 64 * 2**20


def test_many_complaints_are_shortened() -> None:
    found = admit(record(), CONFIGURATION, derive(CONFIGURATION), [f"line {n}" for n in range(50)])
    assert isinstance(found, Rejected)
    assert len(found.problems) == 11
    assert found.problems[-1] == "and 40 more of this kind"


def test_components_of_another_image_are_not_held_against_it() -> None:
    complaints = ("pipeline.yaml line 2: unable to infer input type from candidates: [aws_s3]",)
    assert isinstance(admit(record(), CONFIGURATION, derive(CONFIGURATION), complaints), Rejected)
    assert not isinstance(admit(record(image="mine"), CONFIGURATION, derive(CONFIGURATION), complaints), Rejected)
    typo = ("pipeline.yaml line 2: field foo not recognised",)
    assert isinstance(admit(record(image="mine"), CONFIGURATION, derive(CONFIGURATION), typo), Rejected)


def test_a_bundle_is_rebuilt_only_if_it_is_the_same() -> None:
    found = admit(record(env={"A": "1"}), CONFIGURATION, derive(CONFIGURATION), ())
    assert not isinstance(found, Rejected)
    assert rebuild(found.pin, CONFIGURATION) == found.bundle
    assert rebuild(found.pin, read_configuration(b"input: {nats: {queue: r}}\n")) is None


def test_rejected_keeps_every_problem() -> None:
    with pytest.raises(BadInput) as refusal:
        read_configuration(b"- a")
    assert rejected(refusal.value).problems == tuple(str(found) for found in refusal.value.problems)
