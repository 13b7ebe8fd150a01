"""Bento's lint over configurations that want to read, to fill or to stop the machine it runs on."""

import asyncio
import os
import time
from pathlib import Path

import pytest

from scheduler.lint import BentoLinter, LintUnavailable
from shared.archive import write_archive
from shared.configuration import read_configuration
from shared.errors import BadInput
from tests.support.components import require

SECRET = "swordfish"
CONFIGURATION = """input:
  generate:
    mapping: |
      %s
output:
  drop: {}
"""


def lint(*texts: str | bytes, timeout_s: float = 60.0) -> list[tuple[str, ...]]:
    found = [read_configuration(text.encode() if isinstance(text, str) else text) for text in texts]
    return asyncio.run(BentoLinter(require("bento"), timeout_s=timeout_s).lint(found))


@pytest.mark.parametrize(
    "how", ['import "{}"', 'root = 1\n      import "{}"', 'from "{}"', 'import "{}"\n      root = x']
)
def test_files_of_the_machine_are_not_quoted(tmp_path: Path, how: str) -> None:
    """An import that is no mapping is quoted in the complaint, which whoever published it reads."""
    secret = tmp_path / "secret"
    secret.write_text(f"= {SECRET} {SECRET}\n")
    relative = os.path.relpath(secret, "/tmp/shoal-lint-x/0")
    for path in (str(secret), f"../../{relative}", f"/proc/self/root{secret}", "/etc/passwd", "/proc/self/environ"):
        (complaints,) = lint(CONFIGURATION % how.format(path))
        assert complaints, "it cannot be read, and that is said"
        assert SECRET not in "".join(complaints)
        assert "denied" in "".join(complaints) or "no such file" in "".join(complaints)


@pytest.mark.parametrize("hidden", ['import "../{}/pipeline.yaml"', '"\\x69mport \\"../{}/pipeline.yaml\\""'])
def test_nobody_reads_what_somebody_else_published(hidden: str) -> None:
    """Configurations of many are looked at in one call."""
    private = f"input: {{generate: {{mapping: 'root = \"{SECRET}\"'}}}}\noutput: {{drop: {{}}}}\n"
    spies = [f"input:\n  generate:\n    mapping: {hidden.format(n)}\noutput:\n  drop: {{}}\n# {n}\n" for n in range(4)]

    async def scenario() -> list[tuple[str, ...]]:
        linter = BentoLinter(require("bento"))
        configurations = [read_configuration(text.encode()) for text in (private, *spies, private + "# other\n")]
        return await linter.lint(configurations)

    found = asyncio.run(scenario())
    assert SECRET not in str(found)
    assert found[0] == found[-1] == ()
    assert all(found[1:-1]), "none of them is clean"


def test_files_of_its_own_are_read() -> None:
    tar = write_archive(
        [
            ("pipeline.yaml", (CONFIGURATION % 'import "maps/own.blobl"\n      root = 1').encode()),
            ("maps/own.blobl", b'map x {\n  root = "y"\n}\n'),
        ]
    )
    assert lint(tar) == [()]


def test_multiplied_aliases_and_great_depth_end_in_words_or_in_time() -> None:
    laughs = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    begun_s = time.monotonic()
    for text in (
        laughs + CONFIGURATION % "root = 1",
        "input: " + "[" * 5000 + "]" * 5000,
        "input: " + "{a: " * 5000 + "}" * 5000,
        "pipeline:\n  processors:\n" + "    - mapping: root = 1\n" * 20_000,
        "input: {generate: {mapping: '" + "(" * 100_000 + "'}}\noutput: {drop: {}}\n",
        "input: {generate: {mapping: 'root = " + "[" * 50_000 + "'}}\noutput: {drop: {}}\n",
        "&a : *a\n",
        "? " * 10_000,
    ):
        try:
            said = str(lint(text, timeout_s=5.0))
        except (BadInput, LintUnavailable) as error:
            said = str(error)
        assert len(said) < 1_000_000
    assert time.monotonic() - begun_s < 8 * 25.0, "each has its time-out and a margin"
    assert lint(CONFIGURATION % "root = 1") == [()], "and the next one is looked at"


def test_it_cannot_write_or_speak(tmp_path: Path) -> None:
    """A program that does what a hole in Bento would let a stranger do."""
    program = tmp_path / "bento"
    program.write_text(
        "#!/bin/bash\n"
        f"echo x > {tmp_path}/written\n"
        f"cat {tmp_path}/secret >&2\n"
        "echo x > ./here || exit 3\n"
        "ulimit -c -t -f >&2\n"
        "[ -n \"$SHOAL_SECRET\" ] && exit 4\n"
        "exec 3<>/dev/tcp/127.0.0.1/9 && exit 5\n"
        "exit 0\n"
    )  # fmt: skip
    program.chmod(0o755)
    (tmp_path / "secret").write_text(SECRET)
    os.environ["SHOAL_SECRET"] = SECRET
    try:
        found = asyncio.run(BentoLinter(program).lint([read_configuration((CONFIGURATION % "root = 1").encode())]))
    finally:
        del os.environ["SHOAL_SECRET"]
    assert found == [()]
    assert not (tmp_path / "written").exists()
