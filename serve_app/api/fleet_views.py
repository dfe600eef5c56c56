"""What the API answers about workers, models and the service."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from serve_app.api.views import JobError, State
from serve_app.config import Variant
from serve_app.music import Format, TaskType, VariantDefaults


class WorkerView(BaseModel):
    """One worker as operators see it."""

    id: str = Field(description="The worker's id.", examples=["0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d"])
    model: str = Field(description="Its model.", examples=["ace-step"])
    node: str = Field(description="The node it runs on.", examples=["10.0.0.4"])
    cluster: str = Field(
        description="The cluster that runs it: `cluster_name`, or Ray's id of it.", examples=["on-premises"]
    )
    device: str = Field(description="Its device.", examples=["cuda:0 NVIDIA GeForce RTX 4090"])
    phase: str = Field(
        description="starting, preflight, download, load, warm_up, idle, generating, draining or failed.",
        examples=["idle"],
    )
    since: datetime = Field(description="When this phase began.", examples=["2026-11-24T10:00:00Z"])
    progress: float | None = Field(
        description="How far this phase is, from 0 to 1, where that is known.", examples=[0.41]
    )
    detail: str = Field(description="The phase in words.", examples=["downloading 41 %"])
    error: JobError | None = Field(description="Its last error.")
    job: str | None = Field(description="The job it runs.", examples=[None])
    seen_at: datetime = Field(description="Its last heartbeat.", examples=["2026-11-24T10:00:00Z"])


class ClusterView(BaseModel):
    """How many workers of a model one cluster has, should have, and why."""

    name: str = Field(description="The cluster: its `cluster_name`, or Ray's id of it.", examples=["on-premises"])
    ready: int = Field(description="Its workers that can generate now.", examples=[1])
    wanted: int = Field(description="Workers that it asks for.", examples=[1])
    pending: int = Field(description="Those of them that have not reported yet.", examples=[0])
    reason: str = Field(description="Why that many.", examples=["min_workers is 1"])


class ScaleView(BaseModel):
    """How many workers a model has, should have, and why: in all clusters that share the queue."""

    ready: int = Field(description="Workers that can generate now.", examples=[1])
    starting: int = Field(description="Workers on their way.", examples=[0])
    wanted: int = Field(description="Workers asked for.", examples=[1])
    pending: int = Field(description="Workers asked for that have not reported yet.", examples=[0])
    pending_for: str | None = Field(
        description="What those of the cluster that answers wait for.",
        examples=[
            "the 2 nodes that fit are full: a worker needs 0.5 CPU and 1 GPU. It starts when there is room, or a node more"
        ],
    )
    reason: str = Field(
        description="Why the cluster that answers wants its number.",
        examples=[
            "312 s of work in 9 jobs (7 waiting); 6 workers keep to about the 60 s of wait you accept; one more is ready in 40 s"
        ],
    )
    clusters: list[ClusterView] = Field(
        description="Each cluster that shares the queue and decided within the last minute, the one that answers first."
    )


class BreakerView(BaseModel):
    """A model's crash breaker: open when it could not be loaded, for the same reason, too often in a row."""

    open: bool = Field(description="While it is open no worker is started.", examples=[False])
    load_runs: int = Field(
        description="Loads that failed since the last one that worked, and jobs that lost their devices.", examples=[0]
    )
    hosts: list[str] = Field(
        description="Hosts on which no load is tried any more, for a cause of their own. Others may go on.",
        examples=[[]],
    )
    since: datetime | None = Field(description="When this failure came first.", examples=[None])
    error: JobError | None = Field(description="The last failure.")


class CostView(BaseModel):
    """What a model's workers held their devices for, and what that cost. Money is null while `price_per_hour` is not set."""

    hours: int = Field(description="Over so many hours, the one under way included.", examples=[24])
    loading_s: float = Field(description="Device seconds in which workers started or failed to.", examples=[95.1])
    idle_s: float = Field(description="Device seconds without a job.", examples=[312.0])
    generating_s: float = Field(description="Device seconds with a job in hand.", examples=[4210.5])
    songs: int = Field(description="Finished songs.", examples=[640])
    cost: float | None = Field(description="What all of it cost, in the currency of `price_per_hour`.", examples=[0.9])
    per_song: float | None = Field(
        description="What a song cost, with its part of loading and idling; null before the first.", examples=[0.0014]
    )
    lost_to_loading: float | None = Field(description="Money spent on loading.", examples=[0.018])
    lost_to_idle: float | None = Field(description="Money spent on idling.", examples=[0.061])
    lost_without_song: float | None = Field(
        description="Money spent on generating that gave no song: attempts that failed, were cancelled or are still under way.",
        examples=[0.002],
    )


class Health(BaseModel):
    """The whole service at a glance."""

    status: Literal["ok", "starting", "degraded"] = Field(
        description="ok: every model has a worker that can generate. starting: some are on their way. degraded: a model has none.",
        examples=["ok"],
    )
    version: str = Field(description="Sophia's version.", examples=["0.1.0"])
    commit: str = Field(description="The commit it was built from.", examples=["3f2c1a9"])
    jobs: dict[State, int] = Field(
        description="Jobs by state.", examples=[{"queued": 2, "running": 1, "succeeded": 40}]
    )
    oldest_wait_s: float | None = Field(
        description="How long the longest-waiting queued job has waited.", examples=[3.2]
    )
    workers: list[WorkerView] = Field(description="Every worker that is alive or failed lately.")
    scale: dict[str, ScaleView] = Field(description="Workers by model.")
    breakers: dict[str, BreakerView] = Field(description="Crash breakers by model.")
    costs: dict[str, CostView] = Field(description="Device time and money by model, over the last day.")
    notices: list[str] = Field(
        description="What an operator should know.",
        examples=[["ace-step plays the embedded checkpoint: noise, for trying Sophia out"]],
    )


class ModelView(BaseModel):
    """A model that can be asked for."""

    name: str = Field(description="What a request's `model` says.", examples=["ace-step"])
    is_default: bool = Field(description="Whether requests that name no model get it.", examples=[True])
    source: str = Field(
        description="Where its checkpoint comes from.", examples=["ACE-Step/acestep-v15-xl-turbo-diffusers"]
    )
    revision: str | None = Field(
        description="Which revision of it.", examples=["200ba991ae448051e14b0183157e35c2d27c9fb0"]
    )
    variant: Variant | None = Field(
        description="turbo, base or sft; null until a worker has read the checkpoint.", examples=["turbo"]
    )
    tasks: list[TaskType] = Field(description="What it can do.", examples=[["text2music"]])
    defaults: VariantDefaults | None = Field(description="What it uses where a request says nothing.")
    ready_workers: int = Field(description="Workers that can generate now.", examples=[1])
    noise: bool = Field(description="True when it has random weights and plays noise.", examples=[False])


class ModelList(BaseModel):
    """The models, and limits that hold for all of them."""

    models: list[ModelView] = Field(description="The models that are served.")
    formats: list[Format] = Field(description="File formats.", examples=[["mp3", "flac"]])
    max_duration_s: float = Field(description="The longest song, in seconds.", examples=[600])
    max_variations: int = Field(description="The most variations of one request.", examples=[8])


class Pong(BaseModel):
    """The answer to a ping."""

    pong: Literal[True] = Field(True, description="Always true.", examples=[True])
    version: str = Field(description="Sophia's version.", examples=["0.1.0"])
    commit: str = Field(description="The commit it was built from.", examples=["3f2c1a9"])


class Ready(BaseModel):
    """Whether at least one worker can generate."""

    ready: bool = Field(
        description="True when at least one worker of each model can generate, or is asleep by design.", examples=[True]
    )
    reason: str = Field(description="Why, or why not.", examples=["1 worker is ready"])
