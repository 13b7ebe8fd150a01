"""Global options: how to reach the cluster. They may stand anywhere on the line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shared.keys import Keys

if TYPE_CHECKING:
    from shared.connection import ConnectionSettings

# name -> whether it takes a value; no command may use these names for anything else
GLOBAL_OPTIONS: Mapping[str, bool] = {
    "--server": True,
    "-s": True,
    "--creds": True,
    "--nkey": True,
    "--user": True,
    "--password": True,
    "--tlscert": True,
    "--tlskey": True,
    "--tlsca": True,
    "--context": True,
    "--cluster": True,
    "-c": True,
}


@dataclass(frozen=True, slots=True)
class Options:
    """What the global options say. Nothing is resolved before a command needs a connection."""

    server: str | None = None
    creds: str | None = None
    nkey: str | None = None
    user: str | None = None
    password: str | None = None
    tlscert: str | None = None
    tlskey: str | None = None
    tlsca: str | None = None
    context: str | None = None
    cluster: str = "shoal"

    @property
    def keys(self) -> Keys:
        """Names in the store of the chosen cluster. BadInput if its name is none."""
        return Keys(self.cluster)

    def connection(self) -> ConnectionSettings:
        """How to connect, from options, environment and `nats` contexts. BadInput names what cannot be used."""
        from shared.connection import resolve

        return resolve(
            server=self.server,
            creds=self.creds,
            nkey=self.nkey,
            user=self.user,
            password=self.password,
            tlscert=self.tlscert,
            tlskey=self.tlskey,
            tlsca=self.tlsca,
            context=self.context,
        )


def hoist(arguments: Sequence[str]) -> list[str]:
    """The same arguments with the global options moved to the front, where the command tree expects them.

    What follows a bare `--` is left alone.
    """
    front: list[str] = []
    rest: list[str] = []
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        name, equals, _ = argument.partition("=")
        if argument == "--":
            rest.extend(arguments[position:])
            break
        if name in GLOBAL_OPTIONS and (equals and name.startswith("--")):
            front.append(argument)
        elif argument in GLOBAL_OPTIONS:
            front.extend(arguments[position : position + 2])
            position += 1
        else:
            rest.append(argument)
        position += 1
    return front + rest
