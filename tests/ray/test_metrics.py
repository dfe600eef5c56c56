"""Every metric, as Ray exports it."""

from collections.abc import Iterator

import httpx
import pytest
import ray
from ray import serve

from serve_app import metrics
from serve_app.jobs import WorkerPhase
from tests.support.helpers import eventually

TELLER = 'deployment="Teller"'
"""The tag of what this file's deployment recorded, on a cluster where others ran."""


class Teller:
    """Records every metric once, from inside a replica."""

    def __init__(self) -> None:
        gauges = metrics.Gauges()
        workers = [
            metrics.Seen("m", WorkerPhase.LOAD, 5.0),
            metrics.Seen("m", WorkerPhase.LOAD, 7.0),
            metrics.Seen("m", WorkerPhase.FAILED, 1.0, "disk_full"),
        ]
        gauges.set(metrics.queue({"queued": 2}, 3.0))
        gauges.set(metrics.fleet([metrics.Seen("m", WorkerPhase.DOWNLOAD, 1.0)], {}))
        gauges.set(metrics.fleet(workers, {"m": 4}, {"m": True}))
        metrics.Gauges().set(metrics.paused({"m": True}))
        metrics.Gauges().set(metrics.storage("full"))
        metrics.job_started("m", 2.0)
        metrics.step("m", 0.02)
        metrics.song_published("m", "studio", {"generate_s": 2.0, "encode_s": 0.2, "gpu_s": 1.9}, 30.0)
        metrics.job_ended("m", "failed", "bad_audio")
        metrics.phase_ended("m", WorkerPhase.LOAD, 3.0)
        metrics.device_time("m", "idle", 1800.0, price_per_hour=0.5)
        metrics.background("sweeper", 1)
        metrics.device_memory("m", 1, 2)


@pytest.fixture(scope="module")
def exported(one_node: httpx.Client) -> Iterator[str]:
    """What Prometheus reads from a one-node cluster on which every metric was recorded."""
    serve.run(
        serve.deployment(Teller).options(ray_actor_options={"num_cpus": 0.1}).bind(),
        name="teller",
        route_prefix=None,
    )
    url = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    yield eventually(
        lambda: text if "sophia_device_memory_bytes" in (text := httpx.get(url).text) else "", 60, every=0.5
    )
    serve.delete("teller")


def test_ray_exports_each_metric_under_its_name_with_its_tags(exported: str) -> None:
    """Every exported name of the list is there, with the metric's own tags and the deployment's."""
    lines = exported.splitlines()
    for metric in metrics.METRICS:
        for name in metric.exported:
            found = [line for line in lines if line.startswith(f"{name}{{") and TELLER in line]
            assert found, name
            assert all(f'{tag}="' in line for line in found for tag in (*metric.tags, "deployment", "replica"))


def test_figures_are_exported_as_they_were_reported(exported: str) -> None:
    """Gauges, counters and money have the recorded values; a phase that every worker has left is 0."""

    def value(name: str, *tags: str) -> float:
        found = [
            line
            for line in exported.splitlines()
            if line.startswith(f"ray_{name}{{") and all(tag in line for tag in (TELLER, *tags))
        ]
        assert len(found) == 1, found
        return float(found[0].rpartition(" ")[2])

    assert value("sophia_workers", 'phase="load"') == 2
    assert value("sophia_workers", 'phase="download"') == 0
    assert value("sophia_starting_seconds", 'phase="load"') == 7
    assert value("sophia_load_failures", 'code="disk_full"') == 1
    assert value("sophia_breaker_open") == 1
    assert value("sophia_paused") == 1
    assert value("sophia_audio_seconds_total") == 30
    assert value("sophia_cost_total", 'use="idle"') == pytest.approx(0.25)
