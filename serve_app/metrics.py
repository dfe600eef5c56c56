"""Every metric of Sophia: the one list that dashboards, alert rules and documents draw on.

Ray exports them on each node's metrics port as `ray_` + the name; a counter gets `_total`, a histogram `_bucket`, `_sum` and
`_count`. Inside Serve they carry the tags `application`, `deployment` and `replica` beside their own. Nothing is made before the
first figure, and nothing at all outside Ray: importing this, or calling it from a plain program, costs nothing.

Three habits of Ray 2.60 shape the list. A process's figures leave it every 10 s, so what kills a process cannot be counted in it:
failed loads are told by the API. A counter cannot be set to 0, so each worker's first figure is lost to `increase()`. A
histogram's `_sum` is made of the middles of its buckets, so means are never taken from it: where a sum matters there is a counter.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

import ray

from serve_app.jobs import WorkerPhase

Kind = Literal["counter", "gauge", "histogram"]
Use = Literal["loading", "idle", "generating"]
"""What a worker's device time went into."""


@dataclass(frozen=True)
class Metric:
    """One metric. `bounds` are a histogram's upper bounds, in its unit."""

    kind: Kind
    name: str
    meaning: str
    tags: tuple[str, ...] = ("model",)
    bounds: tuple[float, ...] = ()

    @property
    def exported(self) -> frozenset[str]:
        """The names under which Prometheus finds it."""
        ends = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}[self.kind]
        return frozenset(f"ray_{self.name}{end}" for end in ends)

    def record(self, value: float, **tags: str) -> None:
        """Count, set or observe `value` with all of the metric's tags; does nothing outside Ray."""
        if not ray.is_initialized() or (self.kind == "counter" and value <= 0):
            return
        method = {"counter": "inc", "gauge": "set", "histogram": "observe"}[self.kind]
        getattr(_made(self), method)(value, tags)


Figures = Mapping[tuple[Metric, tuple[str, ...]], float]
"""Gauges to set: a metric and the values of its tags, in their order."""


@dataclass(frozen=True)
class Seen:
    """One worker as an API process sees it: `phase_s` is how long it has been in its phase, `code` its last error's."""

    model: str
    phase: WorkerPhase
    phase_s: float
    code: str = "none"


_SECONDS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
_STEP_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

# --- The queue, told by the API processes: each tells the same figures, so a query takes max() over them ----------------

JOBS: Final = Metric("gauge", "sophia_jobs", "Jobs by state (all that the store still holds).", ("state",))
OLDEST_WAIT: Final = Metric(
    "gauge", "sophia_oldest_wait_seconds", "Seconds that the longest-waiting job has waited.", ()
)
WORKERS: Final = Metric("gauge", "sophia_workers", "Workers by model and phase.", ("model", "phase"))
WANTED: Final = Metric("gauge", "sophia_workers_wanted", "Workers that are asked for.")
STARTING: Final = Metric(
    "gauge",
    "sophia_starting_seconds",
    "Seconds that the slowest worker has been in a start-up phase.",
    ("model", "phase"),
)
LOAD_FAILED: Final = Metric(
    "gauge",
    "sophia_load_failures",
    "Workers that failed to load in the last minutes, by the error's code.",
    ("model", "code"),
)
BREAKER: Final = Metric(
    "gauge", "sophia_breaker_open", "1 while a model's crash breaker is open, so that no worker is started; else 0."
)
PAUSED: Final = Metric("gauge", "sophia_paused", "1 while an operator has paused a model (`sophia pause`); else 0.")
STORAGE: Final = Metric(
    "gauge",
    "sophia_audio_store_failing",
    "1 while an API process or a worker cannot store songs, by cause: full, missing, refused, read_only or away; else 0.",
    ("cause",),
)
BACKGROUND: Final = Metric(
    "gauge",
    "sophia_background_failing",
    "1 while a background task of a process fails or has ended by itself, so that its work is left undone; else 0.",
    ("task",),
)

# --- Jobs, told by the worker that ran them ------------------------------------------------------------------------------

ATTEMPTS: Final = Metric(
    "counter", "sophia_attempts", "Starts of jobs; more than the jobs that ended when some ran again."
)
ENDED: Final = Metric(
    "counter",
    "sophia_jobs_ended",
    "Attempts that ended on a worker, by outcome: succeeded, failed or stopped; `code` is the error's.",
    ("model", "outcome", "code"),
)
WAIT: Final = Metric("histogram", "sophia_wait_seconds", "From submission to the start of an attempt.", bounds=_SECONDS)
STAGE: Final = Metric(
    "histogram",
    "sophia_stage_seconds",
    "Where a succeeded job's time went: generate (conditioning, denoising, decoding) or encode (encoding and storing).",
    ("model", "stage"),
    _SECONDS,
)
STEP: Final = Metric("histogram", "sophia_step_seconds", "Time of one denoising step.", bounds=_STEP_SECONDS)
AUDIO: Final = Metric("counter", "sophia_audio_seconds", "Seconds of finished audio, all variations.")

# --- Workers and what they cost ------------------------------------------------------------------------------------------

PHASE: Final = Metric("histogram", "sophia_startup_seconds", "Time of a start-up phase.", ("model", "phase"), _SECONDS)
DEVICE: Final = Metric(
    "counter", "sophia_device_seconds", "Device seconds by use: loading, idle or generating.", ("model", "use")
)
COST: Final = Metric(
    "counter", "sophia_cost", "Money by use, in the currency of the configured price.", ("model", "use")
)
KEY_DEVICE: Final = Metric(
    "counter",
    "sophia_key_device_seconds",
    "Device seconds of all attempts, by the API key that asked for them (none: no key was needed).",
    ("model", "key"),
)
MEMORY: Final = Metric("gauge", "sophia_device_memory_bytes", "Device memory: used or total.", ("model", "kind"))

METRICS: Final[tuple[Metric, ...]] = tuple(value for value in globals().values() if isinstance(value, Metric))
"""All of them, in the order of this file."""


# --- What the parts of Sophia call ---------------------------------------------------------------------------------------


class Board:
    """The gauges of one API process. A gauge stays at its last value, so what was told before and is not any more becomes 0."""

    def __init__(self) -> None:
        self._told: set[tuple[Metric, tuple[str, ...]]] = set()

    def tell(self, figures: Figures) -> None:
        """Set each gauge, by its metric and the values of its tags in their order."""
        for metric, values in self._told - figures.keys():
            metric.record(0, **dict(zip(metric.tags, values, strict=True)))
        for (metric, values), figure in figures.items():
            metric.record(figure, **dict(zip(metric.tags, values, strict=True)))
        self._told |= figures.keys()


def queue(jobs: Mapping[str, int], oldest_wait_s: float | None) -> Figures:
    """The queue as it is now: jobs by state, and the longest wait in seconds (None: nobody waits)."""
    return {**{(JOBS, (state,)): count for state, count in jobs.items()}, (OLDEST_WAIT, ()): oldest_wait_s or 0.0}


def fleet(
    workers: Iterable[Seen], wanted: Mapping[str, int], breaker_open: Mapping[str, bool] | None = None
) -> Figures:
    """The workers as they are now; for each model how many are wanted, and whether its crash breaker is open."""
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
    """Why nothing can be stored now; None when all is well."""
    return {(STORAGE, (cause,)): 1} if cause else {}


def job_started(model: str, waited_s: float) -> None:
    """A worker took a job that had waited `waited_s` seconds since it was submitted."""
    ATTEMPTS.record(1, model=model)
    WAIT.record(waited_s, model=model)


def step(model: str, seconds: float) -> None:
    """One denoising step took so long."""
    STEP.record(seconds, model=model)


def job_ended(model: str, outcome: Literal["succeeded", "failed", "stopped"], code: str = "none") -> None:
    """An attempt ended on its worker; `code` is the error's."""
    ENDED.record(1, model=model, outcome=outcome, code=code)


def song_published(model: str, owner: str, timing: Mapping[str, float], audio_s: float) -> None:
    """A job succeeded; `timing` is the job's (`generate_s`, `encode_s`, `gpu_s`), `audio_s` the seconds of all its files."""
    job_ended(model, "succeeded")
    key_device_time(model, owner, timing["gpu_s"])
    STAGE.record(timing["generate_s"], model=model, stage="generate")
    STAGE.record(timing["encode_s"], model=model, stage="encode")
    AUDIO.record(audio_s, model=model)


def phase_ended(model: str, phase: WorkerPhase, seconds: float) -> None:
    """A start-up phase of a worker took so long."""
    PHASE.record(seconds, model=model, phase=phase.value)


def device_time(model: str, use: Use, seconds: float, price_per_hour: float = 0.0) -> None:
    """A worker held its device for `seconds` more; `price_per_hour` is what the device costs."""
    DEVICE.record(seconds, model=model, use=use)
    COST.record(seconds * price_per_hour / 3600, model=model, use=use)


def key_device_time(model: str, owner: str, seconds: float) -> None:
    """An attempt at a job of an API key took the device for so long; `owner` is empty where nobody needs a key."""
    KEY_DEVICE.record(seconds, model=model, key=owner or "none")


def background(task: str, failing: int) -> None:
    """1 when a background task of this process fails, 0 when it works (again)."""
    BACKGROUND.record(failing, task=task)


def device_memory(model: str, used: int, total: int) -> None:
    """The device's memory in bytes, as the driver has it."""
    MEMORY.record(used, model=model, kind="used")
    MEMORY.record(total, model=model, kind="total")


@cache
def _made(metric: Metric) -> Any:
    from ray.serve import metrics  # here: it is slow to import, and of use in a replica only

    extra = {"boundaries": list(metric.bounds)} if metric.kind == "histogram" else {}
    kind = {"counter": metrics.Counter, "gauge": metrics.Gauge, "histogram": metrics.Histogram}[metric.kind]
    return kind(metric.name, description=metric.meaning, tag_keys=metric.tags, **extra)
