"""`python -m tests.chaos`: see the package. Exit code 1 when something was violated; data and logs are then kept."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import structlog

from tests.chaos.run import chaos
from tests.chaos.timetable import Kind, Planned, bursts, some
from tests.support.components import CACHE, find
from tests.support.netns import SHM_DIR, inside_sandbox, sandbox

LONG_MINUTES = 15.0  # a run of at least this length has outages of more than two minutes too


def main() -> int:
    """Run it, in a sandbox of its own."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long faults go on")
    parser.add_argument("--seed", type=int, default=None, help="fixes what is done and when; default: any")
    parser.add_argument(
        "--long-outages",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="outages of more than two minutes too; default: in runs of 15 minutes or more",
    )
    parser.add_argument("--dense", action="store_true", help="several faults in every burst")
    parser.add_argument("--only", type=Kind, nargs="+", default=(), help="only these faults, by name")
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--solos", type=int, default=3, help="exclusive pipelines with one slot")
    parser.add_argument("--report", type=Path, default=None, help="where the table is written as well")
    parser.add_argument("--directory", type=Path, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if inside_sandbox():
        quiet = structlog.make_filtering_bound_logger(logging.ERROR)
        structlog.configure(wrapper_class=quiet)  # connections of this program are lost all the time, by intention
        return asyncio.run(_run(arguments))
    return _outside(arguments)


def _outside(arguments: argparse.Namespace) -> int:
    missing = [name for name in ("nats-server", "bento", "ip", "iptables") if find(name) is None]
    if missing or os.geteuid() != 0:
        print(f"chaos needs root and {', '.join(missing) or 'nothing else'}: `make components`", file=sys.stderr)
        return 2
    seed = random.randrange(2**31) if arguments.seed is None else arguments.seed
    directory = CACHE / "chaos" / str(seed)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    print(f"seed {seed}", flush=True)
    said = [*sys.argv[1:], f"--seed={seed}", f"--directory={directory}"]  # of two that are the same the last one counts
    child = sandbox([sys.executable, "-m", "tests.chaos", *said])
    try:
        code = child.wait()
    finally:
        child.kill()
        child.wait()
    if code == 0:
        shutil.rmtree(directory)
    else:
        print(f"data and logs are in {directory}", flush=True)
    return code


def _timetable(arguments: argparse.Namespace) -> Iterator[tuple[Planned, ...]]:
    if arguments.only:
        return some(arguments.seed, arguments.only, dense=arguments.dense)
    long = arguments.minutes >= LONG_MINUTES if arguments.long_outages is None else arguments.long_outages
    return bursts(arguments.seed, long=long, dense=arguments.dense)


async def _run(arguments: argparse.Namespace) -> int:
    directory: Path = arguments.directory
    run_dir = Path(tempfile.mkdtemp(prefix="shoal-chaos-", dir=SHM_DIR))
    log = (directory / "chaos.log").open("w", buffering=1)

    def say(words: str) -> None:
        print(words, flush=True)
        print(words, file=log)

    with log:
        findings = await chaos(
            directory,
            run_dir,
            seed=arguments.seed,
            minutes=arguments.minutes,
            timetable=_timetable(arguments),
            hosts=arguments.hosts,
            solos=arguments.solos,
            say=say,
        )
        say(findings.table())
        for violation in findings.violations:
            say(f"- {violation}")
    if arguments.report is not None:
        arguments.report.write_text(findings.table() + "\n")
    return 1 if findings.violations else 0


if __name__ == "__main__":
    sys.exit(main())
