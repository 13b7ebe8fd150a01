"""One seed from begin to end, and what is found in it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from tests.sim import checkers
from tests.sim.economy import economy
from tests.sim.virtual_time import VirtualLoop
from tests.sim.world import Directed, World

LINES = 400  # of the story's end that are shown of a run that failed


@dataclass(frozen=True, slots=True)
class Result:
    """What one seed showed. `digest` is the hash of everything that was written."""

    seed: int
    violations: tuple[str, ...]
    digest: str
    simulated_s: float
    writes: int
    runs: int
    shape: str
    story: tuple[str, ...] = field(repr=False, default=())

    @property
    def checkers(self) -> frozenset[str]:
        """The names of the checkers that found something."""
        return frozenset(found[1:].partition("]")[0] for found in self.violations)

    def report(self, lines: int = LINES) -> str:
        """For people: what was violated, and what had happened."""
        violated = "\n".join(self.violations[:20]) or "nothing was violated"
        story = "\n".join(self.story[-lines:])
        again = f"again: python -m tests.sim --seed {self.seed} -v"
        return f"seed {self.seed}: {self.shape}\n{story}\n\nseed {self.seed}:\n{violated}\n\n{again}"


def simulate(
    seed: int,
    *,
    prepare: Callable[[World], None] = lambda _: None,
    verbose: bool = False,
    directed: Directed | None = None,
    accidental: bool = True,
) -> Result:
    """Run one seed, or what is written down in `directed` with the seed's small delays. `prepare` may change the world
    before it begins; `accidental`: with the seed's accidents, if it has any."""
    with economy():
        return _simulate(seed, prepare, verbose, directed, accidental)


def _simulate(
    seed: int, prepare: Callable[[World], None], verbose: bool, directed: Directed | None, accidental: bool
) -> Result:
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    world = World(loop, seed, directed, accidental=accidental and directed is None)
    before = structlog.get_config()
    structlog.configure(
        processors=[_Teller(world, verbose)],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=False,
    )
    try:
        prepare(world)
        try:
            loop.run_until_complete(world.live())
        except Exception as error:  # whatever it is, the seed must be told
            world.violate("simulation", f"{type(error).__name__}: {error}{_busy(loop)}")
            if verbose:
                raise
        for checker, found in checkers.check(world):
            world.violate(checker, found)
    finally:
        structlog.configure(**before)
        _close(loop)
    shape = world.shape
    return Result(
        seed=seed,
        violations=tuple(world.violations),
        digest=world.server.digest(),
        simulated_s=loop.time(),
        writes=len(world.server.history),
        runs=len(world.ledger.runs),
        shape=f"{len(shape.schedulers)} schedulers, {len(shape.hosts)} hosts, {len(world.users.kinds)} pipelines, "
        f"{len(world.faults)} faults of {', '.join(shape.kinds) or 'no kind'}",
        story=tuple(world.story) if world.violations or verbose else (),
    )


class _Teller:
    """Puts log lines into the story."""

    def __init__(self, world: World, verbose: bool) -> None:
        self._world, self._verbose = world, verbose

    def __call__(self, _logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        if self._verbose or method in ("warning", "error"):
            task = asyncio.current_task(self._world.loop)
            words = " ".join(f"{key}={value}" for key, value in event.items() if key != "event")
            self._world.tell(f"   {task.get_name() if task else '-'}: {event.get('event')} {words}"[:400])
        raise structlog.DropEvent


def _busy(loop: VirtualLoop) -> str:
    """Where the tasks stand that want to run right now: who is it that is busy with itself?"""
    tasks = {id(task): task for handle in loop.waiting_now() if isinstance(task := _task_of(handle), asyncio.Task)}
    lines = []
    for task in tasks.values():
        frames = [f"{frame.f_code.co_filename}:{frame.f_lineno}" for frame in task.get_stack()]
        lines.append(f"\n    {task.get_name()}: {' '.join(frames)}")
    return "".join(sorted(lines))


def _task_of(handle: Any) -> Any:
    return getattr(getattr(handle, "_callback", None), "__self__", None)


def _close(loop: VirtualLoop) -> None:
    with contextlib.suppress(RuntimeError):  # of a loop that never comes to rest
        _drain(loop)
    asyncio.set_event_loop(None)
    loop.close()


def _drain(loop: VirtualLoop) -> None:
    pending = asyncio.all_tasks(loop)
    for task in pending:
        task.cancel()
    if pending:
        loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_asyncgens())
