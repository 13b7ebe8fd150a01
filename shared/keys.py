"""Where everything lies in the store: buckets, keys and subjects of one cluster.

<c>_pipelines  KV      <id>                      users: the pipeline record
<c>_configs    objects <id>/<version>            users: the Bento configuration
<c>_operator   KV      host.<h>, restart.<id>, store, confirm.<input>   users: operator intents
<c>_hosts      KV      <host>, _pulse            agents: heartbeats; leader: pulse and tombstones
<c>_reports    KV      <host>                    agents: what they observe
<c>_control    KV      lease, journal, term.<term id>, assign.<host>, version.<id>.<v>, status.<id>   leader
<c>_bundles    objects <digest>                  leader: admitted bundles
<c>_events     stream  <c>.event.<kind>.<subject>
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from shared.ids import check_id

LEASE = "lease"
JOURNAL = "journal"
PULSE = "_pulse"  # not a host id: those begin with a letter or digit
STORE_INTENT = "store"

CONFIG_BYTES_MAX = 8 * 1024 * 1024  # a Bento configuration with its files; what a leader reads into memory
KEY_CHARS_MAX = 256  # of a key; servers end connections for subjects of some 4,000, and people cannot read either
RECORD_BYTES_MAX = 256 * 1024  # a pipeline record; a larger one is refused, not read further


_KEY = re.compile(r"[-/_=a-zA-Z0-9]+(\.[-/_=a-zA-Z0-9]+)*")


def is_key(text: str) -> bool:
    """Whether `text` may be (part of) a key of ours. A stream holds whatever a server takes as a subject, which is
    nearly any bytes; under such a key nothing can be written or read as a key-value bucket has it."""
    return len(text) <= KEY_CHARS_MAX and _KEY.fullmatch(text) is not None


def term_key(term_id: str) -> str:
    """Key in the control bucket that a leader writes with every commit of its term, and nobody else."""
    return f"term.{term_id}"


def assign_key(host: str) -> str:
    """Key in the control bucket of the assignment of a host."""
    return f"assign.{host}"


def status_key(pipeline: str) -> str:
    """Key in the control bucket of the status of a pipeline."""
    return f"status.{pipeline}"


def version_key(pipeline: str, version: str) -> str:
    """Key in the control bucket of the pin of a version."""
    return f"version.{pipeline}.{version}"


def host_intent_key(host: str) -> str:
    """Key in the operator bucket of what an operator wants of a host."""
    return f"host.{host}"


def restart_intent_key(pipeline: str) -> str:
    """Key in the operator bucket whose revision asks for new executions of a pipeline."""
    return f"restart.{pipeline}"


def confirm_intent_key(name: str) -> str:
    """Key in the operator bucket of an operator's word on a hold; `name` is that of the input."""
    return f"confirm.{name}"


def split_version_key(key: str) -> tuple[str, str]:
    """(pipeline, version) of a `version.` key; all after the id is the version."""
    _, pipeline, version = key.split(".", 2)
    return pipeline, version


def object_name(pipeline: str, version: str) -> str:
    """Name of a configuration in the configs bucket."""
    return f"{pipeline}/{version}"


def split_object_name(name: str) -> tuple[str, str] | None:
    """(pipeline, version) of an object in the configs bucket; None if the name has no slash."""
    pipeline, slash, version = name.partition("/")
    return (pipeline, version) if slash else None


@dataclass(frozen=True, slots=True)
class Keys:
    """Bucket, stream and subject names of the cluster `cluster` (an id)."""

    cluster: str = "shoal"

    def __post_init__(self) -> None:
        check_id(self.cluster, "cluster")

    @property
    def pipelines(self) -> str:
        return f"{self.cluster}_pipelines"

    @property
    def configs(self) -> str:
        return f"{self.cluster}_configs"

    @property
    def operator(self) -> str:
        return f"{self.cluster}_operator"

    @property
    def hosts(self) -> str:
        return f"{self.cluster}_hosts"

    @property
    def reports(self) -> str:
        return f"{self.cluster}_reports"

    @property
    def control(self) -> str:
        return f"{self.cluster}_control"

    @property
    def bundles(self) -> str:
        return f"{self.cluster}_bundles"

    @property
    def events(self) -> str:
        return f"{self.cluster}_events"

    def live_assign(self, host: str) -> str:
        """Core subject on which the server republishes each new assignment of a host: a wake-up, never a proof."""
        return f"{self.cluster}.live.assign.{host}"

    def event(self, kind: str, subject: str) -> str:
        """Subject of one event."""
        return f"{self.cluster}.event.{kind}.{subject}"

    def logs(self, host: str) -> str:
        """Core subject on which the agent of a host answers requests for logs."""
        return f"{self.cluster}.agent.{host}.logs"
