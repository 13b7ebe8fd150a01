"""What strangers write: values, bytes and keys that have broken programs before. No product code, no randomness."""

from __future__ import annotations

import json
from typing import Any

RAW = "raw:"  # a text that begins with it is written as it is, without quotes

VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 2**53 + 1, 2**63, 10**400, 1.5, -0.5, 1e308, [], {}, [[]], [None], {"": {}}, "", " ", "\0",
    "a\nb", "..", "../../../../etc", "/etc/passwd", "a/b", "a.b", "*", ">", "é", "\U0001f4a9", "x" * 300, "x" * 70_000,
    "a-0-1", "a-0", "a-1-99999999999999999999", "-0-0",
    RAW + "NaN", RAW + "Infinity", RAW + "-Infinity", RAW + "1e999", RAW + "-1e999", RAW + "1" + "0" * 5000,
    RAW + r'"\ud800"', RAW + r'"\u0000"', RAW + '{"a":1,"a":2}', RAW + "[" * 5000, RAW + "[" * 400 + "]" * 400,
    RAW + '{"a":' * 400 + "1" + "}" * 400, RAW + "[" + "1," * 20_000 + "1]",
)  # fmt: skip

BYTES: tuple[bytes, ...] = (
    b"", b"\0", b"\xff\xfe", b"null", b"[]", b"{}", b'"x"', b"1", b"1e999", b"NaN", b"[" * 100_000, b'{"a":' * 50_000,
    b"{" + b",".join(b'"%d":0' % n for n in range(2000)) + b"}", b'\xef\xbb\xbf{"id":"a"}', b'{"id":"\xff"}', b"{}" * 9,
)  # fmt: skip

# Keys, as the last part of a subject. The server stores what has no white space and no empty or wildcard token.
KEYS: tuple[str, ...] = (
    "h1", "h2", "h9", "alpha", "beta", "new", "_pulse", "..", "a..b", ".", "", "*", ">", "a b", "é", "\ufffd", "x" * 64,
    "x" * 3900, "a.b", "a.b.c", "a/b", "journal", "lease", "store", "UPPER", "a=b", "a$b", "\\", "\x01",
)  # fmt: skip

# Headers of a message: by name, or the block as it is sent.
HEADERS: tuple[dict[str, str] | bytes, ...] = (
    {"KV-Operation": "DEL "}, {"KV-Operation": "?"}, {"Nats-Sequence": "x"}, {"Nats-Sequence": "9" * 5000},
    {"Status": "100"}, {"Status": "409", "Description": "no"}, {"Status": "503"}, {"Nats-Marker-Reason": ""},
    b"NATS/1.0 \xff\xff\r\n\r\n", b"NATS/1.0 100\r\n\r\n", b"NATS/1.0 404 No\r\nA: b\r\n\r\n",
    b"NATS/1.0\r\n\xff\xfe: \xff\r\n\r\n", b"NATS/1.0\r\n" + b"a" * 60_000 + b"\r\n\r\n",
    b"NATS/1.0\r\n" + b"a: b\r\n" * 5000 + b"\r\n", b"NATS/9.9\r\n\r\n", b"\r\n",
)  # fmt: skip


def written(value: object) -> bytes:
    """JSON with the raw pieces in their places."""
    if isinstance(value, str) and value.startswith(RAW):
        return value.removeprefix(RAW).encode()
    if isinstance(value, dict):
        return b"{%s}" % b",".join(b"%s:%s" % (json.dumps(k).encode(), written(v)) for k, v in value.items())
    if isinstance(value, list):
        return b"[%s]" % b",".join(map(written, value))
    return json.dumps(value).encode()
