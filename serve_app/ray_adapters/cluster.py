"""What Ray and Serve know of the cluster that this process belongs to: its id, its nodes, and where Serve listens."""

import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import ray
from ray._private.state import available_resources_per_node
from ray._private.worker import global_worker
from ray.serve.context import _get_global_client

logger = logging.getLogger("ray.serve")

NODES_FRESH_S: Final = 2.0
_PATIENCE_S: Final = 1.0


def cluster_id() -> str:
    """Ray's id of this cluster; empty outside of one."""
    return str(global_worker.gcs_client.cluster_id.hex()) if ray.is_initialized() else ""


def http_host() -> str:
    """The address that Serve's proxies listen on. Needs a connection to Serve."""
    return str(_get_global_client().http_config.host)


@dataclass(frozen=True, slots=True)
class Node:
    """A living node of the cluster, as far as placement goes."""

    address: str
    labels: dict[str, str]
    total: dict[str, float]
    """Ray resources: `CPU`, `GPU`."""
    free: dict[str, float]
    """Those that nobody has taken."""


class AliveNodes:
    """What placement sees of the cluster, asked for at most every NODES_FRESH_S.

    While Ray's control store is away its calls hang, in a thread of their own here: then it is what was known last.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="nodes")
        self._asked: Future[list[Node]] | None = None
        self._known: list[Node] = []
        self._until = 0.0

    def __call__(self) -> list[Node]:
        with self._lock:
            if time.monotonic() > self._until:
                self._ask()
                self._until = time.monotonic() + NODES_FRESH_S
            return self._known

    def _ask(self) -> None:
        self._asked = self._asked or self._pool.submit(_alive_nodes)
        try:
            self._known = self._asked.result(timeout=_PATIENCE_S)
        except TimeoutError:
            return  # the same question is still under way the next time
        except Exception as error:  # whatever Ray raises: this is only for words
            logger.warning("the cluster's nodes could not be listed: %s", error)
        self._asked = None


def _alive_nodes() -> list[Node]:
    free = available_resources_per_node()
    return [
        Node(
            address=node["NodeManagerAddress"],
            labels=node.get("Labels", {}),
            total=node["Resources"],
            free=free.get(node["NodeID"], {}),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
