"""The daemons: `shoal scheduler` and `shoal agent`. The options are theirs; how to reach NATS is global."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from cli.options import Options
from shared.errors import BadInput, problem
from shared.telemetry import LogForm


def register(app: typer.Typer) -> None:
    """Add the commands to the tree."""
    app.command()(scheduler)
    app.command()(agent)


def pairs(values: list[str] | None, option: str) -> dict[str, str]:
    """`K=V` arguments as a mapping; BadInput names the one that is none."""
    found: dict[str, str] = {}
    for value in values or ():
        name, equals, text = value.partition("=")
        if not (name and equals):
            raise BadInput(problem(option, value, "write NAME=VALUE"))
        found[name] = text
    return found


MetricsOption = Annotated[
    str, typer.Option("--metrics", help="Address of /metrics and /healthz, such as 127.0.0.1:7601. Not said: none.")
]
LogFormOption = Annotated[str, typer.Option("--log-form", help="auto (human on a terminal), human or json.")]
LogLevelOption = Annotated[str, typer.Option("--log-level", help="debug, info, warning or error.")]


def scheduler(
    context: typer.Context,
    name: Annotated[str, typer.Option(help="Name of this instance, for people.")] = "",
    replicas: Annotated[
        int | None,
        typer.Option(help="Replicas of streams that are created: 1, 3 or 5. Not said: 1 on one server, else 3."),
    ] = None,
    bento: Annotated[str, typer.Option(help="The Bento that checks configurations. Not said: the one on PATH.")] = "",
    no_lint: Annotated[
        bool, typer.Option("--no-lint", help="Admit configurations that Bento has not checked.")
    ] = False,
    metrics: MetricsOption = "",
    log_form: LogFormOption = "auto",
    log_level: LogLevelOption = "info",
) -> None:
    """Run a scheduler. Any number may run; one leads, the others are warm standbys."""
    from scheduler.service import SchedulerSettings, main

    options: Options = context.obj
    settings = SchedulerSettings(
        connection=options.connection(),
        cluster=options.cluster,
        name=name,
        replicas=replicas,
        bento=bento,
        lint=not no_lint,
        metrics=metrics,
        log_form=_form(log_form),
        log_level=log_level,
        strict_audit=os.environ.get("SHOAL_STRICT_AUDIT") == "1",
    )
    raise typer.Exit(main(settings))


def agent(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="Name of this host in the cluster.")],
    state_dir: Annotated[Path, typer.Option(help="What survives reboots: identity, bundles, logs.")] = Path(
        "/var/lib/shoal"
    ),
    run_dir: Annotated[
        Path | None, typer.Option(help="Leases and executions, on tmpfs. Not said: below /run or XDG_RUNTIME_DIR.")
    ] = None,
    executor: Annotated[str, typer.Option(help="docker or process.")] = "docker",
    label: Annotated[list[str] | None, typer.Option(metavar="K=V", help="For placement; may be repeated.")] = None,
    env: Annotated[list[str] | None, typer.Option(metavar="K=V", help="For every execution; may be repeated.")] = None,
    allow_volume: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Host path below which records may mount; may be repeated."),
    ] = None,
    docker_host: Annotated[str, typer.Option(help="The Docker engine of this host.")] = "unix:///var/run/docker.sock",
    docker_network: Annotated[str, typer.Option(help="Network of the containers.")] = "host",
    image: Annotated[str, typer.Option(help="Runner image. Not said: shoal-runner of this version.")] = "",
    bento: Annotated[Path | None, typer.Option(help="Bento of the process executor. Not said: on PATH.")] = None,
    lease: Annotated[
        float | None,
        typer.Option(help="Seconds a host may act on its last heartbeat. Not said: 8, or 12 if replicated."),
    ] = None,
    cpu: Annotated[float | None, typer.Option(help="Cores to offer. Not said: those of the machine.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory to offer, such as 8GiB. Not said: the machine's.")] = None,
    stop_on_exit: Annotated[
        bool, typer.Option("--stop-on-exit", help="Remove all executions when this agent is told to end.")
    ] = False,
    metrics: MetricsOption = "",
    log_form: LogFormOption = "auto",
    log_level: LogLevelOption = "info",
) -> None:
    """Run the agent of one host."""
    from agent.service import main
    from agent.settings import AgentSettings
    from shared.record import memory_bytes

    if executor not in ("docker", "process"):
        raise typer.BadParameter(f"'{executor}' is no executor; use docker or process")
    options: Options = context.obj
    chosen = {"image": image} if image else {}
    settings = AgentSettings(
        host=host,
        state_dir=state_dir,
        run_dir=run_dir,
        driver="docker" if executor == "docker" else "process",
        cluster=options.cluster,
        connection=options.connection(),
        labels=pairs(label, "--label"),
        env=pairs(env, "--env"),
        allow_volume=tuple(allow_volume or ()),
        docker_host=docker_host,
        docker_network=docker_network,
        bento=bento,
        lease_s=lease,
        cpu=cpu,
        memory_bytes=memory_bytes(memory, "--memory") if memory else None,
        stop_on_exit=stop_on_exit,
        metrics=metrics,
        log_form=_form(log_form),
        log_level=log_level,
        **chosen,
    )
    raise typer.Exit(main(settings))


def _form(text: str) -> LogForm:
    for form in get_args(LogForm):
        if text == form:
            return cast("LogForm", form)
    raise typer.BadParameter(f"'{text}' is no form of logs; use {', '.join(get_args(LogForm))}")
