"""What people do to a cluster, at any moment: users edit records and configurations, operators cordon and drain.

They only write to the store, as anybody with the `nats` CLI could. What they know to be true (which bytes are a valid
record, which configuration is good, which pipeline must not run twice) is what the checkers judge the cluster by, so it
is said here a second time and never asked of the product.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from shared.documents import Session, encode
from shared.errors import StoreError
from shared.intents import HostIntent, RestartIntent
from shared.keys import Keys, host_intent_key, object_name, restart_intent_key
from tests.sim.virtual_time import VirtualClock
from tests.support.fake_store import FakeStore

PIPELINES = tuple(f"p{n}" for n in range(5))
SLOTS_MAX = 4  # of one pipeline
VERSIONS = ("1", "2", "3", "4")
ZONES = ("a", "b")
LINT_WORD = "no_such_component"  # the simulated lint refuses what holds it

_INPUTS = {
    "exclusive": "generate:\n    interval: 1s\n    mapping: root = 1",
    "sharded": "generate:\n    interval: 1s\n    mapping: root = 1",
    "shareable": "nats_jetstream:\n    urls: ['nats://x:1']\n    queue: q\n    durable: d",
}


class Users:
    """All people of one simulated cluster, in turns."""

    def __init__(self, store: FakeStore, keys: Keys, clock: VirtualClock, *, seed: int, hosts: list[str]) -> None:
        self._store, self._keys, self._clock = store, keys, clock
        self._chance = random.Random(f"users/{seed}")
        self._hosts = hosts
        self._serial = 0
        self._plain = False  # records without random fields
        self.kinds = {
            pipeline: self._chance.choice(sorted(_INPUTS)) for pipeline in PIPELINES[: self._chance.randint(2, 5)]
        }
        self.records: dict[str, dict[str, Any] | None] = dict.fromkeys(self.kinds)
        self.invalid: set[bytes] = set()
        self.said: dict[tuple[str, str], set[bool]] = {}  # by version: whether its records said that it must run alone
        self.good: dict[tuple[str, str], set[str]] = {}  # digests of good configurations ever stored under a name
        self.intents: dict[str, HostIntent] = {}
        self.story: Callable[[str], None] = lambda _line: None
        self.actions: dict[str, tuple[int, Callable[[str], Awaitable[None]]]] = {
            "publish": (6, self._publish),
            "publish before its configuration": (2, self._publish_early),
            "publish a bad configuration": (2, self._publish_bad),
            "pause or resume": (4, self._pause_or_resume),
            "draft": (1, self._draft),
            "delete": (2, self._delete),
            "scale": (3, self._scale),
            "place": (2, self._place),
            "write nonsense": (2, self._nonsense),
            "overwrite its configuration": (1, self._overwrite),
            "delete its configuration": (1, self._delete_configuration),
            "edit what is captured": (1, self._edit_captured),
            "restart": (2, self._restart),
            "cordon or drain": (3, self._intent),
        }

    def have(self, kinds: Mapping[str, str]) -> None:
        """These pipelines instead of random ones."""
        self.kinds, self._plain = dict(kinds), True
        self.records = dict.fromkeys(self.kinds)

    async def intend(self, host: str, intent: HostIntent) -> None:
        """One word of an operator that is not random."""
        await self._put_intent(host, intent)

    async def edit(self, pipeline: str, **changes: Any) -> None:
        """One edit that is not random."""
        await self._edit(pipeline, **changes)

    async def restart(self, pipeline: str) -> None:
        """Ask for a restart."""
        await self._restart(pipeline)

    async def write_nonsense(self, pipeline: str) -> None:
        """Overwrite a record with what is none."""
        await self._nonsense(pipeline)

    def exclusive(self, pipeline: str) -> bool:
        """Whether two copies of one slot must never run at once, if its record leaves that to Shoal."""
        return self.kinds[pipeline] != "shareable"

    def alone(self, record: Mapping[str, Any]) -> bool:
        """The same, as a record says."""
        return {"forbid": True, "allow": False}.get(record.get("overlap", "auto"), self.exclusive(record["id"]))

    def meaning(self, data: bytes) -> dict[str, Any] | None:
        """The record that these bytes are; None if they are nonsense."""
        return None if data in self.invalid else json.loads(data)

    async def begin(self) -> None:
        """Publish a few pipelines to begin with."""
        for pipeline in self.kinds:
            await self._publish(pipeline)

    async def act(self) -> None:
        """One random action."""
        names = sorted(self.actions)
        (name,) = self._chance.choices(names, [self.actions[each][0] for each in names])
        pipeline = self._chance.choice(sorted(self.kinds))
        await self.actions[name][1](pipeline)

    async def settle(self) -> None:
        """Make up their minds: most of what is wrong is corrected, some host stays cordoned or drained. What was told
        them to do stays as it is."""
        if self._plain:
            return
        for pipeline, record in self.records.items():
            if record is None or self._chance.random() < 0.1:
                continue
            if not self.good.get((pipeline, record["version"])):
                await self._configure(pipeline, record["version"])
            await self._write(pipeline, record)
        for host in sorted(self.intents):
            if self._chance.random() < 0.7:
                await self._put_intent(host, HostIntent())

    async def write_again(self, pipeline: str) -> None:
        """Write a record again as it was."""
        record = self.records[pipeline]
        if record is not None:
            await self._write(pipeline, record)

    async def change_mind(self, pipeline: str, chance: random.Random) -> None:
        """Say something else of partitions, which acts at once, or of overlaps, in a version of its own."""
        record = self.records[pipeline]
        if record is None:
            return
        if chance.random() < 0.6:
            await self._edit(pipeline, on_partition=chance.choice(("auto", "stop", "continue")))
            return
        overlap = chance.choice(
            {"exclusive": ("auto", "allow"), "sharded": ("forbid", "allow")}.get(
                self.kinds[pipeline], ("auto", "forbid")
            )
        )
        await self.publish_next(pipeline, overlap=overlap)

    async def publish_next(self, pipeline: str, **changes: Any) -> None:
        """A version that was never there before, with these changes to the record."""
        version = self._fresh_version()
        await self._configure(pipeline, version)
        await self._edit(pipeline, version=version, **changes)

    async def confirm_dead(self, host: str, session: Session) -> None:
        """Say that what a host's document was made for runs nothing any more, unless that was said already."""
        known = self.intents.get(host, HostIntent())
        if not (known.confirm_dead and known.session == session):
            await self._put_intent(host, replace(known, confirm_dead=True, session=session))

    # --- actions on one pipeline

    async def _publish(self, pipeline: str) -> None:
        version = self._chance.choice(VERSIONS)
        if (pipeline, version) not in self.good:
            await self._configure(pipeline, version)
        await self._edit(pipeline, status="published", version=version)

    async def _publish_early(self, pipeline: str) -> None:
        version = self._fresh_version()
        await self._edit(pipeline, status="published", version=version)
        await self._clock.sleep(self._chance.uniform(0.2, 4.0))
        await self._configure(pipeline, version)

    async def _publish_bad(self, pipeline: str) -> None:
        version = self._fresh_version()
        bad = [LINT_WORD, "input: [", "- 1", ""]
        await self._put_configuration(pipeline, version, self._chance.choice(bad).encode(), good=False)
        await self._edit(pipeline, status="published", version=version)

    async def _pause_or_resume(self, pipeline: str) -> None:
        record = self.records[pipeline]
        if record is not None:
            await self._edit(pipeline, status="paused" if record["status"] == "published" else "published")

    async def _draft(self, pipeline: str) -> None:
        if self.records[pipeline] is not None:
            await self._edit(pipeline, status="draft")

    async def _delete(self, pipeline: str) -> None:
        self.records[pipeline] = None
        self.story(f"user deletes {pipeline}")
        await self._insist(lambda: self._store.write(self._keys.pipelines, pipeline, None))

    async def _scale(self, pipeline: str) -> None:
        if self.records[pipeline] is not None:
            # An exclusive pipeline with two replicas is refused; it is tried all the same, now and then.
            most = SLOTS_MAX if self.kinds[pipeline] != "exclusive" else self._chance.choice((1, 1, 2))
            await self._edit(pipeline, replicas=self._chance.randint(0 if most > 1 else 1, most))

    async def _place(self, pipeline: str) -> None:
        if self.records[pipeline] is not None:
            wanted = self._chance.choice([{}, {}, {"zone": "a"}, {"zone": "b"}, {"zone": ["a", "b"]}])
            await self._edit(pipeline, placement={"required": wanted})

    async def _nonsense(self, pipeline: str) -> None:
        record = dict(self.records[pipeline] or {"id": pipeline, "status": "published", "version": "1"})
        self._serial += 1
        shapes = [
            b"{ not json %d" % self._serial,
            json.dumps({**record, "replica": self._serial}).encode(),
            json.dumps({**record, "replicas": f"many {self._serial}"}).encode(),
            json.dumps({**record, "status": f"running {self._serial}"}).encode(),
            json.dumps({**record, "id": "someone-else", "name": str(self._serial)}).encode(),
            json.dumps([self._serial]).encode(),
        ]
        data = self._chance.choice(shapes)
        self.invalid.add(data)
        self.story(f"user writes nonsense over {pipeline}: {data[:60]!r}")
        await self._insist(lambda: self._store.write(self._keys.pipelines, pipeline, data))

    async def _overwrite(self, pipeline: str) -> None:
        known = sorted(version for owner, version in self.good if owner == pipeline)
        if known:
            await self._configure(pipeline, self._chance.choice(known))

    async def _delete_configuration(self, pipeline: str) -> None:
        record = self.records[pipeline]
        if record is not None:
            name = object_name(pipeline, record["version"])
            self.story(f"user deletes the configuration {name}")
            # Once it is gone the version may still be pinned, or not; `good` says which bytes it may be.
            self.good.pop((pipeline, record["version"]), None)
            await self._insist(lambda: self._store.delete_object(self._keys.configs, name))

    async def _edit_captured(self, pipeline: str) -> None:
        if self.records[pipeline] is not None:
            self._serial += 1
            await self._edit(pipeline, env={"N": str(self._serial)})

    async def _restart(self, pipeline: str) -> None:
        self._serial += 1
        self.story(f"user asks for a restart of {pipeline}")
        intent = encode(RestartIntent(reason=str(self._serial)))
        await self._insist(lambda: self._store.write(self._keys.operator, restart_intent_key(pipeline), intent))

    # --- operators

    async def _intent(self, _pipeline: str) -> None:
        host = self._chance.choice(self._hosts)
        choices = [HostIntent(), HostIntent(cordon=True), HostIntent(cordon=True, drain=True), HostIntent(drain=True)]
        await self._put_intent(host, self._chance.choice(choices))

    async def _put_intent(self, host: str, intent: HostIntent) -> None:
        self.intents[host] = intent
        said = {"drain": intent.drain, "cordon": intent.cordon, f"{intent.session} is dead": intent.confirm_dead}
        words = ", ".join(word for word, meant in said.items() if meant)
        self.story(f"operator: {host} {words or 'serves again'}")
        await self._insist(lambda: self._store.write(self._keys.operator, host_intent_key(host), encode(intent)))

    # --- inside

    def _fresh_version(self) -> str:
        self._serial += 1
        return f"v{self._serial}"

    def _new_record(self, pipeline: str) -> dict[str, Any]:
        record: dict[str, Any] = {
            "id": pipeline,
            "status": "draft",
            "version": "1",
            "restart": {"delay_s": 0.5, "delay_max_s": 4, "reset_after_s": 20},
        }
        if self.kinds[pipeline] == "sharded":
            record["overlap"] = "forbid"
        if self.kinds[pipeline] != "exclusive":
            record["replicas"] = self._chance.randint(1, 3)
        if self._plain:
            return record
        if self._chance.random() < 0.1:
            record["on_partition"] = self._chance.choice(("stop", "continue"))
        return record

    async def _edit(self, pipeline: str, **changes: Any) -> None:
        record = {**(self.records[pipeline] or self._new_record(pipeline)), **changes}
        await self._write(pipeline, record)

    async def _write(self, pipeline: str, record: dict[str, Any]) -> None:
        self.records[pipeline] = record
        self.said.setdefault((pipeline, record["version"]), set()).add(self.alone(record))
        data = json.dumps(record).encode()
        self.story(f"user writes {pipeline}: {data.decode()}")
        await self._insist(lambda: self._store.write(self._keys.pipelines, pipeline, data))

    async def _configure(self, pipeline: str, version: str) -> None:
        self._serial += 1
        text = f"# {self._serial}\ninput:\n  {_INPUTS[self.kinds[pipeline]]}\noutput:\n  drop: {{}}\n"
        await self._put_configuration(pipeline, version, text.encode(), good=True)

    async def _put_configuration(self, pipeline: str, version: str, data: bytes, *, good: bool) -> None:
        name = object_name(pipeline, version)
        self.story(f"user stores the {'good' if good else 'bad'} configuration {name}")
        if good:
            self.good.setdefault((pipeline, version), set()).add(hashlib.sha256(data).hexdigest())
        await self._insist(lambda: self._store.put_object(self._keys.configs, name, data))

    async def _insist(self, write: Callable[[], Awaitable[Any]]) -> None:
        """People try again until it works."""
        while True:
            try:
                await write()
                return
            except StoreError:
                await self._clock.sleep(0.5)
