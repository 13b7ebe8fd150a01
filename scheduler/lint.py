"""Bento's own lint, run in a bounded subprocess: what Bento would refuse is refused before anything is placed.

    lint() ... lint() ... ──> pending ──> one `bento lint a.yaml b.yaml ...` for many ──> verdicts by digest

A call costs the start of a process (about 50 ms) and each file well under a millisecond, so concurrent requests share
calls. What Bento reads, and what its words mean, is in `lint_copies`.

Configurations are strangers' words, and Bento follows what they import. So it sees its own directory only, has no
environment, and is limited in time, memory and what it writes: see `confined`.

Lint that does not finish is no verdict (`LintUnavailable`): the configuration is tried again, alone, so that one that
hangs or crashes Bento takes no other with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import structlog

from scheduler.lint_copies import Job, Key, job_of, last_words, place, read_verdicts, unpack
from shared.configuration import Configuration
from shared.errors import Refused, ShoalError

CALL_TIMEOUT_S = 20.0  # a hundred files take 0.1 s; this ends a hang
BATCH_FILES_MAX = 100
BATCH_BYTES_MAX = 16 * 1024 * 1024  # of configurations in one call: what Bento may hold at once
OUTPUT_BYTES_MAX = 1024 * 1024  # of complaints read from one call
CALLS_MAX = 2  # at once: one that hangs must not hold up the rest
CACHE_MAX = 10_000  # verdicts remembered; each is a key and mostly nothing

_CONFINED = Path(__file__).parent / "confined.py"

log = structlog.get_logger()


class LintUnavailable(ShoalError):
    """Bento's lint did not finish: no verdict, try again later."""


class Linter(Protocol):
    """What admission asks for."""

    async def lint(
        self, configurations: Sequence[Configuration], env: Mapping[str, str] | None = None
    ) -> list[tuple[str, ...]]:
        """The complaints about each configuration with this environment; an empty tuple is a clean one.

        Raises LintUnavailable if there is no verdict for one of them.
        """
        ...


class NoLint:
    """`--no-lint`: whatever reads as a mapping is admitted, and Bento refuses it when it starts."""

    async def lint(
        self,
        configurations: Sequence[Configuration],
        env: Mapping[str, str] | None = None,  # noqa: ARG002  the protocol's
    ) -> list[tuple[str, ...]]:
        return [() for _ in configurations]


def find_bento(stated: str = "") -> Path:
    """The Bento to lint with: the stated one, the one beside this Python, or the one on PATH; else Refused."""
    candidates = [stated] if stated else [str(Path(sys.executable).parent / "bento"), "bento"]
    for candidate in candidates:
        found = shutil.which(candidate)
        if found is not None:
            return Path(found).absolute()
    place = f"'{stated}' is no program" if stated else "there is none beside this Python and none on PATH"
    raise Refused(
        f"the scheduler checks configurations with Bento, and {place}: install Bento, name it with --bento PATH, "
        "or start with --no-lint and let executions fail where lint would have refused"
    )


def warn_if_unconfined(landlock: int) -> None:
    """Tell whoever runs a scheduler that its kernel cannot hide the machine's files from what strangers write."""
    if landlock < 1:
        log.warning(
            "Configurations are linted unconfined: this kernel has no Landlock, or it is switched off.",
            consequence="a lint complaint may quote any file that the user of this scheduler can read",
            remedy="a kernel from 5.13 on with Landlock switched on, or a user who can read nothing that is secret",
        )


class BentoLinter:
    """Lints with one Bento binary. Any number of concurrent callers; each waits for its own verdicts only."""

    def __init__(self, bento: Path, *, timeout_s: float = CALL_TIMEOUT_S, confined: bool = True) -> None:
        """`confined` False: for a program that must reach more than Bento does (the tests have one)."""
        self._bento = bento
        self._confined = confined
        self._timeout_s = timeout_s
        self._verdicts: OrderedDict[Key, tuple[str, ...]] = OrderedDict()
        self._pending: dict[Key, Job] = {}
        self._running: dict[Key, asyncio.Event] = {}  # set when the call that looks at it has ended, however
        self._suspects: set[Key] = set()  # were in a call that failed: each runs alone until it has a verdict
        self._turns = asyncio.Semaphore(CALLS_MAX)
        self.calls = 0

    async def lint(
        self, configurations: Sequence[Configuration], env: Mapping[str, str] | None = None
    ) -> list[tuple[str, ...]]:
        jobs = [job_of(found, env or {}) for found in configurations]
        unknown = {job.key: job for job in jobs if job.key not in self._verdicts and job.key not in self._running}
        self._pending = {**unknown, **self._pending}
        try:
            return [await self._verdict(job) for job in jobs]
        finally:
            # Only matters when we were interrupted; who waits for the same one looks at it itself.
            for key in unknown:
                self._pending.pop(key, None)

    async def _verdict(self, job: Job) -> tuple[str, ...]:
        while (known := self._verdicts.get(job.key)) is None:
            running = self._running.get(job.key)
            if running is not None:
                await running.wait()
                continue
            async with self._turns:
                # Somebody else's call may have answered, or may be about to, since we began to wait for a turn.
                if job.key not in self._verdicts and job.key not in self._running:
                    await self._call(self._batch(job))
        self._verdicts.move_to_end(job.key)
        return known

    def _batch(self, first: Job) -> list[Job]:
        """`first` and whatever else waits and fits into the same call."""
        batch, size = [first], first.configuration.size
        self._pending.pop(first.key, None)
        if first.alone or first.key in self._suspects:
            return batch
        for key, job in list(self._pending.items()):
            if len(batch) == BATCH_FILES_MAX:
                break
            if (
                job.alone
                or key in self._suspects
                or key in self._running
                or size + job.configuration.size > BATCH_BYTES_MAX
            ):
                continue
            batch.append(self._pending.pop(key))
            size += job.configuration.size
        return batch

    async def _call(self, batch: list[Job]) -> None:
        ended = asyncio.Event()
        keys = {job.key for job in batch}
        self._running.update(dict.fromkeys(keys, ended))
        self.calls += 1
        try:
            found = await self._lint(batch)
        except LintUnavailable:
            self._suspects |= keys
            if len(batch) == 1:
                raise
            return  # each caller tries its own again, alone
        finally:
            for key in keys:
                del self._running[key]
            ended.set()
        self._suspects -= keys
        for job, complaints in zip(batch, found, strict=True):
            self._verdicts[job.key] = complaints
        while len(self._verdicts) > CACHE_MAX:
            self._verdicts.popitem(last=False)
        if len(self._suspects) > CACHE_MAX:
            self._suspects.clear()  # of objects long replaced; who hangs again is found again

    async def _lint(self, batch: list[Job]) -> list[tuple[str, ...]]:
        root = Path(tempfile.mkdtemp(prefix="shoal-lint-"))
        try:
            await asyncio.to_thread(unpack, root, batch)
            return await self._run(root, batch)
        except OSError as error:
            raise LintUnavailable(f"Bento's lint could not be started: {error}") from error
        finally:
            await asyncio.to_thread(shutil.rmtree, root, ignore_errors=True)

    async def _run(self, root: Path, batch: list[Job]) -> list[tuple[str, ...]]:
        paths = [place(root, index) for index in range(len(batch))]
        launcher = (sys.executable, "-I", "-S", str(_CONFINED), str(root)) if self._confined else ()
        process = await asyncio.create_subprocess_exec(
            *launcher,
            str(self._bento),
            "lint",
            "--skip-env-var-check",
            *(str(path) for path in paths),
            cwd=paths[0].parent,
            env={
                "NO_COLOR": "1",
                "HOME": str(root),
                "GOMEMLIMIT": "1GiB",
            },  # nothing of ours that a file could refer to
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(self._timeout_s):
                assert process.stdout is not None
                assert process.stderr is not None
                warnings, errors = await asyncio.gather(_bounded(process.stdout), _bounded(process.stderr))
                code = await process.wait()
        except TimeoutError as error:
            raise LintUnavailable(f"Bento's lint did not finish in {self._timeout_s:g} s") from error
        finally:
            await _end(process)
        if code == 0:
            return [() for _ in batch]
        whole = len(errors) < OUTPUT_BYTES_MAX
        found, judged = await asyncio.to_thread(read_verdicts, warnings, errors, root, batch)
        if code != 1 or not any(found) or (not whole and len(batch) > 1):
            raise LintUnavailable(f"Bento's lint ended with {code}: {last_words(errors)}")
        return judged


async def _bounded(stream: asyncio.StreamReader) -> bytes:
    """At most OUTPUT_BYTES_MAX of a stream; the rest is read and dropped, so that the writer ends."""
    kept = bytearray()
    while chunk := await stream.read(65536):
        kept += chunk[: OUTPUT_BYTES_MAX - len(kept)]
    return bytes(kept)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill what is left of the process's group, and reap."""
    if process.returncode is None:  # else its number may already be somebody else's
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
