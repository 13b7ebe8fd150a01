"""The simulation in CI: many seeds, the seeds that once found a defect, and that a seed says everything.

    SHOAL_SIM_SEEDS=1000 SHOAL_SIM_START=5000 .venv/bin/python -m pytest tests/sim

runs others than those of CI.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.many import simulate_many
from tests.sim.run import simulate

SEEDS = int(os.environ.get("SHOAL_SIM_SEEDS", "500"))
START = int(os.environ.get("SHOAL_SIM_START", "0"))
JOBS = 2

# What a seed once found. It is drawn anew when the simulation changes what it draws, so the name is what counts: the
# defect must stay covered by a test of its own where that is possible.
REGRESSIONS = {
    "a status says running while slots are missing and its version is being checked": 51,
    "a rebooted host starts what goes on alone while a second agent claims its name": 275,
    "a second agent is given what goes on alone on the first": 79,
    "a second agent confirms the stop of what goes on alone on the first": 107,
    "an agent is blind for 40 s after one list that hung for 8": 142,
    "the audit forbids to take everything off a host that has a new agent": 1013,
    "slots that wait are forgotten by the status while another version is being checked": 1047,
    "a slot whose stop was confirmed is forgotten by the status while another version is being checked": 3136,
}

# The same of what only an accident led to.
ACCIDENTS = {
    "what may overlap is not looked for on a host that obeys no store, and the next version runs beside it": 2578,
    "what an engine starts late for a store that was lost is taken for the execution that runs under the next": 30623,
}


@pytest.mark.slow
@pytest.mark.timeout(3600)  # about 0.4 s of a processor for each seed
def test_nothing_bad_happens_and_every_cluster_converges() -> None:
    seeds = range(START, START + SEEDS)
    print(f"seeds {seeds.start} to {seeds.stop - 1}")
    failed = sorted((result for result in simulate_many(seeds, JOBS) if result.violations), key=lambda r: r.seed)
    told = "\n\n".join(result.report(lines=60) for result in failed[:3])
    assert not failed, f"{len(failed)} of {SEEDS} seeds failed: {[result.seed for result in failed]}\n{told}"


@pytest.mark.parametrize("seed", REGRESSIONS.values(), ids=REGRESSIONS.keys())
def test_what_a_seed_once_found_is_gone(seed: int) -> None:
    result = simulate(seed, accidental=False)  # when they were found there were none yet
    assert not result.violations, result.report(lines=60)


@pytest.mark.parametrize("seed", ACCIDENTS.values(), ids=ACCIDENTS.keys())
def test_what_an_accident_once_led_to_is_gone(seed: int) -> None:
    result = simulate(seed)
    assert not result.violations, result.report(lines=60)


def test_the_same_seed_gives_the_same_run_in_every_process() -> None:
    code = "from tests.sim.run import simulate; print(simulate(7).digest)"
    root = Path(__file__).parents[2]
    digests = {simulate(7).digest}
    for salt in ("1", "2"):
        ran = subprocess.run(
            [sys.executable, "-c", code],
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": salt},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        digests.add(ran.stdout.strip())
    assert len(digests) == 1, "two runs of one seed wrote different histories"
