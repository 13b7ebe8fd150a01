"""Starting Bento, or the child that fetches the bundle for it: all that comes before there is anything to supervise."""

from __future__ import annotations

import os
import sys
import time

from runner import contract
from runner.backstop import Backstop
from runner.bundle import read_verified, unpack
from runner.fence import Fence, admit
from runner.permit_files import PermitFiles
from runner.settings import Failure, Settings, bento_environment
from runner.spawn import Child, find_program, reserve_port, start
from runner.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Mapping

# Overridden where the address is ours to choose: without them the runner could not ask. `null` takes back what the
# configuration says; an empty value would be refused by Bento's --set.
_OURS = ("http.basic_auth.enabled=false", "http.cert_file=null", "http.key_file=null")


@value
class Launched:
    """A child that was started. `port` is where Bento listens, None if that cannot be read from the address."""

    child: Child
    output: int  # the reading end of its output
    fetching: bool
    started: float  # boot clock, right before the fork
    port: int | None = None
    prefix: str = ""  # of every path on its HTTP server; a secret that only this Bento knows, if its address is ours
    fence: Fence | None = None  # None: it needs no grant


class Launcher:
    """Starts children of one execution. Failure says why one cannot be started."""

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        self._settings = settings
        self._environ = environ
        # Kept open while Bento runs: it costs nothing, and nobody gets the port while Bento is not listening yet.
        self._reservation: socket | None = None
        self.permits: PermitFiles | None = None
        self.backstop: Backstop | None = None
        if settings.execution:
            self.permits = PermitFiles(settings.lease_directory, settings.execution)
            self.backstop = Backstop(PermitFiles(settings.lease_directory, settings.execution))

    @property
    def chooses_port(self) -> bool:
        """Whether Bento's address is ours to choose."""
        return self._settings.http == contract.HTTP_AUTO

    def first(self) -> Launched:
        """Start Bento, or the child that fetches what is missing."""
        launched = self.bento()
        if launched is not None:
            return launched
        if not self._settings.fetch:
            raise Failure("bundle", f"the bundle is not at {self._settings.bundle}, and nothing says where to fetch it")
        return self._fetcher()

    def bento(self) -> Launched | None:
        """Verify the bundle, unpack it, start Bento; None if there is no bundle."""
        settings = self._settings
        data = read_verified(settings.bundle, settings.digest) if settings.bundle else None
        if data is None:
            data = read_verified(settings.path(contract.FETCHED_FILE), settings.digest)
        if data is None:
            return None
        try:
            program = find_program(settings.bento, self._environ.get("PATH", os.defpath))
            directory = settings.path(contract.FILES_DIR)
            unpack(data, directory)
            sets, port, prefix = self._http()
            argv = [program, "-c", "pipeline.yaml", *(word for text in sets for word in ("--set", text))]
            return self._start(
                argv, bento_environment(self._environ), directory, fetching=False, port=port, prefix=prefix
            )
        except OSError as error:
            raise Failure("host", f"Bento cannot be started: {error}") from error

    def _fetcher(self) -> Launched:
        # With site-packages (no -S), because nats-py lives there; isolated all the same.
        argv = [sys.executable, "-I", f"{__file__.rpartition('/')[0]}/fetch.py"]
        try:
            return self._start(argv, self._environ, self._settings.directory, fetching=True)
        except OSError as error:
            raise Failure("host", f"the bundle cannot be fetched: {error}") from error

    def _http(self) -> tuple[tuple[str, ...], int | None, str]:
        """What to set in Bento's configuration, the port on which it will listen, and the prefix of its paths."""
        if not self.chooses_port:
            port = self._settings.http.rpartition(":")[2]
            return ("http.enabled=true",), int(port) if port.isdecimal() else None, ""
        if self._reservation is not None:
            self._reservation.close()
        self._reservation, number = reserve_port()
        # Bento goes on without its HTTP server when it cannot listen, so whoever answers on this port may be another
        # Bento. Only ours answers under this path.
        prefix = f"/{os.urandom(8).hex()}"
        address = f"http.address=127.0.0.1:{number}"
        return ("http.enabled=true", address, f"http.root_path={prefix}", *_OURS), number, prefix

    def _start(
        self,
        argv: list[str],
        env: Mapping[str, str],
        cwd: str,
        *,
        fetching: bool,
        port: int | None = None,
        prefix: str = "",
    ) -> Launched:
        # As late as possible; the loop looks again as soon as it is there, lest this took long in spite of all.
        fence = self._admitted()
        read, write = os.pipe()
        started = time.clock_gettime(time.CLOCK_BOOTTIME)
        try:
            child = start(argv, env, cwd=cwd, output=write)
        finally:
            os.close(write)
        # Our end only; the two ends of a pipe do not share this flag.
        os.set_blocking(read, False)
        return Launched(
            child=child, output=read, fetching=fetching, started=started, port=port, prefix=prefix, fence=fence
        )

    def _admitted(self) -> Fence | None:
        """The fence of a child that starts now. Failure("lease") if it may not."""
        if self.permits is None:
            return None
        found = admit(self.permits.place, self.permits.look(), time.clock_gettime(time.CLOCK_BOOTTIME))
        if isinstance(found, str):
            raise Failure("lease", found)
        if self.backstop is not None:
            self.backstop.fence = found
        return found
