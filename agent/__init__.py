"""The agent: one per host. It heartbeats, reads its own assignment, makes its executor match it, and reports.

It never decides where something runs and never writes outside its own keys.

    store ──heartbeat────── session, lease        whose host name it is, and how long what runs may be trusted
      │  ├──instructions─── admitted assignment   what the host was told, durable before it is obeyed
      │  └──report────────┐
      │                   │
      └── bundles ──> loop: diff ──> work ──> executor ──> runner ──> Bento
                          ^        └─ grants     │
                          └──── lookout <────────┘  lists, events, health files

Reading order: `core` (everything that is decided), `executor` (the contract with what runs executions), `loop`, then
the modules it wires; `state`, `lease` and `grants` keep what must outlive a process, `settings` and `service` make a
daemon.
"""
