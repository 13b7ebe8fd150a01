"""What inputs mean for two copies at once, row by row."""

import pytest

from shared.components import INPUTS, meaning
from shared.states import Overlap

SHAREABLE, EXCLUSIVE = Overlap.SHAREABLE, Overlap.EXCLUSIVE

CASES = [
    ("nats divides within a queue group", "nats", {"queue": "q"}, SHAREABLE),
    ("nats without a queue broadcasts", "nats", {"subject": "a"}, EXCLUSIVE),
    ("nats with an empty queue broadcasts", "nats", {"queue": ""}, EXCLUSIVE),
    ("jetstream durable with queue", "nats_jetstream", {"durable": "d", "queue": "q"}, SHAREABLE),
    ("jetstream with queue only: its name is the durable", "nats_jetstream", {"queue": "q"}, SHAREABLE),
    ("jetstream bound to a durable", "nats_jetstream", {"durable": "d", "bind": True}, SHAREABLE),
    ("jetstream bound to a durable, in words", "nats_jetstream", {"durable": "d", "bind": "yes"}, SHAREABLE),
    ("jetstream bound without a durable", "nats_jetstream", {"stream": "s", "bind": True}, EXCLUSIVE),
    ("jetstream durable alone admits one", "nats_jetstream", {"durable": "d"}, EXCLUSIVE),
    ("jetstream durable, not bound", "nats_jetstream", {"durable": "d", "bind": False}, EXCLUSIVE),
    ("jetstream without any name", "nats_jetstream", {"subject": "a.>"}, EXCLUSIVE),
    ("stan queue", "nats_stream", {"queue": "q"}, SHAREABLE),
    ("stan queue with one client id", "nats_stream", {"queue": "q", "client_id": "me"}, EXCLUSIVE),
    ("stan without a queue", "nats_stream", {}, EXCLUSIVE),
    ("key-value watch", "nats_kv", {"bucket": "b"}, EXCLUSIVE),
    ("kafka group", "kafka", {"consumer_group": "g", "topics": ["t"]}, SHAREABLE),
    ("kafka group, topics as one text", "kafka", {"consumer_group": "g", "topics": "t"}, SHAREABLE),
    ("kafka without a group", "kafka", {"topics": ["t"]}, EXCLUSIVE),
    ("kafka with partitions", "kafka_franz", {"consumer_group": "g", "topics": ["t:0"]}, EXCLUSIVE),
    ("kafka_franz group", "kafka_franz", {"consumer_group": "g", "topics": ["t"]}, SHAREABLE),
    ("amqp queue", "amqp_0_9", {"queue": "q"}, SHAREABLE),
    ("amqp 1 may be a topic", "amqp_1", {"source_address": "/q"}, EXCLUSIVE),
    ("sqs", "aws_sqs", {"url": "u"}, SHAREABLE),
    ("s3 lists by itself", "aws_s3", {"bucket": "b"}, EXCLUSIVE),
    ("s3 driven by a queue", "aws_s3", {"sqs": {"url": "u"}}, SHAREABLE),
    ("kinesis with a table", "aws_kinesis", {"streams": ["s"], "dynamodb": {"table": "t"}}, SHAREABLE),
    ("kinesis without a table", "aws_kinesis", {"streams": ["s"]}, EXCLUSIVE),
    ("kinesis with shards", "aws_kinesis", {"streams": ["s:0"], "dynamodb": {"table": "t"}}, EXCLUSIVE),
    ("kinesis by ARN", "aws_kinesis", {"streams": ["arn:aws:kinesis:x"], "dynamodb": {"table": "t"}}, SHAREABLE),
    ("pubsub", "gcp_pubsub", {"subscription": "s"}, SHAREABLE),
    ("pulsar by default", "pulsar", {"subscription_name": "s"}, SHAREABLE),
    ("pulsar exclusive", "pulsar", {"subscription_type": "exclusive"}, EXCLUSIVE),
    (
        "redis group, client per copy",
        "redis_streams",
        {"consumer_group": "g", "client_id": "ENV_SHOAL_EXECUTION"},
        SHAREABLE,
    ),
    ("redis group, one client", "redis_streams", {"consumer_group": "g", "client_id": "me"}, EXCLUSIVE),
    ("redis without a group", "redis_streams", {"client_id": "ENV_SHOAL_EXECUTION"}, EXCLUSIVE),
    ("redis list", "redis_list", {"key": "k"}, SHAREABLE),
    ("redis broadcast", "redis_pubsub", {}, EXCLUSIVE),
    ("nsq channel", "nsq", {"channel": "c"}, SHAREABLE),
    ("mqtt", "mqtt", {"topics": ["$share/g/t"]}, EXCLUSIVE),
    ("generate", "generate", {}, EXCLUSIVE),
    ("a file", "file", {}, EXCLUSIVE),
    ("an HTTP server", "http_server", {}, EXCLUSIVE),
    ("unknown", "frobnicate", {}, EXCLUSIVE),
    ("fields of absurd types", "kafka", {"consumer_group": {"a": 1}, "topics": {"b": []}}, EXCLUSIVE),
    ("fields that are lists", "nats_jetstream", {"durable": [1], "bind": [1]}, EXCLUSIVE),
]


@pytest.mark.parametrize(("name", "fields", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_meaning(name: str, fields: dict[str, object], expected: Overlap) -> None:
    found = meaning(name, fields)
    assert found.overlap is expected
    assert name in found.reason or name == "kafka_franz"


def test_every_reason_is_one_sentence_about_its_input() -> None:
    for name in INPUTS:
        reason = meaning(name, {}).reason
        assert 20 < len(reason) < 250, name
        assert not reason.endswith("."), name


def test_an_absurdly_long_name_does_not_fill_a_status() -> None:
    assert len(meaning("x" * 100_000, {}).reason) < 250
