"""Chaos: a real cluster, real faults, and a ledger that the faults cannot touch.

    python -m tests.chaos --minutes 30 [--seed N]

Three nats-servers (every stream replicated), three schedulers and four hosts, each in a network namespace of its own;
real agents, runners and Bentos. Bursts of random faults, one by one or overlapping, each followed by a wait until all
is well; user edits meanwhile. What is judged is measured from outside of the product:

- every exclusive pipeline appends (execution, sequence, send time) to files, outside of all networks: `ledger`
- every message acknowledged by a source stream must be in the target stream of the pipeline that copies it: `copies`
- every pipeline that shall run runs again within a bound, and nothing is left when all are deleted: `run`

`timetable` draws from the seed what happens when; `site` is the cluster; `faults` does it, `host_faults` and
`service_faults` say what it is; `users` what is published; `report` the table. The seed fixes what is done and when;
what the machine makes of it differs each time.
"""
