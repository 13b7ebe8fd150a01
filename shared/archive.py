"""The one archive format of Shoal: ustar, read carefully and written canonically.

Users hand in tars made by GNU tar, bsdtar or a library, so reading knows their long-name extensions. Writing gives the
same bytes for the same files on every machine and with every Python: a bundle's name is the hash of its bytes, and two
leaders must arrive at the same name. The standard library's tarfile promises neither that nor a closed set of
exceptions on hostile input, hence these two functions.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from shared.errors import BadInput, Problem, problem

FILES_MAX = 1000  # in one archive; every one becomes a file on every host
_BLOCK = 512
_RECORD = 10240  # tar pads to whole records
_EXTENSION_BYTES_MAX = 64 * 1024  # of a long-name header; names are refused from 256 bytes on anyway
_EXTENSIONS_MAX = 4 * FILES_MAX

_REMEDY = "use a tar with regular files, such as `tar -C DIR -cf orders.tar pipeline.yaml schema.json`"
_KINDS = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe"}


def is_archive(data: bytes) -> bool:
    """Whether these bytes begin like a tar (ustar, GNU and pax alike), plain or compressed with gzip."""
    return _is_gzip(data) or data[257:262] == b"ustar"


def read_archive(data: bytes, *, bytes_max: int) -> dict[str, bytes]:
    """The regular files of a tar (also gzip'd) by normalised relative path. BadInput for anything that is not plainly
    that: links, devices, paths that leave the directory, names that ustar cannot hold, too much of anything."""
    if _is_gzip(data):
        data = _unzip(data, bytes_max + FILES_MAX * 2 * _BLOCK + _RECORD)
    files: dict[str, bytes] = {}
    total = 0
    for name, content in _members(data):
        path = _path(name)
        if path in files:
            raise BadInput(problem("tar", path, "this name stands in the archive twice; keep one"))
        total += len(content)
        if total > bytes_max:
            raise BadInput(problem("tar", f"{total} bytes", f"the files have at most {bytes_max} bytes together"))
        if len(files) == FILES_MAX:
            raise BadInput(Problem("tar", "", f"an archive has at most {FILES_MAX} files"))
        files[path] = content
    _check_tree(files)
    return files


def write_archive(files: Iterable[tuple[str, bytes]]) -> bytes:
    """A canonical ustar of `files` in the given order: no owner, no time, mode 0644. Names must fit (`fits`)."""
    parts: list[bytes] = []
    for name, content in files:
        parts.append(_header(name, len(content)))
        parts.append(content)
        parts.append(bytes(-len(content) % _BLOCK))
    size = sum(len(part) for part in parts) + 2 * _BLOCK
    parts.append(bytes(2 * _BLOCK + -size % _RECORD))
    return b"".join(parts)


def fits(name: str) -> bool:
    """Whether ustar can hold this path: 100 bytes, or 155 more before a slash."""
    return _split(name.encode()) is not None


@dataclass(slots=True)
class _Next:
    """What extension headers said about the member that follows them."""

    name: bytes | None = None
    size: int | None = None
    link: bool = False


def _members(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(name, content) of each regular file."""
    position, extensions, following = 0, 0, _Next()
    while position + _BLOCK <= len(data):
        header = data[position : position + _BLOCK]
        if not any(header):
            return
        size = _number(header[124:136])
        if _number(header[148:156]) != sum(header[:148]) + 8 * 32 + sum(header[156:]):
            raise BadInput(problem("tar", f"damaged header at byte {position}", _REMEDY))
        kind = header[156:157]
        if following.size is not None and kind not in b"xgLK":
            size = following.size
        start, position = position + _BLOCK, position + _BLOCK + size + -size % _BLOCK
        if start + size > len(data):
            raise BadInput(problem("tar", f"ends in the middle of a file at byte {start}", "store the whole archive"))
        if kind in (b"x", b"g", b"L", b"K"):
            extensions += 1
            if size > _EXTENSION_BYTES_MAX or extensions > _EXTENSIONS_MAX:
                raise BadInput(problem("tar", "too many or too large extension headers", _REMEDY))
            _extend(following, kind, data[start : start + size])
            continue
        name = following.name or _stored_name(header)
        following = _Next()
        if kind in (b"0", b"\0", b"7"):
            if not name.endswith(b"/"):
                yield name, data[start : start + size]
        elif kind != b"5":
            shown = name.decode("utf-8", "replace")
            raise BadInput(problem("tar", shown, f"it is {_KINDS.get(kind, 'of an unknown kind')}; {_REMEDY}"))
    if data[position:].strip(b"\0"):
        raise BadInput(problem("tar", f"ends in the middle of a header at byte {position}", "store the whole archive"))


def _extend(following: _Next, kind: bytes, content: bytes) -> None:
    """Take over what an extension header says; global pax headers say nothing that matters here."""
    if kind == b"L":
        following.name = content.rstrip(b"\0")
    elif kind == b"x":
        for key, value in _pax(content):
            if key == b"path":
                following.name = value
            elif key == b"size":
                following.size = _decimal(value)
            elif key.startswith(b"GNU.sparse"):
                raise BadInput(problem("tar", "a sparse file", _REMEDY))


def _pax(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The `length key=value` lines of a pax header."""
    while content.strip(b"\0"):
        digits, space, _ = content.partition(b" ")
        length = _decimal(digits)
        line, content = content[len(digits) + 1 : length - 1], content[length:]
        key, equals, value = line.partition(b"=")
        if not space or not equals or length <= len(digits) + 1:
            raise BadInput(problem("tar", "damaged pax header", _REMEDY))
        yield key, value


def _decimal(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 12:
        raise BadInput(problem("tar", "damaged pax header", _REMEDY))
    return int(digits)


def _number(field: bytes) -> int:
    """An octal header field. The base-256 form is for files above 8 GiB, which are refused anyway."""
    digits = field.split(b"\0")[0].strip(b" ")
    if not digits:
        return 0
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise BadInput(problem("tar", "damaged or too large number in a header", _REMEDY))
    return int(digits, 8)


def _stored_name(header: bytes) -> bytes:
    name = header[0:100].split(b"\0")[0]
    # GNU tar keeps other things where ustar has the prefix.
    prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _path(name: bytes) -> str:
    """The normalised path, or BadInput if it is not plainly inside the directory."""
    try:
        shown = name.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(problem("tar", name.decode("utf-8", "replace"), "name files in UTF-8")) from error
    if shown.startswith("/"):
        raise BadInput(problem("tar", shown, "use paths relative to pipeline.yaml"))
    parts = [part for part in shown.split("/") if part not in ("", ".")]
    if not parts or ".." in parts:
        raise BadInput(problem("tar", shown, "use paths below the directory of pipeline.yaml, without '..'"))
    path = "/".join(parts)
    if not path.isprintable() or "\\" in path:
        raise BadInput(problem("tar", path, "use names without control characters and backslashes"))
    if not fits(path):
        raise BadInput(problem("tar", path, "use a shorter name: 100 bytes, or 155 more before a '/'"))
    return path


def _check_tree(files: dict[str, bytes]) -> None:
    for path in files:
        parts = path.split("/")
        for end in range(1, len(parts)):
            above = "/".join(parts[:end])
            if above in files:
                raise BadInput(problem("tar", path, f"'{above}' is a file and cannot be its directory too"))


def _split(name: bytes) -> tuple[bytes, bytes] | None:
    """(prefix, name) as ustar stores a path."""
    if len(name) <= 100:
        return b"", name
    slash = name.rfind(b"/", 0, 156)
    if slash <= 0 or not 0 < len(name) - slash - 1 <= 100:
        return None
    return name[:slash], name[slash + 1 :]


def _header(path: str, size: int) -> bytes:
    split = _split(path.encode())
    assert split is not None, f"ustar cannot hold {path!r}; read_archive refuses it"
    prefix, name = split
    fields = [
        name.ljust(100, b"\0"),
        b"0000644\0",
        b"0000000\0",  # user
        b"0000000\0",  # group
        b"%011o\0" % size,
        b"00000000000\0",  # time
        b" " * 8,  # checksum, counted as blanks
        b"0",
        bytes(100),
        b"ustar\x0000",
        bytes(64),  # names of user and group
        b"0000000\0" * 2,  # device
        prefix.ljust(155, b"\0"),
        bytes(12),
    ]
    header = b"".join(fields)
    assert len(header) == _BLOCK
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


def _is_gzip(data: bytes) -> bool:
    return data[:3] == b"\x1f\x8b\x08"


def _unzip(data: bytes, bytes_max: int) -> bytes:
    """The unpacked bytes, never more than `bytes_max` of them in memory."""
    stream = zlib.decompressobj(wbits=31)
    try:
        unpacked = stream.decompress(data, bytes_max + 1)
    except zlib.error as error:
        raise BadInput(problem("tar", f"damaged gzip data ({error})", "store the whole archive")) from error
    if len(unpacked) > bytes_max:
        raise BadInput(
            problem("tar", f"more than {bytes_max} bytes when unpacked", "leave out what Bento does not need")
        )
    if not stream.eof or stream.unused_data.strip(b"\0"):
        raise BadInput(problem("tar", "damaged gzip data", "store one whole archive, compressed once"))
    return unpacked
