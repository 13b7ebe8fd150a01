"""The states people see, as closed types. A state of an execution is observed; a state of a pipeline is decided."""

from __future__ import annotations

from enum import StrEnum


class Wanted(StrEnum):
    """What an assignment wants of an execution. Not in the assignment at all = no trace of it may remain."""

    RUN = "run"
    PAUSE = "pause"  # stopped, its container or process directory kept


class Phase(StrEnum):
    """What an agent observes of an execution, in the order of a normal life."""

    FETCHING = "fetching"  # its bundle or image is on its way
    STARTING = "starting"  # the executor was asked to start it
    RUNNING = "running"  # Bento lives, not ready yet (or no longer)
    READY = "ready"  # Bento says that its inputs and outputs are connected
    STOPPING = "stopping"
    STOPPED = "stopped"  # on purpose; what a paused pipeline shows
    BACKOFF = "backoff"  # ended by itself; will be started again
    FAILED = "failed"  # cannot run as it is; the reason says what would help


class State(StrEnum):
    """What the leader decided about a pipeline, in one word; the reasons stand beside it in its status."""

    RUNNING = "running"  # every slot is ready with the wanted version
    STARTING = "starting"  # placed; not every slot is ready yet
    UPDATING = "updating"  # slots of an older version are being replaced
    WAITING = "waiting"  # at least one slot cannot be placed, or waits for a stop or an answer
    FAILING = "failing"  # at least one slot is in back-off or failed
    PAUSING = "pausing"
    PAUSED = "paused"
    REMOVING = "removing"
    REFUSED = "refused"  # the record or its configuration is wrong and nothing older runs


class Overlap(StrEnum):
    """Whether two copies of an execution may run at once."""

    SHAREABLE = "shareable"
    EXCLUSIVE = "exclusive"
