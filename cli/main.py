"""The command tree, its exit codes and its errors.

Exit codes: 0 done; 1 refused or failed; 2 wrong usage; 3 timed out; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from cli import completion, daemons, doctor, events, executions, hosts, leader, logs, pipelines, store, up, version
from cli.cluster import TimedOut
from cli.options import Options, hoist
from shared.errors import BadInput, ShoalError, StoreUnavailable
from shared.telemetry import set_up_logging

app = typer.Typer(
    name="shoal",
    help="A clustered scheduler for Bento stream pipelines, on NATS JetStream alone.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"]},
)


@app.callback()
def root(
    context: typer.Context,
    server: Annotated[str | None, typer.Option("--server", "-s", help="NATS URLs, separated by commas.")] = None,
    creds: Annotated[str | None, typer.Option(help="File with user credentials.")] = None,
    nkey: Annotated[str | None, typer.Option(help="File with an nkey seed.")] = None,
    user: Annotated[str | None, typer.Option(help="User name or token.")] = None,
    password: Annotated[str | None, typer.Option(help="Password.")] = None,
    tlscert: Annotated[str | None, typer.Option(help="TLS certificate of this client.")] = None,
    tlskey: Annotated[str | None, typer.Option(help="TLS key of this client.")] = None,
    tlsca: Annotated[str | None, typer.Option(help="TLS certificate authority to trust.")] = None,
    nats_context: Annotated[str | None, typer.Option("--context", help="A context of the `nats` CLI.")] = None,
    cluster: Annotated[
        str, typer.Option("--cluster", "-c", envvar="SHOAL_CLUSTER", help="Name of the cluster.")
    ] = "shoal",
) -> None:
    """Global options may stand anywhere on the line."""
    context.obj = Options(server, creds, nkey, user, password, tlscert, tlskey, tlsca, nats_context, cluster)


for noun in (up, pipelines, executions, logs, leader, events, doctor, version, completion, daemons):
    noun.register(app)
app.add_typer(hosts.app, name="hosts")
app.add_typer(store.app, name="store")


def main() -> None:
    """Entry point of the `shoal` command."""
    set_up_logging("human", "warning")  # to standard error, or what a connection says would stand among the results
    try:
        app(hoist(sys.argv[1:]))  # ends with SystemExit; wrong usage is told by the library, with 2
        code = 0
    except KeyboardInterrupt:
        code = 130
    except TimedOut as error:
        code = _fail(error, 3)
    except StoreUnavailable as error:
        code = _fail(error, 1, "is the server running? name it with --server, NATS_URL or a `nats` context")
    except ShoalError as error:
        code = _fail(error, 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
        code = 0
    sys.exit(code)


def _fail(error: ShoalError, code: int, hint: str = "") -> int:
    lines = [str(p) for p in error.problems] if isinstance(error, BadInput) else [str(error)]
    for line in lines:
        print(f"error: {line}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
