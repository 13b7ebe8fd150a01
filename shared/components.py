"""What each Bento input means for running two copies at once: the one table behind "shareable or exclusive".

Shareable is an input whose *system* divides the work between all who consume under one name, so that a second copy
takes over a part of the messages instead of repeating them. Everything else is exclusive, and so is everything that is
not in the table: a wrong "exclusive" costs a little time in an update, a wrong "shareable" repeats work.

Read from the source and documentation of Bento 1.20.0. A row judges the fields of its input; wrappers (`broker`,
`batched` ...) are as their children are, see `configuration`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from shared.states import Overlap

UNSET = "ENV_"  # begins the text that stands for `${NAME}` where the value is known on the host only: ENV_NAME

Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Meaning:
    """Whether two copies may run at once, and why, in one sentence."""

    overlap: Overlap
    reason: str


def meaning(name: str, fields: Fields) -> Meaning:
    """What the input `name` with these fields means. Wrappers are not asked here."""
    rule = INPUTS.get(name)
    if rule is None:
        return _exclusive(
            f"Shoal does not know the input '{name[:64]}', so it assumes that two copies would repeat its work"
        )
    return rule(fields)


def _shareable(reason: str) -> Meaning:
    return Meaning(Overlap.SHAREABLE, reason)


def _exclusive(reason: str) -> Meaning:
    return Meaning(Overlap.EXCLUSIVE, reason)


def _said(fields: Fields, name: str) -> bool:
    """Whether a field has a value that is not empty."""
    return fields.get(name) not in (None, "", [], False)


def _true(fields: Fields, name: str) -> bool:
    return str(fields.get(name)).lower() in ("true", "yes", "on", "y")


def _texts(fields: Fields, name: str) -> list[str]:
    value = fields.get(name)
    return [str(item) for item in value] if isinstance(value, list) else [] if value is None else [str(value)]


def _always(found: Meaning) -> Callable[[Fields], Meaning]:
    return lambda _fields: found


def _nats(fields: Fields) -> Meaning:
    if _said(fields, "queue"):
        return _shareable("nats with a queue: the server hands each message to one member of the queue group")
    return _exclusive("nats without 'queue' delivers every message to every subscriber; set 'queue' to divide them")


def _nats_jetstream(fields: Fields) -> Meaning:
    durable, bind = _said(fields, "durable"), _true(fields, "bind")
    if _said(fields, "queue"):
        # Without a durable name nats.go uses the queue's name as one.
        return _shareable("nats_jetstream with a queue: the members of the queue group share one consumer")
    if durable and bind:
        # A pull consumer divides. A push consumer without a deliver group refuses the second copy: safe as well.
        return _shareable(
            "nats_jetstream bound to a durable consumer: the server hands each message to one of the copies"
        )
    if durable:
        return _exclusive(
            "nats_jetstream with 'durable' but without 'queue' admits one subscriber at a time; "
            "set 'queue', or 'bind: true' with a pull consumer, to divide the messages"
        )
    return _exclusive("nats_jetstream without 'durable' and 'queue' delivers every message to every copy")


def _nats_stream(fields: Fields) -> Meaning:
    client = str(fields.get("client_id") or "")
    if not _said(fields, "queue"):
        return _exclusive("nats_stream without 'queue' delivers every message to every subscriber")
    if client and not _unique(client):
        return _exclusive("nats_stream with a fixed 'client_id' admits one client; leave it out to divide the messages")
    return _shareable("nats_stream with a queue: the server hands each message to one member of the queue group")


def _kafka(fields: Fields) -> Meaning:
    if not _said(fields, "consumer_group"):
        return _exclusive("kafka without 'consumer_group' reads whole topics in every copy")
    if any(":" in topic for topic in _texts(fields, "topics")):
        return _exclusive("kafka with explicit partitions in 'topics' reads the same partitions in every copy")
    return _shareable("kafka with a consumer group: the partitions are divided between the members of the group")


def _kinesis(fields: Fields) -> Meaning:
    table = fields.get("dynamodb")
    if not isinstance(table, Mapping) or not _said(table, "table"):
        return _exclusive("aws_kinesis without 'dynamodb.table' reads all shards in every copy")
    if any(":" in stream and not stream.startswith("arn:") for stream in _texts(fields, "streams")):
        return _exclusive("aws_kinesis with explicit shards in 'streams' reads the same shards in every copy")
    return _shareable("aws_kinesis with a DynamoDB table: the shards are balanced over all who use the table")


def _s3(fields: Fields) -> Meaning:
    queue = fields.get("sqs")
    if isinstance(queue, Mapping) and _said(queue, "url"):
        return _shareable("aws_s3 with 'sqs.url': the queue hands each notification to one consumer")
    return _exclusive("aws_s3 without 'sqs.url' lists the bucket by itself, so every copy would read the same objects")


def _pulsar(fields: Fields) -> Meaning:
    if fields.get("subscription_type") == "exclusive":
        return _exclusive("pulsar with 'subscription_type: exclusive' admits one consumer")
    return _shareable("pulsar: consumers of one subscription divide its messages")


def _redis_streams(fields: Fields) -> Meaning:
    if not _said(fields, "consumer_group"):
        return _exclusive("redis_streams without 'consumer_group' cannot divide the entries")
    if not _unique(str(fields.get("client_id") or "")):
        # A consumer that starts takes up what is pending under its name: the other copy's work.
        return _exclusive(
            "redis_streams takes up the pending entries of its own 'client_id'; "
            "use 'client_id: ${SHOAL_EXECUTION}' to divide the entries between copies"
        )
    return _shareable("redis_streams with a consumer group and a client id of its own in every copy")


def _unique(client: str) -> bool:
    return f"{UNSET}SHOAL_EXECUTION" in client


_POLLS = "reads by itself what nobody divides, so every copy would read the same"
_BROADCAST = "delivers every message to every subscriber"
_PORT = "listens on an address, which a second copy on the same host could not open"
_LOCAL = "reads what lies on its host"

INPUTS: Mapping[str, Callable[[Fields], Meaning]] = {
    "amqp_0_9": _always(_shareable("amqp_0_9: the broker hands each message of a queue to one of its consumers")),
    "amqp_1": _always(_exclusive("amqp_1 may read a topic, whose messages go to every subscriber")),
    "aws_kinesis": _kinesis,
    "aws_s3": _s3,
    "aws_sqs": _always(_shareable("aws_sqs: the queue shows each message to one consumer at a time")),
    "azure_blob_storage": _always(_exclusive(f"azure_blob_storage {_POLLS}")),
    "azure_cosmosdb": _always(_exclusive(f"azure_cosmosdb {_POLLS}")),
    "azure_queue_storage": _always(_shareable("azure_queue_storage: the queue shows each message to one consumer")),
    "azure_service_bus_queue": _always(
        _shareable("azure_service_bus_queue: the queue locks a message for one consumer")
    ),
    "azure_table_storage": _always(_exclusive(f"azure_table_storage {_POLLS}")),
    "beanstalkd": _always(_shareable("beanstalkd: the server reserves each job for one consumer")),
    "cassandra": _always(_exclusive(f"cassandra {_POLLS}")),
    "cockroachdb_changefeed": _always(_exclusive("cockroachdb_changefeed delivers every change to every reader")),
    "csv": _always(_exclusive(f"csv {_LOCAL}")),
    "cypher": _always(_exclusive(f"cypher {_POLLS}")),
    "discord": _always(_exclusive(f"discord {_POLLS}")),
    "etcd": _always(_exclusive("etcd delivers every change to every watcher")),
    "file": _always(_exclusive(f"file {_LOCAL}")),
    "file_tail": _always(_exclusive(f"file_tail {_LOCAL}")),
    "fsevent": _always(_exclusive("fsevent watches its host's files")),
    "gcp_bigquery_select": _always(_exclusive(f"gcp_bigquery_select {_POLLS}")),
    "gcp_cloud_storage": _always(_exclusive(f"gcp_cloud_storage {_POLLS}")),
    "gcp_pubsub": _always(_shareable("gcp_pubsub: subscribers of one subscription divide its messages")),
    "gcp_spanner_cdc": _always(_exclusive("gcp_spanner_cdc delivers every change to every reader")),
    "generate": _always(_exclusive("generate makes its messages by itself, so two copies would make twice as many")),
    "grpc_client": _always(_exclusive(f"grpc_client {_POLLS}")),
    "hdfs": _always(_exclusive(f"hdfs {_POLLS}")),
    "http_client": _always(_exclusive(f"http_client {_POLLS}")),
    "http_server": _always(_exclusive(f"http_server {_PORT}")),
    "inproc": _always(_shareable("inproc reads what the same process writes")),
    "kafka": _kafka,
    "kafka_franz": _kafka,
    "kubernetes_watch": _always(_exclusive("kubernetes_watch delivers every change to every watcher")),
    "mongodb": _always(_exclusive(f"mongodb {_POLLS}")),
    "mqtt": _always(_exclusive(f"mqtt {_BROADCAST}, and its broker drops the first of two clients with one id")),
    "nanomsg": _always(_exclusive(f"nanomsg {_BROADCAST}")),
    "nats": _nats,
    "nats_jetstream": _nats_jetstream,
    "nats_kv": _always(_exclusive("nats_kv delivers every change to every watcher")),
    "nats_object_store": _always(_exclusive("nats_object_store delivers every change to every watcher")),
    "nats_stream": _nats_stream,
    "nsq": _always(_shareable("nsq: consumers of one channel divide its messages")),
    "parquet": _always(_exclusive(f"parquet {_LOCAL}")),
    "pulsar": _pulsar,
    "redis_list": _always(_shareable("redis_list: the server hands each element to the one client that pops it")),
    "redis_pubsub": _always(_exclusive(f"redis_pubsub {_BROADCAST}")),
    "redis_scan": _always(_exclusive(f"redis_scan {_POLLS}")),
    "redis_streams": _redis_streams,
    "s2": _always(_exclusive("s2 delivers every record to every reader")),
    "sftp": _always(_exclusive(f"sftp {_POLLS}")),
    "socket": _always(_exclusive("socket connects to one sender, which would serve every copy")),
    "socket_server": _always(_exclusive(f"socket_server {_PORT}")),
    "sql_raw": _always(_exclusive(f"sql_raw {_POLLS}")),
    "sql_select": _always(_exclusive(f"sql_select {_POLLS}")),
    "stdin": _always(_exclusive("stdin is empty under Shoal; it is what Bento reads if no input is stated")),
    "subprocess": _always(_exclusive("subprocess runs a command, which every copy would run")),
    "twitter_search": _always(_exclusive(f"twitter_search {_POLLS}")),
    "websocket": _always(_exclusive("websocket connects to one sender, which would serve every copy")),
    "zmq4": _always(_exclusive(f"zmq4 {_BROADCAST}, unless its sockets are of a kind that Shoal does not look at")),
    "zmq4n": _always(_exclusive(f"zmq4n {_BROADCAST}, unless its sockets are of a kind that Shoal does not look at")),
}
