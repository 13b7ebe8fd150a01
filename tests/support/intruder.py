"""A stranger with a connection to NATS: says what no client library would let it say."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Mapping
from typing import Self
from urllib.parse import urlsplit

from tests.support.hostile import BYTES, HEADERS, KEYS

TIMEOUT_S = 30.0


class Intruder:
    """Speaks the protocol on a plain socket. What the server refuses it says in `refused`, and lives on."""

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self._address = (place.hostname or "127.0.0.1", place.port or 4222)
        self._connect()
        self.refused: list[bytes] = []

    def _connect(self) -> None:
        self._socket = socket.create_connection(self._address, timeout=TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")
        self.max_payload: int = json.loads(self._file.readline().partition(b" ")[2])["max_payload"]
        self._socket.sendall(b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"name":"intruder"}\r\n')

    def publish(
        self, subject: str | bytes, data: bytes, *, headers: Mapping[str, str] | bytes = b"", reply: str = ""
    ) -> None:
        """Send a message; not waited for. A server that ends the connection for it is connected to again."""
        named = subject.encode() if isinstance(subject, str) else subject
        words = b" ".join(word for word in (named, reply.encode()) if word)
        block = headers
        if isinstance(block, Mapping):
            lines = "".join(f"{name}: {value}\r\n" for name, value in block.items())
            block = f"NATS/1.0\r\n{lines}\r\n".encode() if block else b""
        if block:
            command = b"HPUB %s %d %d\r\n%s%s\r\n" % (words, len(block), len(block) + len(data), block, data)
        else:
            command = b"PUB %s %d\r\n%s\r\n" % (words, len(data), data)
        try:
            self._socket.sendall(command)
            self.flush()
        except OSError as error:
            self.refused.append(str(error).encode())
            self.close()
            self._connect()

    def flush(self) -> None:
        """Wait until the server has taken everything; OSError if it has ended the connection."""
        self._socket.sendall(b"PING\r\n")
        while (line := self._file.readline()) != b"PONG\r\n":
            if not line:
                raise ConnectionResetError("the server ended the connection")
            if line.startswith(b"-ERR"):
                self.refused.append(line)
            elif line == b"PING\r\n":
                self._socket.sendall(b"PONG\r\n")

    def put(self, bucket: str, key: str | bytes, data: bytes, headers: Mapping[str, str] | bytes = b"") -> None:
        """A message under a key of a bucket."""
        named = key.encode() if isinstance(key, str) else key
        self.publish(b"$KV.%s.%s" % (bucket.encode(), named), data, headers=headers)

    def describe(self, bucket: str, name: str, metadata: bytes) -> None:
        """Metadata of an object, whether there is one or not."""
        token = base64.urlsafe_b64encode(name.encode()).decode()
        self.publish(f"$O.{bucket}.M.{token}", metadata, headers={"Nats-Rollup": "sub"})

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def strange_keys(intruder: Intruder, bucket: str, prefix: str = "") -> None:
    """Something under every strange key, with every strange header, as raw bytes too."""
    for key in KEYS:
        for data in (b"{}", BYTES[2], b""):
            intruder.put(bucket, prefix + key, data)
    for raw in (b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"a\x00b", b"\x7f", b"%s" % (b"z" * 3000)):
        intruder.put(bucket, prefix.encode() + raw, b'{"id":"a"}')
    for number, headers in enumerate(HEADERS):
        for data in (b"", b"{}"):
            intruder.put(bucket, f"{prefix}headers-{number}", data, headers)
