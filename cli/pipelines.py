"""Verbs for pipelines: apply, publish, pause, resume, draft, delete, restart, and what shows them."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from cli import apply, show, wait
from cli.cluster import Cluster, TimedOut, picture, run, who
from cli.options import Options
from cli.output import note
from cli.records import absent, change_record, read_record
from cli.wait import Goal, TimeoutOption, WaitOption, seconds, wait_for
from shared.documents import decode, encode
from shared.errors import Refused
from shared.ids import check_version
from shared.intents import RestartIntent
from shared.keys import object_name, restart_intent_key

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="Id of the pipeline.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the tree, in the order of a pipeline's life."""
    app.command()(apply.apply)
    for command in (publish, pause, resume, draft, delete, restart):
        app.command()(command)
    app.command("get")(show.get)
    app.command("ls")(show.ls)
    app.command()(show.describe)
    app.command()(show.config)
    app.command()(wait.wait)


def publish(
    context: typer.Context,
    pipeline: IdArgument,
    version: Annotated[str | None, typer.Option("--version", help="Publish this version of the configuration.")] = None,
    wait: WaitOption = False,
    timeout: TimeoutOption = "60s",
) -> None:
    """Run a pipeline, with its version or another one. Going back is publishing an older version."""
    if version:
        check_version(version)

    def change(fields: dict[str, Any]) -> dict[str, Any]:
        return {**fields, "status": "published"} | ({"version": version} if version else {})

    async def command(cluster: Cluster) -> None:
        if version:
            await _require_object(cluster, pipeline, version)
        await _change(cluster, pipeline, change, Goal.RUNNING, wait, timeout)

    run(context.obj, command)


def pause(
    context: typer.Context, pipeline: IdArgument, wait: WaitOption = False, timeout: TimeoutOption = "60s"
) -> None:
    """Stop a pipeline, and keep its containers to go on with."""
    _set_status(context.obj, pipeline, "paused", Goal.PAUSED, wait, timeout)


def resume(
    context: typer.Context, pipeline: IdArgument, wait: WaitOption = False, timeout: TimeoutOption = "60s"
) -> None:
    """Let a paused pipeline go on, in the same containers."""

    def change(fields: dict[str, Any]) -> dict[str, Any]:
        if fields.get("status") != "paused":
            raise Refused(
                f"{pipeline} is {fields.get('status')}, not paused; `shoal publish {pipeline}` runs a pipeline"
            )
        return {**fields, "status": "published"}

    run(context.obj, lambda cluster: _change(cluster, pipeline, change, Goal.RUNNING, wait, timeout))


def draft(
    context: typer.Context, pipeline: IdArgument, wait: WaitOption = False, timeout: TimeoutOption = "60s"
) -> None:
    """Leave no trace of a pipeline on any host; its record stays."""
    _set_status(context.obj, pipeline, "draft", Goal.GONE, wait, timeout)


def delete(
    context: typer.Context,
    pipeline: IdArgument,
    keep_configs: Annotated[bool, typer.Option(help="Leave its configurations in the object store.")] = False,
    wait: WaitOption = False,
    timeout: TimeoutOption = "60s",
) -> None:
    """Delete a pipeline, its configurations and all that runs."""

    async def command(cluster: Cluster) -> None:
        # Whatever is there: what is no record, or stands under no id, must go as well.
        entry = await cluster.read(cluster.keys.pipelines, pipeline)
        if entry.value is None:
            raise absent(pipeline)
        await cluster.store.write(cluster.keys.pipelines, pipeline, None, expected=entry.revision)
        if not keep_configs:
            objects = await cluster.objects(cluster.keys.configs)
            for name in (n for n in objects if n.startswith(f"{pipeline}/")):
                await cluster.store.delete_object(cluster.keys.configs, name)
        await cluster.store.write(cluster.keys.operator, restart_intent_key(pipeline), None)
        if wait:
            await wait_for(cluster, pipeline, Goal.GONE, seconds(timeout))
        note(f"{pipeline} deleted")

    run(context.obj, command)


def restart(
    context: typer.Context,
    pipeline: IdArgument,
    reason: Annotated[str, typer.Option(help="Why, for those who read the history.")] = "",
    wait: WaitOption = False,
    timeout: TimeoutOption = "60s",
) -> None:
    """Replace the executions of a pipeline, as an update does."""

    async def command(cluster: Cluster) -> None:
        fields, _ = await read_record(cluster, pipeline)
        if fields.get("status") != "published":
            raise Refused(f"{pipeline} is {fields.get('status')}; only a published pipeline can be restarted")
        intent = RestartIntent(request=secrets.token_hex(8), reason=reason, who=who())
        revision = await cluster.store.write(cluster.keys.operator, restart_intent_key(pipeline), encode(intent))
        if wait:
            await _wait_restarted(cluster, pipeline, revision, seconds(timeout))
        note(f"{pipeline} restarted" if wait else f"{pipeline}: restart asked for")

    run(context.obj, command)


async def _wait_restarted(cluster: Cluster, pipeline: str, revision: int, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        asked = await cluster.store.read_at_least(cluster.keys.operator, restart_intent_key(pipeline), revision)
        if asked.value is None:
            raise Refused(f"{pipeline} was deleted meanwhile")
        # Somebody may have asked once more: the last request is the one that is followed.
        request = decode(RestartIntent, asked.value).name(asked.revision)
        seen = await picture(cluster)
        items = [i for a in seen.assignments.values() for i in a.executions if i.pipeline == pipeline]
        if items and all(item.restart == request for item in items):
            await wait_for(cluster, pipeline, Goal.RUNNING, max(deadline - time.monotonic(), 0.1))
            return
        await asyncio.sleep(0.2)
    raise TimedOut(f"{pipeline} still has executions from before the restart after {timeout_s:g} s")


def _set_status(options: Options, pipeline: str, status: str, goal: Goal, wait: bool, timeout: str) -> None:
    def change(fields: dict[str, Any]) -> dict[str, Any]:
        return {**fields, "status": status}

    run(options, lambda cluster: _change(cluster, pipeline, change, goal, wait, timeout))


async def _change(
    cluster: Cluster,
    pipeline: str,
    change: Callable[[dict[str, Any]], dict[str, Any]],
    goal: Goal,
    wait: bool,
    timeout: str,
) -> None:
    record, revision = await change_record(cluster, pipeline, change)
    if wait:
        await wait_for(cluster, pipeline, goal, seconds(timeout), revision)
    note(f"{pipeline} is {goal if wait else record.status.value} (version {record.version})")


async def _require_object(cluster: Cluster, pipeline: str, version: str) -> None:
    name = object_name(pipeline, version)
    objects = await cluster.objects(cluster.keys.configs)
    pin = await cluster.read(cluster.keys.control, f"version.{pipeline}.{version}")
    if name not in objects and pin.value is None:
        known = ", ".join(n.partition("/")[2] for n in objects if n.startswith(f"{pipeline}/")) or "none"
        raise Refused(
            f"there is no configuration '{name}' in the bucket {cluster.keys.configs} (versions there: {known}). "
            f"Put it with `shoal apply -f FILE` or `nats object put {cluster.keys.configs} FILE --name {name}`."
        )
