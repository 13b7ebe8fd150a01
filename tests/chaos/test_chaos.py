"""Three minutes of chaos with one seed. `make chaos` runs it for longer, with any."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.components import ROOT, require, require_root

SEED = 452  # what is done and when; where it hits is another moment in each run all the same
MINUTES = 3.0  # of faults; start, the end of the last burst and the final account take the rest
BOUND_S = 540.0  # ends a hang; a run that finds nothing takes about four minutes


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(BOUND_S + 60)
def test_nothing_overlaps_and_nothing_is_lost_under_random_faults(tmp_path: Path) -> None:
    require_root("network namespaces")
    for name in ("nats-server", "bento", "ip", "iptables"):
        require(name)
    report = tmp_path / "report.md"
    command = [sys.executable, "-m", "tests.chaos", "--minutes", str(MINUTES)]
    command += ["--seed", str(SEED), "--report", str(report)]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said, _ = child.communicate(timeout=BOUND_S)
    except subprocess.TimeoutExpired:
        child.terminate()
        said, _ = child.communicate(timeout=30)
        pytest.fail(f"not over within {BOUND_S:g} s:\n{said}", pytrace=False)
    assert child.returncode == 0, said
    assert "| overlaps of two copies of one slot | 0 " in report.read_text()
