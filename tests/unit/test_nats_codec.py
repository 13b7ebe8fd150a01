"""Layouts of keys and objects in messages."""

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.documents import decode
from shared.errors import BadInput
from shared.nats_codec import (
    bucket_source,
    digest_hex,
    digest_stored,
    key_subject,
    meta_subject,
    objects_source,
    parse_meta,
    raw_message,
)
from shared.store import Entry, ObjectInfo


@pytest.mark.parametrize("key", ["journal", "assign.h-1", "version.orders.1.2-rc_3", "_pulse", "a/b=c"])
def test_a_key_becomes_a_subject(key: str) -> None:
    assert key_subject("b", key) == f"$KV.b.{key}"


@pytest.mark.parametrize("key", ["", ".", "a.", ".a", "a..b", "*", "a.>", "a b", "ä", "a\r\nPUB x 0"])
def test_what_cannot_be_a_key_is_refused(key: str) -> None:
    with pytest.raises(BadInput, match="key"):
        key_subject("b", key)


@pytest.mark.parametrize(
    ("headers", "data", "value"),
    [
        (None, b"x", b"x"),
        ({"Nats-Batch-Id": "1"}, b"x", b"x"),
        ({"KV-Operation": "PUT"}, b"x", b"x"),
        ({"KV-Operation": "DEL"}, b"", None),
        ({"KV-Operation": "PURGE", "Nats-Rollup": "sub"}, b"", None),
        ({"Nats-Marker-Reason": "MaxAge"}, b"", None),
    ],
)
def test_every_kind_of_marker_is_a_deletion(headers: dict[str, str] | None, data: bytes, value: bytes | None) -> None:
    assert bucket_source("b").decode("$KV.b.assign.h1", data, headers, 7) == Entry("assign.h1", value, 7)


def test_a_stored_message_is_unpacked() -> None:
    headers = base64.b64encode(b"NATS/1.0\r\nKV-Operation: DEL\r\nX: a: b\r\n\r\n").decode()
    answer = {"message": {"subject": "s", "seq": 9, "hdrs": headers, "data": base64.b64encode(b"body").decode()}}
    assert raw_message(answer) == (b"body", {"KV-Operation": "DEL", "X": "a: b"}, 9)
    assert raw_message({"message": {"subject": "s", "seq": 1}}) == (b"", {}, 1)


@given(st.binary(max_size=50))
def test_a_digest_survives_storing(data: bytes) -> None:
    digest = hashlib.sha256(data)
    assert digest_hex(digest_stored(digest.digest())) == digest.hexdigest()
    assert digest_hex(digest_stored(digest.digest()).rstrip("=")) == digest.hexdigest()


@pytest.mark.parametrize("stored", [None, 7, "", "MD5=abc", "SHA-256=%%%"])
def test_what_is_no_digest_is_empty(stored: object) -> None:
    assert digest_hex(stored) == ""


@given(st.binary(max_size=200))
def test_no_metadata_raises(data: bytes) -> None:
    meta = parse_meta("a/1", data, 3)
    assert meta.info.name == "a/1"
    assert meta.readable or not meta.info.nuid


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"1",
        b'{"size": -1, "nuid": "n"}',
        b'{"size": "x", "nuid": "n"}',
        b'{"nuid": 5}',
        b'{"chunks": null}',
    ],
)
def test_unsound_metadata_is_not_readable(data: bytes) -> None:
    assert not parse_meta("a/1", data, 3).readable


@given(st.text(min_size=1, max_size=40).filter(lambda name: name.isprintable()))
def test_an_object_is_known_by_its_name(name: str) -> None:
    subject = meta_subject("b", name)
    entry = objects_source("b").decode(subject, b'{"name":"x","nuid":"n","size":3,"chunks":1,"digest":""}', None, 5)
    assert entry.key == name
    assert entry.value is not None
    assert decode(ObjectInfo, entry.value) == ObjectInfo(name, 3, "", 5, "n")


def test_a_deleted_object_is_a_deletion() -> None:
    entry = objects_source("b").decode(meta_subject("b", "a/1"), b'{"nuid":"n","deleted":true}', None, 5)
    assert entry == Entry("a/1", None, 5)
