"""The slow path: fetch the bundle from the object store, because it is not on this host. A process of its own, so that
the runner never imports a client library: `python3 -I fetch.py`, with the runner's environment (see contract.py).

Exit code 0: the verified bundle lies in SHOAL_RUNNER_DIR as FETCHED_FILE. Otherwise the last line of standard error is
a sentence that says why. Everything has a time-out: getting an object of which chunks are missing waits for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

# Isolated (-I): neither this package nor what the runner image brings beside it is on the path by itself.
_ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(_ROOT), str(_ROOT / "lib")]

import nats  # noqa: E402
import nats.errors  # noqa: E402
from nats.aio.client import Client  # noqa: E402
from nats.js.errors import BucketNotFoundError, ObjectNotFoundError  # noqa: E402
from nats.js.errors import Error as JetStreamError  # noqa: E402

from runner import contract  # noqa: E402

CONNECT_S = 5.0  # to one server
GET_S = 20.0  # of one attempt; a bundle has a few megabytes at most
TOTAL_S = 45.0  # below core.FETCH_MAX_S, so that what went wrong can still be said
CLOSE_S = 1.0


class FetchError(Exception):
    """Why there is no bundle."""


def main() -> int:
    """Fetch, verify, store."""
    environ = os.environ
    digest, directory = environ[contract.DIGEST], Path(environ[contract.DIR])
    try:
        data = asyncio.run(_fetch(_options(environ[contract.FETCH]), digest))
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            raise FetchError(f"the object {digest} in the object store has the digest {found}")
        fresh = directory / f"{contract.FETCHED_FILE}.new"
        fresh.write_bytes(data)
        fresh.replace(directory / contract.FETCHED_FILE)
    except (FetchError, OSError) as error:
        print(f"the bundle cannot be fetched: {error}", file=sys.stderr)
        return 1
    return 0


def _options(text: str) -> dict[str, Any]:
    try:
        options = json.loads(text)
    except ValueError as error:
        raise FetchError(f"{contract.FETCH} is not JSON: {error}") from error
    if not isinstance(options, dict) or not options.get("servers") or not options.get("bucket"):
        raise FetchError(f"{contract.FETCH} must be an object with servers and bucket")
    if unknown := sorted(options.keys() - set(contract.FETCH_KEYS)):
        raise FetchError(f"{contract.FETCH} has unknown keys: {', '.join(unknown)}")
    return options


async def _fetch(options: dict[str, Any], name: str) -> bytes:
    try:
        async with asyncio.timeout(TOTAL_S):
            client = await _connect(options)
            try:
                return await _get(client, options["bucket"], name)
            finally:
                # A server that is frozen would make closing wait as well.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(client.close(), CLOSE_S)
    except TimeoutError as error:
        raise FetchError(f"no answer from {', '.join(options['servers'])} in {TOTAL_S:g} s") from error


async def _connect(options: dict[str, Any]) -> Client:
    """One round over the servers; nats-py's own retries would outlast our time."""
    given: dict[str, Any] = {name: options[name] for name in ("user", "password", "token") if options.get(name)}
    if options.get("creds"):
        given["user_credentials"] = options["creds"]
    if options.get("nkey"):
        given["nkeys_seed"] = options["nkey"]
    if any(options.get(name) for name in ("tlsca", "tlscert")):
        given["tls"] = _tls(options)
    problems = []
    for server in options["servers"]:
        try:
            return await asyncio.wait_for(
                nats.connect(
                    servers=[server],
                    allow_reconnect=False,
                    connect_timeout=int(CONNECT_S),
                    error_cb=_quiet,
                    name="shoal runner",
                    **given,
                ),
                CONNECT_S,
            )
        except (nats.errors.Error, OSError) as error:
            problems.append(f"{server}: {_words(error)}")
    raise FetchError("; ".join(problems))


def _tls(options: dict[str, Any]) -> Any:
    import ssl

    context = ssl.create_default_context(cafile=options.get("tlsca") or None)
    if options.get("tlscert"):
        context.load_cert_chain(options["tlscert"], options.get("tlskey") or None)
    return context


def _words(error: Exception) -> str:
    if isinstance(error, ObjectNotFoundError):
        return "not found"
    if isinstance(error, BucketNotFoundError):
        return "there is no such bucket"
    return str(error) or type(error).__name__


async def _quiet(_: Exception) -> None:
    """What matters is raised as well."""


async def _get(client: Client, bucket: str, name: str) -> bytes:
    try:
        async with asyncio.timeout(GET_S):
            store = await client.jetstream().object_store(bucket)
            result = await store.get(name)
    except TimeoutError as error:
        raise FetchError(f"object {name} in bucket {bucket} is not complete after {GET_S:g} s") from error
    except (JetStreamError, nats.errors.Error) as error:
        raise FetchError(f"object {name} in bucket {bucket}: {_words(error)}") from error
    return result.data or b""


if __name__ == "__main__":
    sys.exit(main())
