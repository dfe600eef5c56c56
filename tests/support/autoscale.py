"""Ray's real node autoscaler (v2) on its fake multi-node provider: from no GPU node at all to as many as a burst wants, and back.

Usage: python -m tests.support.autoscale     (`make autoscale`)

The nodes are raylets of this machine and their GPUs Ray's word only; the autoscaler, Serve, Sophia and the jobs are real, the
engine is the simulated one. Prints where the time went from the submission to the first generation.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
import ray
import sqlalchemy as sa
from ray import serve

from serve_app.app import build
from serve_app.config import AppArgs
from serve_app.jobs import Status
from serve_app.store import Store
from serve_app.store.tables import jobs, loads
from tests.support.helpers import eventually, free_port

JOBS: Final = 24
JOB_S: Final = 1.0
STEP_S: Final = 0.1
NODES: Final = 3
IDLE_S: Final = 5.0
CARD: Final = {"ray.io/accelerator-type": "GeForce-RTX-4090"}

_HEAD: Final = "f" * 51 + "00000"
_LISTS: Final = [  # what the provider wants to be there, empty or not
    "cluster_synced_files",
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
]


def run(folder: Path) -> None:
    """Runs one burst on an empty fleet. Raises AssertionError when a job is lost or a node stays."""
    with ExitStack() as stack:
        stack.enter_context(_autoscaled_cluster(folder))
        client, store = stack.enter_context(_sophia(folder))
        nodes = stack.enter_context(_Nodes())
        assert not nodes.alive(), "GPU nodes before any job"
        submitted = time.time()
        body = {"prompt": "x", "duration": 1, "format": "wav", "steps": round(JOB_S / STEP_S)}
        for _ in range(JOBS):
            assert client.post("/v1/jobs", json=body).status_code == 202
        eventually(lambda: store.backlog.counts()[Status.SUCCEEDED] == JOBS, 180)
        print(f"{JOBS} jobs of {JOB_S:g} s succeeded {time.time() - submitted:.1f} s after the submission of the first")
        print(_first_generation(store, nodes, submitted), flush=True)
        last = time.time()
        assert len(nodes.came) == NODES, nodes.came
        eventually(lambda: not nodes.alive(), 180)
        print(
            f"{NODES} GPU nodes came and were gone {time.time() - last:.1f} s after the last job (idle_s is {IDLE_S:g})"
        )


def _first_generation(store: Store, nodes: "_Nodes", submitted: float) -> str:
    """The phases before the first generation: the node's start, its worker's process, the load, and the rest."""
    with store.database.read() as connection:
        first = connection.execute(sa.select(sa.func.min(jobs.c.started_at))).scalar_one()
        began, ready = connection.execute(
            sa.select(loads.c.began_at, loads.c.ended_at).order_by(loads.c.ended_at).limit(1)
        ).one()
    node = min(nodes.came.values())
    parts = {"node": node - submitted, "worker start": began - node, "load": ready - began, "queue": first - ready}
    told = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in parts.items())
    return f"from submit to the first generation {first - submitted:.2f} s: {told}"


# --- Cluster and service --------------------------------------------------------------------------------------------------


@contextmanager
def _autoscaled_cluster(folder: Path) -> Iterator[None]:
    """A head without a GPU under the autoscaler, and a driver connected to it. Ends every process that it started."""
    port = free_port()
    address = _own_address()
    config = _config(f"{address}:{port}")
    path = folder / "cluster.yaml"
    path.write_text(json.dumps(config))
    environment = {
        **os.environ,
        "RAY_TMPDIR": str(folder),  # or else its address would be left where other programs look for a cluster
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": _HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD,
    }
    os.environ["RAY_AUTH_MODE"] = "disabled"
    command = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--head",
        "--block",
        f"--port={port}",
        "--num-cpus=4",
    ]
    command += [f"--node-ip-address={address}", f"--autoscaling-config={path}", "--include-dashboard=false"]
    with _provider_defaults(config), (folder / "ray.log").open("w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            eventually(lambda: _listens(address, port) or head.poll() is not None, 60, every=0.2)
            assert head.poll() is None, (folder / "ray.log").read_text()
            ray.init(f"{address}:{port}", log_to_driver=bool(os.environ.get("SOPHIA_TEST_LOGS")))
            yield
        finally:
            started = _with_descendants(head.pid) if head.poll() is None else []
            ray.shutdown()
            _end(started)
            head.wait(30)


def _config(gcs_address: str) -> dict[str, Any]:
    gpu = {"resources": {"CPU": 2, "GPU": 1}, "labels": CARD, "node_config": {}, "min_workers": 0, "max_workers": NODES}
    provider = {"type": "fake_multinode", "launch_multiple": True, "head_node_id": _HEAD, "gcs_address": gcs_address}
    return {
        "cluster_name": "fake",
        "max_workers": NODES,
        "idle_timeout_minutes": 0.1,
        "upscaling_speed": 10,
        "provider": {**provider, "disable_node_updaters": True, "disable_launch_config_check": True},
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 4}, "node_config": {}, "max_workers": 0},
            "rtx4090": gpu,
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        "file_mounts": {},
        **{name: [] for name in _LISTS},
    }


@contextmanager
def _provider_defaults(config: dict[str, Any]) -> Iterator[None]:
    """Creates a file that this provider reads and that the published wheel lacks, until the block ends."""
    path = Path(ray.__file__).parent / "autoscaler/_private/fake_multi_node/example.yaml"
    missing = not path.exists()
    if missing:
        path.write_text(
            json.dumps({**config, "file_mounts_sync_continuously": False, "rsync_exclude": [], "rsync_filter": []})
        )
    try:
        yield
    finally:
        if missing:
            path.unlink()


@contextmanager
def _sophia(folder: Path) -> Iterator[tuple[httpx.Client, Store]]:
    scaling = {"min_workers": 0, "max_workers": NODES, "target_wait_s": 5, "idle_s": IDLE_S, "work_prior": 1.0}
    model = {"source": "simulated", "device": "cuda", "simulated": {"step_s": STEP_S, "load_s": 2}}
    settings = {"models": {"m": {**model, "label_selector": CARD, "scaling": scaling}}, "data_dir": folder / "data"}
    args = AppArgs.model_validate(settings)
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port}, proxy_location="HeadOnly")
    serve.run(build(args), name="sophia", route_prefix="/")
    store = Store(args.resolved_database_url)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client, store
    finally:
        store.close()
        serve.delete("sophia")


@dataclass
class _Nodes:
    """Watches the GPU nodes from outside. `came` is when each was first seen alive."""

    came: dict[str, float] = field(default_factory=dict)
    _done: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> "_Nodes":
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        assert self._thread is not None
        self._thread.join()

    def alive(self) -> list[str]:
        return [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            for node in self.alive():
                self.came.setdefault(node, time.time())


def _own_address() -> str:
    return str(ray.util.get_node_ip_address())


def _listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def _with_descendants(pid: int) -> list[psutil.Process]:
    return [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]


def _end(processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.terminate()
        except psutil.NoSuchProcess:
            continue
    _, left = psutil.wait_procs(processes, timeout=15)
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=15)


def main() -> int:
    """Runs the burst. A failure raises AssertionError."""
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
