"""The command line: a NATS client with no server of its own. One file per noun; every command is thin.

main       the command tree, exit codes, errors
options    global options, anywhere on the line
cluster    one connection, and reading what the cluster says of itself
output     tables for people, JSON, YAML, wide and names for programs
pipelines, executions, hosts, leader, events, logs, store, doctor, version    the nouns and verbs
daemons, up, demo                                                             processes in the foreground
"""

import sys

# structlog takes Rich for tracebacks wherever it finds it: 3 MB in every daemon, 20 ms before every command, and local
# variables, credentials among them, in what a daemon logs. So it finds none; tables load Rich when they are shown.
if "structlog" not in sys.modules and "rich" not in sys.modules:
    sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        import structlog  # noqa: F401
    finally:
        del sys.modules["rich"]
