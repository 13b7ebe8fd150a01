"""The vocabulary that every part of Shoal shares: words, documents, keys, errors and the store's contract.

Reading order: `ids` and `keys` (how things are called and where they lie), `record` (what a user writes),
`configuration` and `components` (what Shoal reads out of a Bento configuration), `bundle` (what an execution is
made of), `documents` (what the parts tell each other), `store` (the contract of the store), `nats_store` (NATS).

Nothing here decides anything, and nothing here imports `scheduler`, `agent`, `runner` or `cli`.
"""

__version__ = "0.1.0"
