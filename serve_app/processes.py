"""Which process is which, and whether it still lives. A pid is taken again sooner or later; with its birth it is not."""

import os
import socket
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
        return cls(_pid_namespace(), os.getpid(), _born(os.getpid()) or 0)

    @property
    def is_dead(self) -> bool:
        """Whether it is known to have ended; of a process on another host or in another PID namespace nothing is known."""
        return self.host == _pid_namespace() and _born(self.pid) != self.born


def this_host() -> str:
    """What tells one machine (or container) from another: a file or a pid here is one there only where this is the same."""
    return f"{socket.gethostname()}/{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"


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
