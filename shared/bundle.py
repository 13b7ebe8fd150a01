"""The bundle: all that an execution is made of, immutable and named by the hash of its bytes.

    runtime.json     what an executor must know (`Runtime`)
    pipeline.yaml    the user's Bento configuration, byte for byte
    ...              the files that it refers to, by name

A canonical, uncompressed ustar with nothing of a time or a host in it: every leader that admits the same version makes
the same bytes, so a bundle that is already stored need not be written again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from shared.archive import FILES_MAX, read_archive, write_archive
from shared.configuration import PIPELINE, RUNTIME, Configuration, Derived
from shared.documents import decode, encode
from shared.errors import BadInput, problem
from shared.keys import CONFIG_BYTES_MAX, RECORD_BYTES_MAX
from shared.record import PipelineRecord

_CONTENT_BYTES_MAX = CONFIG_BYTES_MAX + 2 * RECORD_BYTES_MAX  # JSON escapes may make an environment longer
BUNDLE_BYTES_MAX = _CONTENT_BYTES_MAX + (FILES_MAX + 2) * 1024 + 10240  # what a reader of the bundles bucket accepts


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """runtime.json: how to run the configuration beside it.

    `http` "auto": the runner starts Bento with `http.enabled=true` and an `http.address` of its choice. Otherwise it is
    the address that Bento listens on by itself; `${...}` in it is replaced from the environment by Bento's rules.
    """

    pipeline: str
    version: str
    env: Mapping[str, str]
    volumes: tuple[str, ...]  # as in the record: /source:/target[:ro]
    image: str  # "" = the agent's default
    cpu: float | None  # limit in cores; None = none
    memory_bytes: int | None  # limit; None = none
    restart_delay_s: float
    restart_delay_max_s: float
    restart_reset_after_s: float
    stop_grace_s: float
    http: str
    config_digest: str  # sha256 hex of the object that the user stored
    # Captured as well, for a leader whose pins are lost: no executor needs them.
    overlap: str = "auto"
    kind: str = "service"


@dataclass(frozen=True, slots=True)
class Bundle:
    """Bytes and their sha256 in hex."""

    digest: str
    data: bytes


def runtime_of(record: PipelineRecord, configuration: Configuration, derived: Derived) -> Runtime:
    """The captured fields of a record and what its configuration says, as the executor needs them."""
    return Runtime(
        pipeline=record.id,
        version=record.version,
        env=dict(sorted(record.env.items())),
        volumes=tuple(record.volumes),
        image=record.image,
        cpu=record.resources.cpu,
        memory_bytes=record.resources.memory,
        restart_delay_s=record.restart.delay_s,
        restart_delay_max_s=record.restart.delay_max_s,
        restart_reset_after_s=record.restart.reset_after_s,
        stop_grace_s=derived.stop_grace_s,
        http=derived.http,
        config_digest=configuration.digest,
        overlap=record.overlap,
        kind=record.kind,
    )


def build_bundle(runtime: Runtime, configuration: Configuration) -> Bundle:
    """The bundle of a version; equal input gives equal bytes."""
    data = write_archive([(RUNTIME, encode(runtime)), *configuration.files])
    return Bundle(hashlib.sha256(data).hexdigest(), data)


def read_bundle(data: bytes, digest: str) -> tuple[Runtime, tuple[tuple[str, bytes], ...]]:
    """(runtime, files) of a bundle, pipeline.yaml first. BadInput if it is not the bundle of that digest, or none."""
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise BadInput(problem("bundle", found, f"its bytes must have the sha256 {digest}; fetch it again"))
    files = read_archive(data, bytes_max=_CONTENT_BYTES_MAX)
    if list(files)[:2] != [RUNTIME, PIPELINE]:
        raise BadInput(problem("bundle", ", ".join(list(files)[:2]), f"it must begin with {RUNTIME} and {PIPELINE}"))
    runtime = decode(Runtime, files.pop(RUNTIME))
    return runtime, tuple(files.items())
