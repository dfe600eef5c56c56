"""The Ray cluster of this process: its id, its nodes, and the address that Serve listens on."""

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

NODES_CACHED_S: Final = 2.0
_TIMEOUT_S: Final = 1.0


def cluster_id() -> str:
    """Ray's id of this cluster; empty when this process is not connected to Ray."""
    return str(global_worker.gcs_client.cluster_id.hex()) if ray.is_initialized() else ""


def http_host() -> str:
    """The address that Serve's HTTP proxies listen on. Needs a connection to Serve."""
    return str(_get_global_client().http_config.host)


@dataclass(frozen=True, slots=True)
class Node:
    """An alive node of the cluster, with what decides on the placement of workers."""

    address: str
    labels: dict[str, str]
    total: dict[str, float]
    """Ray resources: `CPU`, `GPU`."""
    free: dict[str, float]
    """The resources that no actor or task has reserved."""


class AliveNodes:
    """The alive nodes of the cluster; calling the object returns a list that is at most about NODES_CACHED_S old.

    Calls to Ray's control store (GCS) hang while it is unreachable, so they run in a separate thread. Until one succeeds again,
    the last known list is returned.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="nodes")
        self._pending: Future[list[Node]] | None = None
        self._nodes: list[Node] = []
        self._expires_at = 0.0

    def __call__(self) -> list[Node]:
        with self._lock:
            if time.monotonic() > self._expires_at:
                self._refresh()
                self._expires_at = time.monotonic() + NODES_CACHED_S
            return self._nodes

    def _refresh(self) -> None:
        self._pending = self._pending or self._pool.submit(_alive_nodes)
        try:
            self._nodes = self._pending.result(timeout=_TIMEOUT_S)
        except TimeoutError:
            return  # the next refresh waits for the same call
        except Exception as error:  # Ray documents no exceptions here, and callers only explain with the list
            logger.warning("cannot list the cluster's nodes: %s", error)
        self._pending = None


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
