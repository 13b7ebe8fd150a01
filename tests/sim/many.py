"""Many seeds over several processes, each process fresh: no seed can disturb another one's hash or memory."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator

from tests.sim.run import Result, simulate

CHUNK = 4  # seeds handed to a process at once


def simulate_many(seeds: Iterable[int], jobs: int) -> Iterator[Result]:
    """The results, in the order in which they come."""
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(simulate, seeds, chunksize=CHUNK)
