"""Bare calls to one Docker engine: the only module that imports the Docker SDK. Decides nothing and blocks.

Every call ends: reads and connects have a time-out, long answers (a pull) a deadline. Errors of the SDK become
ExecutorUnavailable:

    ExecutorUnavailable   the engine does not answer, or failed on its own side
    └── Answer            it works and says no; the lifecycle acts on the kind
        ├── Absent, ImageAbsent   there is no such container, no such image
        ├── Taken                 not in its present state
        └── Rejected              never, as it is asked

"Already so" is no error.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import docker
import requests
import urllib3
from docker.errors import APIError, DockerException, ImageNotFound, NotFound

from shared.errors import ExecutorUnavailable

QUIET_S = 60.0  # a stream that says nothing for so long is opened anew (events) or given up (pull)
PULL_DEADLINE_S = 900.0  # a runner image has about 200 MB
WORDS_MAX = 500  # characters of an engine's words that are passed on

# The engine answers 500 to what is wrong with this one container on this host, too. Nothing but its words tells it from
# an engine that has failed, which must not count as a failure of the execution.
_OF_THE_HOST = (
    "no space left",
    "disk quota exceeded",
    "read-only file system",
    "too many open files",
    "oci runtime create failed",
    "failed to create shim",
    "error while creating mount source",
    "bind source path does not exist",
    "failed to mount",
    "cannot allocate memory",
)


class Answer(ExecutorUnavailable):
    """The engine works, and says no. To whoever does not expect that, it is an engine that does not do its work."""


class Absent(Answer):
    """The engine has no such container."""


class ImageAbsent(Answer):
    """The engine has no such image."""


class Taken(Answer):
    """The state of the engine forbids it (409): the name is taken, the container is paused or being removed."""


class Rejected(Answer):
    """The engine understood and refuses: a bad mount, no space, a limit that it cannot set, a bad image."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A container as the engine lists it."""

    id: str
    name: str
    state: str  # created, running, paused, restarting, removing, exited, dead
    status: str  # for people, such as "Exited (1) 3 seconds ago"
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Inspected:
    """A container as the engine describes it (the part that is needed)."""

    id: str
    state: str
    exit_code: int
    oom: bool
    started_at: str  # the engine's wall clock, RFC 3339
    labels: Mapping[str, str]


class Stream(Protocol):
    """A blocking stream."""

    def read(self) -> Any:
        """The next item, None at the end. Blocks."""
        ...

    def interrupt(self) -> None:
        """End it: a read that is under way in another thread returns."""
        ...

    def close(self) -> None:
        """Release its connection, in the thread that reads."""
        ...


class _Client(docker.APIClient):
    """The SDK's client, except that no request waits for ever: the SDK asks for just that when it pulls or streams."""

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        kwargs["timeout"] = kwargs.get("timeout") or QUIET_S
        return super().send(request, **kwargs)


class Calls:
    """The calls, through one client. Not for several threads at once."""

    def __init__(self, url: str, version: str = "auto", *, timeout_s: float) -> None:
        """`version` "auto" asks the engine, which costs it some 50 ms: pass on `api_version` of an earlier one.
        `timeout_s`: of each read from the engine, and of connecting."""
        with _translated():
            self._client = _Client(base_url=url, version=version, timeout=cast(Any, timeout_s))
        # Proxies and .netrc of the environment are not for the engine's socket, and reading them costs each call.
        self._client.trust_env = False

    @property
    def api_version(self) -> str:
        return str(self._client.api_version)

    def ping(self) -> None:
        with _translated():
            self._client.ping()

    def list(self, labels: Sequence[str]) -> list[Listed]:
        """All containers with these labels, running or not."""
        with _translated():
            found = self._client.containers(all=True, filters={"label": list(labels)})
        return [
            Listed(
                id=str(one["Id"]),
                name=str((one.get("Names") or [""])[0]).removeprefix("/"),
                state=str(one.get("State", "")),
                status=str(one.get("Status", "")),
                labels=one.get("Labels") or {},
            )
            for one in found
        ]

    def inspect(self, container: str) -> Inspected:
        """By id or name. Raises Absent."""
        with _translated():
            found = self._client.inspect_container(container)
        state = found["State"]
        return Inspected(
            id=str(found["Id"]),
            state=str(state.get("Status", "")),
            exit_code=int(state.get("ExitCode", 0)),
            oom=bool(state.get("OOMKilled", False)),
            started_at=str(state.get("StartedAt", "")),
            labels=found["Config"].get("Labels") or {},
        )

    def create(self, name: str, config: Mapping[str, Any]) -> str:
        """The new container's id. Raises ImageAbsent, Taken (the name), Rejected."""
        try:
            with _translated():
                made = self._client.create_container_from_config(dict(config), name)  # type: ignore[no-untyped-call]
        except Absent as error:  # a network or a volume driver; the container itself is yet to be
            raise Rejected(str(error)) from error
        return str(made["Id"])

    def start(self, container: str) -> None:
        """Running or paused already is success. Raises Absent, Taken (being removed), Rejected."""
        try:
            with _translated():
                self._client.start(container)
        except Taken as error:
            if "paused" not in str(error):
                raise
        except Absent as error:
            if "no such container" not in str(error).lower():  # but a network, for one
                raise Rejected(str(error)) from error
            raise

    def stop(self, container: str, grace_s: float) -> None:
        """SIGTERM, SIGKILL after the grace; returns when it is stopped. Absent is success. Blocks for the grace."""
        with contextlib.suppress(Absent), _translated():
            self._client.stop(container, timeout=math.ceil(grace_s))

    def remove(self, container: str) -> None:
        """With its anonymous volumes, killed if need be. Absent is success. Raises Taken while it is being removed."""
        with contextlib.suppress(Absent), _translated():
            self._client.remove_container(container, v=True, force=True)

    def pull(self, image: str) -> None:
        """Have the engine fetch an image, with the credentials of Docker's own configuration. Raises Rejected."""
        deadline = time.monotonic() + PULL_DEADLINE_S
        with _translated():
            self._client.reload_config()  # credentials may be newer than this client
            try:
                for line in self._client.pull(image, stream=True, decode=True):
                    if "error" in line:
                        raise Rejected(_shortened(str(line["error"])))
                    if time.monotonic() > deadline:
                        raise Rejected(f"not pulled within {PULL_DEADLINE_S:.0f} s")
            except APIError as error:  # the engine answers 500 for a registry that it cannot reach, too
                raise Rejected(_words(error)) from error

    def events(self, labels: Sequence[str]) -> Stream:
        """What happens to containers with these labels, from now on. The stream ends when the engine does, or after
        `QUIET_S` without any event; reading it may raise ExecutorUnavailable."""
        filters = {"type": "container", "label": list(labels)}
        with _translated():
            return _Guarded(self._client.events(decode=True, filters=filters))

    def logs(self, container: str, *, tail: int | None, since: float | None, follow: bool) -> Stream:
        """Output in chunks; `tail` None = all. With `follow` it ends when the container stops. Raises Absent."""
        lines: Any = "all" if tail is None else tail
        with _translated():
            stream = self._client.logs(container, stream=True, follow=follow, tail=lines, since=cast(Any, since))
        return _Guarded(stream)

    def close(self) -> None:
        self._client.close()


class _Guarded:
    """A stream of the SDK whose errors are ours."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def read(self) -> Any:
        with _translated():
            try:
                return next(self._stream, None)
            except urllib3.exceptions.ReadTimeoutError:
                return None

    def interrupt(self) -> None:
        # What the engine has closed has no socket any more, and the SDK stumbles over that.
        with contextlib.suppress(OSError, AttributeError, ValueError):
            self._stream.close()

    def close(self) -> None:
        # The SDK shuts the socket down and leaves the rest to the garbage collector.
        self._stream._response.close()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """The SDK's errors as ours; the cause is kept."""
    try:
        yield
    except ImageNotFound as error:
        raise ImageAbsent(_words(error)) from error
    except NotFound as error:
        raise Absent(_words(error)) from error
    except APIError as error:
        raise _classified(error.status_code or 0, _words(error)) from error
    except (DockerException, requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        raise _silence(error) from error


def _classified(status: int, words: str) -> Exception:
    if status == 409:
        return Taken(words)
    if any(fragment in words.lower() for fragment in _OF_THE_HOST):
        return Rejected(words)
    # A daemon that was replaced by an older one refuses our version of its language: ours to ask again.
    if status == 400 and "client version" in words:
        return ExecutorUnavailable(f"the Docker engine speaks another version now: {words}")
    if 400 <= status < 500:
        return Rejected(words)
    return ExecutorUnavailable(f"the Docker engine failed: {words}")


def _silence(error: Exception) -> ExecutorUnavailable:
    """What no engine has answered; or one has, when the SDK asked for its version, whose error hides the answer."""
    cause = error.__cause__ if type(error) is DockerException else error
    if isinstance(cause, APIError):
        return ExecutorUnavailable(f"the Docker engine failed: {_words(cause)}")
    if isinstance(cause, (requests.Timeout, urllib3.exceptions.TimeoutError)):
        return ExecutorUnavailable("the Docker engine does not answer: it takes calls, and nothing came back in time")
    return ExecutorUnavailable(f"the Docker engine does not answer: {_shortened(str(error))}")


def _words(error: APIError) -> str:
    return _shortened(str(error.explanation or error))


def _shortened(words: str) -> str:
    words = " ".join(words.split())
    return words if len(words) <= WORDS_MAX else words[: WORDS_MAX - 3] + "..."
