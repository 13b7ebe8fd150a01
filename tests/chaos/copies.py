"""Messages from stream to stream: what a source stream has acknowledged must be in the target stream in the end.

The program publishes numbers into replicated streams, repeating each until it is acknowledged (under a message id, so
that the source holds it once). Pipelines copy them. A number that was acknowledged and is not in the target at the end
is lost; one that is there more often than once is a duplicate, which at-least-once delivery allows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import nats
import nats.errors
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, StreamConfig

from shared.connection import ConnectionSettings
from shared.errors import StoreError
from shared.nats_store import NatsStore, connect
from tests.support.patience import surely

PERIOD_S = 0.05  # between two numbers of one source
ACK_WAIT_S = 10.0  # after which what a lost copy had in its hands is handed to another one
PENDING_MAX = 256
BATCH = 500


@dataclass
class Copy:
    """One pair of streams with a durable consumer that exists before its pipeline. `group`: pushed to a group."""

    name: str
    group: bool
    acknowledged: int = 0  # numbers 1 to this one are in the source
    grew_s: float = 0.0  # monotonic time at which the target was last seen to have grown
    size: int = 0  # of the target, when it was last seen

    @property
    def source(self) -> str:
        return f"SOURCE-{self.name}"

    @property
    def target(self) -> str:
        return f"TARGET-{self.name}"

    def configuration(self) -> str:
        """The pipeline that copies."""
        queue = "queue: copy" if self.group else ""
        return f"""input:
  nats_jetstream:
    urls: [ "${{NATS_URL}}" ]
    stream: {self.source}
    durable: copy
    {queue}
    bind: true
    subject: source.{self.name}
    deliver: all
    ack_wait: {ACK_WAIT_S:g}s
    max_ack_pending: {PENDING_MAX}
output:
  retry:
    backoff: {{ initial_interval: 200ms, max_interval: 2s }}
    output:
      nats_jetstream:
        urls: [ "${{NATS_URL}}" ]
        subject: target.{self.name}
"""


@dataclass
class Verdict:
    """What became of all numbers of one copy."""

    published: int
    lost: list[int]
    duplicates: int


@dataclass
class Copies:
    """All pairs of streams, and the connections that write to them and look at them."""

    copies: Sequence[Copy]
    client: Client
    store: NatsStore
    stopped: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    async def connect(cls, copies: Sequence[Copy], urls: Sequence[str]) -> Copies:
        client = await nats.connect(
            list(urls),
            name="chaos",
            ping_interval=1,
            max_outstanding_pings=2,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.2,
            connect_timeout=1,
            error_cb=_ignore,
        )
        return cls(copies, client, await connect(ConnectionSettings(servers=tuple(urls)), name="chaos-publisher"))

    async def close(self) -> None:
        await self.store.close()
        await self.client.close()

    async def create(self) -> None:
        """Streams and consumers, on three servers."""
        jetstream = self.client.jetstream(timeout=5)
        for copy in self.copies:
            for name, subject in ((copy.source, f"source.{copy.name}"), (copy.target, f"target.{copy.name}")):
                stream = StreamConfig(name=name, subjects=[subject], num_replicas=3)
                await surely(lambda stream=stream: jetstream.add_stream(stream), f"stream {name}")  # type: ignore[misc]
            consumer = ConsumerConfig(
                durable_name="copy",
                deliver_subject=f"deliver.{copy.name}" if copy.group else None,
                deliver_group="copy" if copy.group else None,
                deliver_policy=DeliverPolicy.ALL,
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=ACK_WAIT_S,
                max_ack_pending=PENDING_MAX,
                filter_subject=f"source.{copy.name}",
            )
            await surely(
                lambda copy=copy, consumer=consumer: jetstream.add_consumer(copy.source, consumer),  # type: ignore[misc]
                f"consumer of {copy.source}",
            )

    async def publish(self) -> None:
        """Publish into every source, one number after the other, until `stopped`."""
        async with asyncio.TaskGroup() as group:
            for copy in self.copies:
                group.create_task(self._publish(copy), name=f"publish {copy.name}")

    async def _publish(self, copy: Copy) -> None:
        while not self.stopped.is_set():
            number = copy.acknowledged + 1
            try:
                await self.store.append(
                    f"source.{copy.name}", b"%d" % number, message_id=f"{copy.name}-{number}", timeout=2.0
                )
            except StoreError:
                await asyncio.sleep(PERIOD_S)  # not stored, or unknown: again, under the same message id
                continue
            copy.acknowledged = number
            await asyncio.sleep(PERIOD_S)

    async def look(self) -> None:
        """See how far the targets have grown."""
        jetstream = self.client.jetstream(timeout=2)
        for copy in self.copies:
            try:
                size = (await jetstream.stream_info(copy.target)).state.messages
            except (nats.errors.Error, TimeoutError):
                continue
            if size != copy.size:
                copy.size, copy.grew_s = size, time.monotonic()

    async def undelivered(self) -> int:
        """How many messages wait for a pipeline, or for its acknowledgement."""
        jetstream = self.client.jetstream(timeout=5)
        total = 0
        for copy in self.copies:
            info = await surely(lambda copy=copy: jetstream.consumer_info(copy.source, "copy"), "consumer info")  # type: ignore[misc]
            total += (info.num_pending or 0) + (info.num_ack_pending or 0)
        return total

    async def judge(self, copy: Copy) -> Verdict:
        """Read the whole target."""
        jetstream = self.client.jetstream(timeout=5)
        reader = await jetstream.pull_subscribe(f"target.{copy.name}", stream=copy.target)
        state = await surely(lambda: jetstream.stream_info(copy.target), "stream info")
        numbers: dict[int, int] = {}  # by sequence in the target: what is fetched twice counts once
        while len(numbers) < state.state.messages:
            for message in await surely(lambda: reader.fetch(BATCH, timeout=5), "reading a target stream"):
                numbers[message.metadata.sequence.stream] = int(message.data)
                await message.ack()
        seen = set(numbers.values())
        lost = [number for number in range(1, copy.acknowledged + 1) if number not in seen]
        return Verdict(copy.acknowledged, lost, len(numbers) - len(seen))


async def _ignore(_: Exception) -> None:
    """Faults are what this is about; the client reconnects."""
