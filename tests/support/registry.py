"""A container registry on loopback, just enough of it to push one image and to pull it again."""

from __future__ import annotations

import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

_PATH = re.compile(
    r"/v2/(?P<name>.+)/(?P<kind>blobs/uploads|blobs|manifests)/(?P<reference>[^/?]*)(\?.*digest=(?P<digest>[^&]+))?"
)
_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


class Registry:
    """Use as a context manager; `pulled` lists the manifests that were asked for, in order."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.uploads: dict[str, bytes] = {}
        self.pulled: list[str] = []
        registry = self

        class Handler(_Handler):
            store = registry

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="registry", daemon=True)
        self.port = int(self._server.server_address[1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=10)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Registry

    def do_GET(self) -> None:
        found = _PATH.fullmatch(self.path)
        if found is None:
            self._answer(200, b"{}")
        elif found["kind"] == "manifests":
            if self.command == "GET":
                self.store.pulled.append(found["reference"])
            self._found(self.store.manifests.get(found["reference"]), _MANIFEST)
        else:
            self._found(self.store.blobs.get(found["reference"]), "application/octet-stream")

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        upload = str(len(self.store.uploads))
        self.store.uploads[upload] = b""
        found = _PATH.fullmatch(self.path)
        assert found is not None
        self._answer(202, headers={"Location": f"/v2/{found['name']}/blobs/uploads/{upload}", "Range": "0-0"})

    def do_PATCH(self) -> None:
        found = _PATH.fullmatch(self.path)
        assert found is not None
        self.store.uploads[found["reference"]] += self._body()
        end = len(self.store.uploads[found["reference"]]) - 1
        self._answer(202, headers={"Location": self.path, "Range": f"0-{end}"})

    def do_PUT(self) -> None:
        found = _PATH.fullmatch(self.path)
        assert found is not None
        body = self._body()
        if found["kind"] == "manifests":
            digest = "sha256:" + hashlib.sha256(body).hexdigest()
            self.store.manifests[found["reference"]] = self.store.manifests[digest] = body
        else:
            digest = found["digest"].replace("%3A", ":")
            self.store.blobs[digest] = self.store.uploads[found["reference"]] + body
        self._answer(201, headers={"Location": self.path, "Docker-Content-Digest": digest})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _found(self, content: bytes | None, kind: str) -> None:
        if content is None:
            self._answer(404, b'{"errors":[]}')
        else:
            digest = "sha256:" + hashlib.sha256(content).hexdigest()
            self._answer(200, content, {"Content-Type": kind, "Docker-Content-Digest": digest})

    def _answer(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""
