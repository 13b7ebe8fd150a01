"""Logs: the output of a pipeline's executions, over NATS, wherever they run."""

from __future__ import annotations

import asyncio
import secrets
import sys
from contextlib import aclosing
from typing import Annotated

import typer

from cli.cluster import Cluster, picture, run
from cli.executions import execution_rows
from cli.output import note
from shared.documents import encode
from shared.errors import Refused, StoreUnavailable
from shared.log_stream import LOG_ALIVE, LOG_DATA, LOG_REFUSED, LOG_RENEW_S, LogRequest

_PLACE_S = 1.0  # how often a follower looks for executions that came or moved
_WHOLE = 100_000  # lines, the most that an agent gives
_IDLE_S = 15.0  # of an agent that answers nothing at all; it shows life more often than that


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command()(logs)


def logs(
    context: typer.Context,
    pipeline: Annotated[str, typer.Argument(metavar="ID", help="Id of the pipeline, or of one execution.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on, also on other hosts when it moves.")] = False,
    tail: Annotated[int, typer.Option("--tail", min=0, help="Lines to begin with, of each execution.")] = 100,
) -> None:
    """Show what Bento says, of every execution of a pipeline. Lines are prefixed when there are several."""

    async def command(cluster: Cluster) -> None:
        places = await _places(cluster, pipeline)
        if not places and not follow:
            raise Refused(f"nothing runs of '{pipeline}'; `shoal describe {pipeline}` says why")
        printer = _Printer(prefixed=len(places) > 1 or follow)
        if follow:
            await _follow(cluster, pipeline, tail, printer)
        else:
            for execution, host in places:
                await _stream(cluster, host, LogRequest(execution=execution, tail=tail), printer)

    run(context.obj, command)


async def _places(cluster: Cluster, pipeline: str) -> list[tuple[str, str]]:
    rows = execution_rows(await picture(cluster))
    return [(r["execution"], r["host"]) for r in rows if pipeline in (r["pipeline"], r["execution"])]


async def _follow(cluster: Cluster, pipeline: str, tail: int, printer: _Printer) -> None:
    """Streams come and go with the executions; each is a task of its own."""
    running: dict[tuple[str, str], asyncio.Task[None]] = {}
    lines = tail  # of one that is there when we begin; one that comes later is shown from its beginning
    async with asyncio.TaskGroup() as group:
        while True:
            places = await _places(cluster, pipeline)
            for place in places:
                if place not in running or running[place].done():
                    again = 0 if place[0] in printer.shown else lines  # after a break only what is new
                    request = LogRequest(execution=place[0], tail=again, follow=True, stream=secrets.token_hex(8))
                    work = _followed(cluster, place[1], request, printer)
                    running[place] = group.create_task(work, name=f"logs of {place[0]}")
            for place in [p for p in running if p not in places]:
                running.pop(place).cancel()
            lines = _WHOLE
            await asyncio.sleep(_PLACE_S)


async def _followed(cluster: Cluster, host: str, request: LogRequest, printer: _Printer) -> None:
    async with asyncio.TaskGroup() as group:
        renewing = group.create_task(_renew(cluster, host, request), name=f"renew {request.stream}")
        try:
            await _stream(cluster, host, request, printer)
        except StoreUnavailable:
            note(f"{request.execution}: its agent on {host} does not answer; trying again")
        finally:
            renewing.cancel()


async def _renew(cluster: Cluster, host: str, request: LogRequest) -> None:
    while True:
        await asyncio.sleep(LOG_RENEW_S)
        await cluster.store.publish(cluster.keys.logs(host), encode(request))


async def _stream(cluster: Cluster, host: str, request: LogRequest, printer: _Printer) -> None:
    answers = await cluster.store.request_many(cluster.keys.logs(host), encode(request), idle_timeout=_IDLE_S)
    async with aclosing(answers) as messages:  # type: ignore[type-var]
        async for message in messages:
            kind, rest = message[:1], message[1:]
            if kind == LOG_DATA:
                printer.data(request.execution, rest)
            elif kind == LOG_REFUSED:
                note(f"{request.execution} on {host}: {rest.decode('utf-8', 'replace')}")
            else:
                assert kind == LOG_ALIVE, f"an agent answers with a kind we do not know: {kind!r}"
    printer.end(request.execution)


class _Printer:
    """Writes whole lines, so that those of several executions do not mix."""

    def __init__(self, prefixed: bool) -> None:
        self._prefixed = prefixed
        self._open: dict[str, bytes] = {}
        self.shown: set[str] = set()  # executions of which something was

    def data(self, execution: str, data: bytes) -> None:
        self.shown.add(execution)
        *lines, rest = (self._open.pop(execution, b"") + data).split(b"\n")
        for line in lines:
            self._line(execution, line)
        self._open[execution] = rest
        sys.stdout.flush()

    def end(self, execution: str) -> None:
        rest = self._open.pop(execution, b"")
        if rest:
            self._line(execution, rest)

    def _line(self, execution: str, line: bytes) -> None:
        text = line.decode("utf-8", "replace")
        print(f"{execution} | {text}" if self._prefixed else text)
