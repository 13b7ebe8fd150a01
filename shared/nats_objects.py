"""Objects: get, put, delete, compatible with `nats object` and with nats-py's ObjectStore.

Own code, because the library's `get` waits for ever when chunks are missing (purged under it, or half written), copies
quadratically (50 MB: 3.6 s against 0.11 s, measured), and reads whatever size the metadata claims.

An object is written chunks first, then metadata (rolled up, so there is one message per name), then the chunks of the
former object are purged. So readers see the old or the new one; who reads while it is overwritten may find chunks
gone and starts again with the new metadata.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import secrets
from datetime import UTC, datetime
from typing import Any

from nats.aio.msg import Msg

from shared.errors import BadInput, Busy, Missing, OutcomeUnknown, Problem, StoreError, StoreUnavailable, problem
from shared.nats_codec import Meta, chunk_subject, digest_stored, is_deletion, meta_subject, parse_meta, raw_message
from shared.nats_connection import Connection
from shared.nats_consumer import Consumer
from shared.nats_errors import NobodyAnswers, NoMessage, refusal
from shared.nats_link import Link
from shared.store import ObjectInfo

CHUNK_BYTES = 128 * 1024  # what the other clients use
IN_FLIGHT = 32  # chunks sent before their acknowledgements are awaited: 4 MiB
QUIET_S = 0.5  # without a chunk for so long, the stream leader is asked whether more exist


async def get(link: Link, bucket: str, name: str, *, bytes_max: int, timeout: float) -> bytes:
    """See `Store.get_object`."""
    end = asyncio.get_running_loop().time() + timeout
    try:
        async with asyncio.timeout_at(end):
            while True:
                meta = await _meta(link, bucket, name, timeout=timeout)
                if meta is None or meta.deleted:
                    raise Missing(f"there is no object {name} in {bucket}")
                _check(meta, bucket, bytes_max)
                try:
                    return await _chunks(link, bucket, meta, timeout)
                except BadInput:
                    again = await _meta(link, bucket, name, timeout=timeout)
                    if again is not None and again.info.revision == meta.info.revision:
                        raise
                    # Overwritten or deleted while we read: what is there now counts.
    except TimeoutError as error:
        raise StoreUnavailable(f"object {name} in {bucket}: not complete in {timeout:g} s") from error


async def put(link: Link, bucket: str, name: str, data: bytes, *, timeout: float) -> ObjectInfo:
    """See `Store.put_object`. A failure before the metadata is sent leaves the old object in place."""
    if not name:
        raise BadInput(problem("object", name, "give the object a name"))
    end = asyncio.get_running_loop().time() + timeout
    former = await _meta(link, bucket, name, timeout=timeout)
    nuid = secrets.token_hex(11)  # 22 characters, as a NUID; only uniqueness matters
    try:
        count = await _send_chunks(link, bucket, nuid, data, end)
    except StoreError as error:
        await _purge(link, bucket, nuid)
        if isinstance(error, Missing):
            raise
        raise StoreUnavailable(f"object {name} in {bucket}: not stored: {error}") from error
    digest = hashlib.sha256(data)
    meta: dict[str, Any] = {
        "name": name,
        "bucket": bucket,
        "nuid": nuid,
        "size": len(data),
        "chunks": count,
        "digest": digest_stored(digest.digest()),
        "mtime": datetime.now(UTC).isoformat(),
        "options": {"max_chunk_size": CHUNK_BYTES},
    }
    try:
        revision = await _send_meta(link, bucket, name, meta, end)
    except OutcomeUnknown:
        raise  # the chunks stay: the metadata that names them may be there
    except StoreError as error:
        await _purge(link, bucket, nuid)
        raise StoreUnavailable(f"object {name} in {bucket}: not stored: {error}") from error
    if former is not None and former.info.nuid:
        await _purge(link, bucket, former.info.nuid)
    return ObjectInfo(name, len(data), digest.hexdigest(), revision, nuid)


async def delete(link: Link, bucket: str, name: str, *, timeout: float) -> None:
    """See `Store.delete_object`."""
    end = asyncio.get_running_loop().time() + timeout
    found = await _meta(link, bucket, name, timeout=timeout)
    if found is None or found.deleted:
        return
    gone = {"name": name, "bucket": bucket, "nuid": found.info.nuid, "size": 0, "chunks": 0, "digest": ""}
    gone |= {"deleted": True, "mtime": datetime.now(UTC).isoformat()}
    await _send_meta(link, bucket, name, gone, end)
    if found.info.nuid:
        await _purge(link, bucket, found.info.nuid)


# --- reading


async def _meta(link: Link, bucket: str, name: str, *, timeout: float) -> Meta | None:
    body = {"last_by_subj": meta_subject(bucket, name)}
    try:
        answer = await link.api(f"STREAM.MSG.GET.OBJ_{bucket}", body, timeout=timeout)
    except NoMessage:
        return None
    data, headers, revision = raw_message(answer)
    return None if is_deletion(headers) else parse_meta(name, data, revision)


def _check(meta: Meta, bucket: str, bytes_max: int) -> None:
    """BadInput for what is not worth reading."""
    name, field = meta.info.name, f"object {meta.info.name} in {bucket}"
    if not meta.readable:
        raise BadInput(Problem(field, "unreadable (its metadata)", _again(bucket, meta)))
    if meta.link:
        raise BadInput(problem(field, "a link", f"links are not followed; store the configuration itself as {name}"))
    if meta.info.size > bytes_max:
        raise BadInput(problem(field, f"{meta.info.size} bytes", f"store at most {bytes_max} bytes"))


async def _chunks(link: Link, bucket: str, meta: Meta, timeout: float) -> bytes:
    """The verified bytes; BadInput if they are incomplete or altered, as the stream leader confirms."""
    field = f"object {meta.info.name} in {bucket}"
    if meta.info.size == 0 and meta.chunks == 0:
        data = b""
    else:
        data = await (_single if meta.chunks == 1 else _several)(link, bucket, meta, timeout)
        if len(data) != meta.info.size:
            what = f"incomplete ({len(data)} of {meta.info.size} bytes)"
            raise BadInput(Problem(field, what, _again(bucket, meta)))
    if meta.info.digest and hashlib.sha256(data).hexdigest() != meta.info.digest:
        raise BadInput(Problem(field, "damaged (its bytes do not match its digest)", _again(bucket, meta)))
    return data


async def _single(link: Link, bucket: str, meta: Meta, timeout: float) -> bytes:
    """The only chunk, as nearly every object has: asked for as a message. A consumer for it would cost the servers
    several times as much."""
    body = {"last_by_subj": chunk_subject(bucket, meta.info.nuid)}
    try:
        answer = await link.api(f"STREAM.MSG.GET.OBJ_{bucket}", body, timeout=timeout)
    except NoMessage as error:
        field, what = f"object {meta.info.name} in {bucket}", "incomplete (1 of its 1 chunks are missing)"
        raise BadInput(Problem(field, what, _again(bucket, meta))) from error
    return raw_message(answer)[0]


async def _several(link: Link, bucket: str, meta: Meta, timeout: float) -> bytes:
    """All chunks, in one stream."""
    async with asyncio.timeout(timeout):
        connection = await link.usable()
    reader = _Reader(link, connection, bucket, meta)
    try:
        return await reader.read()
    finally:
        await reader.close()


class _Reader:
    """One consumer over the chunks of one object."""

    def __init__(self, link: Link, connection: Connection, bucket: str, meta: Meta) -> None:
        self._link = link
        self._bucket = bucket
        self._stream = f"OBJ_{bucket}"
        self._meta = meta
        self._field = f"object {meta.info.name} in {bucket}"
        self._subject = chunk_subject(bucket, meta.info.nuid)
        self._chunks: list[bytes] = []
        self._bytes = 0
        self._consumer = Consumer(connection, self._stream, self._subject, {"deliver_policy": "all"}, self._take)

    async def read(self) -> bytes:
        loop = asyncio.get_running_loop()
        await self._consumer.start(self._link)
        while len(self._chunks) < self._meta.chunks and self._bytes < self._meta.info.size:
            await self._consumer.wait(self._consumer.advanced + QUIET_S)
            if self._consumer.broken:
                raise StoreUnavailable(f"{self._field}: {self._consumer.broken}")
            if loop.time() >= self._consumer.advanced + QUIET_S:
                await self._confirm()
                self._consumer.advanced = loop.time()
        return b"".join(self._chunks)

    async def close(self) -> None:
        await self._consumer.close(self._link)

    def _take(self, msg: Msg, _: int) -> None:
        # More than the metadata says is not kept: that is what was checked against the caller's limit.
        if self._bytes <= self._meta.info.size:
            self._chunks.append(msg.data)
            self._bytes += len(msg.data)
        self._consumer.wake()

    async def _confirm(self) -> None:
        """Nothing came for a while: has the stream leader fewer chunks than the metadata says?"""
        body = {"subjects_filter": self._subject}
        answer = await self._link.api(f"STREAM.INFO.{self._stream}", body, timeout=2.0)
        stored = (answer["state"].get("subjects") or {}).get(self._subject, 0)
        if stored < self._meta.chunks:
            what = f"incomplete ({self._meta.chunks - stored} of its {self._meta.chunks} chunks are missing)"
            raise BadInput(Problem(self._field, what, _again(self._bucket, self._meta)))


def _again(bucket: str, meta: Meta) -> str:
    """What helps against an object that is not whole."""
    return f"store it again with `nats object put {bucket} FILE --name {meta.info.name}`"


# --- writing


async def _send_chunks(link: Link, bucket: str, nuid: str, data: bytes, end: float) -> int:
    """Store the chunks, several in flight; how many there are. The window is in order: an error ends it."""
    subject = chunk_subject(bucket, nuid)
    starts = range(0, len(data), CHUNK_BYTES)
    view = memoryview(data)
    for window in range(0, len(starts), IN_FLIGHT):
        sends = [
            _send(link, subject, bytes(view[start : start + CHUNK_BYTES]), None, end)
            for start in starts[window : window + IN_FLIGHT]
        ]
        # They run at once and are written in the order they were made: each writes to the socket before it first waits.
        for outcome in await asyncio.gather(*sends, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
    return len(starts)


async def _send_meta(link: Link, bucket: str, name: str, meta: dict[str, Any], end: float) -> int:
    headers = {"Nats-Rollup": "sub"}
    return await _send(link, meta_subject(bucket, name), json.dumps(meta).encode(), headers, end)


async def _send(link: Link, subject: str, data: bytes, headers: dict[str, str] | None, end: float) -> int:
    left = end - asyncio.get_running_loop().time()
    if left <= 0:
        raise StoreUnavailable(f"{subject}: no time left")
    try:
        msg = await link.request(subject, data, headers=headers, timeout=left, effect=True)
    except NobodyAnswers as error:
        raise Busy(f"{subject}: no leader of the stream took it") from error
    answer = json.loads(msg.data)
    if "error" in answer:
        raise refusal(answer["error"], subject)
    return int(answer["seq"])


async def _purge(link: Link, bucket: str, nuid: str) -> None:
    """Remove the chunks of an object that no metadata names; best effort, they cost only space."""
    with contextlib.suppress(StoreError):
        await link.request(
            f"$JS.API.STREAM.PURGE.OBJ_{bucket}",
            json.dumps({"filter": chunk_subject(bucket, nuid)}).encode(),
            timeout=2.0,
            effect=True,
        )
