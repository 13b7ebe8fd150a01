"""What an executor and the runner agree on: the environment, the files, the exit codes, the health document.

Importable by the agent (standard library only, no side effects), and imported by the runner itself on its fast path.

**Start.** `python3 -I -S <this directory>`, or `<this directory>/__main__.py`, which spares 6 ms of runpy. In a
container it is process 1, without an init in front; started as a process it gets a session of its own
(`start_new_session`). Bento stays in the runner's process group and session, so that killing the group leaves nothing.
The runner never daemonizes.

**Environment.** Names that begin with `SHOAL_RUNNER_` are for the runner and do not reach Bento; every other variable
does. All values are text; a missing or unreadable one that is needed ends the runner with EXIT_SETTINGS.

**Stopping.** SIGTERM or SIGINT to the runner: SIGTERM to Bento, SIGKILL when the grace has passed; repeating it does
nothing. SIGHUP, SIGUSR1 and SIGUSR2 are passed on. SIGKILL to the runner kills Bento (parent-death signal). When Bento
has ended, whatever it started is killed before the runner ends; after a SIGKILL to the runner that is the executor's.

**Exit code.** Bento's own, or 128 + number if a signal ended it; 143 if the runner was told to stop before Bento
started; else one of the EXIT_ codes. `failure` of the health document says which of the two it was.

**Grant and lease** (runner/permits.py is the format, runner/fence.py the rules). With LEASE_DIR and EXECUTION in its
environment the runner needs a grant; without both, it was started by hand and needs none. Right before each fork of
Bento both files are read; then every POLL_S (POLL_UNBOUND_S while the grant says bound=no), and before anything else
when the runner was stopped or its machine slept.

- It does not start (EXIT_LEASE, kind "lease"): no grant, an unreadable one, one of another execution. And if the grant
  says bound=yes: it is of another boot; no lease, an unreadable one, one of another session than the grant's, one that
  is over or ends further ahead than its own `lease_s`; or the runner's time namespace has a boot clock that is shifted.
- D is the last deadline that it read in a lease of its own grant's session. A lease file of another session, or none,
  or one that ends further ahead than its own `lease_s`, does not move D.
- A bound one gets SIGTERM at once when its grant is gone, unreadable or of another session, and at D. SIGKILL comes
  when the grace is over, and at D + FENCE_KILL_S at the latest, also for one that stops for another reason. It then
  ends with EXIT_LEASE and kind "lease", unless it had been told to stop before.
- bound=no: once started, nothing that happens to grant or lease matters, except a grant of this execution that says
  bound=yes: from then on all of the above holds, in that grant's session, and one of another boot ends it. bound=yes to
  no needs the same session.

The agent revokes a grant before it stops, removes or reports an execution. A stop that begins so is as graceful as any
other while the lease goes on being renewed, because D moves with it.

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
    stuck             null | {since_boot_s, reason}: Bento has lost connections to NATS for good; only another start
                      helps. Told by its sockets, see runner/links.py; it is ready all the while
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
LEASE_DIR = "SHOAL_RUNNER_LEASE_DIR"  # directory of host lease and grants; with EXECUTION, see above
EXECUTION = "SHOAL_RUNNER_EXECUTION"  # the name of this execution's grant
BENTO = "SHOAL_RUNNER_BENTO"  # optional: the program itself, or a script that exec's it; default `bento` on PATH
STOP_GRACE_S = "SHOAL_RUNNER_STOP_GRACE_S"  # seconds between SIGTERM and SIGKILL of Bento
HTTP = "SHOAL_RUNNER_HTTP"  # optional: "auto" (default), or the address that the configuration states
LOG = "SHOAL_RUNNER_LOG"  # optional: file for Bento's output; without it: the runner's standard output
LOG_BYTES_MAX = "SHOAL_RUNNER_LOG_BYTES_MAX"  # optional: size at which LOG becomes LOG + ".1" (one generation is kept)
FETCH = "SHOAL_RUNNER_FETCH"  # optional: JSON object, where to fetch a bundle that is not at BUNDLE; see FETCH_KEYS

HTTP_AUTO = "auto"
LOG_BYTES_MAX_DEFAULT = 10 * 1024 * 1024

# Grant and lease; the agent announces both, and the leader waits for them before it places anything elsewhere.
POLL_S = 0.25  # how often they are read while the grant says bound
FENCE_KILL_S = 2.0  # SIGKILL so long after the deadline of the lease, however late the SIGTERM was
POLL_UNBOUND_S = 1.0  # how often while it does not: only to see it become bound

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
