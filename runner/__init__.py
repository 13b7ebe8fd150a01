"""The runner: first process of every execution. It verifies the bundle, starts Bento early, and says how it is.

    __main__ ── supervise      signals, lock; then
                  ├ settings   what the environment says
                  ├ launch     bundle, port, Bento's arguments ── bundle (verify, unpack), spawn (lock, port, fork)
                  │              └ fence    whether it may run here; permit_files reads what it decides on
                  ├ backstop   a thread that kills when the loop, held up by a disk, cannot end a bound run in time
                  │            ^ all of this before Bento runs; what follows is imported while Bento starts v
                  └ loop       waits and acts
                       ├ core      decides: step(state, event, now) -> (state, actions) ── fence, links, events
                       ├ probe     asks Bento's HTTP server, and others who they are
                       ├ sockets   Bento's own connections, on which links decides whether it has lost NATS for good
                       ├ pump      Bento's output: log with rotation, or standard output; its last words
                       └ health    the document that the agent reads

    contract    what executors and runners agree on
    permits     what grant and lease files hold
    value       frozen values without dataclasses
    fetch       the slow path, a process of its own: a bundle that is not on the host (the only one with a NATS client)

Words: a *child* is Bento, or the process that fetches its bundle; *told* = asked to stop by a signal; *fenced* =
stopped because grant or lease is over; *words* = the last lines that a child wrote. Everything but `fetch` uses the
standard library, and little of it: an execution should cost some megabytes and milliseconds, not a second Python
application. tests/unit/test_runner_imports.py sees to it.
"""
