"""Whatever lies under a key, whoever wrote it: a value or BadInput at the border, and a cluster that goes on behind it.

A good document is damaged, or replaced by bytes of a stranger, and handed to whatever reads that kind. Then everything
that a scheduler or an agent does with what it has read must still work: planning, the audit, what is written next, and
the pipelines that nobody has touched.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent.core.admit import Admit, admit
from agent.core.diff import diff
from agent.core.health import believed
from agent.core.inventory import Inventory
from agent.core.restarts import Memory
from agent.core.session import Claiming, Doubting, observe
from agent.core.situation import Situation
from agent.executor import Found, Life
from agent.heartbeat import _heartbeat, _seen
from agent.process_table import ProcessFile
from agent.state import Saved
from runner.permits import parse_grant, parse_lease
from scheduler.core.audit import audit
from scheduler.core.world import Source
from scheduler.metrics import census
from scheduler.roll import Roll
from scheduler.takeover import draft, former_term, holder_of
from shared.documents import (
    Assigned,
    Assignment,
    Heartbeat,
    InputMark,
    Journal,
    Lease,
    Observed,
    Pin,
    Pulse,
    Report,
    Session,
    SlotStatus,
    Status,
    Stopping,
    decode,
    encode,
)
from shared.errors import BadInput
from shared.intents import ConfirmIntent, HostIntent, RestartIntent, StoreIntent
from shared.keys import is_key
from shared.log_stream import LogRequest
from shared.nats_codec import key_subject, objects_source, parse_meta
from shared.states import Overlap, Phase, State, Wanted
from shared.store import Change, Entry, Listing, Mark, ObjectInfo
from tests.support.clusters import GIB, STORE, Cluster
from tests.support.hostile import BYTES, KEYS, RAW, VALUES, written

RUNS = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
DOCUMENT_BYTES = 1024 * 1024  # what a server takes as one message unless it is told otherwise

PREFIXES = ("", "host.", "restart.", "assign.", "version.", "version.alpha.", "status.", "unknown.")

# --- documents of strangers


@st.composite
def damaged(draw: st.DrawFn, good: Mapping[str, Any]) -> bytes:
    """The document with up to three of its values, at any depth, replaced, dropped or said twice; or no document."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.one_of(st.sampled_from(BYTES), st.binary(max_size=200)))
    document = copy.deepcopy(dict(good))
    for _ in range(draw(st.integers(0, 3))):
        at: Any = document
        while True:
            names = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not names:
                break
            name = draw(st.sampled_from(names))
            if isinstance(at[name], dict | list) and at[name] and draw(st.booleans()):
                at = at[name]
                continue
            if draw(st.integers(0, 5)) == 0:
                del at[name]
            else:
                at[name] = copy.deepcopy(draw(st.sampled_from(VALUES)))
            break
    return written(document)


SESSION = Session("agent-h1", "boot-h1", 1)
ITEM = Assigned(
    execution="alpha-0-3", pipeline="alpha", slot=0, replicas=1, version="1", digest="d" * 64, wanted=Wanted.RUN,
    overlap=Overlap.EXCLUSIVE, lease_bound=True, stop_grace_s=20.0, cpu=0.5, memory_bytes=2**26,
)  # fmt: skip
HALTING = Stopping(
    execution="beta-0-2", pipeline="beta", slot=0, version="1", overlap=Overlap.EXCLUSIVE, cpu=0.5, memory_bytes=2**26,
    asked_of=SESSION, asked_in=3, reason="because",
)  # fmt: skip
SEEN = Observed(
    execution="alpha-0-3", pipeline="alpha", slot=0, version="1", digest="d" * 64, phase=Phase.READY, reason="",
    last_words=("one", "two"), exit_code=1, runtime="17",
)  # fmt: skip
GOOD: Mapping[str, object] = {
    "heartbeat": Heartbeat(
        store_id=STORE, host="h1", session=SESSION, sequence=7, lease_s=8.0, fence_kill_s=2.0, poll_s=0.25, cpu=4.0,
        memory_bytes=2**32, labels={"zone": "a"}, drivers={}, volumes=("/data",), dead=SESSION,
    ),
    "pulse": Pulse(STORE, 1, 2),
    "assignment": Assignment(
        store_id=STORE, term=1, plan=9, host="h1", session=SESSION, executions=(ITEM,), stopping=(HALTING,),
        accepted=("older",),
    ),
    "report": Report(store_id=STORE, host="h1", session=SESSION, term=1, plan=9, executions=(SEEN,)),
    "journal": Journal(
        store_id=STORE, term=1, plan=9, attempt="a", holder="me", term_id="b", reasons=("why",),
        inputs={"hosts": InputMark("x", 3)},
    ),
    "lease": Lease("me", "scheduler-1", 5),
    "pin": Pin(
        store_id=STORE, term=1, plan=9, pipeline="alpha", version="1", digest="d" * 64, config_digest="c" * 64,
        overlap=Overlap.SHAREABLE, overlap_reason="why", inputs=("nats",), stop_grace_s=22.0, cpu=0.5,
        memory_bytes=2**26, image="", volumes=(), captured={"env": {}, "overlap": "auto"},
    ),
    "status": Status(
        store_id=STORE, term=1, plan=9, pipeline="alpha", state=State.RUNNING, wanted="published", version="1",
        slots=(SlotStatus(slot=0, execution="alpha-0-3", host="h1", version="1", phase="ready"),),
    ),
    "host intent": HostIntent(cordon=True, reason="why", who="me"),
    "restart intent": RestartIntent(request="abc", reason="why", who="me"),
    "confirm intent": ConfirmIntent(store_id=STORE, plan=9, created="c", heard=InputMark("c", 7), who="me"),
    "store intent": StoreIntent(accept="new-store", replaces=STORE),
    "object": ObjectInfo("alpha/1", 10, "d" * 64, 1, "nuid"),
    "log request": LogRequest(execution="alpha-0-3", tail=5, follow=True, stream="abc"),
}  # fmt: skip
RECORD = {
    "id": "alpha", "name": "Alpha", "status": "published", "version": "1", "replicas": 2, "env": {"A": "b"},
    "placement": {"required": {"zone": ["a"]}, "preferred": {"zone": "b"}, "spread": "host"}, "volumes": ["/a:/b:ro"],
    "resources": {"cpu": 0.5, "memory": "64MiB"}, "restart": {"delay_s": 1}, "on_partition": "auto", "image": "x",
}  # fmt: skip
KINDS = {name: json.loads(encode(document)) for name, document in GOOD.items()} | {"record": RECORD}
documents = st.sampled_from(sorted(KINDS)).flatmap(lambda kind: damaged(KINDS[kind]))


# --- the border


def in_few_words(error: BadInput) -> None:
    assert all(len(str(found)) < 1000 for found in error.problems)


@pytest.mark.parametrize("kind", sorted(GOOD))
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_document_is_read_whole_or_refused_in_few_words(kind: str, data: st.DataObject) -> None:
    raw = data.draw(damaged(KINDS[kind]))
    try:
        found = decode(type(GOOD[kind]), raw)
    except BadInput as error:
        in_few_words(error)
        return
    again = encode(found)
    assert decode(type(GOOD[kind]), again) == found, "what was read can be written and read again"


@pytest.mark.parametrize("value", [b"NaN", b"Infinity", b"[-Infinity]", b'{"a": NaN}'])
def test_a_pin_holds_no_number_that_json_does_not_have(value: bytes) -> None:
    good = encode(GOOD["pin"])
    assert decode(Pin, good.replace(b'"captured":{', b'"captured":{"x":1,')).captured["x"] == 1
    with pytest.raises(BadInput):
        decode(Pin, good.replace(b'"captured":{', b'"captured":{"x":' + value + b","))


@pytest.mark.parametrize("kind", sorted(GOOD))
def test_the_largest_message_is_judged_in_bounded_time(kind: str) -> None:
    for raw in (
        b"[" * DOCUMENT_BYTES,
        b'{"a":' * (DOCUMENT_BYTES // 5),
        b"{" + b",".join(b'"k%d":1' % n for n in range(90_000)) + b"}",
        b'{"volumes":[' + b"1," * 500_000 + b'1],"executions":[' + b"1]}",
        b'{"executions":[' + b"1," * 500_000 + b"1]}",
        b'{"slots":[' + b"{}," * 300_000 + b"{}]}",
        b'{"host":"' + b"\\u0000" * 170_000 + b'"}',
        b'{"store_id":"' + b"x" * DOCUMENT_BYTES + b'"}',
        b"1" * DOCUMENT_BYTES,
    ):
        begun_s = time.process_time()
        try:
            decode(type(GOOD[kind]), raw)  # unknown fields alone are a document without fields, where none is needed
        except BadInput as error:
            in_few_words(error)
        assert time.process_time() - begun_s < 5.0, "CPU time, and ten times what it takes"


@given(st.binary(max_size=300) | st.sampled_from(BYTES) | documents)
@example(b'{"nuid":"\\ud800","size":1,"chunks":1}')
@example(b'{"nuid":"x\\r\\nPUB a 0","size":1,"chunks":1}')
@example(b'{"nuid":">","size":1,"chunks":1}')
@example(b'{"nuid":"a","size":1' + b"0" * 400 + b',"chunks":1}')
@example(b'{"nuid":"a","size":true,"chunks":1,"digest":"SHA-256=' + b"AAAA" * 9999 + b'"}')
def test_metadata_of_an_object_is_readable_or_says_that_it_is_not(data: bytes) -> None:
    meta = parse_meta("alpha/1", data, 5)
    assert decode(ObjectInfo, encode(meta.info)) == meta.info
    assert len(meta.info.digest) in (0, 64)
    if meta.readable and not meta.link:
        token = meta.info.nuid
        assert token
        assert token.isascii()
        assert not set(token) & set(" .*>\r\n\t\0"), "it becomes part of a subject"
    entry = objects_source("shoal_configs").decode("$O.shoal_configs.M.YWxwaGEvMQ==", data, None, 5)
    assert entry.key == "alpha/1"


# --- a scheduler


def running() -> Cluster:
    """Three hosts with two pipelines that run."""
    cluster = Cluster()
    for name in ("h1", "h2", "h3"):
        cluster.host(name, memory_bytes=4 * GIB)
    cluster.publish("alpha", derived=Overlap.EXCLUSIVE)
    cluster.publish("beta", replicas=2)
    cluster.settle()
    return cluster


@given(
    st.lists(
        st.tuples(
            st.sampled_from(Source),
            st.tuples(st.sampled_from(PREFIXES), st.sampled_from(KEYS)).map("".join),
            st.none() | documents,
        ),
        min_size=1,
        max_size=4,
    ),
    st.booleans(),
)
@RUNS
def test_a_scheduler_plans_on_whatever_it_has_read(
    writes: list[tuple[Source, str, bytes | None]], listed: bool
) -> None:
    cluster = running()
    for source, key, data in writes:
        entry = Entry(key, data, cluster._next())
        if listed and data is not None:
            cluster.world.fold_listing(source, Listing({key: entry}, {}, Mark("x", entry.revision)))
        else:
            cluster.world.fold_change(source, Change(entry))
    cluster.audited = False  # documents of a stranger may contradict each other; then the loop holds what they name
    for _ in range(3):
        made = cluster.plan(None)
        audit(cluster.view, made, cluster.policy)
        census(cluster.view, cluster.policy)
        for part in (made, *made.then):
            for key, document in part.documents():
                key_subject("shoal_control", key)
                data = b"" if document is None else encode(document)
                assert len(data) < DOCUMENT_BYTES
                assert document is None or decode(type(document), data) == document
        if (journal := cluster.world.journal) is None or journal.plan + 1 != made.number:
            return
        cluster.commit(made)
    assert all(len(text) <= 500 for text in cluster.world.problems.values())


@given(
    st.lists(
        st.tuples(st.sampled_from(("records", "operator", "reports", "hosts")), st.sampled_from(KEYS), documents),
        min_size=1,
        max_size=4,
    )
)
@RUNS
def test_one_bad_document_never_blocks_the_others(writes: list[tuple[str, str, bytes]]) -> None:
    """What users, operators and agents may write; nothing that a good document of theirs could not ask for either."""
    cluster = running()
    for source, key, data in writes:
        if source == "hosts":
            continue
        try:
            json_value = json.loads(data)
        except (ValueError, RecursionError):
            json_value = None
        if json_value is not None and key in ("h1", "h2", "h3", "alpha", "beta"):
            continue  # it may be a good one, and mean something
        name = {"records": Source.PIPELINES, "operator": Source.OPERATOR, "reports": Source.REPORTS}[source]
        cluster.world.fold_change(name, Change(Entry(key, data, cluster._next())))
    cluster.publish("gamma")
    cluster.settle()
    assert len(cluster.running("gamma")) == 1
    assert len(cluster.running("alpha")) == 1
    assert len(cluster.running("beta")) == 2


@given(st.lists(st.tuples(st.sampled_from(KEYS), st.none() | damaged(KINDS["heartbeat"]) | documents), max_size=6))
@RUNS
def test_the_roll_of_hosts_keeps_to_what_it_can_read(writes: list[tuple[str, bytes | None]]) -> None:
    roll = Roll((4.0, 12.0))
    beat = replace(GOOD["heartbeat"], dead=None, host="good")  # type: ignore[type-var]
    roll.list(Listing({"good": Entry("good", encode(beat), 1)}, {}, Mark("x", 1)), interrupted=False)
    for revision, (key, data) in enumerate(writes, 2):
        roll.change(Entry(key, data, revision))
    for _ in range(30):
        roll.pulse()
    views, _ = roll.views(fresh=True)
    assert "good" in views
    for host, view in views.items():
        assert view.heartbeat.host == host
        assert all(
            math.isfinite(number)
            for number in (view.heartbeat.cpu, view.heartbeat.lease_s, view.heartbeat.memory_bytes / 2)
        )
    cluster = running()
    cluster.world.fold_hosts({**cluster.view.hosts, **views}, 1000.0)
    cluster.audited = False
    for _, document in cluster.plan(None).documents():
        encode(document)


@given(damaged(KINDS["lease"]) | documents, damaged(KINDS["journal"]) | documents)
@RUNS
def test_an_election_is_held_over_any_lease_and_any_journal(lease: bytes, journal: bytes) -> None:
    entries = Entry("lease", lease, 3), Entry("journal", journal, 4)
    holder_of(entries[0])
    try:
        key = former_term(entries[1])
        takeover = draft(*entries, Entry(key, b"", 5) if key else None, holder="me", name="scheduler-1")
    except BadInput:
        return
    for write in takeover.writes("attempt"):
        assert is_key(write.key)
        assert (write.value is None) is (write.key == key)


# --- an agent


@given(damaged(KINDS["assignment"]) | documents, damaged(KINDS["assignment"]))
@RUNS
def test_an_agent_obeys_or_refuses_any_assignment(first: bytes, second: bytes) -> None:
    admitted = None
    for raw in (first, second):
        try:
            document = decode(Assignment, raw)
        except BadInput:
            continue
        verdict = admit("h1", admitted, document)
        if not isinstance(verdict, Admit):
            continue
        admitted = verdict.admitted
        saved = Saved(agent="me", number=1, admitted=admitted)
        assert decode(Saved, encode(saved)) == saved
        for item in admitted.assignment.executions:
            for name in (item.execution, item.pipeline, item.version, item.digest):
                assert "/" not in name
                assert "\0" not in name
                assert name not in ("..", ".")
        assignment, found = admitted.assignment, Inventory().found
        situation = Situation(assignment=assignment, found=found, session=assignment.session, granted={}, boot="b")
        decision = diff(situation, {}, 10.0)
        encode(decision.observed)


health = {
    "phase": "ready", "ready": True, "not_ready_reason": "why", "runner_pid": 17, "bento_pid": 18, "boot_id": "b",
    "exit": {"code": 1, "signal": None}, "failure": {"kind": "config", "message": "why"}, "last_words": ["a", "b"],
    "http": "127.0.0.1:1", "counters": {"input_received": 1}, "started_boot_s": 1.0, "ready_boot_s": 2.0,
}  # fmt: skip


@given(damaged(health), st.sampled_from(Life))
@example(written({**health, "phase": "running", "not_ready_reason": RAW + '"\\ud800"'}), Life.ALIVE)
@example(written({**health, "last_words": [RAW + '"\\udfff"']}), Life.EXITED)
@example(written({**health, "exit": {"code": RAW + "1" + "0" * 4000}}), Life.EXITED)
@RUNS
def test_an_execution_cannot_say_anything_that_its_agent_cannot_report(raw: bytes, life: Life) -> None:
    """The health file lies where the execution may write."""
    try:
        said = json.loads(raw)
    except (ValueError, RecursionError):
        return
    found = Found(
        execution="alpha-0-3", store_id=STORE, pipeline="alpha", slot=0, version="1", digest="d" * 64, life=life,
        runtime="17", health=said if isinstance(said, dict) else {},
    )  # fmt: skip
    believed(found, "b")
    assignment: Any = GOOD["assignment"]
    granted = {"alpha-0-3": True}
    situation = Situation(assignment=assignment, found={"alpha-0-3": found}, session=None, granted=granted, boot="b")
    decision = diff(situation, {"alpha-0-3": Memory(alive=True, since_s=1.0)}, 100.0)
    report: Any = replace(GOOD["report"], executions=decision.observed)  # type: ignore[type-var]
    data = encode(report)
    assert len(data) < 64 * 1024, "one execution never fills the report of all"
    assert decode(Report, data) == report
    encode(dict(decision.memory))


@given(damaged(KINDS["heartbeat"]) | documents)
@RUNS
def test_an_agent_makes_sense_of_anything_on_its_key(raw: bytes) -> None:
    entry = Entry("h1", raw, 9)
    seen = _seen(entry, _heartbeat(entry))
    for state in (Claiming(SESSION, fresh=True), Doubting(SESSION, 100.0)):
        observe(state, seen)


process_file = {
    "cluster": "shoal", "host": "h1", "store_id": STORE, "execution": "alpha-0-3", "pipeline": "alpha", "slot": 0,
    "version": "1", "digest": "d" * 64, "process": {"pid": 17, "ticks": 100, "boot": "b"},
}  # fmt: skip


@given(damaged(process_file))
@RUNS
def test_a_process_file_names_a_process_or_is_nobodys(raw: bytes) -> None:
    try:
        content = decode(ProcessFile, raw)
    except BadInput:
        return
    assert "/" not in content.execution
    if content.process is not None:
        assert 0 < content.process.pid < 2**31


LINES = (
    "agent=a", "boot=b", "number=1", "deadline_s=5.0", "lease_s=8.0", "execution=x", "bound=yes", "", "=", "bound=",
    "deadline_s=nan", "deadline_s=inf", "deadline_s=1e999", "number=" + "9" * 5000, "number=-1", "number=1_0", "\0",
)  # fmt: skip


@given(st.lists(st.sampled_from(LINES) | st.text(max_size=20), max_size=7).map("\n".join))
def test_lease_and_grant_files_are_whole_or_nothing(text: str) -> None:
    lease = parse_lease(text)
    assert lease is None or (math.isfinite(lease.deadline_s) and 0 < lease.lease_s < 1e6)
    grant = parse_grant(text)
    assert grant is None or grant.execution
