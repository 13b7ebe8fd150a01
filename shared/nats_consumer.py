"""An ephemeral push consumer on one connection: what watches, object reads and histories are made of.

Fresh name each time (the server may still hold a former one), created through the extended subject (permissions can
see its filter), in memory with one replica, removed by name when closed and by the server 5 s after its client is gone.
Every message's consumer sequence is checked, and every heartbeat's: a gap, silence, or the end of the connection breaks
it for good; whoever uses it starts a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import nats.errors
from nats.aio.msg import Msg

from shared.errors import StoreError, StoreUnavailable
from shared.nats_connection import LATE_S, Connection
from shared.nats_link import Link

HEARTBEAT_S = 1.0
SILENCE_S = 2.5  # two missed heartbeats and a margin
INACTIVE_S = 5.0  # the server removes a consumer whose client is gone after this
CREATE_TIMEOUT_S = 2.0  # a fresh consumer may be placed on a frozen server; the next attempt is placed anew
CREATE_MAX_S = 60.0
_NS = 1_000_000_000
_DELIVERED = "$JS.ACK."


class Consumer:
    """Delivers the messages of `stream` under `subject` to `take(msg, sequence)`, which runs on arrival, only to store.

    `policy` says where to begin (`deliver_policy` and what belongs to it). While `room()` is false the server's flow
    control is not answered, so that a slow reader holds the server back instead of filling memory (what is already
    under way, at most 32 MB, still arrives).
    """

    def __init__(
        self,
        connection: Connection,
        stream: str,
        subject: str,
        policy: Mapping[str, Any],
        take: Callable[[Msg, int], None],
        *,
        room: Callable[[], bool] = lambda: True,
    ) -> None:
        self.broken = ""  # why, once it is
        self.found = 0  # how many messages there were when it was created, as its replica knew
        self.pending = 0  # what the server had left to deliver after the last message, as its replica knew
        self._connection = connection
        self._stream = stream
        self._subject = subject
        self._policy = policy
        self._take = take
        self._room = room
        self._name = f"shoal-{secrets.token_hex(8)}"
        self._subscription: Any = None
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()
        self.advanced = self._heard  # loop time of the last message
        self._delivered = 0  # the consumer's own sequence
        self._wake = asyncio.Event()
        self._withheld = ""  # subject of the flow control answer that waits for room
        connection.lost.add_done_callback(self._on_lost)

    async def start(self, link: Link) -> None:
        """Create it. Raises StoreUnavailable, Missing (no such stream)."""
        client = self._connection.client
        inbox = client.new_inbox()
        # No client-side limits: flow control bounds what is under way, and a client that drops messages would only
        # see a gap and begin again, for ever.
        try:
            self._subscription = await client.subscribe(
                inbox, cb=self._deliver, pending_msgs_limit=0, pending_bytes_limit=0
            )
        except nats.errors.Error as error:
            raise StoreUnavailable(f"{self._stream}: {error}") from error
        config = {
            "name": self._name,
            "deliver_subject": inbox,
            "ack_policy": "none",
            "replay_policy": "instant",
            "filter_subject": self._subject,
            "flow_control": True,
            "idle_heartbeat": int(HEARTBEAT_S * _NS),
            "inactive_threshold": int(INACTIVE_S * _NS),
            "mem_storage": True,
            "num_replicas": 1,
            **self._policy,
        }
        answer = await self._created(
            link.api(
                f"CONSUMER.CREATE.{self._stream}.{self._name}.{self._subject}",
                {"stream_name": self._stream, "config": config, "action": "create"},
                timeout=CREATE_MAX_S,
            )
        )
        self.found = int(answer.get("num_pending", 0))
        if self._delivered == 0:
            self.pending = self.found
        self._heard = self.advanced = self._loop.time()

    async def close(self, link: Link) -> None:
        """Delete it by name; what cannot be reached now the server removes by itself."""
        self._connection.lost.remove_done_callback(self._on_lost)
        self.broken = self.broken or "closed"
        if self._subscription is not None:
            with contextlib.suppress(nats.errors.Error, OSError):
                await self._subscription.unsubscribe()
        with contextlib.suppress(StoreError):
            await link.publish(f"$JS.API.CONSUMER.DELETE.{self._stream}.{self._name}", reply=link.discard())

    def wake(self) -> None:
        """End a `wait`."""
        self._wake.set()

    async def wait(self, until: float) -> None:
        """Wait for `wake` or a break, at most until loop time `until`; breaks the consumer when it falls silent."""
        self._wake.clear()
        if self.broken:
            return
        due = min(until, self._heard + SILENCE_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(due):
                await self._wake.wait()
            return
        if self._loop.time() > due + LATE_S:
            # This process was held up, not the server: let what waits in the socket be read before judging.
            self._heard = self.advanced = self._loop.time()
        elif self._loop.time() >= self._heard + SILENCE_S:
            self._break(f"nothing heard for {SILENCE_S:g} s")

    async def resume(self) -> None:
        """There is room again: answer the flow control that was withheld."""
        if self._withheld:
            reply, self._withheld = self._withheld, ""
            await self._answer(reply)

    async def _created(self, request: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
        """The answer to the creation. It may stand behind megabytes of messages that the consumer already sends: as
        long as they come, it is waited for."""
        answer = asyncio.create_task(request, name=f"create {self._name}")
        self.advanced = self._loop.time()
        try:
            while not answer.done():
                due = self._loop.time() + CREATE_TIMEOUT_S
                await asyncio.wait({answer}, timeout=CREATE_TIMEOUT_S)
                late = self._loop.time() >= due + LATE_S
                if not (answer.done() or late) and self._loop.time() >= self.advanced + CREATE_TIMEOUT_S:
                    raise StoreUnavailable(f"{self._stream}: no consumer in {CREATE_TIMEOUT_S:g} s")
            return await answer
        finally:
            answer.cancel()

    # --- what arrives

    async def _deliver(self, msg: Msg) -> None:
        if self.broken:
            return
        self._heard = self._loop.time()
        # Only what the server delivers from the stream has such a reply subject. The headers prove nothing: whoever
        # stores a message may give it those of the server's own words.
        if not msg.reply.startswith(_DELIVERED):
            if msg.headers is not None and "Status" in msg.headers:
                await self._control(msg, msg.headers)
            return
        parts = msg.reply.split(".")
        # $JS.ACK.<stream>.<consumer>.<delivered>.<stream sequence>.<consumer sequence>.<time>.<pending>, and with a
        # domain and an account before the stream (and a token at the end) in the longer form.
        at = 5 if len(parts) == 9 else 7
        if len(parts) < 9 or int(parts[at + 1]) != self._delivered + 1:
            self._break("a message of the consumer is missing")
            return
        self._delivered += 1
        self.advanced = self._heard
        self.pending = int(parts[at + 3])
        self._take(msg, int(parts[at]))

    async def _control(self, msg: Msg, headers: Mapping[str, str]) -> None:
        if headers["Status"] != "100":
            self._break(f"the server ended the consumer: {headers['Status']} {headers.get('Description', '')}")
            return
        # A flow control request carries its answer's subject as reply; a heartbeat of a consumer that stalled for want
        # of that answer carries it in a header.
        reply = msg.reply or headers.get("Nats-Consumer-Stalled", "")
        if reply:
            if self._room():
                await self._answer(reply)
            else:
                self._withheld = reply
        last = headers.get("Nats-Last-Consumer")
        if last is not None and int(last) != self._delivered:
            self._break("a heartbeat tells of messages that never arrived")

    async def _answer(self, reply: str) -> None:
        with contextlib.suppress(nats.errors.Error, OSError):  # a lost connection breaks the consumer by itself
            await self._connection.client.publish(reply)

    def _on_lost(self, lost: asyncio.Future[str]) -> None:
        self._break(lost.result())

    def _break(self, reason: str) -> None:
        self.broken = self.broken or reason
        self._wake.set()
