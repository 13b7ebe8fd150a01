"""How Bento's lint is called: shared calls, bounded time and output, and what a failure means for whom.

Bento is played by a small program here; the real one is asked in tests/e2e/test_admission.py.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from scheduler.confined import landlock_version
from scheduler.lint import BentoLinter, LintUnavailable, NoLint, find_bento, warn_if_unconfined
from shared.archive import write_archive
from shared.configuration import Configuration, read_configuration
from shared.errors import Refused
from tests.support.components import ROOT

PLAYED = f"""#!{sys.executable}
import os, sys, time
files = sys.argv[3:]
here = os.path.dirname(os.path.abspath(__file__))
open(os.path.join(here, "calls"), "a").write(f"{{len(files)}} {{os.environ.get('SECRET')}}\\n")
open(os.path.join(here, "pid"), "w").write(str(os.getpid()))
assert sys.argv[1:3] == ["lint", "--skip-env-var-check"]
failed = False
texts = [(path, open(path).read()) for path in files]
for path, text in texts:
    if "hang" in text:
        time.sleep(600)
    if "crash" in text:
        sys.stderr.write("panic: out of cheese\\n")
        sys.exit(2)
    if "neighbour" in text:
        failed |= not os.path.exists("schema.json")
        sys.stderr.write("" if os.path.exists("schema.json") else f"{{path}}(1,1) no neighbour\\n")
    for number, line in enumerate(text.splitlines(), 1):
        if "old" in line:
            print(f"{{path}}({{number}},1) field old is deprecated")
for path, text in texts:
    for number, line in enumerate(text.splitlines(), 1):
        if "old" in line and any("bad" in other for _, other in texts):
            sys.stderr.write(f"{{path}}({{number}},1) field old is deprecated\\n")
        for word in line.split():
            if word.startswith("bad"):
                failed = True
                sys.stderr.write(f"{{path}}({{number}},1) field {{word}} not recognised\\n  sadly\\n")
            if word.startswith("loud"):
                failed = True
                sys.stderr.write(f"{{path}}({{number}},1) " + "x" * 3_000_000 + "\\n")
sys.exit(1 if failed else 0)
"""


@pytest.fixture
def bento(tmp_path: Path) -> Path:
    path = tmp_path / "bento"
    path.write_text(PLAYED)
    path.chmod(0o755)
    return path


def calls(bento: Path) -> list[str]:
    """How many files each call had."""
    return [line.split()[0] for line in (bento.parent / "calls").read_text().splitlines()]


def read(text: str) -> Configuration:
    return read_configuration(text.encode())


def lint(bento: Path, *texts: str, timeout_s: float = 30.0, **env: str) -> list[tuple[str, ...]]:
    return asyncio.run(
        BentoLinter(bento, confined=False, timeout_s=timeout_s).lint([read(text) for text in texts], env)
    )


def test_one_call_for_many(bento: Path) -> None:
    found = lint(bento, "a: 1", "a: bad\nb: bad1", "c: 1")
    assert found == [
        (),
        (
            "pipeline.yaml line 1 is 'a: bad': field bad not recognised sadly",
            "pipeline.yaml line 2 is 'b: bad1': field bad1 not recognised sadly",
        ),
        (),
    ]
    assert calls(bento) == ["3"]


def test_deprecated_fields_are_no_complaint(bento: Path) -> None:
    assert lint(bento, "a: old", "a: bad") == [
        (),
        ("pipeline.yaml line 1 is 'a: bad': field bad not recognised sadly",),
    ]


def test_values_that_only_hosts_know_are_not_held_against_it(bento: Path) -> None:
    text = "a: bad ${X}\nb: worse ${Y:bad}"
    assert [c.split(" is ")[0] for c in lint(bento, text)[0]] == ["pipeline.yaml line 2"]
    assert [c.split(" is ")[0] for c in lint(bento, text, X="1", Y="2")[0]] == ["pipeline.yaml line 1"]


def test_files_lie_beside_their_configuration(bento: Path) -> None:
    tar = read_configuration(write_archive([("pipeline.yaml", b"a: neighbour"), ("schema.json", b"{}")]))
    found = asyncio.run(BentoLinter(bento, confined=False).lint([tar, read("b: 1"), read("c: 1")]))
    assert found == [(), (), ()]
    assert sorted(calls(bento)) == ["1", "2"]


def test_the_schedulers_environment_is_not_passed_on(bento: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    lint(bento, "a: 1")
    assert "hunter2" not in (bento.parent / "calls").read_text()


def test_concurrent_requests_share_calls_and_verdicts_are_remembered(bento: Path) -> None:
    async def scenario() -> None:
        linter = BentoLinter(bento, confined=False)
        texts = [f"a: {number % 20}" for number in range(60)]
        await asyncio.gather(*(linter.lint([read(text)]) for text in texts))
        assert linter.calls <= 4
        before = linter.calls
        await asyncio.gather(*(linter.lint([read(text)]) for text in texts))
        assert linter.calls == before
        assert sum(int(count) for count in calls(bento)) == 20

    asyncio.run(scenario())


def test_a_time_out_is_no_verdict_and_leaves_no_process(bento: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(LintUnavailable, match=r"did not finish in 1 s"):
        lint(bento, "a: hang", timeout_s=1.0)
    assert time.monotonic() - begun < 10.0
    with pytest.raises(ProcessLookupError):
        os.kill(int((bento.parent / "pid").read_text()), 0)


def test_one_that_hangs_takes_no_other_with_it(bento: Path) -> None:
    async def scenario() -> None:
        linter = BentoLinter(bento, confined=False, timeout_s=2.0)
        texts = ["a: 1", "a: hang", "a: bad", "a: crash"]
        found = await asyncio.gather(*(linter.lint([read(t)]) for t in texts), return_exceptions=True)
        assert found[0] == [()]
        assert isinstance(found[1], LintUnavailable)
        assert isinstance(found[2], list)
        assert len(found[2][0]) == 1
        assert isinstance(found[3], LintUnavailable)
        assert "ended with 2: panic: out of cheese" in str(found[3])

    asyncio.run(scenario())


def test_a_batch_that_hangs_is_taken_apart(bento: Path) -> None:
    async def scenario() -> None:
        linter = BentoLinter(bento, confined=False, timeout_s=2.0)
        good = [read(f"a: {number}") for number in range(3)]
        with pytest.raises(LintUnavailable):
            await linter.lint([good[0], read("a: hang"), *good[1:]])
        assert await linter.lint(good) == [(), (), ()]

    asyncio.run(scenario())


def test_endless_output_is_cut(bento: Path) -> None:
    ((complaint,), (other,)) = lint(bento, "a: loud", "a: bad")
    assert len(complaint) < 1000
    assert "field bad not recognised" in other


def test_an_interrupted_caller_leaves_the_others_their_answer(bento: Path) -> None:
    async def scenario() -> None:
        linter = BentoLinter(bento, confined=False)
        first = asyncio.create_task(linter.lint([read("a: 1")]))
        second = asyncio.create_task(linter.lint([read("a: 1")]))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == [()]
        with pytest.raises(asyncio.CancelledError):
            await first

    asyncio.run(scenario())


def test_nothing_is_left_behind(bento: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    lint(bento, "a: bad", "b: 1")
    assert list(temporary.iterdir()) == []


def test_a_bento_that_is_gone_is_no_verdict(tmp_path: Path) -> None:
    with pytest.raises(LintUnavailable, match="could not be started"):
        lint(tmp_path / "gone", "a: 1")


def test_no_lint_admits_all() -> None:
    assert asyncio.run(NoLint().lint([read("a: bad")], {})) == [()]


def test_the_stated_bento_is_taken(bento: Path) -> None:
    assert find_bento(str(bento)) == bento


def test_without_bento_the_refusal_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match=r"is no program: .*--no-lint"):
        find_bento(str(tmp_path / "gone"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(Refused, match="none on PATH"):
        find_bento()


@pytest.mark.parametrize(("version", "warnings"), [(-1, 1), (0, 1), (1, 0), (4, 0)])
def test_a_kernel_without_landlock_is_said(version: int, warnings: int) -> None:
    with capture_logs() as said:
        warn_if_unconfined(version)
    assert [line["log_level"] for line in said] == ["warning"] * warnings


def test_the_version_of_landlock_is_the_kernels() -> None:
    """What confines itself must find what the warning speaks of."""
    program = "import sys; from scheduler.confined import confine; print(confine('/tmp', sys.executable))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (landlock_version() >= 1) is (done.stdout.strip() == "True")
