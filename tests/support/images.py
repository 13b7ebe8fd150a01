"""Container images for tests, made on this machine without any registry.

The base is a Debian made by debootstrap, Bento and nats-server are the very binaries of `.venv/bin`, and the two
product images are built from their own Dockerfiles with these as build arguments. Everything is kept in `.cache`
under a name with the hash of its ingredients, so that a second run, and a second engine, only loads a file.

    python -m tests.support.images      makes what goes into all of them (`make components` does)
"""

import contextlib
import fcntl
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.components import CACHE, ROOT, require, require_root, unavailable
from tests.support.engines import Engine, require_engine

BASE_TAG = "shoal-test-base:bookworm"
BENTO_TAG = "shoal-test-bento:1.20.0"
NATS_TAG = "shoal-test-nats:current"
RUNNER_TAG = "shoal-test-runner:current"
DAEMON_TAG = "shoal-test-daemon:current"

_SUITE = "bookworm"
_PACKAGES = "python3,python3-pip,ca-certificates"
# Nothing reads these inside a container, and every engine would copy them.
_LEFT_OUT = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "var/cache/apt",
    "var/lib/apt/lists",
    "var/log",
)
_DEBOOTSTRAP_DEADLINE_S = 900.0
_BACKENDS = ROOT / "deploy/build-backend.lock"


def load_base(engine: Engine) -> str:
    """Debian with Python 3.11 and pip, standing in for the official Python image. Returns the tag."""
    _import(engine, _base_tar(), BASE_TAG)
    return BASE_TAG


def load_bento(engine: Engine) -> str:
    """An image with nothing but `/bento`, standing in for Bento's official image. Returns the tag."""
    with _single_binary(require("bento"), "bento") as tar:
        _import(engine, tar, BENTO_TAG)
    return BENTO_TAG


def load_nats(engine: Engine) -> str:
    """An image with nothing but `/nats-server` (a static binary) as its entry point. Returns the tag."""
    with _single_binary(require("nats-server"), "nats-server") as tar:
        _import(engine, tar, NATS_TAG, 'ENTRYPOINT ["/nats-server"]')
    return NATS_TAG


def load_runner(engine: Engine) -> str:
    """The runner image, built from runner/Dockerfile as it stands in the working tree. Returns the tag."""
    return _load_product(engine, _runner())


def load_daemon(engine: Engine) -> str:
    """The image of the daemons and the CLI, built from deploy/Dockerfile. Returns the tag."""
    return _load_product(engine, _daemon())


@contextlib.contextmanager
def running_engines(count: int, directory: Path, *, live_restore: bool = False) -> Iterator[list[Engine]]:
    """Engines `e1` to `eN` with the runner image loaded, stopped and removed at the end."""
    with contextlib.ExitStack() as stack:
        engines: list[Engine] = []
        for index in range(count):
            engine = require_engine(f"e{index + 1}", directory / f"e{index + 1}", live_restore=live_restore)
            stack.callback(engine.stop)
            engines.append(engine)
        # The first may have to build the image; the others load what it saved, side by side.
        load_runner(engines[0])
        with ThreadPoolExecutor(max_workers=2) as pool:
            list(pool.map(load_runner, engines[1:]))
        yield engines


# -- products ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Product:
    """An image of ours, and what it is made of."""

    tag: str
    dockerfile: Path
    lock: Path
    sources: list[Path]

    @property
    def name(self) -> str:
        return self.tag.partition(":")[0]

    def saved(self) -> Path:
        """Where it is kept, once it has been built from what its ingredients are now."""
        common = [_BACKENDS, ROOT / ".dockerignore", require("bento"), _base_path()]
        return CACHE / "images" / f"{self.name}-{_digest([*self.sources, *common])}.tar"


def _runner() -> _Product:
    dockerfile, lock = ROOT / "runner/Dockerfile", ROOT / "runner/requirements.lock"
    return _Product(RUNNER_TAG, dockerfile, lock, [dockerfile, lock, *sorted((ROOT / "runner").glob("*.py"))])


def _daemon() -> _Product:
    dockerfile, lock = ROOT / "deploy/Dockerfile", ROOT / "deploy/requirements.lock"
    sources = [dockerfile, lock, ROOT / "pyproject.toml", ROOT / "LICENSE"]
    for package in ("shared", "scheduler", "agent", "runner", "cli"):
        sources += sorted(p for p in (ROOT / package).rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return _Product(DAEMON_TAG, dockerfile, lock, sources)


def _load_product(engine: Engine, product: _Product) -> str:
    saved = product.saved()
    with _lock(product.name):
        if saved.exists():
            # Loaded under the lock: another process could replace the file.
            engine.cli("load", "--quiet", "--input", saved)
            return product.tag
        _build(engine, product)
        _forget_others(saved, f"{product.name}-*.tar")
        partial = saved.with_suffix(".part")
        engine.cli("save", "-o", partial, product.tag)
        partial.rename(saved)
    return product.tag


def _build(engine: Engine, product: _Product) -> None:
    load_base(engine)
    load_bento(engine)
    wheels = _wheels(product.lock)
    with tempfile.TemporaryDirectory(prefix="shoal-context-") as directory:
        context = Path(directory)
        for source in [*product.sources, _BACKENDS, ROOT / ".dockerignore"]:
            target = context / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
        shutil.copytree(wheels, context / "wheels")
        engine.cli(
            "build",
            *("--file", context / product.dockerfile.relative_to(ROOT)),
            *("--build-arg", f"BASE_IMAGE={BASE_TAG}"),
            *("--build-arg", f"BENTO_IMAGE={BENTO_TAG}"),
            *("--tag", product.tag),
            context,
            timeout_s=600.0,
        )


def _wheels_path(lock: Path) -> Path:
    return CACHE / "wheels" / f"{lock.parent.name}-{_digest([_BACKENDS, lock])}"


def _wheels(lock: Path) -> Path:
    """A directory with every package of a lock, so that the build inside needs no network."""
    directory = _wheels_path(lock)
    if not directory.exists():
        partial = directory.with_suffix(".part")
        shutil.rmtree(partial, ignore_errors=True)
        for one in (_BACKENDS, lock):
            command = [
                str(ROOT / ".venv/bin/python"),
                "-m",
                "pip",
                "download",
                "--disable-pip-version-check",
                "--no-input",
            ]
            command += ["--quiet", "--require-hashes", "--no-deps", "--no-build-isolation", "-r", str(one)]
            done = subprocess.run(
                [*command, "-d", str(partial)], capture_output=True, text=True, timeout=600, check=False
            )
            if done.returncode != 0:
                unavailable(f"the packages of {one.relative_to(ROOT)} cannot be downloaded: {done.stderr[-500:]}")
        partial.rename(directory)
    return directory


# -- ingredients ------------------------------------------------------------------------------------------------------


def _base_path() -> Path:
    key = hashlib.sha256(repr((_SUITE, _PACKAGES, _LEFT_OUT)).encode()).hexdigest()[:16]
    return CACHE / f"rootfs-{key}.tar"


def _base_tar() -> Path:
    tar = _base_path()
    if tar.exists():
        return tar
    with _lock("rootfs"):
        if not tar.exists():
            _make_base_tar(tar)
    return tar


def _make_base_tar(tar: Path) -> None:
    debootstrap = require("debootstrap")
    require_root("debootstrap")
    log = CACHE / "log/debootstrap.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"Making a base image with debootstrap (about a minute, once; log in {log})", flush=True)
    with tempfile.TemporaryDirectory(prefix="shoal-rootfs-") as directory:
        root = Path(directory) / "rootfs"
        command = [str(debootstrap), "--variant=minbase", f"--include={_PACKAGES}", _SUITE, str(root), *_mirror()]
        environment = {**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"}
        try:
            with log.open("wb") as output:
                subprocess.run(
                    command,
                    check=True,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=environment,
                    timeout=_DEBOOTSTRAP_DEADLINE_S,
                )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            unavailable(f"debootstrap could not make a base image ({error}); see {log}")

        def keep(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
            path = member.name.removeprefix("./")
            inside = any(path.startswith(f"{left_out}/") for left_out in _LEFT_OUT)
            # Device files: every container gets its own /dev.
            return None if inside or member.isdev() else member

        partial = tar.with_suffix(".part")
        with tarfile.open(partial, "w") as archive:
            archive.add(root, arcname=".", filter=keep)
        partial.rename(tar)


def _mirror() -> list[str]:
    """The mirror that this machine's apt uses for Debian itself; none leaves debootstrap its default."""
    apt = shutil.which("apt-get")
    if apt is None:
        return []
    listed = subprocess.run(
        [apt, "indextargets", "--format", "$(CODENAME) $(LABEL) $(REPO_URI)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    ).stdout
    for line in listed.splitlines():
        codename, _, rest = line.partition(" ")
        label, _, address = rest.partition(" ")
        if codename == _SUITE and label == "Debian" and address:
            return [address]
    return []


@contextlib.contextmanager
def _single_binary(binary: Path, name: str) -> Iterator[Path]:
    """A tar with one executable and an empty, writable /tmp and /data."""
    with tempfile.TemporaryDirectory(prefix="shoal-image-") as directory:
        path = Path(directory) / "image.tar"
        with tarfile.open(path, "w") as archive:
            for folder in ("tmp", "data"):
                entry = tarfile.TarInfo(folder)
                entry.type = tarfile.DIRTYPE
                entry.mode = 0o1777
                archive.addfile(entry, io.BytesIO())
            entry = archive.gettarinfo(str(binary.resolve()), arcname=name)
            entry.mode = 0o755
            entry.uid = entry.gid = 0
            with binary.open("rb") as source:
                archive.addfile(entry, source)
        yield path


def _import(engine: Engine, tar: Path, tag: str, *changes: str) -> None:
    options = [part for change in changes for part in ("--change", change)]
    engine.cli("import", *options, tar, tag)


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        content = hashlib.sha256()
        if path.name.startswith("rootfs-"):
            # Its name is its hash; reading 150 MB every time would cost more than it tells.
            content.update(path.name.encode())
        else:
            content.update(path.read_bytes())
        # Relative, so that two checkouts agree.
        name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else Path(path.name)
        digest.update(f"{name}\0{content.hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def _forget_others(keep: Path, pattern: str) -> None:
    keep.parent.mkdir(parents=True, exist_ok=True)
    for path in keep.parent.glob(pattern):
        if path != keep:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _lock(name: str) -> Iterator[None]:
    """One process at a time makes a cached file; the others wait and find it."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Make the ingredients that take long and seldom change: their minutes would count as those of the test that comes
    first."""
    locks = [product.lock for product in (_runner(), _daemon())]
    if sys.argv[1:] == ["--check"]:
        return 0 if _base_path().exists() and all(_wheels_path(lock).exists() for lock in locks) else 1
    try:
        _base_tar()
        for lock in locks:
            _wheels(lock)
    except (pytest.skip.Exception, pytest.fail.Exception) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
