"""`shoal apply`: records and configurations from files. See `shared.manifest` for their form."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.cluster import Cluster, run
from cli.output import Column, Format, OutputOption, note, show_rows
from cli.records import write_record
from cli.wait import Goal, TimeoutOption, WaitOption, seconds, wait_for
from shared.configuration import read_configuration
from shared.documents import Pin, decode
from shared.errors import BadInput, Problem, Refused
from shared.keys import object_name, version_key
from shared.manifest import Manifest, parse_manifest, read_manifests
from shared.record import PipelineRecord, PipelineStatus, parse_record

COLUMNS = (
    Column("PIPELINE", lambda r: r["pipeline"]),
    Column("VERSION", lambda r: r["version"]),
    Column("STATUS", lambda r: r["status"]),
    Column("RESULT", lambda r: r["result"]),
)
_GOALS = {
    PipelineStatus.PUBLISHED: Goal.RUNNING,
    PipelineStatus.PAUSED: Goal.PAUSED,
    PipelineStatus.DRAFT: Goal.GONE,
}


def apply(
    context: typer.Context,
    file: Annotated[
        list[str],
        typer.Option(
            "--file", "-f", metavar="PATH", help="Manifest, directory, or - for standard input; may be repeated."
        ),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, change nothing.")] = False,
    no_lint: Annotated[bool, typer.Option("--no-lint", help="Do not ask Bento; the scheduler will.")] = False,
    output: OutputOption = Format.TABLE,
    wait: WaitOption = False,
    timeout: TimeoutOption = "60s",
) -> None:
    """Make pipelines what their files say.

    A file holds configuration and record. All are checked before anything is changed.
    """
    manifests = _read(file)
    if not no_lint:
        _lint(manifests)

    async def command(cluster: Cluster) -> list[dict[str, Any]]:
        for manifest in manifests:
            await _refuse_pinned(cluster, manifest)
        rows = []
        revisions = {}
        for manifest in manifests:
            result, revision = await _apply(cluster, manifest, dry_run)
            revisions[manifest.record.id] = revision
            rows.append(_row(manifest.record, result))
        if wait and not dry_run:
            limit = seconds(timeout)
            for manifest in manifests:
                record = manifest.record
                await wait_for(cluster, record.id, _GOALS[record.status], limit, revisions[record.id])
        return rows

    rows = run(context.obj, command)
    show_rows(rows, COLUMNS, output, name="pipeline", empty="nothing to apply")


def _read(files: Sequence[str]) -> list[Manifest]:
    manifests: list[Manifest] = []
    for name in files:
        if name == "-":
            manifests.append(parse_manifest(sys.stdin.buffer.read(), "standard input"))
        else:
            manifests.extend(read_manifests(Path(name)))
    seen: dict[str, str] = {}
    for manifest in manifests:
        other = seen.setdefault(manifest.record.id, manifest.name)
        if other != manifest.name:
            raise BadInput(Problem(f"{manifest.name}: id", manifest.record.id, f"{other} has the same id"))
    return manifests


def _lint(manifests: Sequence[Manifest]) -> None:
    """Bento's own verdict, here and now, if there is a Bento on this machine."""
    from scheduler.lint import BentoLinter, LintUnavailable, find_bento

    try:
        linter = BentoLinter(find_bento())
    except (BadInput, Refused):
        note("Bento is not installed here; the scheduler will check the configurations")
        return

    async def verdicts_of() -> list[list[tuple[str, ...]]]:
        checks = (linter.lint([read_configuration(m.configuration)], m.record.env) for m in manifests)
        return await asyncio.gather(*checks)

    try:
        verdicts = asyncio.run(verdicts_of())
    except LintUnavailable as error:
        note(f"Bento could not check the configurations here ({error}); the scheduler will")
        return
    problems = [
        Problem(manifest.name, "", complaint)
        for manifest, (complaints,) in zip(manifests, verdicts, strict=True)
        for complaint in complaints
    ]
    if problems:
        raise BadInput(*problems)


async def _refuse_pinned(cluster: Cluster, manifest: Manifest) -> None:
    """A version that was admitted is that configuration for ever: other bytes need another version."""
    record = manifest.record
    entry = await cluster.read(cluster.keys.control, version_key(record.id, record.version))
    if entry.value is None:
        return
    pin = decode(Pin, entry.value)
    if pin.config_digest != hashlib.sha256(manifest.configuration).hexdigest():
        raise Refused(
            f"{manifest.name}: version {record.version} of '{record.id}' is pinned to another configuration "
            f"(`shoal config {record.id} --version {record.version}` shows it); give the new one a new version"
        )


async def _apply(cluster: Cluster, manifest: Manifest, dry_run: bool) -> tuple[str, int]:
    """What was done (or would be), and the record's revision."""
    record = manifest.record
    current = await cluster.read(cluster.keys.pipelines, record.id)
    same_object = await _object_is(cluster, manifest)
    same_record = current.value is not None and _equal(record, current.value)
    if same_object and same_record:
        return "unchanged", current.revision
    result = "created" if current.value is None else "updated"
    if dry_run:
        return f"{result} (dry run)", current.revision
    if not same_object:
        name = object_name(record.id, record.version)
        await cluster.store.put_object(cluster.keys.configs, name, manifest.configuration)
    if same_record:
        return "configuration stored", current.revision
    return result, await write_record(cluster, dict(manifest.fields), current.revision)


def _equal(record: PipelineRecord, stored: bytes) -> bool:
    try:
        return parse_record(record.id, stored) == record
    except BadInput:
        return False


async def _object_is(cluster: Cluster, manifest: Manifest) -> bool:
    record = manifest.record
    stored = (await cluster.objects(cluster.keys.configs)).get(object_name(record.id, record.version))
    return stored is not None and stored.digest == hashlib.sha256(manifest.configuration).hexdigest()


def _row(record: PipelineRecord, result: str) -> dict[str, Any]:
    return {"pipeline": record.id, "version": record.version, "status": record.status.value, "result": result}
