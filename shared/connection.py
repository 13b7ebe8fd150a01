"""How to reach NATS: flags, the environment and the contexts of the `nats` command, with one precedence.

For each of three groups the first source that says anything decides the whole group:

    servers   --server            NATS_URL                                  url of the context
    identity  --creds, --nkey,    NATS_CREDS, NATS_NKEY, NATS_USER with     creds, nkey, user and password,
              --user, --password  NATS_PASSWORD, NATS_TOKEN                 token of the context
    TLS       --tlscert, ...      NATS_CERT, NATS_KEY, NATS_CA              cert, key, ca of the context

The context is the one named by --context, else NATS_CONTEXT, else the one selected with `nats context select`
(`context.txt`). Without any source the server is nats://127.0.0.1:4222. Groups are taken whole, so that a user name
from a flag never meets a password from somewhere else. Format and places of contexts: natscli 0.4, `natscontext`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from shared.errors import BadInput, problem

DEFAULT_SERVER = "nats://127.0.0.1:4222"
# Context settings that change where requests go or who we are, and that we do not speak: ignoring them would connect
# to the wrong place or as nobody.
_UNSUPPORTED = ("nsc", "socks_proxy", "jetstream_domain", "jetstream_api_prefix", "user_jwt", "user_seed")


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """Where NATS is and who we are. At most one kind of identity; paths exist and look right when `resolve` made it."""

    servers: tuple[str, ...] = (DEFAULT_SERVER,)  # nats:// or tls://, with port, without user
    creds: str = ""  # credentials file with JWT and seed
    nkey: str = ""  # seed file
    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    tlscert: str = ""
    tlskey: str = ""
    tlsca: str = ""
    tls_first: bool = False
    inbox_prefix: str = "_INBOX"
    name: str = ""  # of the context it came from, for people


def resolve(
    *,
    server: str | None = None,
    creds: str | None = None,
    nkey: str | None = None,
    user: str | None = None,
    password: str | None = None,
    tlscert: str | None = None,
    tlskey: str | None = None,
    tlsca: str | None = None,
    context: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> ConnectionSettings:
    """The settings that flags, environment and contexts give together; BadInput names the source that is wrong."""
    env = os.environ if environment is None else environment
    found = _load_context(context or "", env)
    flags = _Source(
        "--{}",
        {"server": server, "creds": creds, "nkey": nkey, "user": user, "password": password}
        | {"tlscert": tlscert, "tlskey": tlskey, "tlsca": tlsca},
    )
    variables = _Source("{}", {field_: env.get(name) for field_, name in _VARIABLES.items()}, _VARIABLES)
    stored = _Source(
        f"context {found.get('name', '')}: {{}}",
        {ours: found.get(theirs) for ours, theirs in _CONTEXT.items()},
        _CONTEXT,
    )
    sources = (flags, variables, stored)

    identity = next((chosen for source in sources if (chosen := _identity(source))), {})
    tls = next((chosen for source in sources if (chosen := _tls(source))), {})
    servers: tuple[str, ...] = (DEFAULT_SERVER,)
    for source in sources:
        if source.get("server"):
            servers, embedded = _servers(source)
            identity = identity or embedded
            break
    return ConnectionSettings(
        servers=servers,
        **identity,
        **tls,
        tls_first=bool(found.get("tls_first")),
        inbox_prefix=str(found.get("inbox_prefix") or "_INBOX"),
        name=str(found.get("name", "")),
    )


_VARIABLES = {
    "server": "NATS_URL",
    "creds": "NATS_CREDS",
    "nkey": "NATS_NKEY",
    "user": "NATS_USER",
    "password": "NATS_PASSWORD",
    "token": "NATS_TOKEN",
    "tlscert": "NATS_CERT",
    "tlskey": "NATS_KEY",
    "tlsca": "NATS_CA",
}
_CONTEXT = {
    "server": "url",
    "creds": "creds",
    "nkey": "nkey",
    "user": "user",
    "password": "password",
    "token": "token",
    "tlscert": "cert",
    "tlskey": "key",
    "tlsca": "ca",
}


class _Source:
    """One of the three places settings come from. `label` shows a person where a field stands."""

    def __init__(self, label: str, values: Mapping[str, Any], names: Mapping[str, str] | None = None) -> None:
        self._label = label
        self._values = values
        self._names = names or {}

    def get(self, field_: str) -> str:
        return str(self._values.get(field_) or "")

    def path(self, field_: str) -> str:
        """The value as a path: `~` and variables expanded as the nats command does. BadInput if it is no file."""
        value = self.get(field_)
        expanded = os.path.expanduser(os.path.expandvars(value))  # noqa: PTH111 - Path has no expandvars
        if value and not Path(expanded).is_file():
            raise BadInput(problem(self.label(field_), value, "name a file that exists"))
        return expanded

    def label(self, field_: str) -> str:
        return self._label.replace("{}", self._names.get(field_, field_))


def _identity(source: _Source) -> dict[str, str]:
    kinds = [kind for kind in ("creds", "nkey", "user", "token") if source.get(kind)]
    if len(kinds) > 1:
        labels = " and ".join(source.label(kind) for kind in kinds)
        raise BadInput(problem(labels, "", "give one way to identify, not several"))
    if not kinds:
        if source.get("password"):
            raise BadInput(problem(source.label("password"), "***", f"give {source.label('user')} too"))
        return {}
    kind = kinds[0]
    if kind == "user":
        # As the nats command has it: a user without a password is a token.
        if not source.get("password"):
            return {"token": source.get("user")}
        return {"user": source.get("user"), "password": source.get("password")}
    if kind == "token":
        return {"token": source.get("token")}
    path = source.path(kind)
    content = _read(Path(path), source.label(kind))
    # Checked here because nats-py reads a file without a JWT for ever.
    if kind == "creds" and not ("BEGIN NATS USER JWT" in content and "BEGIN USER NKEY SEED" in content):
        raise BadInput(problem(source.label(kind), path, "name a credentials file as nsc writes it, with JWT and seed"))
    if kind == "nkey" and not (content.strip().startswith("SU") and len(content.strip()) == 58):
        raise BadInput(
            problem(source.label(kind), path, "name a file with the seed of a user nkey (it begins with SU)")
        )
    return {kind: path}


def _tls(source: _Source) -> dict[str, str]:
    chosen = {kind: source.path(kind) for kind in ("tlscert", "tlskey", "tlsca") if source.get(kind)}
    if ("tlscert" in chosen) != ("tlskey" in chosen):
        present, absent = ("tlscert", "tlskey") if "tlscert" in chosen else ("tlskey", "tlscert")
        raise BadInput(problem(source.label(present), chosen[present], f"give {source.label(absent)} too"))
    return chosen


def _servers(source: _Source) -> tuple[tuple[str, ...], dict[str, str]]:
    """The addresses without user names, and the identity that stood in them."""
    servers: list[str] = []
    identity: dict[str, str] = {}
    label = source.label("server")
    for text in source.get("server").split(","):
        text = text.strip()
        if not text:
            continue
        remedy = "write nats://host:port or tls://host:port, several separated by commas"
        try:
            url = urlsplit(text if "://" in text else f"nats://{text}")
            port = url.port or 4222
        except ValueError as error:
            raise BadInput(problem(label, text, remedy)) from error
        if url.scheme not in ("nats", "tls") or not url.hostname or url.path not in ("", "/"):
            raise BadInput(problem(label, text, remedy))
        host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
        servers.append(f"{url.scheme}://{host}:{port}")
        if url.username and not identity:
            user, password = unquote(url.username), unquote(url.password or "")
            identity = {"user": user, "password": password} if password else {"token": user}
    if not servers:
        raise BadInput(problem(label, source.get("server"), "name at least one server"))
    return tuple(dict.fromkeys(servers)), identity


def _load_context(name: str, env: Mapping[str, str]) -> dict[str, Any]:
    """The named or selected context of the nats command, with its name; {} if none is selected."""
    base = Path(env.get("XDG_CONFIG_HOME") or Path(env.get("HOME") or Path.home()) / ".config") / "nats"
    label = "--context" if name else "NATS_CONTEXT"
    name = name or env.get("NATS_CONTEXT", "")
    if not name:
        label = str(base / "context.txt")
        try:
            name = (base / "context.txt").read_text().strip()
        except OSError:
            return {}
        if not name:
            return {}
    if ".." in name or "/" in name or "\\" in name:
        raise BadInput(problem(label, name, "name a context, see `nats context ls`"))
    path = base / "context" / f"{name}.json"
    try:
        found = json.loads(_read(path, label))
    except ValueError as error:
        raise BadInput(problem(label, name, f"repair {path}: it is not JSON")) from error
    if not isinstance(found, dict):
        raise BadInput(problem(label, name, f"repair {path}: it is not a context"))
    for setting in _UNSUPPORTED:
        if found.get(setting):
            raise BadInput(problem(f"context {name}: {setting}", found[setting], "is not supported; use creds or nkey"))
    return found | {"name": name}


def _read(path: Path, label: str) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(problem(label, str(path), f"name a readable file ({error})")) from error
