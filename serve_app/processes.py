"""Identifies processes and folders across hosts and containers, and finds out whether a process is still running.

A pid alone is not enough, as the kernel reuses pids; a pid with the process's start time is.
"""

import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class Process:
    """A process of a host.

    `host` is `this_host()` and the PID namespace. Without the namespace, containers with the same host name would take each
    other's processes for dead. `born` is the process's start in clock ticks since boot; 0 for a process that does not exist.
    """

    host: str
    pid: int
    born: int

    @classmethod
    def this(cls) -> Self:
        """The calling process."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> Self:
        """The process that has this pid now in this PID namespace; `born` is 0 when there is none."""
        return cls(_pid_namespace(), pid, _born(pid) or 0)

    @property
    def is_dead(self) -> bool:
        """Whether the process has ended. False also for a process of another host or PID namespace, whose state is unknown."""
        return self.host == _pid_namespace() and _born(self.pid) != self.born

    @property
    def command_line(self) -> str:
        """The command and its arguments, separated by spaces; empty when the process has ended."""
        return _read(f"/proc/{self.pid}/cmdline").replace("\0", " ").strip()

    def was_started_with(self, variable: str, value: str) -> bool:
        """Whether its environment had this variable at its start; False when this user may not read the environment."""
        return f"{variable}={value}" in _read(f"/proc/{self.pid}/environ").split("\0")

    def send(self, number: signal.Signals) -> None:
        """Send a signal to this process, never to a later one with the same pid. Does nothing when it has ended."""
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
    """The processes of this PID namespace that belong to the current user."""
    pids = [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]
    return [Process.of(pid) for pid in pids if _is_ours(pid) and _born(pid)]


def _is_ours(pid: int) -> bool:
    """Whether a process belongs to this user and PID namespace. From a host, /proc also shows the processes of containers."""
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
    """An id of this machine or container: its host name and the boot id of its kernel."""
    return f"{socket.gethostname()}/{_boot_id()}"


def folder_id(path: Path) -> str:
    """An id of the folder `path`, with which another process finds out, by `can_see`, whether it has the same folder there.

    Host names do not answer this: containers may share a host name but no files, or files but no host name. Device and inode
    identify a folder of one kernel. While `path` does not exist, they are those of its deepest parent that does. Raises
    FileNotFoundError for a relative path.
    """
    for folder in (path, *path.parents):
        with suppress(OSError):
            found = folder.stat()
            return f"{_boot_id()}:{found.st_dev}:{found.st_ino}:{folder}"
    raise FileNotFoundError(f"{path} is not an absolute path")


def can_see(mark: str) -> bool:
    """Whether this process sees, at the same path, the folder that `mark` identifies. `mark` is the result of `folder_id`."""
    folder = mark.split(":", 3)[3]
    with suppress(OSError):
        found = Path(folder).stat()
        return mark == f"{_boot_id()}:{found.st_dev}:{found.st_ino}:{folder}"
    return False


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _pid_namespace() -> str:
    """The host and the PID namespace in which this process's pids are valid (pid_namespaces(7))."""
    return f"{this_host()}/{os.readlink('/proc/self/ns/pid')}"


def _born(pid: int) -> int | None:
    """The start time of a process, field 22 of /proc/PID/stat (proc_pid_stat(5)); None when it has ended or is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])
