"""What the command line imports: the daemons begin there, so it stays in their memory; and everybody waits for it."""

import subprocess
import sys


def test_nothing_loads_rich_before_a_table_is_shown() -> None:
    program = "import cli.main, agent.service, scheduler.service, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "structlog" in loaded
    assert not loaded & {"rich", "pygments"}


def test_tables_are_shown_all_the_same() -> None:
    program = "import cli.main, rich.console, rich.table; rich.console.Console().print(rich.table.Table())"
    subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
