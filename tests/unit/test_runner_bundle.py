"""The runner's reader of bundles: verified bytes only, and nothing outside of the directory."""

import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest

from runner.bundle import members, read_verified, unpack
from runner.settings import Failure
from shared.archive import write_archive

FILES = [
    ("runtime.json", b"{}"),
    ("pipeline.yaml", b"input: {}\n"),
    ("schemas/a/order.json", b"x" * 1300),
    ("empty", b""),
]


def one(name: str, content: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """A tar of one member that our own writer would refuse to write."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, link
        member.size = len(content) if kind == tarfile.REGTYPE else 0
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_reads_what_shoal_writes(tmp_path: Path) -> None:
    assert list(members(write_archive(FILES))) == FILES
    unpack(write_archive(FILES), str(tmp_path / "files"))
    assert (tmp_path / "files/schemas/a/order.json").read_bytes() == b"x" * 1300


def test_a_long_name_uses_the_prefix() -> None:
    name = "d" * 90 + "/" + "f" * 90
    assert list(members(write_archive([(name, b"1")]))) == [(name, b"1")]


def test_each_start_has_fresh_files(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "precious").write_text("x")
    files = tmp_path / "files"
    (files / "deep/er").mkdir(parents=True)
    (files / "deep/er/old").write_text("x")
    (files / "link").symlink_to(kept)
    unpack(write_archive(FILES), str(files))
    found = sorted(str(path.relative_to(files)) for path in files.rglob("*") if path.is_file())
    assert found == ["empty", "pipeline.yaml", "runtime.json", "schemas/a/order.json"]
    assert (kept / "precious").exists(), "a link is removed, not followed"


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "a//x", "./x", "a/."])
def test_refuses_paths_that_leave(name: str, tmp_path: Path) -> None:
    data = one("placeholder").replace(b"placeholder", name.encode().ljust(11, b"\0"))
    with pytest.raises(Failure, match="leaves"):
        unpack(data, str(tmp_path / "files"))
    assert not (tmp_path / "files").exists(), "refused before anything is written"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE])
def test_refuses_all_but_regular_files(kind: bytes, tmp_path: Path) -> None:
    with pytest.raises(Failure, match="regular"):
        unpack(one("x", kind=kind, link="/etc/passwd"), str(tmp_path / "files"))


def test_refuses_a_cut_archive() -> None:
    with pytest.raises(Failure, match="middle"):
        list(members(write_archive([("a", b"x" * 5000)])[:1024]))


def test_verifies_the_digest(tmp_path: Path) -> None:
    path = tmp_path / "bundle.tar"
    path.write_bytes(b"abc")
    good = hashlib.sha256(b"abc").hexdigest()
    assert read_verified(str(path), good) == b"abc"
    path.write_bytes(b"abd")
    with pytest.raises(Failure, match="digest") as caught:
        read_verified(str(path), good)
    assert (caught.value.kind, caught.value.exit_code) == ("digest", 65)


def test_no_bundle_is_not_a_failure_yet(tmp_path: Path) -> None:
    assert read_verified(str(tmp_path / "absent"), "0" * 64) is None
    assert read_verified(os.devnull + "/x", "0" * 64) is None
