"""Bento configurations: what is read, what is refused and how, what is derived."""

import gzip
import hashlib
import io
import itertools
import tarfile
from collections.abc import Callable

import pytest

from shared.configuration import Derived, derive, read_configuration, seconds
from shared.errors import BadInput
from shared.keys import CONFIG_BYTES_MAX
from shared.states import Overlap


def tar(
    files: dict[str, bytes],
    *,
    form: int = tarfile.USTAR_FORMAT,
    change: Callable[[tarfile.TarInfo], None] | None = None,
) -> bytes:
    """A tar as Python's library writes it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if change is not None:
                change(info)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def derived(text: str, **env: str) -> Derived:
    return derive(read_configuration(text.encode()), env)


PLAIN = b"input: {generate: {}}\n"


class TestReading:
    def test_a_yaml_file_keeps_its_bytes(self) -> None:
        data = b"\xef\xbb\xbf# comment\r\ninput: {generate: {}}\r\n"
        found = read_configuration(data)
        assert found.files == (("pipeline.yaml", data),)
        assert found.document == {"input": {"generate": {}}}
        assert found.digest == hashlib.sha256(data).hexdigest()

    @pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_a_tar_of_any_common_kind(self, form: int) -> None:
        long = "schemas/" + "x" * 120 + "/order.json"
        data = tar({"./schema.json": b"{}", long: b"long", "ä.txt": b"umlaut", "./pipeline.yaml": PLAIN}, form=form)
        found = read_configuration(data)
        assert [name for name, _ in found.files] == ["pipeline.yaml", "schema.json", long, "ä.txt"]
        assert dict(found.files)[long] == b"long"
        assert found.digest == hashlib.sha256(data).hexdigest()

    def test_a_compressed_tar(self) -> None:
        found = read_configuration(gzip.compress(tar({"pipeline.yaml": PLAIN, "a": b"1"})))
        assert [name for name, _ in found.files] == ["pipeline.yaml", "a"]

    def test_directories_in_a_tar_are_passed_over(self) -> None:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            directory = tarfile.TarInfo("./")
            directory.type = tarfile.DIRTYPE
            archive.addfile(directory)
            info = tarfile.TarInfo("./pipeline.yaml")
            info.size = len(PLAIN)
            archive.addfile(info, io.BytesIO(PLAIN))
        assert [name for name, _ in read_configuration(buffer.getvalue()).files] == ["pipeline.yaml"]

    def test_variables_are_listed(self) -> None:
        found = read_configuration(b"input: {nats: {urls: [${NATS_URL}], subject: '${S:a}', x: '${{NOT}}'}}")
        assert found.variables == {"NATS_URL", "S"}

    def test_only_the_first_document_counts(self) -> None:
        found = read_configuration(b"input: {generate: {}}\n---\nid: orders\n---\n[")
        assert found.document == {"input": {"generate": {}}}

    def test_the_last_of_equal_keys_counts_as_in_bento(self) -> None:
        assert read_configuration(b"input: {a: {}}\ninput: {b: {}}").document == {"input": {"b": {}}}


def sparse_pax() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("pipeline.yaml")
        info.pax_headers = {"GNU.sparse.major": "1"}
        archive.addfile(info)
    return buffer.getvalue()


def link(kind: bytes) -> Callable[[tarfile.TarInfo], None]:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname, info.size = kind, "/etc/passwd", 0

    return change


REFUSED = [
    ("nothing", b"", "empty", "a Bento configuration is a mapping"),
    ("a text", b"hello", "a text", "a Bento configuration is a mapping"),
    ("a list", b"- a", "a list", "a Bento configuration is a mapping"),
    ("a number", b"12", "a number", "a Bento configuration is a mapping"),
    ("broken YAML", b"input:\n  a: [\n", "line 3", "correct the YAML"),
    ("latin-1", b"input: {a: 'stra\xdfe'}", "line 1", "UTF-8"),
    ("utf-16", "input: {}".encode("utf-16"), "line 1", "UTF-8"),
    ("a NUL", b"input: {}\0", "pipeline.yaml", "control characters"),
    ("a picture", b"\x89PNG\r\n\x1a\n\0\0\0", "line 1", "UTF-8"),
    ("an unknown alias", b"input: *a", "*a", "no anchor"),
    ("an alias in itself", b"input: &a [*a]", "*a", "inside its own anchor"),
    ("nested too deeply", b"input: " + b"[" * 300, "nested too deeply", "at most 200 levels"),
    ("too many values", b"input: [" + b"a," * 200_000 + b"]", "more than 100000", "files of their own"),
    ("too large", b"#" * (CONFIG_BYTES_MAX + 1), f"{CONFIG_BYTES_MAX + 1} bytes", f"at most {CONFIG_BYTES_MAX}"),
    ("tar without pipeline.yaml", tar({"orders/pipeline.yaml": PLAIN}), "orders/pipeline.yaml", "tar -C DIR"),
    ("tar with an absolute path", tar({"/pipeline.yaml": PLAIN}), "/pipeline.yaml", "relative"),
    ("tar that leaves its directory", tar({"pipeline.yaml": PLAIN, "../x": b""}), "../x", "without '..'"),
    ("tar with a reserved name", tar({"pipeline.yaml": PLAIN, "runtime.json": b""}), "runtime.json", "use another"),
    ("tar with a name twice", tar({"pipeline.yaml": PLAIN, "a": b"", "./a": b""}), "a", "twice"),
    ("tar with a file as directory", tar({"pipeline.yaml": PLAIN, "a": b"", "a/b": b""}), "a/b", "directory too"),
    ("tar with a backslash", tar({"pipeline.yaml": PLAIN, "a\\b": b""}), "a", "backslashes"),
    ("tar with a control character", tar({"pipeline.yaml": PLAIN, "a\nb": b""}), "a", "control characters"),
    (
        "tar with a name that ustar cannot hold",
        tar({"pipeline.yaml": PLAIN, "x" * 101: b""}, form=tarfile.PAX_FORMAT),
        "xxx",
        "shorter name",
    ),
    (
        "tar with a symbolic link",
        tar({"pipeline.yaml": PLAIN}, change=link(tarfile.SYMTYPE)),
        "pipeline.yaml",
        "symbolic",
    ),
    ("tar with a hard link", tar({"pipeline.yaml": PLAIN}, change=link(tarfile.LNKTYPE)), "pipeline.yaml", "hard link"),
    ("tar with a device", tar({"pipeline.yaml": PLAIN}, change=link(tarfile.CHRTYPE)), "pipeline.yaml", "a device"),
    ("tar with a sparse file", sparse_pax(), "sparse", "regular files"),
    ("tar cut in a file", tar({"pipeline.yaml": b"#" * 2000})[:1500], "in the middle", "whole archive"),
    ("tar cut in a header", tar({"pipeline.yaml": PLAIN, "b": b""})[:1300], "in the middle", "whole archive"),
    ("tar with a damaged header", b"x" + tar({"pipeline.yaml": PLAIN})[1:], "damaged header", "regular files"),
    ("tar with too many files", tar({f"f{i}": b"" for i in range(1001)}), "tar", "at most 1000 files"),
    ("gzip of nothing", gzip.compress(b""), "empty", "pipeline.yaml at its top"),
    ("gzip cut short", gzip.compress(tar({"pipeline.yaml": PLAIN}))[:-4], "damaged gzip", "one whole archive"),
    ("gzip damaged", b"\x1f\x8b\x08" + b"\0" * 20 + b"junk", "damaged gzip", "whole archive"),
    ("gzip bomb", gzip.compress(tar({"pipeline.yaml": bytes(40_000_000)})), "when unpacked", "leave out"),
]


@pytest.mark.parametrize(("data", "where", "remedy"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_refused_with_place_and_remedy(data: bytes, where: str, remedy: str) -> None:
    with pytest.raises(BadInput) as refusal:
        read_configuration(data)
    assert where in str(refusal.value)
    assert remedy in str(refusal.value)


def test_aliases_that_multiply_are_refused_at_once() -> None:
    letters = "abcdefghij"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]" for old, new in itertools.pairwise(letters)]
    with pytest.raises(BadInput, match="more than 100000 values"):
        read_configuration("\n".join(lines).encode())


def test_aliases_that_nest_are_refused_at_once() -> None:
    lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 1000)]
    with pytest.raises(BadInput, match="nested too deeply"):
        read_configuration("\n".join(lines).encode())


SHAREABLE, EXCLUSIVE = Overlap.SHAREABLE, Overlap.EXCLUSIVE
QUEUED = "{nats: {queue: q}}"

INPUTS = [
    ("a shareable one", f"input: {QUEUED}", ["nats"], SHAREABLE),
    ("an exclusive one", "input: {generate: {}}", ["generate"], EXCLUSIVE),
    ("none is stdin", "output: {drop: {}}", ["stdin"], EXCLUSIVE),
    ("empty is stdin", "input:", ["stdin"], EXCLUSIVE),
    ("with label and processors", "input: {label: a, processors: [], nats: {queue: q}}", ["nats"], SHAREABLE),
    ("with a type field", "input: {type: nats, nats: {queue: q}}", ["nats"], SHAREABLE),
    ("with type and plugin", "input: {type: nats, plugin: {queue: q}}", ["nats"], SHAREABLE),
    ("with two kinds", "input: {nats: {queue: q}, generate: {}}", ["generate", "nats"], EXCLUSIVE),
    ("not a mapping", "input: 12", ["unreadable"], EXCLUSIVE),
    (
        "broker of shareable",
        f"input: {{broker: {{inputs: [{QUEUED}, {{aws_sqs: {{}}}}]}}}}",
        ["aws_sqs", "nats"],
        SHAREABLE,
    ),
    (
        "broker with one exclusive",
        f"input: {{broker: {{inputs: [{QUEUED}, {{file: {{}}}}]}}}}",
        ["file", "nats"],
        EXCLUSIVE,
    ),
    ("broker of nothing", "input: {broker: {inputs: []}}", [], EXCLUSIVE),
    ("sequence", f"input: {{sequence: {{inputs: [{QUEUED}, {QUEUED}]}}}}", ["nats"], SHAREABLE),
    ("batched", f"input: {{batched: {{child: {QUEUED}}}}}", ["nats"], SHAREABLE),
    ("read_until", f"input: {{read_until: {{input: {QUEUED}}}}}", ["nats"], SHAREABLE),
    ("wrapped twice", f"input: {{batched: {{child: {{read_until: {{input: {QUEUED}}}}}}}}}", ["nats"], SHAREABLE),
    ("blobs named by a queue", f"input: {{azure_blob_storage: {{targets_input: {QUEUED}}}}}", ["nats"], SHAREABLE),
    ("blobs listed", "input: {azure_blob_storage: {}}", ["azure_blob_storage"], EXCLUSIVE),
    ("dynamic", f"input: {{dynamic: {{inputs: {{a: {QUEUED}}}}}}}", ["dynamic_api", "nats"], EXCLUSIVE),
    (
        "a resource",
        "input: {resource: a}\ninput_resources: [{label: a, nats: {queue: q}}, {label: b, file: {}}]",
        ["nats"],
        SHAREABLE,
    ),
    ("a resource that is missing", "input: {resource: a}", ["resource a"], EXCLUSIVE),
    (
        "a resource of itself",
        "input: {resource: a}\ninput_resources: [{label: a, resource: b}, {label: b, resource: a}]",
        ["resource a"],
        EXCLUSIVE,
    ),
    ("a merged table", "x: &x {queue: q}\ninput: {nats: {<<: *x}}", ["nats"], SHAREABLE),
    ("an alias", f"x: &x {QUEUED}\ninput: *x", ["nats"], SHAREABLE),
    ("a variable without value", "input: {nats: {queue: ${Q}}}", ["nats"], SHAREABLE),
    ("a variable with an empty default", "input: {nats: {queue: '${Q:}'}}", ["nats"], EXCLUSIVE),
    ("a variable in a list", "input: {kafka: {topics: [${A}, ${B}], consumer_group: g}}", ["kafka"], SHAREABLE),
]


@pytest.mark.parametrize(("text", "inputs", "overlap"), [c[1:] for c in INPUTS], ids=[c[0] for c in INPUTS])
def test_inputs(text: str, inputs: list[str], overlap: Overlap) -> None:
    found = derived(text)
    assert list(found.inputs) == inputs
    assert found.overlap is overlap


def test_the_reason_names_the_input_that_makes_it_exclusive() -> None:
    found = derived(f"input: {{broker: {{inputs: [{QUEUED}, {{generate: {{}}}}, {{file: {{}}}}]}}}}")
    assert found.overlap_reason.startswith("generate ")


def test_the_environment_of_the_record_decides() -> None:
    text = "input: {nats: {queue: '${Q:}'}}"
    assert derived(text, Q="workers").overlap is SHAREABLE
    assert derived(text, OTHER="workers").overlap is EXCLUSIVE
    assert derived("input: {nats: {queue: '${Q}'}}", Q="").overlap is EXCLUSIVE


def test_copies_without_end_are_refused() -> None:
    broker = "{broker: {inputs: [" + ", ".join(["{resource: NEXT}"] * 10) + "]}}"
    labels = [f"{{label: r{i}, broker: {{inputs: [{', '.join([f'{{resource: r{i + 1}}}'] * 10)}]}}}}" for i in range(9)]
    text = f"input: {broker.replace('NEXT', 'r0')}\ninput_resources: [{', '.join(labels)}]"
    with pytest.raises(BadInput, match="fewer inputs"):
        derived(text)


GRACE = [
    ("bento's default", "a: 1", 22.0),
    ("stated", "shutdown_timeout: 1m30s", 92.0),
    ("with a delay", "shutdown_timeout: 5s\nshutdown_delay: 500ms", 7.5),
    ("none", "shutdown_timeout: 0s", 2.0),
    ("empty is none, as in Bento", "shutdown_timeout: ''", 2.0),
    ("negative is none", "shutdown_delay: -5s", 22.0),
    ("from a default", "shutdown_timeout: ${T:7s}", 9.0),
]


@pytest.mark.parametrize(("text", "expected"), [c[1:] for c in GRACE], ids=[c[0] for c in GRACE])
def test_stop_grace(text: str, expected: float) -> None:
    assert derived(text).stop_grace_s == pytest.approx(expected)


def test_stop_grace_from_the_environment() -> None:
    assert derived("shutdown_timeout: ${T}", T="3s").stop_grace_s == pytest.approx(5.0)


@pytest.mark.parametrize(
    "text", ["shutdown_timeout: soon", "shutdown_delay: 12", "shutdown_timeout: ${T}", "shutdown_timeout: 2h"]
)
def test_stop_grace_refused(text: str) -> None:
    with pytest.raises(BadInput, match="shutdown_"):
        derived(text)


DURATIONS = [
    ("1h2m3.5s", 3723.5),
    ("1.5h", 5400.0),
    ("100us", 1e-4),
    ("1µs", 1e-6),
    ("-.5s", -0.5),
    ("+1s", 1.0),
    ("0", 0.0),
    ("", None),
    ("1", None),
    ("s", None),
    ("1 s", None),
    ("1s2", None),
    ("9" * 5000 + "s", None),
]


@pytest.mark.parametrize(("text", "expected"), DURATIONS)
def test_durations(text: str, expected: float | None) -> None:
    found = seconds(text)
    assert found is None if expected is None else found == pytest.approx(expected)


HTTP = [
    ("not stated", "a: 1", "auto"),
    ("stated without an address", "http: {enabled: false}", "auto"),
    ("bento's default port", "http: {address: '0.0.0.0:4195'}", "auto"),
    ("another port", "http: {address: '127.0.0.1:8080'}", "127.0.0.1:8080"),
    ("a port from the host", "http: {address: '0.0.0.0:410${SHOAL_SLOT}'}", "0.0.0.0:410${SHOAL_SLOT}"),
    ("a port with a default", "http: {address: '0.0.0.0:${PORT:8080}'}", "0.0.0.0:${PORT:8080}"),
    ("a default port that is bento's", "http: {address: '0.0.0.0:${PORT:4195}'}", "auto"),
    ("an input that listens there", "input: {http_server: {path: /a}}", "0.0.0.0:4195"),
    ("an output that listens there", "output: {http_server: {path: /a}}\nhttp: {address: ':4195'}", ":4195"),
    ("an input that listens elsewhere", "input: {http_server: {address: '0.0.0.0:9'}}", "auto"),
    ("not a table", "http: 12", "auto"),
]


@pytest.mark.parametrize(("text", "expected"), [c[1:] for c in HTTP], ids=[c[0] for c in HTTP])
def test_http(text: str, expected: str) -> None:
    assert derived(text).http == expected


def test_an_absurd_address_is_refused() -> None:
    with pytest.raises(BadInput, match=r"http\.address"):
        derived("http: {address: '" + "x" * 1000 + "'}")
