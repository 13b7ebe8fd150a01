"""Where an agent keeps what, and what an execution sees: shared by the agent and both executors.

    <run_dir>/                      tmpfs, one per host: only a reboot loses it
        lease/                      lease file and grants; mounted read-only into every execution, the directory as a
                                    whole (a file that is replaced by rename would stay the old one in a mount)
            lease, grants/<name>    see `runner.permits`
        executions/<name>/          one per execution, writable for it; files as in `runner.contract`
            process.json            process driver only: its memory, see `process_table`
    <state_dir>/                    disk, survives a reboot
        bundles/<digest>/bundle.tar
        logs/<name>/output.log      process driver only: what the runner writes, with rotation

`<name>` is `<cluster>-<first 8 characters of the store id>-<execution>`: it tells people where something belongs.
It is never taken as a proof of it; that are labels and process files, which carry everything in full.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.executor import Spec
from runner import contract
from shared.errors import CannotStart
from shared.ids import check_id

LEASE = "lease"
EXECUTIONS = "executions"
BUNDLES = "bundles"
LOGS = "logs"
BUNDLE_FILE = "bundle.tar"

LOG_FILE = "output.log"

# There is none, or something that is nothing of ours: a directory, a link, a pipe. Every other error says nothing about
# the file: no descriptors left, a disk that fails, an agent that runs as another user.
NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO})

HEALTH_BYTES_MAX = 64 * 1024  # a health file has some hundred bytes; an execution may write anything there
STORE_ID_SHOWN = 8  # characters of a store id in names: enough to tell two stores of one cluster apart


def name_of(cluster: str, store_id: str, execution: str) -> str:
    """The name of an execution's container, directories and grant."""
    return f"{cluster}-{store_id[:STORE_ID_SHOWN]}-{execution}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The directories of one agent, and the names of what lies in them."""

    cluster: str
    host: str
    run_dir: Path
    state_dir: Path

    def __post_init__(self) -> None:
        check_id(self.cluster, "cluster")
        check_id(self.host, "host")
        for directory in (self.run_dir, self.state_dir):
            assert directory.is_absolute(), f"{directory}: engines mount by absolute paths"

    def name(self, store_id: str, execution: str) -> str:
        """The name of an execution's container and directories."""
        return name_of(self.cluster, store_id, execution)

    @property
    def lease_dir(self) -> Path:
        return self.run_dir / LEASE

    @property
    def executions_dir(self) -> Path:
        return self.run_dir / EXECUTIONS

    def execution_dir(self, name: str) -> Path:
        return self.executions_dir / name

    @property
    def bundles_dir(self) -> Path:
        return self.state_dir / BUNDLES

    def bundle_dir(self, digest: str) -> Path:
        return self.bundles_dir / digest

    def bundle(self, digest: str) -> Path:
        return self.bundle_dir(digest) / BUNDLE_FILE

    @property
    def logs_dir(self) -> Path:
        return self.state_dir / LOGS

    def log_dir(self, name: str) -> Path:
        return self.logs_dir / name

    def log(self, name: str) -> Path:
        return self.log_dir(name) / LOG_FILE

    def ours(self, accepted: frozenset[str]) -> tuple[str, ...]:
        """What names of our executions begin with, for each accepted store id."""
        return tuple(sorted(self.name(store_id, "") for store_id in accepted))


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What an agent adds to every execution."""

    nats_url: str  # its own
    env: Mapping[str, str] = field(default_factory=dict)  # its `--env`
    fetch: str = ""  # how a runner gets a bundle that is not on this host, see `runner.contract.FETCH`; "" = it cannot


@dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    """Where an execution finds things: paths of the host for a process, paths inside for a container."""

    directory: str
    lease_dir: str
    bundle: str
    bento: str
    log: str = ""  # "" = the runner's standard output


def environment(spec: Spec, name: str, layout: Layout, surroundings: Surroundings, inside: Inside) -> dict[str, str]:
    """The whole environment of a runner; Bento gets all of it that does not begin with SHOAL_RUNNER_.

    `name` is that of the execution's directories and of its grant.

    The record's env wins over the agent's `--env`, that over the agent's own NATS address; SHOAL_ names belong to us
    and are dropped wherever they come from.
    """
    chosen = {"NATS_URL": surroundings.nats_url, **surroundings.env, **spec.env}
    seen = {name: value for name, value in chosen.items() if not name.startswith("SHOAL_")}
    seen.update(
        SHOAL_CLUSTER=layout.cluster,
        SHOAL_HOST=layout.host,
        SHOAL_PIPELINE=spec.pipeline,
        SHOAL_VERSION=spec.version,
        SHOAL_SLOT=str(spec.slot),
        SHOAL_REPLICAS=str(spec.replicas),
        SHOAL_EXECUTION=spec.execution,
    )
    runner = {
        contract.DIGEST: spec.digest,
        contract.BUNDLE: inside.bundle,
        contract.DIR: inside.directory,
        contract.LEASE_DIR: inside.lease_dir,
        contract.EXECUTION: name,
        contract.BENTO: inside.bento,
        contract.STOP_GRACE_S: str(spec.stop_grace_s),
        contract.HTTP: spec.http,
        contract.LOG: inside.log,
        contract.FETCH: surroundings.fetch,
    }
    return {**seen, **{name: value for name, value in runner.items() if value}}


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume of a record, `/source:/target[:ro]`."""

    source: str
    target: str
    writable: bool


def split_volume(text: str) -> Volume:
    """The parts of a volume; the record has been validated."""
    source, _, rest = text.partition(":")
    target, _, mode = rest.partition(":")
    return Volume(source, target, writable=mode != "ro")


def allowed_volume(volume: Volume, allowed: tuple[Path, ...]) -> Path:
    """The real path of a volume's source; CannotStart unless the agent allows it.

    Symbolic links are followed on both sides: a pipeline that may write below an allowed path must not lead another one
    out of it by a link.
    """
    real = Path(os.path.realpath(volume.source))
    for prefix in allowed:
        if real.is_relative_to(os.path.realpath(prefix)):
            return real
    may = ", ".join(map(str, allowed)) or "none"
    words = (
        f"volume {volume.source} is not allowed on this host (allowed below: {may}); see --allow-volume of its agent"
    )
    raise CannotStart("host", words)


def read_health(directory: Path) -> Mapping[str, Any]:
    """The runner's health file in an execution directory, {} if there is none that can be read.

    The execution may put anything there: a link, a pipe, something endless. None of it must hurt an agent.
    """
    try:
        descriptor = _open_plain(directory / contract.HEALTH_FILE)
    except OSError:
        return {}
    try:
        content = json.loads(os.read(descriptor, HEALTH_BYTES_MAX))
    except (OSError, ValueError, RecursionError):
        return {}
    finally:
        os.close(descriptor)
    return content if isinstance(content, dict) else {}


def exit_code(health: Mapping[str, Any]) -> int | None:
    """The exit code that a runner wrote before it ended, as an engine would say it; None: it could not."""
    match health.get("exit"):
        case {"code": int(code)}:
            return code
        case _:
            return None


def lock_held(directory: Path) -> bool:
    """Whether a runner, or anything that it started, holds the run lock of this execution directory. OSError: the host
    cannot tell now."""
    with _run_lock(directory) as held:
        return held is True


def forget_health(directory: Path) -> None:
    """Delete what an earlier run wrote about its health, but never what a run writes that goes on.

    A runner writes its document again only when something changes: deleted, it would be missing for long. A second
    start of the same execution can meet the first words of its runner, so the lock is held here (a runner waits for
    it), and where there is no lock yet, no runner has written anything.
    """
    with _run_lock(directory) as held:
        if held is False:
            (directory / contract.HEALTH_FILE).unlink(missing_ok=True)


@contextlib.contextmanager
def _run_lock(directory: Path) -> Iterator[bool | None]:
    """Whether somebody holds the run lock; if not, it is held within this block. None: there is none. OSError: the host
    cannot tell now."""
    try:
        descriptor = _open_plain(directory / contract.LOCK_FILE)
    except OSError as error:
        if error.errno not in NOT_THERE:
            raise
        yield None
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield True
    else:
        yield False
    finally:
        os.close(descriptor)


def _open_plain(path: Path) -> int:
    """A descriptor of a regular file, opened without following a link or waiting for a pipe's other end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EISDIR, "no regular file", str(path))
    return descriptor


def boot_id() -> str:
    """Of this machine since it was started."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
