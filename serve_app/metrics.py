"""Every metric of Sophia. Dashboards, alert rules and the documentation use this list.

Ray exports the metrics on each node's metrics port. It prefixes a name with `ray_` and adds `_total` to a counter, and `_bucket`,
`_sum` and `_count` to a histogram. Serve adds the tags `application`, `deployment` and `replica`. A Ray metric is created with its
first value, and only inside Ray, so a program without Ray may call these functions at no cost.

Three limits of Ray 2.60 shape the list:

* A process exports its values every 10 s, so the failure that ends it would be lost. The API processes report failed loads instead.
* A counter cannot start at 0, so `increase()` misses the first value of each worker.
* A histogram's `_sum` adds up the middles of its buckets, so no mean is computed from it. Where a sum matters there is a counter.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

import ray

from serve_app.jobs import WorkerPhase

Kind = Literal["counter", "gauge", "histogram"]
Use = Literal["loading", "idle", "generating"]
"""How a worker uses its device."""


@dataclass(frozen=True)
class Metric:
    """One metric. `bounds` are the upper bounds of a histogram's buckets, in the metric's unit."""

    kind: Kind
    name: str
    meaning: str
    tags: tuple[str, ...] = ("model",)
    bounds: tuple[float, ...] = ()

    @property
    def exported(self) -> frozenset[str]:
        """The names that Prometheus scrapes."""
        ends = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}[self.kind]
        return frozenset(f"ray_{self.name}{end}" for end in ends)

    def record(self, value: float, **tags: str) -> None:
        """Count, set or observe `value`. `tags` must name all of the metric's tags. Does nothing outside Ray."""
        if not ray.is_initialized() or (self.kind == "counter" and value <= 0):
            return
        method = {"counter": "inc", "gauge": "set", "histogram": "observe"}[self.kind]
        getattr(_made(self), method)(value, tags)


Figures = Mapping[tuple[Metric, tuple[str, ...]], float]
"""Values of gauges, by the metric and the values of its tags in the order of `Metric.tags`."""


@dataclass(frozen=True)
class Seen:
    """One worker as an API process sees it: `phase_s` counts the seconds in its phase, `code` is that of its last error."""

    model: str
    phase: WorkerPhase
    phase_s: float
    code: str = "none"


_SECONDS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
_STEP_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

# --- The queue. Every API process reports the same values, so a query takes max() over them ------------------------------

JOBS: Final = Metric("gauge", "sophia_jobs", "Jobs in the store, by state.", ("state",))
OLDEST_WAIT: Final = Metric(
    "gauge",
    "sophia_oldest_wait_seconds",
    "Seconds since the submission of the oldest queued job; 0 when none is queued.",
    (),
)
WORKERS: Final = Metric("gauge", "sophia_workers", "Workers by model and phase.", ("model", "phase"))
WANTED: Final = Metric("gauge", "sophia_workers_wanted", "Workers that the autoscaling policy asks for.")
STARTING: Final = Metric(
    "gauge",
    "sophia_starting_seconds",
    "Seconds that the slowest worker has spent in its current start-up phase.",
    ("model", "phase"),
)
LOAD_FAILED: Final = Metric(
    "gauge",
    "sophia_load_failures",
    "Workers whose last load failed, by error code.",
    ("model", "code"),
)
BREAKER: Final = Metric(
    "gauge", "sophia_breaker_open", "1 while a model's crash breaker is open and no worker is started; else 0."
)
PAUSED: Final = Metric("gauge", "sophia_paused", "1 while a model is paused (`sophia pause`); else 0.")
STORAGE: Final = Metric(
    "gauge",
    "sophia_audio_store_failing",
    "1 while the process cannot write to the audio store, by cause: full, missing, refused, read_only or away; else 0.",
    ("cause",),
)
BACKGROUND: Final = Metric(
    "gauge",
    "sophia_background_failing",
    "1 while a background task of the process fails, or after its thread has died; else 0.",
    ("task",),
)

# --- Jobs. The worker that ran a job reports them ------------------------------------------------------------------------------

ATTEMPTS: Final = Metric(
    "counter", "sophia_attempts", "Started attempts. A job that is retried counts once per attempt."
)
ENDED: Final = Metric(
    "counter",
    "sophia_jobs_ended",
    "Ended attempts, by outcome: succeeded, failed or stopped (cancelled, deleted, expired or lost); `code` is the error code.",
    ("model", "outcome", "code"),
)
WAIT: Final = Metric(
    "histogram",
    "sophia_wait_seconds",
    "Seconds from the submission of a job to the start of an attempt.",
    bounds=_SECONDS,
)
STAGE: Final = Metric(
    "histogram",
    "sophia_stage_seconds",
    "Seconds per stage of a succeeded job: generate (conditioning, denoising, decoding) or encode (encoding and storing).",
    ("model", "stage"),
    _SECONDS,
)
STEP: Final = Metric("histogram", "sophia_step_seconds", "Seconds per denoising step.", bounds=_STEP_SECONDS)
AUDIO: Final = Metric("counter", "sophia_audio_seconds", "Seconds of published audio, all variations.")

# --- Workers and what they cost ------------------------------------------------------------------------------------------

PHASE: Final = Metric(
    "histogram", "sophia_startup_seconds", "Seconds per start-up phase of a worker.", ("model", "phase"), _SECONDS
)
DEVICE: Final = Metric(
    "counter", "sophia_device_seconds", "Device seconds by use: loading, idle or generating.", ("model", "use")
)
COST: Final = Metric(
    "counter",
    "sophia_cost",
    "Cost of the devices by use (loading, idle or generating), in the currency of `price_per_hour`.",
    ("model", "use"),
)
KEY_DEVICE: Final = Metric(
    "counter",
    "sophia_key_device_seconds",
    "Device seconds of all attempts, by API key (none: the service needs no key).",
    ("model", "key"),
)
MEMORY: Final = Metric(
    "gauge", "sophia_device_memory_bytes", "Device memory in bytes: used or total.", ("model", "kind")
)

METRICS: Final[tuple[Metric, ...]] = tuple(value for value in globals().values() if isinstance(value, Metric))
"""Every metric, in the order of this file."""


# --- Functions that report values ----------------------------------------------------------------------------------------


class Gauges:
    """The gauges of one process. Ray keeps the last value of a gauge, so `set` writes 0 to each gauge that gets no new value."""

    def __init__(self) -> None:
        self._known: set[tuple[Metric, tuple[str, ...]]] = set()

    def set(self, figures: Figures) -> None:
        """Set each of the gauges, and every other gauge of an earlier call to 0."""
        for metric, values in self._known - figures.keys():
            metric.record(0, **dict(zip(metric.tags, values, strict=True)))
        for (metric, values), figure in figures.items():
            metric.record(figure, **dict(zip(metric.tags, values, strict=True)))
        self._known |= figures.keys()


def queue(jobs: Mapping[str, int], oldest_wait_s: float | None) -> Figures:
    """The queue: number of jobs by state, and the longest wait in seconds (None: no job waits)."""
    return {**{(JOBS, (state,)): count for state, count in jobs.items()}, (OLDEST_WAIT, ()): oldest_wait_s or 0.0}


def fleet(
    workers: Iterable[Seen], wanted: Mapping[str, int], breaker_open: Mapping[str, bool] | None = None
) -> Figures:
    """The workers, and for each model how many are wanted and whether its crash breaker is open."""
    figures: dict[tuple[Metric, tuple[str, ...]], float] = {}
    for seen in workers:
        in_phase = (WORKERS, (seen.model, seen.phase.value))
        figures[in_phase] = figures.get(in_phase, 0) + 1
        if seen.phase.is_starting:
            slowest = (STARTING, (seen.model, seen.phase.value))
            figures[slowest] = max(figures.get(slowest, 0.0), seen.phase_s)
        if seen.phase is WorkerPhase.FAILED:
            failed = (LOAD_FAILED, (seen.model, seen.code))
            figures[failed] = figures.get(failed, 0) + 1
    figures |= {(WANTED, (model,)): count for model, count in wanted.items()}
    return figures | {(BREAKER, (model,)): int(is_open) for model, is_open in (breaker_open or {}).items()}


def paused(models: Mapping[str, bool]) -> Figures:
    """Whether an operator has paused each model."""
    return {(PAUSED, (model,)): int(is_paused) for model, is_paused in models.items()}


def storage(cause: str | None) -> Figures:
    """Why the audio store refuses files; None when it takes them."""
    return {(STORAGE, (cause,)): 1} if cause else {}


def job_started(model: str, waited_s: float) -> None:
    """A worker claimed a job `waited_s` seconds after its submission."""
    ATTEMPTS.record(1, model=model)
    WAIT.record(waited_s, model=model)


def step(model: str, seconds: float) -> None:
    """One denoising step took `seconds`."""
    STEP.record(seconds, model=model)


def job_ended(model: str, outcome: Literal["succeeded", "failed", "stopped"], code: str = "none") -> None:
    """An attempt ended on its worker; `code` is the error code."""
    ENDED.record(1, model=model, outcome=outcome, code=code)


def song_published(model: str, owner: str, timing: Mapping[str, float], audio_s: float) -> None:
    """A job succeeded; `timing` is the job's (`generate_s`, `encode_s`, `gpu_s`), `audio_s` the seconds of all its files."""
    job_ended(model, "succeeded")
    key_device_time(model, owner, timing["gpu_s"])
    STAGE.record(timing["generate_s"], model=model, stage="generate")
    STAGE.record(timing["encode_s"], model=model, stage="encode")
    AUDIO.record(audio_s, model=model)


def phase_ended(model: str, phase: WorkerPhase, seconds: float) -> None:
    """A start-up phase of a worker took `seconds`."""
    PHASE.record(seconds, model=model, phase=phase.value)


def device_time(model: str, use: Use, seconds: float, price_per_hour: float = 0.0) -> None:
    """A worker held its device for another `seconds`; `price_per_hour` is the price of the device."""
    DEVICE.record(seconds, model=model, use=use)
    COST.record(seconds * price_per_hour / 3600, model=model, use=use)


def key_device_time(model: str, owner: str, seconds: float) -> None:
    """An attempt of an API key's job used the device for `seconds`; `owner` is empty where the service needs no key."""
    KEY_DEVICE.record(seconds, model=model, key=owner or "none")


def background(task: str, failing: int) -> None:
    """Whether a background task of this process fails: 1 or 0."""
    BACKGROUND.record(failing, task=task)


def device_memory(model: str, used: int, total: int) -> None:
    """The device's memory in bytes, as the driver reports it."""
    MEMORY.record(used, model=model, kind="used")
    MEMORY.record(total, model=model, kind="total")


@cache
def _made(metric: Metric) -> Any:
    from ray.serve import metrics  # slow to import, and needed in a replica only

    extra = {"boundaries": list(metric.bounds)} if metric.kind == "histogram" else {}
    kind = {"counter": metrics.Counter, "gauge": metrics.Gauge, "histogram": metrics.Histogram}[metric.kind]
    return kind(metric.name, description=metric.meaning, tag_keys=metric.tags, **extra)
