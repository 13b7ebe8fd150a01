"""The bundles on this host: a content-addressed directory, fetched once, verified, deleted when nothing refers to them.

    <state>/bundles/<digest>/bundle.tar

A bundle is never changed: its name is the sha256 of its bytes, checked whenever it enters this process. So losing one
costs a fetch, and a torn one is found and fetched again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from agent.core.situation import Bundle
from agent.late_store import AgentStore
from agent.layout import BUNDLE_FILE
from agent.state import Offload
from shared.bundle import BUNDLE_BYTES_MAX, read_bundle
from shared.errors import BadInput

FETCH_TIMEOUT_S = 20.0  # of one bundle of at most 8 MiB, over a slow line

_DIGEST = re.compile(r"[0-9a-f]{64}")

log = structlog.get_logger()


@dataclass(slots=True)
class _Turn:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class Bundles:
    """What lies on the disk (`have`), and how more comes there."""

    def __init__(self, *, store: AgentStore, bucket: str, directory: Path, offload: Offload) -> None:
        self._store, self._bucket = store, bucket
        self._directory = directory
        self._offload = offload
        self._turns: dict[str, _Turn] = {}
        self.have: Mapping[str, Bundle] = {}

    async def load(self) -> None:
        """Find what an earlier process left here; what is no whole bundle is deleted. Raises OSError."""
        self.have = await self._offload(self._scan)

    async def fetch(self, digest: str) -> None:
        """Have the bundle on disk. Requests for one digest share one fetch.

        Raises StoreError (Missing: the store has it no longer), BadInput (what is stored under the name is something
        else), OSError.
        """
        async with self._alone(digest):
            if digest in self.have:
                return
            data = await self._store.get_object(
                self._bucket, digest, bytes_max=BUNDLE_BYTES_MAX, timeout=FETCH_TIMEOUT_S
            )
            bundle = await self._offload(lambda: self._keep(digest, data))
            self.have = {**self.have, digest: bundle}
        log.info("A bundle was fetched.", digest=digest, bytes=len(data))

    async def drop_unused(self, used: Callable[[], frozenset[str]]) -> None:
        """Delete the directories of all other digests. Raises OSError.

        `used` is asked again before each deletion, at an instant at which nothing else can happen: a bundle that was
        wanted meanwhile is kept, and one that is wanted later is fetched again.
        """
        for digest in sorted(self.have.keys() - used()):
            async with self._alone(digest):
                if digest in used():
                    continue
                self.have = {other: bundle for other, bundle in self.have.items() if other != digest}
                await self._offload(lambda directory=self._directory / digest: _delete(directory))  # type: ignore[misc]
            log.info("A bundle was deleted: no execution refers to it.", digest=digest)

    @contextlib.asynccontextmanager
    async def _alone(self, digest: str) -> AsyncIterator[None]:
        """One at a time works on a digest's directory."""
        turn = self._turns.setdefault(digest, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if turn.users == 0:
                del self._turns[digest]

    def _keep(self, digest: str, data: bytes) -> Bundle:
        """Verify and write. Containers read it as another user, so its mode is stated."""
        runtime, _ = read_bundle(data, digest)
        directory = self._directory / digest
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o755)
        file, fresh = directory / BUNDLE_FILE, directory / f"{BUNDLE_FILE}.new"
        with fresh.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fchmod(stream.fileno(), 0o644)
            os.fsync(stream.fileno())
        fresh.replace(file)
        return Bundle(str(file), runtime)

    def _scan(self) -> Mapping[str, Bundle]:
        self._directory.mkdir(parents=True, exist_ok=True)
        have: dict[str, Bundle] = {}
        for directory in sorted(self._directory.iterdir()):
            if not _DIGEST.fullmatch(directory.name):
                continue
            file = directory / BUNDLE_FILE
            try:
                runtime, _ = read_bundle(file.read_bytes(), directory.name)
            except FileNotFoundError:
                _delete(directory)
            except BadInput as error:
                log.warning("A damaged bundle was deleted.", digest=directory.name, problem=str(error))
                _delete(directory)
            else:
                have[directory.name] = Bundle(str(file), runtime)
        return have


def _delete(directory: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(directory)
