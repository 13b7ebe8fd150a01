"""What an executor and the runner agree on: the environment, the files, the exit codes, the health document.

Importable by the agent (standard library only, no side effects), and imported by the runner itself on its fast path.

**Start.** `python3 -I -S <this directory>`, or `<this directory>/__main__.py`, which spares 6 ms of runpy. In a
container it is process 1, without an init in front; started as a process it gets a session of its own
(`start_new_session`). Bento stays in the runner's process group and session, so that killing the group leaves nothing.
The runner never daemonizes.

**Environment.** Names that begin with `SHOAL_RUNNER_` are for the runner and do not reach Bento; every other variable
does. All values are text; a missing or unreadable one that is needed ends the runner with EXIT_SETTINGS.

**Stopping.** SIGTERM or SIGINT to the runner: SIGTERM to Bento, SIGKILL when the grace has passed; repeating it does
nothing. SIGHUP, SIGUSR1 and SIGUSR2 are passed on. SIGKILL to the runner kills Bento (parent-death signal).

**Exit code.** Bento's own, or 128 + number if a signal ended it; 143 if the runner was told to stop before Bento
started; else one of the EXIT_ codes. `failure` of the health document says which of the two it was.

**Health document** (`HEALTH_FILE`, JSON, replaced by rename, written whenever anything but `updated_boot_s` changed;
counters are read every 2 s). Times are seconds on CLOCK_BOOTTIME. An execution that refuses to start because another
runner holds the lock writes none: the file belongs to the runner that lives; only the exit code tells.

    phase             fetching | starting | running | ready | stopping | exited
                      starting: Bento's HTTP server has not answered yet (for at most 5 s, then "running")
                      running:  alive, but not ready: see not_ready_reason
    ready             Bento answers /ready with 200. False while stopping.
    not_ready_reason  a short sentence while phase is running, Bento's own words where it has any; else ""
    runner_pid, bento_pid      as the runner sees them (in a container: inside); bento_pid null before the start
    boot_id           of the boot that the times below belong to
    http              "127.0.0.1:PORT" where Bento answers /ready and /metrics; "" while unknown
    started_boot_s    when this Bento was started; null before
    ready_boot_s      when this run was ready for the first time; null before
    updated_boot_s    when this document was written
    counters          COUNTERS by name, each summed over all of its labels; only those that Bento exports. Empty if the
                      configuration sends its metrics elsewhere (`metrics: none`, statsd, ...)
    exit              null | {code, signal, killed_after_grace}: code = what the runner ends with, signal = number of
                      the signal that ended Bento or null
    failure           null | {kind, message}: kind is one of FAILURES
    last_words        the last lines of Bento's output (at most 20, 4 KiB) when phase is exited; else []

**Address.** With SHOAL_RUNNER_HTTP=auto the runner overrides `http.enabled`, `http.address` (loopback, a port that it
reserves), `http.root_path` (a secret, by which it knows its own Bento), `http.basic_auth` and TLS: otherwise it could
not ask. With a stated address it overrides `http.enabled` only; a configuration that also demands a password or TLS
there is then never shown as ready, and the reason says so.
`${NAME}` and `${NAME:default}` in a stated address are replaced by what Bento will see.
"""

from __future__ import annotations

PREFIX = "SHOAL_RUNNER_"

DIGEST = "SHOAL_RUNNER_DIGEST"  # sha256 of the bundle's bytes, 64 hex digits
BUNDLE = "SHOAL_RUNNER_BUNDLE"  # path of the bundle; may be absent if FETCH is given
DIR = "SHOAL_RUNNER_DIR"  # the execution's own directory, writable, on tmpfs; must exist
LEASE_DIR = "SHOAL_RUNNER_LEASE_DIR"  # optional: directory of host lease and grants, see runner/permits.py
EXECUTION = "SHOAL_RUNNER_EXECUTION"  # needed with LEASE_DIR: the name of this execution's grant
BENTO = "SHOAL_RUNNER_BENTO"  # optional: the program itself, or a script that exec's it; default `bento` on PATH
STOP_GRACE_S = "SHOAL_RUNNER_STOP_GRACE_S"  # seconds between SIGTERM and SIGKILL of Bento
HTTP = "SHOAL_RUNNER_HTTP"  # optional: "auto" (default), or the address that the configuration states
LOG = "SHOAL_RUNNER_LOG"  # optional: file for Bento's output; without it: the runner's standard output
LOG_BYTES_MAX = "SHOAL_RUNNER_LOG_BYTES_MAX"  # optional: size at which LOG becomes LOG + ".1" (one generation is kept)
FETCH = "SHOAL_RUNNER_FETCH"  # optional: JSON object, where to fetch a bundle that is not at BUNDLE; see FETCH_KEYS

HTTP_AUTO = "auto"
LOG_BYTES_MAX_DEFAULT = 10 * 1024 * 1024

# `servers` (list of URLs) and `bucket` are needed, all others optional; creds, nkey and the tls names are paths.
FETCH_KEYS = ("servers", "bucket", "user", "password", "token", "creds", "nkey", "tlscert", "tlskey", "tlsca")

# Inside of DIR.
LOCK_FILE = "run.lock"  # flock'ed by the runner and, through inheritance, by Bento: held while either lives
HEALTH_FILE = "health.json"
FILES_DIR = "files"  # the unpacked bundle, fresh at every start; Bento's working directory
FETCHED_FILE = "bundle.tar"  # what the runner fetched itself

# Exit codes of the runner's own (sysexits.h). Bento itself only ends with 0, 1 or, in a panic, 2.
EXIT_SETTINGS = 64  # "settings": the environment above is wrong
EXIT_DIGEST = 65  # "digest": the bundle's bytes have another digest, or are not an archive
EXIT_BUNDLE = 66  # "bundle": it is not there and could not be fetched
EXIT_BENTO_MISSING = 69  # "bento-missing": there is no such program, or it cannot be executed here
EXIT_HOST = 71  # "host": the operating system refused something (no space, no memory, no permission)
EXIT_LEASE = 77  # "lease": it may not run here: no grant, or the host's lease is over
EXIT_PORT = 76  # "port": ports were taken away again and again
EXIT_ALREADY_RUNNING = 75  # "already-running": another runner or its Bento holds the lock

# Kinds in the health document's `failure`, with what the runner ends with. "config" means that Bento refused its
# configuration and ended by itself: the exit code is Bento's.
FAILURES: dict[str, int | None] = {
    "settings": EXIT_SETTINGS,
    "digest": EXIT_DIGEST,
    "bundle": EXIT_BUNDLE,
    "bento-missing": EXIT_BENTO_MISSING,
    "host": EXIT_HOST,
    "lease": EXIT_LEASE,
    "port": EXIT_PORT,
    "already-running": EXIT_ALREADY_RUNNING,
    "config": None,
}

# What is read from Bento's metrics. The `_up` ones are gauges: how many components are connected now.
COUNTERS = (
    "input_received",
    "input_connection_up",
    "input_connection_failed",
    "input_connection_lost",
    "processor_received",
    "processor_error",
    "output_sent",
    "output_error",
    "output_connection_up",
    "output_connection_failed",
    "output_connection_lost",
)
