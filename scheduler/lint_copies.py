"""What Bento's lint is given to read, and what its words mean.

The values of variables are not known here: references are replaced in the linted copy by the record's `env`, their
defaults, or a word, and what Bento says about a line with such a word is not held against the user.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scheduler.core.candidates import UNKNOWN_COMPONENT
from shared.components import UNSET
from shared.configuration import PIPELINE, Configuration, resolve
from shared.errors import problem
from shared.interpolation import Reference, disarm, interpolate, references

COMPLAINT_CHARS_MAX = 500  # shown of one; Bento repeats what a user wrote

# Values that every execution has, of the kind that Bento may check.
_SAMPLES: Mapping[str, str] = {"NATS_URL": "nats://127.0.0.1:4222", "SHOAL_SLOT": "0", "SHOAL_REPLICAS": "1"}

_READS = re.compile(r"import|\bfrom\b|\\[xuU\r\n]")
_COMPLAINT = re.compile(r"\((\d+),\d+\) (.*)", re.DOTALL)
_INNER_LINE = re.compile(r"\bline (\d+):")  # the YAML reader reports (1,1) and says the line in words


Key = tuple[str, tuple[tuple[str, str], ...]]  # of a verdict: digest, environment


@dataclass(frozen=True, slots=True)
class Job:
    """One configuration to lint, with the part of the environment that it refers to."""

    configuration: Configuration
    env: tuple[tuple[str, str], ...]
    alone: bool  # in its call: it may read files, and those of a call share one directory

    @property
    def key(self) -> Key:
        return self.configuration.digest, self.env


def job_of(configuration: Configuration, env: Mapping[str, str]) -> Job:
    """What there is to lint of a configuration under this environment."""
    relevant = _relevant(configuration, env)
    # Files of a tar are read relative to the working directory. And nobody shall read what somebody else published, by
    # a mapping that imports its neighbour and complains about the contents; nor hide that in an escape of YAML.
    alone = len(configuration.files) > 1 or _READS.search(_linted(configuration, relevant)) is not None
    return Job(configuration, relevant, alone)


def _linted(configuration: Configuration, env: tuple[tuple[str, str], ...]) -> str:
    """The copy of pipeline.yaml that Bento shall read."""
    known = {**_SAMPLES, **dict(env)}
    return interpolate(configuration.text, lambda found: disarm(resolve(found, known)))


def _relevant(configuration: Configuration, env: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, value) for name, value in env.items() if name in configuration.variables))


def place(root: Path, index: int) -> Path:
    """Where the copy of the job with this index is."""
    return root / str(index) / PIPELINE


def unpack(root: Path, batch: list[Job]) -> None:
    """A directory per job, with its files and the copy of pipeline.yaml that Bento shall read."""
    for index, job in enumerate(batch):
        directory = place(root, index).parent
        directory.mkdir()
        for name, data in job.configuration.files[1:]:
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        place(root, index).write_bytes(_linted(job.configuration, job.env).encode())


def read_verdicts(
    warnings: bytes, errors: bytes, root: Path, batch: list[Job]
) -> tuple[list[list[str]], list[tuple[str, ...]]]:
    """(what Bento wrote, what of it is held against the user), each by job."""
    found = _complaints(warnings, errors, root, batch)
    return found, [_judged(job, mine) for job, mine in zip(batch, found, strict=True)]


def _complaints(warnings: bytes, errors: bytes, root: Path, batch: list[Job]) -> list[list[str]]:
    """What Bento wrote, by job: `PATH(line,column) what`, where `what` may go on over several lines. Warnings, which
    Bento repeats among the errors, are no complaints."""
    found: list[list[str]] = [[] for _ in batch]
    harmless = Counter(warnings.decode("utf-8", "replace").split("\n"))
    prefix, suffix = f"{root}/", f"/{PIPELINE}"
    current: list[str] | None = None
    for line in errors.decode("utf-8", "replace").split("\n"):
        if harmless[line] > 0:
            harmless[line] -= 1
            current = None
        elif line.startswith(prefix) and suffix in line:
            index, _, rest = line.removeprefix(prefix).partition(suffix)
            if index.isdigit() and int(index) < len(batch):
                current = found[int(index)]
                current.append(rest)
        elif current is not None:
            current[-1] += f" {line.strip()}"
    return found


def _judged(job: Job, written: list[str]) -> tuple[str, ...]:
    """The complaints for people: where, what stands there, what Bento says. Without those about unknown values."""
    env = {**_SAMPLES, **dict(job.env)}
    lines = job.configuration.text.split("\n")
    kept: list[str] = []
    for complaint in dict.fromkeys(text[:COMPLAINT_CHARS_MAX] for text in written):
        parsed = _COMPLAINT.fullmatch(complaint)
        number, what = (int(parsed[1]), parsed[2]) if parsed else (1, complaint)
        inner = _INNER_LINE.search(what)
        number = int(inner[1]) if inner and number == 1 else number
        shown = lines[number - 1].strip() if 0 < number <= len(lines) else ""
        if any(_unset(reference, env) for reference in references(shown)):
            continue
        if UNKNOWN_COMPONENT.search(what):
            what += "; correct the name, or give the scheduler a Bento that has this component"
        kept.append(str(problem(f"{PIPELINE} line {number}", shown[:COMPLAINT_CHARS_MAX], what)))
    return tuple(kept)


def _unset(reference: Reference, env: Mapping[str, str]) -> bool:
    return resolve(reference, env).startswith(UNSET) and reference.name not in env


def last_words(errors: bytes) -> str:
    """The end of what Bento wrote, in one line."""
    return " ".join(errors[-400:].decode("utf-8", "replace").split()) or "it said nothing"
