"""The bundle: verified, then unpacked.

A reader of our own instead of tarfile, because importing tarfile takes 12 ms, half of what the runner may add to a
start; and because a bundle is not any tar but the canonical ustar that shared/archive.py writes: regular files only,
relative names, no extension headers. Its bytes were verified against the digest before, so everything else in it is a
defect of ours and refused.
"""

from __future__ import annotations

import os

from runner.settings import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# hashlib brings OpenSSL with it: 5 ms and about 1 MB. The plain implementation hashes a bundle of 100 kB in 0.5 ms; its
# module is called so from Python 3.12 on, and so before.
_SHA256 = ("_sha2", "_sha256", "hashlib")
BUNDLE_BYTES_MAX = 32 * 1024 * 1024  # four times what a configuration may have; guards memory against a wrong path
_BLOCK = 512


def read_verified(path: str, digest: str) -> bytes | None:
    """The bundle's bytes; None if there is no such file. Failure("digest") if they are not what the digest says."""
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - pathlib is 10 ms of imports
            data = file.read(BUNDLE_BYTES_MAX + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Failure("bundle", f"the bundle cannot be read: {error}") from error
    found = _sha256(data)
    if found != digest:
        raise Failure("digest", f"the bundle at {path} has the digest {found}, not {digest}")
    return data


def unpack(data: bytes, directory: str) -> None:
    """Write the files into `directory`, which is emptied first. Failure("digest") if the archive is not canonical."""
    files = list(members(data))
    remove_tree(directory)
    os.mkdir(directory, 0o755)  # noqa: PTH102
    made = {""}
    for name, content in files:
        parent = name.rpartition("/")[0]
        if parent not in made:
            os.makedirs(f"{directory}/{parent}", exist_ok=True)  # noqa: PTH103
            made.add(parent)
        with open(f"{directory}/{name}", "xb", buffering=0) as file:  # noqa: PTH123
            file.write(content)


def members(data: bytes) -> Iterator[tuple[str, bytes]]:
    """(relative path, content) of every file of a canonical archive."""
    position = 0
    while header := data[position : position + _BLOCK].rstrip(b"\0"):
        header = header.ljust(_BLOCK, b"\0")
        name = _text(header[0:100])
        if prefix := _text(header[345:500]):
            name = f"{prefix}/{name}"
        if header[156:157] not in (b"0", b"\0") or header[257:262] != b"ustar":
            raise Failure("digest", f"the bundle holds something other than a regular file: {name!r}")
        if name.startswith("/") or any(part in ("", ".", "..") for part in name.split("/")):
            raise Failure("digest", f"the bundle holds a path that leaves its directory: {name!r}")
        try:
            size = int(_text(header[124:136]).strip() or "x", 8)
        except ValueError:
            raise Failure("digest", f"the bundle holds a damaged size: {name!r}") from None
        position += _BLOCK
        if position + size > len(data):
            raise Failure("digest", f"the bundle ends in the middle of {name!r}")
        yield name, data[position : position + size]
        position += size + -size % _BLOCK


def remove_tree(directory: str) -> None:
    """Remove a directory with everything in it, or nothing if it is not there. Links are removed, never followed."""
    try:
        entries = list(os.scandir(directory))
    except FileNotFoundError:
        return
    except NotADirectoryError:
        os.unlink(directory)  # noqa: PTH108
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            remove_tree(entry.path)
        else:
            os.unlink(entry.path)  # noqa: PTH108
    os.rmdir(directory)  # noqa: PTH106


def _sha256(data: bytes) -> str:
    for name in _SHA256:
        try:
            digest: str = __import__(name).sha256(data).hexdigest()
        except ImportError:
            continue
        return digest
    raise AssertionError("hashlib is always there")


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")
