"""What a daemon shows of itself: structured logs on standard error, and a small HTTP server for machines.

    GET /metrics   the registry that is passed in, in Prometheus' format
    GET /healthz   200 when the daemon does its work, else 503; a JSON object of facts either way

The server runs in threads of its own: it answers while the daemon's event loop is busy, which is when somebody looks.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from socket import AF_INET, AF_INET6, socket
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Literal, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app

from shared.errors import BadInput, problem

LogForm = Literal["auto", "human", "json"]

REQUESTS_MAX = 8  # at once; a scraper and a prober need two, and a flood must not cost the daemon its memory
REQUEST_TIMEOUT_S = 5.0  # a client that says nothing is left after this


def set_up_logging(form: LogForm = "auto", level: str = "info") -> None:
    """Send structlog's and the standard library's records to standard error, as one line each.

    `auto` is `human` on a terminal and `json` elsewhere. The only global state of the process; called once, by the
    composition root.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise BadInput(problem("log level", level, "use debug, info, warning or error"))
    human = form == "human" or (form == "auto" and sys.stderr.isatty())
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()) if human else structlog.processors.JSONRenderer()
    )
    common: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    if not human:  # the console renders tracebacks by itself
        common.append(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[*common, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,  # loggers are made at import, before this runs
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=common,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    # Libraries log what they also raise; the daemon says it in its own words, so only their warnings are of interest.
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[handler], force=True)


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the daemon does its work, and the facts behind it. `facts` must be JSON."""

    ok: bool
    facts: Mapping[str, Any]


class TelemetryServer:
    """Serves /metrics and /healthz until closed. `health` is called in the server's threads: it reads, never waits."""

    def __init__(self, address: str, registry: CollectorRegistry, health: Callable[[], Health]) -> None:
        """Bind `address` (`host:port`, `:port`, `[v6]:port`; port 0 = any free one). BadInput if it cannot be had."""
        host, port = parse_address(address)
        try:
            self._server = _Server((host, port), _application(registry, health))
        except OSError as error:
            remedy = f"name an address of this machine that is free ({error.strerror})"
            raise BadInput(problem("address", address, remedy)) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="telemetry", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop listening; requests in progress end by themselves."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def parse_address(address: str) -> tuple[str, int]:
    """(host, port) of `host:port`, `:port` or `[v6]:port`; an empty host means every interface."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise BadInput(problem("address", address, "use 'host:port' or ':port', such as '127.0.0.1:9464'"))
    return host.removeprefix("[").removesuffix("]"), int(port)


def _application(registry: CollectorRegistry, health: Callable[[], Health]) -> Any:
    metrics = make_wsgi_app(registry)

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            answer: Iterable[bytes] = metrics(environ, start_response)
            return answer
        if path == "/healthz":
            found = health()
            status = "200 OK" if found.ok else "503 Service Unavailable"
            body = json.dumps({"ok": found.ok, **found.facts}).encode() + b"\n"
        else:
            status, body = "404 Not Found", b'{"error": "there is /metrics and /healthz"}\n'
        start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    return application


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], application: Any) -> None:
        self.address_family = AF_INET6 if ":" in address[0] else AF_INET
        self._room = threading.BoundedSemaphore(REQUESTS_MAX)
        super().__init__(address, _Request)
        self.set_app(application)

    def server_bind(self) -> None:
        # Not WSGIServer's: that looks up the machine's name, which takes seconds where the resolver is slow.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, *_: Any) -> None:
        structlog.get_logger().debug("A telemetry request failed.", exc_info=True)


class _Request(WSGIRequestHandler):
    timeout = REQUEST_TIMEOUT_S
    connection: socket

    def log_message(self, *_: Any) -> None:
        pass  # one line per scrape would drown what the daemon has to say
