"""Grants on a real directory: what lies there, for whom, and what a process that begins takes away."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from agent.core.session import LeaseFile
from agent.grants import GrantDirectory, Grants
from agent.lease import LeaseDirectory
from runner import permits
from shared.documents import Session


def test_lease_and_grants_can_be_read_by_the_user_of_a_container(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        LeaseDirectory(tmp_path / "lease").write(LeaseFile(Session("a", "b", 3), 1.0, 8.0))
        GrantDirectory(tmp_path / "lease").give(grant("t-store-a-x-0-1"))
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "lease").rglob("*")}
    assert modes == {"lease": 0o644, "grants": 0o755, "t-store-a-x-0-1": 0o644}
    assert (tmp_path / "lease").stat().st_mode & 0o777 == 0o755


def grant(name: str, *, number: int = 3, bound: bool = True, boot: str = "b") -> permits.Grant:
    return permits.Grant(agent="a", boot=boot, number=number, execution=name, bound=bound)


def test_grants_directory(tmp_path: Path) -> None:
    keeper = GrantDirectory(tmp_path)
    assert keeper.list() == {}
    first, second = grant("t-store-a-x-0-1"), grant("t-store-a-y-0-1", bound=False)
    keeper.give(first)
    keeper.give(second)
    keeper.give(grant("t-store-a-x-0-1", bound=False))
    found = {"t-store-a-x-0-1": grant("t-store-a-x-0-1", bound=False), "t-store-a-y-0-1": second}
    assert keeper.list() == found
    directory = tmp_path / permits.GRANTS_DIR
    for name, content in (("t-store-a-z-0-1", "?"), ("t-store-a-w-0-1", permits.grant_text(first)), ("v.new", "")):
        (directory / name).write_text(content)
    assert keeper.list() == found
    assert {path.name for path in directory.iterdir()} == found.keys(), "what is no grant is removed"
    keeper.revoke("t-store-a-x-0-1")
    keeper.revoke("t-store-a-x-0-1")
    assert keeper.list() == {"t-store-a-y-0-1": second}


def test_a_process_that_begins_takes_away_what_other_sessions_had_bound(tmp_path: Path) -> None:
    keeper = GrantDirectory(tmp_path)
    mine = Session("a", "b", 3)
    for number, name in ((3, "mine"), (2, "before")):
        keeper.give(grant(f"t-store-a-{name}", number=number))
        keeper.give(grant(f"t-store-a-{name}-free", number=number, bound=False))
    keeper.give(grant("t-store-a-booted-free", bound=False, boot="another"))
    keeper.give(grant("t-store-b-stranger", bound=False))
    grants = Grants(keeper, "t", mine)
    grants.adopt(frozenset({"store-a"}))
    expected = {"mine": True, "mine-free": False, "before-free": False}
    assert grants.of(mine) == expected
    assert set(keeper.list()) == {f"t-store-a-{name}" for name in expected}
    grants.give("store-a", "new", mine, bound=True)
    grants.give("store-a", "before-free", mine, bound=True)
    grants.revoke("mine-free")
    assert grants.of(mine) == {"mine": True, "before-free": True, "new": True}
    assert grants.of(replace(mine, number=4)) == {}
    grants.give("store-a", "mine-free", mine, bound=False)
    grants.revoke_bound()
    assert grants.of(mine) == {"mine-free": False}
    grants.revoke_all()
    assert keeper.list() == {}


def test_an_execution_has_a_grant_under_one_store_only(tmp_path: Path) -> None:
    """An engine may start for a store that was lost, late, what its successor has started meanwhile."""
    keeper, session = GrantDirectory(tmp_path), Session("a", "b", 3)
    grants = Grants(keeper, "t", session)
    grants.adopt(frozenset({"lost"}))
    grants.give("lost", "x-0-1", session, bound=True)
    grants.adopt(frozenset({"lost", "next"}))
    grants.give("next", "x-0-1", session, bound=False)
    assert set(keeper.list()) == {"t-next-x-0-1"}
    assert grants.of(session) == {"x-0-1": False}
    grants.give("lost", "x-0-1", session, bound=True)
    assert set(keeper.list()) == {"t-lost-x-0-1"}
    grants.give("lost", "y-0-1", session, bound=False)
    grants.adopt(frozenset({"lost", "next"}), {"x-0-1"})
    assert len(keeper.list()) == 2, "the stores are the same: what is started late is wanted"
    grants.adopt(frozenset({"lost", "next", "third"}), {"x-0-1"})
    assert set(keeper.list()) == {"t-lost-y-0-1"}


def test_a_grant_that_was_deleted_is_written_again(tmp_path: Path) -> None:
    keeper, session = GrantDirectory(tmp_path), Session("a", "b", 3)
    grants = Grants(keeper, "t", session)
    grants.adopt(frozenset({"store-a"}))
    grants.give("store-a", "x", session, bound=True)
    (tmp_path / permits.GRANTS_DIR / "t-store-a-x").unlink()
    grants.give("store-a", "x", session, bound=True)
    assert list(keeper.list()) == ["t-store-a-x"]


def test_a_grant_that_cannot_be_revoked_is_none_for_the_next_session(tmp_path: Path) -> None:
    class Stuck(GrantDirectory):
        def revoke(self, name: str) -> None:
            raise OSError(30, "read-only file system")

    session = Session("a", "b", 3)
    grants = Grants(Stuck(tmp_path), "t", session)
    grants.adopt(frozenset({"store-a"}))
    grants.give("store-a", "x", session, bound=True)
    grants.revoke_bound()
    assert grants.of(session) == {"x": True}
    assert grants.of(replace(session, number=4)) == {}
    with pytest.raises(OSError, match="read-only"):
        grants.revoke("x")
