"""What an agent keeps on a real disk: state directory, lease file, bundles; and which settings it refuses."""

from __future__ import annotations

import asyncio
import stat
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from agent.bundles import Bundles
from agent.core.admit import Admitted
from agent.core.restarts import End, EndKind, Memory, Waiting
from agent.core.session import LeaseFile
from agent.lease import LeaseDirectory
from agent.service import refuse_time_namespace
from agent.settings import AgentSettings
from agent.state import Book, Saved, StateDirectory, in_place
from runner import permits
from shared.documents import Assignment, Session
from shared.errors import BadInput, Missing, Refused, StoreUnavailable
from tests.support.agent_rig import bundle
from tests.support.components import ROOT

ADMITTED = Admitted(
    assignment=Assignment(store_id="s", term=3, plan=9, host="h1", session=Session("a", "b", 1)), chain=("older",)
)
MEMORY = Memory(
    owed=True,
    restarts=3,
    delay_s=4.0,
    not_before_s=77.5,
    end=End(kind=EndKind.CRASHED, reason="x", exit_code=1, last_words=("boom",)),
    waiting=Waiting(doing="start", cause="image", reason="y", attempts=2, until_s=80.0),
)


@pytest.fixture
def ids() -> Iterator[Any]:
    numbers = count(1)
    return iter(lambda: f"agent-{next(numbers)}", "")


def test_what_was_saved_is_there_again(tmp_path: Path, ids: Iterator[str]) -> None:
    with StateDirectory(tmp_path / "state", lambda: next(ids)) as state:
        assert state.load() == Saved(agent="agent-1")
        state.save(Saved(agent="agent-1", number=7, admitted=ADMITTED))
        state.save_memories({"p-0-1": MEMORY})
    with StateDirectory(tmp_path / "state", lambda: next(ids)) as state:
        assert state.load() == Saved(agent="agent-1", number=7, admitted=ADMITTED)
        assert state.load_memories() == {"p-0-1": MEMORY}


def test_an_identity_is_durable_before_it_is_used(tmp_path: Path, ids: Iterator[str]) -> None:
    with StateDirectory(tmp_path, lambda: next(ids)) as state:
        state.load()
        assert state.load() == Saved(agent="agent-1")


@pytest.mark.parametrize("damage", [b"", b'{"agent": ', b"[]", b'{"agent": 5}', b"\0" * 4096])
def test_a_state_that_cannot_be_read_is_a_lost_state(tmp_path: Path, ids: Iterator[str], damage: bytes) -> None:
    with StateDirectory(tmp_path, lambda: next(ids)) as state:
        state.load()
        state.save(Saved(agent="agent-1", number=7, admitted=ADMITTED))
        (tmp_path / "agent.json").write_bytes(damage)
        assert state.load() == Saved(agent="agent-2"), "a new agent id, nothing admitted"
        assert (tmp_path / "agent.unreadable").read_bytes() == damage, "kept for people"


def test_restart_counts_that_cannot_be_read_are_forgotten(tmp_path: Path, ids: Iterator[str]) -> None:
    with StateDirectory(tmp_path, lambda: next(ids)) as state:
        state.save_memories({"p-0-1": MEMORY})
        (tmp_path / "restarts.json").write_bytes(b"{")
        assert state.load_memories() == {}


def test_one_agent_at_a_time(tmp_path: Path, ids: Iterator[str]) -> None:
    with StateDirectory(tmp_path, lambda: next(ids)):
        with pytest.raises(Refused, match=r"in use by another agent \(process \d+\)"):
            StateDirectory(tmp_path, lambda: next(ids))
    StateDirectory(tmp_path, lambda: next(ids)).close()


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path, ids: Iterator[str]) -> None:
    code = (
        "import sys, os, signal; from pathlib import Path; from agent.state import StateDirectory\n"
        f"StateDirectory(Path({str(tmp_path)!r}), lambda: 'x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60)
    StateDirectory(tmp_path, lambda: next(ids)).close()


def test_the_state_directory_is_private(tmp_path: Path, ids: Iterator[str]) -> None:
    """Bundles hold the environment of pipelines, secrets included."""
    with StateDirectory(tmp_path / "state", lambda: next(ids)):
        assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_changes_are_serial_and_a_failed_one_changes_nothing(tmp_path: Path) -> None:
    class Disk:
        def __init__(self) -> None:
            self.saved: list[int] = []

        def load(self) -> Saved:
            return Saved(agent="a")

        def save(self, saved: Saved) -> None:
            if saved.number == 2:
                raise OSError(28, "no space left on device")
            self.saved.append(saved.number)

        def load_memories(self) -> dict[str, Memory]:
            return {}

        def save_memories(self, memories: object) -> None:
            raise NotImplementedError

    async def test() -> None:
        disk = Disk()
        book = Book(disk, in_place)
        await book.change(lambda saved: Saved(agent=saved.agent, number=1))
        await book.change(lambda saved: saved)
        with pytest.raises(OSError, match="no space"):
            await book.change(lambda saved: Saved(agent=saved.agent, number=2))
        assert book.saved.number == 1
        assert disk.saved == [1], "what does not change is not written"

    asyncio.run(test())


def test_lease_file(tmp_path: Path) -> None:
    lease = LeaseDirectory(tmp_path / "lease")
    assert lease.read() is None
    written = LeaseFile(Session("a", "b", 3), 123.25, 8.0)
    lease.write(written)
    assert lease.read() == written
    file = tmp_path / "lease" / permits.LEASE_FILE
    assert list((tmp_path / "lease").iterdir()) == [file]
    assert permits.parse_lease(file.read_text()) == permits.Lease(
        agent="a", boot="b", number=3, deadline_s=123.25, lease_s=8.0
    ), "as runners read it"
    file.write_bytes(b"?")
    assert lease.read() is None, "what cannot be read counts as lapsed"
    file.unlink()
    file.mkdir()
    assert lease.read() is None, "nor what is no file"


class Objects:
    """The bundles bucket."""

    def __init__(self) -> None:
        self.content: dict[str, bytes | Exception] = {}
        self.gets = 0

    async def get_object(self, bucket: str, name: str, *, bytes_max: int, timeout: float = 5.0) -> bytes:
        self.gets += 1
        await asyncio.sleep(0)
        found = self.content.get(name, Missing(name))
        if isinstance(found, Exception):
            raise found
        return found


def bundles(directory: Path, objects: Objects) -> Bundles:
    return Bundles(store=objects, bucket="t_bundles", directory=directory, offload=in_place)  # type: ignore[arg-type]


def test_a_bundle_is_fetched_once_verified_and_found_again(tmp_path: Path) -> None:
    async def test() -> None:
        digest, data = bundle("orders")
        objects = Objects()
        objects.content[digest] = data
        mine = bundles(tmp_path, objects)
        await mine.load()
        await asyncio.gather(*(mine.fetch(digest) for _ in range(20)))
        assert objects.gets == 1
        file = tmp_path / digest / "bundle.tar"
        assert mine.have[digest].path == str(file)
        assert mine.have[digest].runtime.pipeline == "orders"
        assert file.read_bytes() == data
        assert stat.S_IMODE(file.stat().st_mode) == 0o644, "read by the user of the container"
        later = bundles(tmp_path, objects)
        await later.load()
        assert later.have == mine.have
        assert objects.gets == 1

    asyncio.run(test())


def test_bundles_that_are_wrong_missing_or_away(tmp_path: Path) -> None:
    async def test() -> None:
        digest, data = bundle("orders")
        objects = Objects()
        mine = bundles(tmp_path, objects)
        await mine.load()
        with pytest.raises(Missing):
            await mine.fetch(digest)
        objects.content[digest] = data + b"x"
        with pytest.raises(BadInput, match="sha256"):
            await mine.fetch(digest)
        objects.content[digest] = StoreUnavailable("away")
        with pytest.raises(StoreUnavailable):
            await asyncio.gather(mine.fetch(digest), mine.fetch(digest))
        assert mine.have == {}
        objects.content[digest] = data
        await mine.fetch(digest)
        assert list(mine.have) == [digest]

    asyncio.run(test())


def test_damaged_and_unfinished_bundles_are_deleted_at_the_start(tmp_path: Path) -> None:
    async def test() -> None:
        digest, data = bundle("orders")
        other, _ = bundle("payments")
        (tmp_path / digest).mkdir()
        (tmp_path / digest / "bundle.tar").write_bytes(data[:-1])
        (tmp_path / other).mkdir()
        (tmp_path / other / "bundle.tar.new").write_bytes(b"half")
        (tmp_path / "README").write_text("not ours")
        mine = bundles(tmp_path, Objects())
        await mine.load()
        assert mine.have == {}

    asyncio.run(test())
    assert [path.name for path in tmp_path.iterdir()] == ["README"]


def test_unused_bundles_are_deleted_and_wanted_ones_kept(tmp_path: Path) -> None:
    async def test() -> None:
        objects = Objects()
        digests = []
        for name in ("a", "b", "c"):
            digest, data = bundle(name)
            objects.content[digest] = data
            digests.append(digest)
        mine = bundles(tmp_path, objects)
        await mine.load()
        for digest in digests:
            await mine.fetch(digest)
        asked: list[frozenset[str]] = []

        def used() -> frozenset[str]:
            """The second one becomes wanted while the first is being deleted."""
            asked.append(frozenset({digests[0]} if len(asked) < 2 else {digests[0], *unused[1:]}))
            return asked[-1]

        unused = sorted(digests[1:])
        await mine.drop_unused(used)
        assert mine.have.keys() == {digests[0], unused[1]}

    asyncio.run(test())
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"host": "Not A Host"}, "host"),
        ({"labels": {"host": "other"}}, "label host"),
        ({"lease_s": 2.0}, "lease"),
        ({"lease_s": 500.0}, "lease"),
        ({"cpu": 0.0}, "cpu"),
        ({"memory_bytes": -1}, "memory"),
        ({"allow_volume": (Path("data"),)}, "allow-volume"),
        ({"run_dir": Path("/var/lib/shoal/run")}, "run-dir"),
        ({"metrics": "nonsense"}, "address"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], words: str) -> None:
    known: dict[str, Any] = {"host": "h1", "state_dir": Path("/var/lib/shoal"), "run_dir": Path("/run/shoal/h1")}
    AgentSettings(**known)
    with pytest.raises(BadInput, match=words):
        AgentSettings(**{**known, **changes})


def test_a_time_namespace_is_refused(tmp_path: Path) -> None:
    refuse_time_namespace(tmp_path / "absent")
    offsets = tmp_path / "timens_offsets"
    offsets.write_text("monotonic           0         0\nboottime            0         0\n")
    refuse_time_namespace(offsets)
    offsets.write_text("monotonic           0         0\nboottime        86400         0\n")
    with pytest.raises(Refused, match="time namespace"):
        refuse_time_namespace(offsets)
