"""A leader that stops itself (SIGSTOP) at one step of a commit: run by tests/e2e/test_fencing.py as a child process.

    python -m tests.support.stopping_leader URL CLUSTER STEP

It takes over, commits plan 2, and stops itself at STEP of committing plan 3: 0 before anything is sent, n > 0 just
after message n of the batch was written to the connection, one more than there are messages: after the commit has
returned.
Then it goes on as a leader that knows nothing of the pause, and prints one line of JSON per commit.
"""

import asyncio
import json
import os
import secrets
import signal
import sys
from typing import Any

from nats.aio.client import Client

from scheduler.journal import Batch, Chain, Deposed, Journal
from scheduler.takeover import draft, former_term
from shared.clock import SystemClock
from shared.connection import ConnectionSettings
from shared.keys import JOURNAL, LEASE, Keys, assign_key
from shared.nats_store import NatsStore, connect
from shared.store import Entry, Write
from tests.support.patience import patiently

HOSTS = 4  # so a batch has six messages, with the journal and the key of the term
MESSAGES = HOSTS + 2


def batch(plan: int, who: str) -> Batch:
    """What a commit of plan `plan` writes: one document per host, which names its writer."""
    value = json.dumps({"who": who, "plan": plan}).encode()
    return Batch(plan, tuple(Write(assign_key(f"h{number}"), value) for number in range(HOSTS)))


async def take_over(store: NatsStore, keys: Keys, name: str) -> Journal:
    """The journal of a new leader, whose takeover has landed."""
    lease, journal = await store.read(keys.control, LEASE), await store.read(keys.control, JOURNAL)
    key = former_term(journal)
    former = await store.read(keys.control, key) if key else None
    takeover, attempt = draft(lease, journal, former, holder=name, name=name), secrets.token_hex(8)
    writes = takeover.writes(attempt)
    won = takeover.won(attempt, await patiently(lambda: store.commit(keys.control, writes), "a takeover") + 1)
    chain = Chain(won.store_id, won.term, won.term_id, won.holder, won.term)
    return Journal(store, keys.control, SystemClock(), chain, token=lambda: secrets.token_hex(8))


async def assignments(store: NatsStore, keys: Keys) -> list[Entry]:
    """What `batch` writes, as it is now."""
    return [await store.read(keys.control, assign_key(f"h{number}")) for number in range(HOSTS)]


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def stop_after(step: int) -> None:
    """From now on stop just after message `step` of a batch was handed to the kernel, before any answer is read."""
    publish = Client.publish

    async def stopping(self: Client, subject: str, payload: bytes = b"", reply: str = "", headers: Any = None) -> None:
        await publish(self, subject, payload, reply, headers)
        if headers and headers.get("Nats-Batch-Sequence") == str(step):
            while self._pending_data_size > 0:  # noqa: ASYNC110 - until the flusher has written it
                await asyncio.sleep(0)
            Client.publish = publish  # type: ignore[method-assign]
            stop()

    Client.publish = stopping  # type: ignore[method-assign]


async def main(url: str, cluster: str, step: int) -> None:
    keys = Keys(cluster)
    store = await connect(ConnectionSettings(servers=tuple(url.split(","))), name="stopping")
    committer = await take_over(store, keys, "stopping")
    for plan in (2, 3, 4):
        if plan == 3:
            if step == 0:
                stop()
            else:
                stop_after(step)
        outcome = await committer.commit(batch(plan, "stopping"))
        if plan == 3 and step == MESSAGES + 1:
            stop()
        deposed = isinstance(outcome, Deposed)
        line = {"plan": plan, "deposed": deposed, "revision": 0 if isinstance(outcome, Deposed) else outcome.revision}
        print(json.dumps(line), flush=True)
        if deposed:
            break
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
