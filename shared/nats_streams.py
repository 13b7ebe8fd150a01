"""Making and checking the streams of a cluster. What they must be: `nats_stream_table`.

Idempotent, and safe while several schedulers start at once: creating with the same configuration is success, creating
over another one is answered 10058, and then the stream is read back and judged like any that was there before. Reading
back is not a formality: an old server drops fields it does not know, silently.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.errors import Busy, Missing, StoreError, StoreUnavailable, Unfit
from shared.keys import Keys
from shared.nats_errors import JETSTREAM_OFF, NO_PEERS, NO_ROOM, STREAM_EXISTS, refusal
from shared.nats_link import Link
from shared.nats_store import NatsStore
from shared.nats_stream_table import Config, Row, Rule, rows
from shared.store import REQUEST_TIMEOUT_S, Store

API_LEVEL_MIN = 2  # NATS 2.12: atomic batches
# A cluster that is just starting elects its leaders in 1 to 10 s; a create may need as long again per stream.
ENSURE_TIMEOUT_S = 60.0
REPLICAS_MANY = 3
_PAUSE_S, _PAUSE_MAX_S = 0.1, 1.0


@dataclass(frozen=True, slots=True)
class StreamReport:
    """One line of `shoal doctor`."""

    stream: str
    ok: bool
    differs: tuple[str, ...] = ()  # what differs and what repairs it; or that it does not exist
    replicas: int = 0
    leader: str = ""  # name of the server that leads it
    consumers: int = 0
    bytes: int = 0
    missing: bool = False


async def ensure_streams(
    store: Store, keys: Keys, *, replicas: int | None = None, timeout: float = ENSURE_TIMEOUT_S
) -> tuple[StreamReport, ...]:
    """Create what is missing, mend what is harmless to mend, refuse what correctness forbids.

    `replicas` None: 1 on a server that is alone, 3 on one that belongs to a cluster (its INFO names the cluster). A
    cluster of fewer than three is refused with that choice rather than given one replica: it may just be starting,
    and replicas that are too few are noticed when data is lost. Existing streams keep theirs.

    Raises Unfit (the server or a stream; the message says what to do), StoreUnavailable (not settled in `timeout`).
    """
    link = _link(store)
    last: StoreError | None = None
    try:
        async with asyncio.timeout(timeout):
            pause = _PAUSE_S
            while True:
                try:
                    await check_server(store)
                    count = replicas or (REPLICAS_MANY if await _clustered(link) else 1)
                    return tuple([await _ensure(link, row, count) for row in rows(keys)])
                except (StoreUnavailable, Busy, Missing) as error:
                    last = error  # a leader is missing, a server restarts, or another scheduler is at the same work
                await asyncio.sleep(pause * random.uniform(0.7, 1.3))
                pause = min(2 * pause, _PAUSE_MAX_S)
    except TimeoutError as error:
        if isinstance(last, _TooFewPeers):
            raise Unfit(str(last)) from error
        raise StoreUnavailable(f"the streams of {keys.cluster} are not ready after {timeout:g} s: {last}") from error


async def remake_streams(store: Store, keys: Keys, *, replicas: int | None = None) -> tuple[str, ...]:
    """Make those streams again that somebody deleted and no backup could bring back: what they hold is said again by
    itself. The names of those that were made. Raises Unfit, StoreUnavailable, Busy."""
    link, made = _link(store), []
    own = {f"KV_{keys.hosts}", f"KV_{keys.reports}", f"OBJ_{keys.bundles}", keys.events}
    for row in rows(keys):
        if row.stream not in own:
            continue
        try:
            await _info(link, row.stream)
        except Missing:
            await _ensure(link, row, replicas or (REPLICAS_MANY if await _clustered(link) else 1))
            made.append(row.stream)
    return tuple(made)


async def describe_streams(store: Store, keys: Keys) -> tuple[StreamReport, ...]:
    """How every stream of the cluster is, changing nothing. Raises StoreUnavailable."""
    reports = []
    for row in rows(keys):
        try:
            reports.append(_report(row, await _info(_link(store), row.stream)))
        except Missing:
            remedy = "does not exist; restore it from a backup, or make it anew: shoal store create"
            reports.append(StreamReport(row.stream, ok=False, differs=(remedy,), missing=True))
    return tuple(reports)


async def check_server(store: Store) -> None:
    """Unfit unless the account has JetStream at API level 2 (NATS 2.12) or above."""
    link = _link(store)
    answer = await _call(link, "INFO", None)
    if "error" in answer:
        error = answer["error"]
        if error.get("err_code") in JETSTREAM_OFF:
            raise Unfit(
                "JetStream is not enabled for this account; enable it in the server's configuration "
                "(`jetstream {}`, and `jetstream: enabled` in the account)"
            )
        raise refusal(error, "JetStream")
    level = int(answer.get("api", {}).get("level", 0))
    if level < API_LEVEL_MIN:
        version = link.info.get("version", "unknown")
        raise Unfit(
            f"the JetStream of this server (version {version}) has API level {level}, Shoal needs {API_LEVEL_MIN}; "
            "upgrade every server of the cluster to NATS 2.12.1 or newer"
        )


class _TooFewPeers(StoreUnavailable):
    """Not enough servers for the replicas; perhaps not yet."""


def _link(store: Store) -> Link:
    assert isinstance(store, NatsStore), "only NATS has streams to look after"
    return store.link


async def _clustered(link: Link) -> bool:
    # `cluster` is in the INFO of every server with a cluster block, also while its routes are not up yet.
    await link.usable()
    return bool(link.info.get("cluster"))


async def _ensure(link: Link, row: Row, replicas: int) -> StreamReport:
    try:
        info = await _info(link, row.stream)
    except Missing:
        info = await _create(link, row, replicas)
    mended = {rule.field: rule.mend for rule in row.broken(info["config"]) if rule.mend is not None}
    if mended and len(mended) == len(row.broken(info["config"])):
        await _update(link, row.stream, info["config"] | mended)
        info = await _info(link, row.stream)
    report = _report(row, info)
    if not report.ok:
        raise Unfit(f"stream {row.stream} cannot be used: " + "; ".join(report.differs))
    return report


async def _create(link: Link, row: Row, replicas: int) -> dict[str, Any]:
    answer = await _call(link, f"STREAM.CREATE.{row.stream}", {**row.wanted, "num_replicas": replicas})
    error = answer.get("error")
    if error is not None and error.get("err_code") in NO_PEERS:
        raise _TooFewPeers(
            f"{row.stream} with {replicas} replicas: {error.get('description')}; start {replicas} NATS servers with "
            "JetStream (and free disk), or choose fewer with --replicas"
        )
    if error is not None and error.get("err_code") != STREAM_EXISTS:
        if error.get("code") == 400 or error.get("err_code") in NO_ROOM:  # asking again changes nothing
            raise Unfit(
                f"stream {row.stream} cannot be created: {error.get('description')}; see the limits of "
                "JetStream in the server's configuration and of the account"
            )
        raise refusal(error, f"create {row.stream}")
    return await _info(link, row.stream)  # read back from the leader, whoever created it


async def _update(link: Link, stream: str, config: Config) -> None:
    answer = await _call(link, f"STREAM.UPDATE.{stream}", config)
    error = answer.get("error")
    if error is not None:
        if error.get("code") in (400, 500) and error.get("err_code") not in NO_PEERS:
            raise Unfit(f"stream {stream} cannot be changed: {error.get('description')}")
        raise refusal(error, f"update {stream}")


async def _info(link: Link, stream: str) -> dict[str, Any]:
    return await link.api(f"STREAM.INFO.{stream}", timeout=REQUEST_TIMEOUT_S)


async def _call(link: Link, subject: str, body: Config | None) -> dict[str, Any]:
    """A request to the JetStream API whose refusals the caller judges. Creating twice does no harm, so no answer is
    only a reason to ask again."""
    payload = b"" if body is None else json.dumps(body).encode()
    msg = await link.request(f"$JS.API.{subject}", payload, timeout=REQUEST_TIMEOUT_S, effect=False)
    answer: dict[str, Any] = json.loads(msg.data)
    return answer


def _report(row: Row, info: Mapping[str, Any]) -> StreamReport:
    config, state = info["config"], info["state"]
    differs = tuple(_words(row, rule, config.get(rule.field)) for rule in row.broken(config))
    return StreamReport(
        row.stream,
        ok=not differs,
        differs=differs,
        replicas=int(config.get("num_replicas", 1)),
        leader=str((info.get("cluster") or {}).get("leader", "")),
        consumers=int(state.get("consumer_count", 0)),
        bytes=int(state.get("bytes", 0)),
    )


def _words(row: Row, rule: Rule, found: Any) -> str:
    repair = rule.repair.format(stream=row.stream) if rule.repair else "start a scheduler, which mends it"
    return f"{rule.field} is {json.dumps(found)} and must be {rule.words} ({rule.why}): {repair}"
