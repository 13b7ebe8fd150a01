"""The runner's environment, read once: what is for the runner, and what Bento gets to see."""

from __future__ import annotations

from runner import contract
from runner.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

LOG_BYTES_MIN = 64 * 1024  # one read of Bento's output must fit


class Failure(Exception):
    """Why this execution cannot run: `kind` is one of contract.FAILURES, `str()` a sentence for people."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.exit_code = contract.FAILURES[kind] or 1


@value
class Settings:
    """See runner/contract.py for the meaning of each."""

    digest: str
    bundle: str
    directory: str
    bento: str
    stop_grace_s: float
    http: str  # "auto" or an address, references replaced
    log: str
    log_bytes_max: int
    fetch: str
    lease_directory: str
    execution: str  # the name of its grant; "" = it needs none

    def path(self, name: str) -> str:
        """A file in the execution's own directory."""
        return f"{self.directory}/{name}"


def read_settings(environ: Mapping[str, str]) -> Settings:
    """The settings; Failure("settings") names the first variable that is wrong."""
    digest = environ.get(contract.DIGEST, "")
    if len(digest) != 64 or digest.strip("0123456789abcdef"):
        raise Failure("settings", f"{contract.DIGEST} must be a sha256 in lower-case hex, not {digest!r}")
    directory = environ.get(contract.DIR, "")
    if not directory.startswith("/"):
        raise Failure("settings", f"{contract.DIR} must be an absolute path, not {directory!r}")
    log = environ.get(contract.LOG, "")
    if log and not log.startswith("/"):
        raise Failure("settings", f"{contract.LOG} must be an absolute path, not {log!r}")
    lease_directory, execution = environ.get(contract.LEASE_DIR, ""), environ.get(contract.EXECUTION, "")
    if bool(lease_directory) != bool(execution):
        raise Failure("settings", f"{contract.LEASE_DIR} and {contract.EXECUTION} need each other")
    if "/" in execution or execution.startswith("."):
        raise Failure("settings", f"{contract.EXECUTION} must be a plain name, not {execution!r}")
    bundle, fetch = environ.get(contract.BUNDLE, ""), environ.get(contract.FETCH, "")
    if not bundle and not fetch:
        raise Failure("settings", f"one of {contract.BUNDLE} and {contract.FETCH} is needed")
    return Settings(
        digest=digest,
        bundle=bundle,
        directory=directory.rstrip("/") or "/",
        bento=environ.get(contract.BENTO) or "bento",
        stop_grace_s=_number(environ, contract.STOP_GRACE_S, None, 0.0),
        http=resolve(environ.get(contract.HTTP) or contract.HTTP_AUTO, environ),
        log=log,
        log_bytes_max=int(_number(environ, contract.LOG_BYTES_MAX, contract.LOG_BYTES_MAX_DEFAULT, LOG_BYTES_MIN)),
        fetch=fetch,
        lease_directory=lease_directory,
        execution=execution,
    )


def bento_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What Bento sees: everything that is not the runner's own."""
    return {name: text for name, text in environ.items() if not name.startswith(contract.PREFIX)}


def resolve(text: str, environ: Mapping[str, str]) -> str:
    """`${NAME}` and `${NAME:default}` replaced as Bento does it: a default also stands for an empty value."""
    before, mark, rest = text.partition("${")
    if not mark or "}" not in rest:
        return text
    reference, _, after = rest.partition("}")
    name, colon, default = reference.partition(":")
    found = environ.get(name, "") or (default if colon else "")
    return before + found + resolve(after, environ)


def _number(environ: Mapping[str, str], name: str, default: float | None, least: float) -> float:
    text = environ.get(name, "")
    if not text and default is not None:
        return default
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    # Written so that NaN fails too.
    if not least <= number < 1e12:
        raise Failure("settings", f"{name} must be a number of at least {least:g}, not {text!r}")
    return number
