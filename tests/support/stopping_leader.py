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
from scheduler.takeover import draft
from shared.clock import SystemClock
from shared.connection import ConnectionSettings
from shared.keys import JOURNAL, LEASE, Keys, assign_key
from shared.nats_store import connect
from shared.store import Write

HOSTS = 4  # so a batch has five messages, the journal's included
MESSAGES = HOSTS + 1


def batch(plan: int, who: str) -> Batch:
    """What a commit of plan `plan` writes: one document per host, which names its writer."""
    value = json.dumps({"who": who, "plan": plan}).encode()
    return Batch(plan, tuple(Write(assign_key(f"h{number}"), value) for number in range(HOSTS)))


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
    lease, journal = await store.read(keys.control, LEASE), await store.read(keys.control, JOURNAL)
    takeover = draft(lease, journal, holder="stopping", name="stopping", store_id=secrets.token_hex(8))
    won = takeover.won(await store.commit(keys.control, takeover.writes(secrets.token_hex(8))) + 1)
    chain = Chain(won.store_id, won.term, won.holder, won.term)
    committer = Journal(store, keys.control, SystemClock(), chain, token=lambda: secrets.token_hex(8))
    for plan in (won.plan + 1, won.plan + 2, won.plan + 3):
        if plan == won.plan + 2:
            if step == 0:
                stop()
            else:
                stop_after(step)
        outcome = await committer.commit(batch(plan, "stopping"))
        if plan == won.plan + 2 and step == MESSAGES + 1:
            stop()
        deposed = isinstance(outcome, Deposed)
        line = {"plan": plan, "deposed": deposed, "revision": 0 if isinstance(outcome, Deposed) else outcome.revision}
        print(json.dumps(line), flush=True)
        if deposed:
            break
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
