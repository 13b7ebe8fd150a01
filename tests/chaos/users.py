"""What users publish and edit, and whether the cluster does what they want now.

`solo-*`    exclusive, one slot, stops at the end of its host's lease (the default)
`sharded`   exclusive (`overlap: forbid`), three slots
`stay`      exclusive with `on_partition: continue`: never elsewhere for silence
`edited`    exclusive; new versions, paused, drafted
`copy-*`    shareable, from stream to stream; scaled, paused, restarted
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shared.documents import Assignment, Heartbeat, Status, decode, encode
from shared.errors import StoreError
from shared.intents import HostIntent, RestartIntent
from shared.keys import PULSE, Keys, assign_key, host_intent_key, object_name, restart_intent_key, status_key
from shared.nats_store import NatsStore
from shared.states import State
from shared.store import Change
from tests.chaos.copies import Copies
from tests.chaos.ledger import Ledger
from tests.support.patience import surely

FRESH_S = 1.5  # an exclusive slot that sends ten times a second has sent within this, or stands still
SILENT_S = 3.0  # heartbeats are written each second, pulses twice
FLOWS_S = 2.5  # a target stream that grows twenty times a second, looked at every quarter of a second on a busy machine
RESTART = {"delay_s": 0.5, "delay_max_s": 4.0, "reset_after_s": 10.0}
REPLICAS_MAX = 3


@dataclass
class Users:
    """All records, as they were written last."""

    store: NatsStore
    keys: Keys
    ledger: Ledger
    copies: Copies
    hosts: Sequence[str]
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    revisions: dict[str, int] = field(default_factory=dict)
    _written: dict[tuple[str, str], int] = field(default_factory=dict)  # revision by bucket and key
    _heard_s: dict[str, float] = field(default_factory=dict)  # by key of the hosts bucket

    async def publish_all(self, solos: int) -> None:
        for number in range(1, solos + 1):
            await self._publish(f"solo-{number}", self.ledger.configuration())
        await self._publish("sharded", self.ledger.configuration(), overlap="forbid", replicas=3)
        await self._publish("stay", self.ledger.configuration(), on_partition="continue")
        await self._publish("edited", self.ledger.configuration())
        for copy in self.copies.copies:
            await self._publish(f"copy-{copy.name}", copy.configuration(), replicas=2)

    async def _publish(self, pipeline: str, configuration: str, **fields: Any) -> None:
        await self._configure(pipeline, "1", configuration)
        self.records[pipeline] = {
            "id": pipeline,
            "status": "published",
            "version": "1",
            "restart": RESTART,
            **fields,
        }
        await self._write(pipeline)

    # --- edits

    async def new_version(self, pipeline: str) -> None:
        version = str(int(self.records[pipeline]["version"]) + 1)
        await self._configure(pipeline, version, f"# {version}\n" + self._configuration(pipeline))
        await self.edit(pipeline, version=version)

    async def edit(self, pipeline: str, **fields: Any) -> None:
        """Change fields of a record."""
        self.records[pipeline] |= fields
        await self._write(pipeline)

    async def delete(self, pipeline: str) -> None:
        """Delete its record, until it is edited again."""
        self.records[pipeline]["status"] = "draft"  # there shall be as little of it as of a draft
        self.revisions[pipeline] = await self._put(self.keys.pipelines, pipeline, None)

    async def restart(self, pipeline: str) -> None:
        intent = encode(RestartIntent(reason="chaos"))
        await self._put(self.keys.operator, restart_intent_key(pipeline), intent)

    async def drain(self, host: str, drain: bool) -> None:
        """Take a host out of service, or put it back."""
        intent = encode(HostIntent(cordon=True, drain=True, reason="chaos")) if drain else None
        await self._put(self.keys.operator, host_intent_key(host), intent)

    async def confirm_dead(self, host: str) -> None:
        """Say that what the host's document was made for does not run any more."""
        entry = await surely(lambda: self.store.read(self.keys.control, assign_key(host)), f"assignment of {host}")
        beat = await surely(lambda: self.store.read(self.keys.hosts, host), f"heartbeat of {host}")
        if entry.value is not None:
            session = decode(Assignment, entry.value).session
            heard = None if beat.value is None else decode(Heartbeat, beat.value)
            sequence = heard.sequence if heard is not None and heard.session == session else 0
            intent = encode(HostIntent(confirm_dead=True, session=session, sequence=sequence, reason="chaos"))
            await self._put(self.keys.operator, host_intent_key(host), intent)

    async def delete_all(self) -> None:
        for pipeline in self.records:
            await self._put(self.keys.pipelines, pipeline, None)

    # --- what there is

    @property
    def slots(self) -> dict[str, str]:
        """Pipeline of every exclusive slot that shall run now."""
        return {
            f"{pipeline}.{slot}": pipeline
            for pipeline, record in self.records.items()
            if not pipeline.startswith("copy-") and record["status"] == "published"
            for slot in range(record.get("replicas", 1))
        }

    async def unwell(self) -> str:
        """What is not yet as it shall be, in words; "" if all is well."""
        for name in (PULSE, *self.hosts):
            if time.monotonic() - self._heard_s.get(name, 0.0) > SILENT_S:
                return f"{name} is not heard"
        for pipeline, record in self.records.items():
            wrong = await self._wrong(pipeline, record)
            if wrong:
                return wrong
        self.ledger.read()
        now_s = time.time()
        for slot in self.slots:
            age_s = now_s - self.ledger.newest_s(slot)
            if age_s > FRESH_S:
                return f"{slot} sends nothing"
        await self.copies.look()
        for copy in self.copies.copies:
            wanted = self.records[f"copy-{copy.name}"]["status"] == "published"
            if wanted and time.monotonic() - copy.grew_s > FLOWS_S:
                return f"{copy.target} does not grow"
        return ""

    async def gone(self) -> str:
        """What is left of pipelines that were deleted, in words."""
        for pipeline in self.records:
            try:
                if (await self.store.read(self.keys.control, status_key(pipeline))).value is not None:
                    return f"status of {pipeline} is left"
            except StoreError as error:
                return str(error)
        return ""

    async def listen(self) -> None:
        """Note when each host, and the leader, is heard; for ever."""
        async for item in self.store.watch(self.keys.hosts):
            if isinstance(item, Change):
                self._heard_s[item.entry.key] = time.monotonic()

    async def _wrong(self, pipeline: str, record: Mapping[str, Any]) -> str:
        try:
            entry = await self.store.read(self.keys.control, status_key(pipeline))
        except StoreError as error:
            return f"the store: {error}"
        if record["status"] == "draft":
            return f"{pipeline} still has a status" if entry.value is not None else ""
        if entry.value is None:
            return f"{pipeline} has no status"
        status = decode(Status, entry.value)
        wanted = State.PAUSED if record["status"] == "paused" else State.RUNNING
        if status.record < self.revisions[pipeline]:
            return f"the status of {pipeline} is older than its record"
        if (status.state, status.version) != (wanted, record["version"]):
            return f"{pipeline} is {status.state} with version {status.version}: {status.reason}"
        return ""

    async def _write(self, pipeline: str) -> None:
        data = json.dumps(self.records[pipeline]).encode()
        self.revisions[pipeline] = await self._put(self.keys.pipelines, pipeline, data)

    async def _put(self, bucket: str, key: str, data: bytes | None) -> int:
        """Write a key by compare-and-set, and its revision.

        A write whose answer is lost may be stuck in a frozen server, which forwards it when it thaws. Without an
        expectation it would then win over everything that users wrote since.
        """

        async def attempt() -> int:
            entry = await self.store.read(bucket, key)
            if entry.value == data and entry.revision > self._written.get((bucket, key), 0):
                return entry.revision  # an earlier attempt that seemed lost
            return await self.store.write(bucket, key, data, expected=entry.revision)

        revision = await surely(attempt, f"write {key} in {bucket}")
        self._written[bucket, key] = revision
        return revision

    async def _configure(self, pipeline: str, version: str, text: str) -> None:
        name = object_name(pipeline, version)
        await surely(lambda: self.store.put_object(self.keys.configs, name, text.encode()), f"configuration {name}")

    def _configuration(self, pipeline: str) -> str:
        for copy in self.copies.copies:
            if pipeline == f"copy-{copy.name}":
                return copy.configuration()
        return self.ledger.configuration()
