"""Real Docker engines, several side by side, each standing for a host of its own.

Every engine has its own data, its own containerd and its own socket. They share the machine's network, which is the
product's default too. An engine that is killed leaves its containers running, one that loses power does not.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self
from urllib.parse import quote

import docker

from tests.support import processes
from tests.support.components import find, require, require_root, unavailable

# An engine is up in about 0.4 s, on a machine busy with others in a few seconds. The bound only ends a hang.
READY_DEADLINE_S = 60.0
# Tried in this order. vfs copies whole images for each container, but works on every file system.
STORAGE_DRIVERS = ("overlay2", "vfs")
# Loading the images into memory takes a third of the time it takes on disk, and does not wait for other tests' fsyncs.
# One engine with runner, daemon and base image holds about 0.8 GB; pages of a tmpfs are used only as they are written.
MEMORY_FREE_BYTES_MIN = 6 * 1024**3
DATA_BYTES_MAX = "3g"
_POLL_S = 0.02
_CGROUPS = Path("/sys/fs/cgroup")


class EngineFailedError(RuntimeError):
    """The engine did not come up; the message ends with its log."""


class Engine:
    """One dockerd. Use `Engine.start`, and `stop` in the teardown, which removes everything that the engine made."""

    def __init__(self, name: str, root: Path, *, live_restore: bool, storage_driver: str) -> None:
        self.name = name
        self.root = root
        self.storage_driver = storage_driver
        self.live_restore = live_restore
        self.log = root / "dockerd.log"
        # A socket's path has 107 characters at most, which pytest's temporary directories use up.
        self._short = Path(tempfile.mkdtemp(prefix=f"shoal-{name}-"))
        self._data = root / "data"
        self._exec = self._short / "exec"
        self.socket = self._short / "docker.sock"
        # All containers below one cgroup of our own: what is in there is ours to kill, and nothing else.
        self._cgroup = f"shoal-test-{self._short.name}"
        self._process: subprocess.Popen[bytes] | None = None
        self._clients: list[docker.DockerClient] = []

    @classmethod
    def start(cls, name: str, root: Path, *, live_restore: bool = False) -> Self:
        """Start an engine with its data below `root` and wait until it answers.

        `live_restore`: containers go on while the daemon is down or restarts. Without it a daemon that returns, as
        Docker's default is, stops what it finds.
        """
        last: Exception | None = None
        for driver in STORAGE_DRIVERS:
            engine = cls(name, root, live_restore=live_restore, storage_driver=driver)
            try:
                engine._mount_data()
                engine.launch()
                engine.wait_ready()
            except EngineFailedError as error:
                last = error
                engine.stop()
                continue
            except BaseException:
                engine.stop()
                raise
            return engine
        raise EngineFailedError(f"no storage driver works here: {last}")

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def client(self, timeout_s: int = 60) -> docker.DockerClient:
        """A Docker SDK client, closed with the engine."""
        client = docker.DockerClient(base_url="unix://" + quote(str(self.socket)), version="auto", timeout=timeout_s)
        self._clients.append(client)
        return client

    def cli(self, *arguments: str | Path, timeout_s: float = 300.0, check: bool = True) -> str:
        """Run the distribution's `docker` client against this engine; returns its standard output."""
        client = find("docker")
        assert client is not None, "the docker client comes with dockerd"
        done = subprocess.run(
            [str(client), *(str(argument) for argument in arguments)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode != 0:
            raise RuntimeError(
                f"docker {arguments[0]} on {self.name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
            )
        return done.stdout

    @property
    def environment(self) -> dict[str, str]:
        """What `docker` and `docker-compose` need to talk to this engine, and to no other."""
        return {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self._short),
            "DOCKER_HOST": self.url,
            "DOCKER_CONFIG": str(self._short / "config"),
            # The classic builder: BuildKit would want a network and a frontend image.
            "DOCKER_BUILDKIT": "0",
            "COMPOSE_DOCKER_CLI_BUILD": "0",
        }

    # -- what one can do to it ----------------------------------------------------------------------------------------

    def launch(self) -> None:
        """Start the daemon without waiting."""
        binary = find("dockerd")
        assert binary is not None, "dockerd is missing; use the fixtures, which ask for it"
        self.root.mkdir(parents=True, exist_ok=True)
        self._short.mkdir(mode=0o700, exist_ok=True)
        (self._short / "dockerd.pid").unlink(missing_ok=True)
        # An empty file, so that no machine-wide configuration of an engine is picked up.
        configuration = self._short / "daemon.json"
        configuration.write_text("{}")
        command: list[str | Path] = [
            binary,
            f"--config-file={configuration}",
            f"--data-root={self._data}",
            f"--exec-root={self._exec}",
            f"--pidfile={self._short / 'dockerd.pid'}",
            f"--host={self.url}",
            f"--storage-driver={self.storage_driver}",
            f"--cgroup-parent=/{self._cgroup}",
            # The machine's own network is left alone: no bridge, no packet filter, no forwarding.
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
            "--ip-masq=false",
            "--ip-forward=false",
            "--userland-proxy=false",
        ]
        if self.live_restore:
            command.append("--live-restore")
        # dockerd searches PATH for containerd and runc, which must not be another installation's.
        self._process = processes.spawn(command, self.log, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})

    def wait_ready(self, deadline_s: float = READY_DEADLINE_S) -> None:
        deadline = time.monotonic() + deadline_s
        while True:
            if not self.running:
                raise EngineFailedError(f"dockerd {self.name} ended at start:\n{processes.log_tail(self.log)}")
            if self._answers():
                return
            if time.monotonic() > deadline:
                raise EngineFailedError(
                    f"dockerd {self.name} not ready in {deadline_s} s:\n{processes.log_tail(self.log)}"
                )
            time.sleep(_POLL_S)

    def kill(self) -> None:
        """SIGKILL the daemon and its containerd; containers go on."""
        if self._process is not None:
            processes.kill(self._process)
        self._kill_containerd()

    def restart(self, *, crash: bool = False) -> None:
        """End the daemon (SIGTERM, or SIGKILL with `crash`) and start it again with the same data."""
        if crash:
            self.kill()
        elif self._process is not None:
            processes.terminate(self._process, grace_s=60.0)
        self.launch()
        self.wait_ready()

    def pause(self) -> None:
        """SIGSTOP the daemon: it accepts connections and never answers. Containers go on."""
        assert self._process is not None
        processes.send(self._process, signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        processes.send(self._process, signal.SIGCONT)

    def power_off(self) -> None:
        """A machine that lost power: daemon, containerd and every container die at once. `restart` is the boot."""
        self.kill()
        self._kill_containers()

    def stop(self) -> None:
        """End everything that this engine started and delete its directories. Never raises for what is already gone."""
        for client in self._clients:
            with contextlib.suppress(Exception):
                client.close()
        self._clients.clear()
        with contextlib.suppress(Exception):
            self.kill()
        self._kill_containers()
        self._unmount()
        self._remove_cgroups()
        shutil.rmtree(self._data, ignore_errors=True)
        shutil.rmtree(self._short, ignore_errors=True)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _mount_data(self) -> None:
        """Put the data into memory where there is plenty; else, or where that is refused, it stays on disk."""
        self._data.mkdir(parents=True, exist_ok=True)
        if _memory_available_bytes() >= MEMORY_FREE_BYTES_MIN:
            command = ["mount", "-t", "tmpfs", "-o", f"size={DATA_BYTES_MAX},mode=711", "shoal-test", str(self._data)]
            subprocess.run(command, check=False, capture_output=True, timeout=30)

    def _answers(self) -> bool:
        """Whether the API answers. By hand, because the SDK leaks the socket of a refused connection."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(5.0)
            probe.connect(str(self.socket))
            probe.sendall(b"GET /_ping HTTP/1.0\r\nHost: engine\r\n\r\n")
            return b" 200 " in probe.recv(64)
        return False

    def _kill_containerd(self) -> None:
        """Kill the containerd that a killed daemon left, and its pid file with it.

        The daemon asks the kernel to end it, but where process 1 reaps nobody the dead containerd stays a zombie, which
        the next daemon takes for a running one, and then waits in vain for its socket.
        """
        path = self._exec / "containerd/containerd.pid"
        with contextlib.suppress(OSError, ValueError):
            pid = int(path.read_text())
            if str(self._exec).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
        path.unlink(missing_ok=True)

    def _kill_containers(self) -> None:
        """Kill what lives in our cgroup and the shims of our containerd, until neither is left (bounded)."""
        for _ in range(250):
            left = self._container_pids() | self._shim_pids()
            if not left:
                return
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_POLL_S)

    def _cgroup_directories(self) -> list[Path]:
        """Deepest first; one tree per controller where the machine has the first version of cgroups."""
        tops = [_CGROUPS / self._cgroup, *(_CGROUPS.glob(f"*/{self._cgroup}"))]
        found = [path for top in tops if top.is_dir() for path in [top, *(p for p in top.rglob("*") if p.is_dir())]]
        return sorted(found, key=lambda path: len(path.parts), reverse=True)

    def _container_pids(self) -> set[int]:
        pids: set[int] = set()
        for directory in self._cgroup_directories():
            with contextlib.suppress(OSError):
                pids.update(int(line) for line in (directory / "cgroup.procs").read_text().split())
        return pids

    def _shim_pids(self) -> set[int]:
        """Processes whose command line names our exec-root, whose path no other engine has."""
        needle = str(self._exec).encode()
        pids: set[int] = set()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes()
                if needle in command and b"containerd" in command.partition(b"\0")[0]:
                    pids.add(int(entry.name))
        return pids

    def _unmount(self) -> None:
        roots = (str(self._data), str(self._short))
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for point in sorted((p for p in points if p.startswith(roots)), key=len, reverse=True):
            subprocess.run(["umount", "-l", point], check=False, capture_output=True, timeout=30)

    def _remove_cgroups(self) -> None:
        for directory in self._cgroup_directories():
            with contextlib.suppress(OSError):
                directory.rmdir()


def _memory_available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def require_engine(name: str, root: Path, *, live_restore: bool = False) -> Engine:
    """Start an engine, or skip the calling test where there can be none (fail under SHOAL_STRICT=1)."""
    require("dockerd")
    require("docker")
    require_root("a Docker engine of its own")
    try:
        return Engine.start(name, root, live_restore=live_restore)
    except EngineFailedError as error:
        unavailable(f"no Docker engine can run here: {error}")
