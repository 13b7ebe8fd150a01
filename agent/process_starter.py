"""Starting an execution as a process: what is refused, what is written before, what the runner gets."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from agent import process_table
from agent.executor import Spec
from agent.layout import (
    Inside,
    Layout,
    Surroundings,
    allowed_volume,
    environment,
    forget_health,
    lock_held,
    split_volume,
)
from agent.process_table import Identity, ProcessFile
from runner import contract
from shared.errors import CannotStart, ExecutorUnavailable

RUNNER_WORDS = "runner.stderr"  # of the runner itself, should it break; Bento's output goes through it to the log


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSettings:
    """How executions are started on this machine."""

    runner: Path  # the directory of the runner package
    bento: Path  # the Bento binary
    volumes: tuple[Path, ...] = ()  # host paths that records may name (`--allow-volume`)


class Starter:
    """Starts runners of one host. What it has written into an execution's directory is what finds the process again."""

    def __init__(self, layout: Layout, settings: ProcessSettings, surroundings: Surroundings) -> None:
        self._layout = layout
        self._settings = settings
        self._surroundings = surroundings

    def refuse(self, spec: Spec) -> None:
        """Raises CannotStart if this machine has no way to give an execution what it asks for."""
        if spec.image:
            raise CannotStart(
                "host", f"image '{spec.image}' needs a host with the docker driver; this one runs processes"
            )
        for volume in map(split_volume, spec.volumes):
            if volume.source != volume.target:
                words = f"volume {volume.source}:{volume.target}: processes see a path of the host only where it is"
                raise CannotStart("host", words)
            allowed_volume(volume, self._settings.volumes)

    def start(self, name: str, spec: Spec) -> Identity:
        """Start the runner. Blocks for a millisecond or two, all on tmpfs: in one piece, because a cancellation in the
        middle of it would leave a process that nobody knows."""
        directory = self._layout.execution_dir(name)
        content = self._prepare(directory, spec)
        if lock_held(directory):
            raise CannotStart(
                "host", f"something still runs that holds {directory / contract.LOCK_FILE}, and it is not known"
            )
        # Through the file system only standard input and output: everything else the agent has open closes on exec.
        null = [(os.POSIX_SPAWN_OPEN, descriptor, os.devnull, os.O_RDWR, 0) for descriptor in (0, 1)]
        words = str(directory / RUNNER_WORDS)
        errors = (os.POSIX_SPAWN_OPEN, 2, words, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", str(self._settings.runner / "__main__.py")],
            self._environment(name, spec),
            file_actions=[*null, errors],
            setsid=True,
            setsigmask=(),
            # Python ignores these, and what is ignored stays so over exec.
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),
        )
        try:
            process = process_table.identify(pid)
            if process is not None:
                process_table.write(directory, replace(content, process=process))
        except OSError as error:
            # It runs, and the next list finds it by its environment; until then nobody may call it stopped.
            raise ExecutorUnavailable(f"the runner {pid} was started and cannot be noted: {error}") from error
        if process is None:
            raise CannotStart("host", f"the runner ended at once with exit code {process_table.reap(pid)}")
        return process

    def _prepare(self, directory: Path, spec: Spec) -> ProcessFile:
        content = process_table.read(directory)
        if content is not None:
            content = replace(content, process=None)
            process_table.write(directory, content)
            forget_health(directory)
            return content
        content = ProcessFile(
            cluster=self._layout.cluster,
            host=self._layout.host,
            store_id=spec.store_id,
            execution=spec.execution,
            pipeline=spec.pipeline,
            slot=spec.slot,
            version=spec.version,
            digest=spec.digest,
        )
        directory.mkdir(exist_ok=True)  # that of all executions is not made here: what would it say of the others?
        process_table.write(directory, content)
        return content

    def _environment(self, name: str, spec: Spec) -> dict[str, str]:
        inside = Inside(
            directory=str(self._layout.execution_dir(name)),
            lease_dir=str(self._layout.lease_dir),
            bundle=spec.bundle,
            bento=str(self._settings.bento),
            log=str(self._layout.log(name)),
        )
        # Nothing else of the agent's environment: it may hold credentials that are not for pipelines.
        own = {key: os.environ[key] for key in ("PATH", "HOME", "TZ") if key in os.environ}
        return {**own, **environment(spec, name, self._layout, self._surroundings, inside)}
