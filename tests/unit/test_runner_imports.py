"""What the runner imports: its start is part of every start of a pipeline, and its memory of every execution."""

import subprocess
import sys

from tests.support.components import ROOT

# Before Bento is forked: the smallest set, because everybody waits for it.
EARLY = {"os", "sys", "time", "fcntl", "_ctypes", "_signal", "_socket"}
EARLY |= {"__future__", "abc", "io", "stat", "posixpath", "genericpath", "codecs", "_collections_abc"}
HEAVY = {"asyncio", "subprocess", "http", "logging", "typing", "dataclasses", "inspect", "socket", "selectors", "ssl"}
HEAVY |= {"tarfile", "shutil", "pathlib", "hashlib", "ctypes", "tempfile", "threading", "argparse", "urllib", "email"}
ALL_MAX = 85  # modules in all; 74 on 3.11


HASHES = {"_sha2", "_sha256"}  # one of them, when the bundle is verified


def imported(module: str) -> set[str]:
    """All modules after importing this one as a runner would."""
    program = f"import sys; sys.path.append({str(ROOT)!r}); import {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_what_is_imported_before_bento_is_forked() -> None:
    bare = subprocess.run([sys.executable, "-I", "-S", "-c", "import sys; print(*sys.modules)"], capture_output=True)
    more = imported("runner.supervise") - set(bare.stdout.decode().split())
    assert {name for name in more if name.partition(".")[0] != "runner"} <= EARLY | {"os.path", "_stat"}


def test_verifying_a_bundle_brings_no_openssl() -> None:
    program = f"import sys; sys.path.append({str(ROOT)!r}); from runner.bundle import read_verified\n"
    program += "before = set(sys.modules)\n"
    program += "try: read_verified('/dev/null', '0')\nexcept Exception: print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= HASHES
    assert done.stdout.strip()


def test_what_is_imported_at_all() -> None:
    everything = imported("runner.supervise, runner.loop")
    assert not everything & HEAVY
    assert len(everything) <= ALL_MAX, sorted(everything)


def test_the_contract_is_importable_alone() -> None:
    assert {name for name in imported("runner.contract") if name.startswith("runner")} == {"runner", "runner.contract"}
