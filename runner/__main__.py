"""`python3 -I -S runner`, or `python3 -I -S runner/__main__.py`: see runner/contract.py."""

import sys

# -I -S leave nothing of ours on the path. At its end, so that nothing beside us can stand in for the standard library;
# and without this directory itself, which Python puts first when it is asked to run a directory.
_HERE = __file__.rpartition("/")[0] or "."
sys.path[:] = [entry for entry in sys.path if entry != _HERE]
sys.path.append(_HERE.rpartition("/")[0] or ("/" if _HERE.startswith("/") else "."))

from runner.supervise import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
