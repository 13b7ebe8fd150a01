"""How keys, entries and objects lie in JetStream messages: the layouts of the NATS key-value and object stores.

    KV_<bucket>    $KV.<bucket>.<key>            value; header KV-Operation DEL or PURGE = deleted
    OBJ_<bucket>   $O.<bucket>.M.<base64url>     metadata of an object, JSON; rolled up, so one message per object
                   $O.<bucket>.C.<nuid>          its chunks

Layouts: ADR-8 and ADR-20 of NATS; read in nats.go 1.51 and nats-py 2.16, tried with the `nats` command.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from shared.documents import encode
from shared.errors import BadInput, problem
from shared.keys import KEY_CHARS_MAX, is_key
from shared.store import Entry, ObjectInfo

_NUID = re.compile(r"[-_a-zA-Z0-9]{1,64}")
_COUNT_MAX = 2**53
_DIGEST = "SHA-256="
_DIGEST_CHARS_MAX = 100  # of the stored form of 32 bytes

Headers = Mapping[str, str] | None
Decode = Callable[[str, bytes, Headers, int], Entry]


@dataclass(frozen=True, slots=True)
class Source:
    """What is watched: the subjects `filter` of `stream`, each message made an entry by `decode`."""

    stream: str
    filter: str
    decode: Decode


# --- keys


def key_subject(bucket: str, key: str) -> str:
    """The subject of a key; BadInput for what cannot be one (a wildcard would read somebody else's key)."""
    if not is_key(key):
        remedy = f"use at most {KEY_CHARS_MAX} letters, digits, '-', '_', '/', '=' and single dots in between"
        raise BadInput(problem("key", key, remedy))
    return f"$KV.{bucket}.{key}"


def bucket_source(bucket: str) -> Source:
    """The keys of a bucket."""
    prefix = len(f"$KV.{bucket}.")

    def decode(subject: str, data: bytes, headers: Headers, sequence: int) -> Entry:
        return Entry(subject[prefix:], None if headers is not None and is_deletion(headers) else data, sequence)

    return Source(f"KV_{bucket}", f"$KV.{bucket}.>", decode)


def is_deletion(headers: Mapping[str, str]) -> bool:
    """Whether a message with these headers says that its key is deleted."""
    return headers.get("KV-Operation") in ("DEL", "PURGE") or "Nats-Marker-Reason" in headers


def raw_message(answer: Mapping[str, Any]) -> tuple[bytes, dict[str, str], int]:
    """(data, headers, sequence) of an answer to STREAM.MSG.GET."""
    message = answer["message"]
    headers: dict[str, str] = {}
    for line in base64.b64decode(message.get("hdrs", "")).decode("utf-8", "replace").split("\r\n")[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip()] = value.strip()
    return base64.b64decode(message.get("data", "")), headers, int(message["seq"])


# --- objects


@dataclass(frozen=True, slots=True)
class Meta:
    """An object's metadata as it is stored."""

    info: ObjectInfo
    chunks: int
    deleted: bool
    link: bool
    readable: bool  # False: somebody stored something else there


def meta_subject(bucket: str, name: str) -> str:
    """The subject of an object's metadata."""
    return f"$O.{bucket}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"


def chunk_subject(bucket: str, nuid: str) -> str:
    """The subject of an object's chunks."""
    return f"$O.{bucket}.C.{nuid}"


def parse_meta(name: str, data: bytes, revision: int) -> Meta:
    """The metadata in a message. Never raises: users write these with any client."""
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError):
        raw = None
    if not isinstance(raw, dict):
        return Meta(ObjectInfo(name, 0, "", revision, ""), 0, deleted=False, link=False, readable=False)
    size, chunks, nuid = raw.get("size", 0), raw.get("chunks", 0), raw.get("nuid", "")
    options = raw.get("options")
    link = isinstance(options, dict) and bool(options.get("link"))
    counts = all(isinstance(number, int) and 0 <= number <= _COUNT_MAX for number in (size, chunks))
    # It becomes part of subjects: a wildcard would read (or purge) the chunks of others, a line break would end the
    # command that it is put into and begin one of the stranger's own.
    sound = counts and isinstance(nuid, str) and (nuid == "" or _NUID.fullmatch(nuid) is not None)
    if not sound:
        size, chunks, nuid = 0, 0, ""
    info = ObjectInfo(name, size, digest_hex(raw.get("digest")), revision, nuid)
    return Meta(info, chunks, bool(raw.get("deleted")), link, sound and (link or bool(nuid)))


def digest_hex(stored: object) -> str:
    """`SHA-256=<base64url>` as hex; "" if it is none."""
    if not isinstance(stored, str) or len(stored) > _DIGEST_CHARS_MAX or not stored.upper().startswith(_DIGEST):
        return ""
    text = stored[len(_DIGEST) :].rstrip("=")
    try:
        digest = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        return ""
    return digest.hex() if len(digest) == 32 else ""


def digest_stored(digest: bytes) -> str:
    """A sha256 as object metadata has it."""
    return _DIGEST + base64.urlsafe_b64encode(digest).decode()


def objects_source(bucket: str) -> Source:
    """The objects of a bucket; values are JSON of `ObjectInfo`."""
    prefix = len(f"$O.{bucket}.M.")

    def decode(subject: str, data: bytes, headers: Headers, sequence: int) -> Entry:
        name = _object_name(subject[prefix:])
        if headers is not None and is_deletion(headers):
            return Entry(name, None, sequence)
        meta = parse_meta(name, data, sequence)
        return Entry(name, None if meta.deleted else encode(meta.info), sequence)

    return Source(f"OBJ_{bucket}", f"$O.{bucket}.M.>", decode)


def _object_name(token: str) -> str:
    try:
        return base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode()
    except (binascii.Error, ValueError):
        return token  # not written by an object store client; still one key per subject
