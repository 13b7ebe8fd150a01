"""Run seeds of the simulation.

    python -m tests.sim --seeds 200 [--start 0] [--jobs 2]     many
    python -m tests.sim --seed 17 -v                           one, with its story

Prints the seeds that failed, and ends with 1 if any did.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.sim.many import simulate_many
from tests.sim.run import LINES, simulate


def main() -> int:
    """Parse, run, tell."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds")
    parser.add_argument("--start", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("-v", "--verbose", action="store_true", help="tell the whole story of --seed")
    stated = parser.parse_args()
    if stated.seed is not None:
        result = simulate(stated.seed, verbose=stated.verbose)
        print(result.report(lines=100_000 if stated.verbose else LINES))
        return 1 if result.violations else 0
    seeds = range(stated.start, stated.start + stated.seeds)
    print(f"seeds {seeds.start} to {seeds.stop - 1} in {stated.jobs} processes", flush=True)
    begun_s, done, failed, simulated_s = time.monotonic(), 0, [], 0.0
    kinds: Counter[str] = Counter()
    for result in simulate_many(seeds, stated.jobs):
        done += 1
        simulated_s += result.simulated_s
        if result.violations:
            failed.append(result.seed)
            kinds.update(result.checkers)
            print(f"seed {result.seed}: {result.violations[0][:600]}", flush=True)
        if done % 500 == 0:
            print(f"{done} seeds, {len(failed)} failed, {time.monotonic() - begun_s:.0f} s", flush=True)
    took_s = time.monotonic() - begun_s
    print(f"{done} seeds, {simulated_s / 3600:.1f} simulated hours in {took_s:.0f} s")
    print(f"failed: {sorted(failed) or 'none'}")
    if kinds:
        print("by checker: " + ", ".join(f"{name} {count}" for name, count in kinds.most_common()))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
