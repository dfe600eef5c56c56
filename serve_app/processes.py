"""Which process is which, and whether it still lives. A pid is taken again sooner or later; with its birth it is not."""

import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class Process:
    """A process of some host: `host` is `this_host()` and the PID namespace there, `born` the clock tick of its start since boot.

    Without the namespace, containers that share a host name would take each other's processes for dead: a pid means nothing in
    another one.
    """

    host: str
    pid: int
    born: int

    @classmethod
    def this(cls) -> Self:
        """The process that asks."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> Self:
        """The process that has this pid now, here; one that was never born (0) when nobody has it."""
        return cls(_pid_namespace(), pid, _born(pid) or 0)

    @property
    def is_dead(self) -> bool:
        """Whether it is known to have ended; of a process on another host or in another PID namespace nothing is known."""
        return self.host == _pid_namespace() and _born(self.pid) != self.born

    @property
    def command_line(self) -> str:
        """Its words, with spaces between them; empty when it has ended."""
        return _read(f"/proc/{self.pid}/cmdline").replace("\0", " ").strip()

    def says(self, variable: str, value: str) -> bool:
        """Whether it was started with this environment variable; False when that is hidden from us."""
        return f"{variable}={value}" in _read(f"/proc/{self.pid}/environ").split("\0")

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, and nobody else who has its pid by now; one that has ended is left alone."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if not self.is_dead:
                signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            return
        finally:
            os.close(handle)


def running_processes() -> list[Process]:
    """The processes of this PID namespace that belong to the user who asks."""
    pids = [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]
    return [Process.of(pid) for pid in pids if _is_ours(pid) and _born(pid)]


def _is_ours(pid: int) -> bool:
    """A container's processes are seen from the host, too, but what they say of pids is not meant for it."""
    try:
        namespace = os.readlink(f"/proc/{pid}/ns/pid")
        owner = Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return False
    return owner == os.getuid() and namespace == os.readlink("/proc/self/ns/pid")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def this_host() -> str:
    """What tells one machine (or container) from another: a pid here is one there only where this is the same."""
    return f"{socket.gethostname()}/{_boot()}"


def folder_id(path: Path) -> str:
    """By what a process knows, with `can_see`, whether `path` is the same place for it.

    Host names don't tell that: containers of one machine may share a name and no files, or files and no name. A folder of one
    kernel is known by its device and inode; it is the deepest one on the way to `path` that is there already.
    """
    for folder in (path, *path.parents):
        with suppress(OSError):
            found = folder.stat()
            return f"{_boot()}:{found.st_dev}:{found.st_ino}:{folder}"
    raise FileNotFoundError(f"{path} is no absolute path")


def can_see(mark: str) -> bool:
    """Whether this process has the place of a `folder_id` before it, which may be another process's."""
    folder = mark.split(":", 3)[3]
    with suppress(OSError):
        found = Path(folder).stat()
        return mark == f"{_boot()}:{found.st_dev}:{found.st_ino}:{folder}"
    return False


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _pid_namespace() -> str:
    """Where this process's pids mean something: its host and its PID namespace (pid_namespaces(7))."""
    return f"{this_host()}/{os.readlink('/proc/self/ns/pid')}"


def _born(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat (proc_pid_stat(5)); None when there is no such process, or only its zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])
