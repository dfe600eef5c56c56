"""Answers about the service: probes, workers, scaling, breakers and costs."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from serve_app import __version__
from serve_app.api.views.jobs import JobError, State
from serve_app.config.sources import EMBEDDED, NOTES


class Pong(BaseModel):
    """The answer to a liveness probe."""

    pong: Literal[True] = Field(True, description="Always true.", examples=[True])
    version: str = Field(description="Sophia's version.", examples=[__version__])
    commit: str = Field(description="The commit Sophia was built from.", examples=["3f2c1a9"])


class Ready(BaseModel):
    """The answer to the readiness probe."""

    ready: bool = Field(
        description="True if songs can be stored and every model has a worker that can generate, or is scaled to zero because it "
        "is idle.",
        examples=[True],
    )
    reason: str = Field(description="Why the service is ready, or why not.", examples=["1 worker is ready"])


class WorkerPlannerView(BaseModel):
    """Where a worker's songs are planned, and the memory that was measured when it was loaded. Sizes are in bytes."""

    placement: Literal["worker", "own"] = Field(
        description="worker: in the process that renders. own: in processes that only plan, of which this is one if the sizes are "
        "known.",
        examples=["worker"],
    )
    reason: str | None = Field(
        description="Why the planner is not in the worker, if it was tried.",
        examples=[None],
    )
    weights_bytes: int | None = Field(description="Size of the planner's weight files.", examples=[1_330_000_000])
    cache_bytes: int | None = Field(description="Size of the planner's cache.", examples=[1_880_000_000])
    rows: int | None = Field(description="How many sequences it writes at once; a song takes two.", examples=[4])
    free_bytes: int | None = Field(
        description="What was free on the device before the planner was loaded; in a worker, beside the model.",
        examples=[14_700_000_000],
    )


class WorkerView(BaseModel):
    """One worker."""

    id: str = Field(description="The worker's id.", examples=["0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d"])
    model: str = Field(description="Its model.", examples=["ace-step"])
    node: str = Field(description="The node it runs on.", examples=["10.0.0.4"])
    cluster: str = Field(
        description="The cluster it runs in: `cluster_name`, or Ray's cluster id.", examples=["on-premises"]
    )
    device: str = Field(description="Its device.", examples=["cuda:0 NVIDIA GeForce RTX 4090"])
    phase: str = Field(
        description="starting, preflight, download, load, warm_up, idle, generating, draining or failed.",
        examples=["idle"],
    )
    since: datetime = Field(description="When this phase began.", examples=["2026-11-24T10:00:00Z"])
    progress: float | None = Field(description="Progress of this phase, from 0 to 1, if known.", examples=[0.41])
    detail: str = Field(description="What the worker does in this phase.", examples=["downloading 41 %"])
    error: JobError | None = Field(description="Its last error.")
    job: str | None = Field(description="The job it runs.", examples=[None])
    planner: WorkerPlannerView | None = Field(
        description="Where its songs are planned; null if its model has no planner, and while it starts."
    )
    seen_at: datetime = Field(description="When its last heartbeat arrived.", examples=["2026-11-24T10:00:00Z"])


class ClusterView(BaseModel):
    """A model's workers in one cluster, and how many the autoscaling policy wants there."""

    name: str = Field(description="The cluster: its `cluster_name`, or Ray's cluster id.", examples=["on-premises"])
    ready: int = Field(description="Workers that can generate now.", examples=[1])
    wanted: int = Field(description="Workers that the cluster's autoscaling policy asks for.", examples=[1])
    pending: int = Field(description="Wanted workers that have not reported yet.", examples=[0])
    reason: str = Field(description="Why the policy wants this number.", examples=["min_workers is 1"])


class ScaleView(BaseModel):
    """A model's workers in all clusters that share the queue, and how many the autoscaling policies want."""

    ready: int = Field(description="Workers that can generate now.", examples=[1])
    starting: int = Field(description="Workers that are starting.", examples=[0])
    wanted: int = Field(description="Workers that the autoscaling policies ask for.", examples=[1])
    pending: int = Field(description="Wanted workers that have not reported yet.", examples=[0])
    pending_for: str | None = Field(
        description="Why the pending workers of this cluster have not started.",
        examples=[
            "the 2 nodes that fit are full: a worker needs 0.5 CPU and 1 GPU. It starts when a node has room or is added"
        ],
    )
    reason: str = Field(
        description="Why this cluster's policy wants its number.",
        examples=[
            "312 s of work in 9 jobs (7 waiting): 6 workers for a wait of about 60 s (target_wait_s); one more takes 40 s to start"
        ],
    )
    clusters: list[ClusterView] = Field(
        description="Every cluster that shares the queue and has decided within the last minute, this one first."
    )


class BreakerView(BaseModel):
    """A model's crash breaker. It opens when loading the model has failed too often in a row for the same reason."""

    open: bool = Field(description="Whether the breaker is open; while it is, no worker is started.", examples=[False])
    load_runs: int = Field(
        description="Failed loads since the last successful one, plus jobs that lost their device.", examples=[0]
    )
    hosts: list[str] = Field(
        description="Hosts that start no more loads because the cause lies with the host. Other hosts are not affected.",
        examples=[[]],
    )
    since: datetime | None = Field(description="When this failure first occurred.", examples=[None])
    error: JobError | None = Field(description="The last failure.")


class CostView(BaseModel):
    """Device time of a model's workers and its cost. Amounts are null if the model has no `price_per_hour`."""

    hours: int = Field(description="Length of the period in hours; the current hour is included.", examples=[24])
    loading_s: float = Field(description="Device seconds in which workers were starting.", examples=[95.1])
    idle_s: float = Field(description="Device seconds without a job.", examples=[312.0])
    generating_s: float = Field(description="Device seconds with a job.", examples=[4210.5])
    songs: int = Field(description="Finished songs.", examples=[640])
    cost: float | None = Field(description="Total cost, in the currency of `price_per_hour`.", examples=[0.9])
    per_song: float | None = Field(
        description="Cost per song, with its share of loading and idling; null before the first song.",
        examples=[0.0014],
    )
    lost_to_loading: float | None = Field(description="Cost of loading.", examples=[0.018])
    lost_to_idle: float | None = Field(description="Cost of idling.", examples=[0.061])
    lost_without_song: float | None = Field(
        description="Cost of attempts that produced no song: failed, cancelled or still running.",
        examples=[0.002],
    )


class Health(BaseModel):
    """The state of the whole service."""

    status: Literal["ok", "starting", "degraded"] = Field(
        description="ok: every model has a worker that can generate. starting: workers are starting for every model without one. "
        "degraded: a model has no worker, songs cannot be stored, or background work fails.",
        examples=["ok"],
    )
    version: str = Field(description="Sophia's version.", examples=[__version__])
    commit: str = Field(description="The commit Sophia was built from.", examples=["3f2c1a9"])
    jobs: dict[State, int] = Field(
        description="Number of jobs by state.", examples=[{"queued": 2, "running": 1, "succeeded": 40}]
    )
    oldest_wait_s: float | None = Field(description="Age of the oldest queued job, in seconds.", examples=[3.2])
    workers: list[WorkerView] = Field(description="Every worker that is alive or failed recently.")
    scale: dict[str, ScaleView] = Field(description="Workers by model; `MODEL:planner` are processes that only plan.")
    breakers: dict[str, BreakerView] = Field(description="Crash breakers by model.")
    costs: dict[str, CostView] = Field(description="Device time and cost of the last day, by model.")
    notices: list[str] = Field(
        description="Conditions that an operator should know about.",
        examples=[[f"ace-step is {NOTES[EMBEDDED]}"]],
    )
