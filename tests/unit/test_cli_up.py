"""`shoal up`: a cluster on one machine that no second one disturbs."""

import fcntl
from pathlib import Path

import pytest

from cli.local import LocalCluster, free_port
from shared.errors import Refused


def test_a_second_cluster_on_the_same_data_is_refused_and_leaves_the_first_ones_leases(tmp_path: Path) -> None:
    """Its run directory holds the leases and grants of what runs."""
    first = LocalCluster(tmp_path, free_port(), say=lambda _: None)
    lease = first.run_dir / "host-1" / "lease"
    lease.parent.mkdir(parents=True)
    try:
        lease.touch()
        with (tmp_path / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            second = LocalCluster(tmp_path, free_port(), say=lambda _: None)
            with pytest.raises(Refused, match="another `shoal up` runs on"):
                second.start_store()
            second.stop()
        assert lease.exists()
    finally:
        lease.unlink(missing_ok=True)
        lease.parent.rmdir()
        first.run_dir.rmdir()
