"""Models: checkpoint, placement, scaling, and the crash breaker for loads that fail."""

from typing import Annotated, Final, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, field_validator, model_validator

from serve_app.config.language_model import LanguageModelArgs
from serve_app.config.section import Section
from serve_app.config.sources import EMBEDDED, NOTES, WORDS, checked_source
from serve_app.ray_adapters.label_selectors import selector_text

Variant = Literal["turbo", "base", "sft"]
Thinking = Literal["none", "metadata", "codes"]
"""What a planner does for a song: nothing, its metadata, or its metadata and audio codes."""

LARGEST_SCALE: Final = 10.0
"""The largest scale of an adapter, and the negative of the smallest."""
ADAPTER_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""What an adapter may be called."""


class SimulatedArgs(Section):
    """The engine that sleeps instead of computing, for tests of scheduling and scaling."""

    step_s: float = Field(0.05, ge=0, description="Seconds that one denoising step takes.")
    load_s: float = Field(0.0, ge=0, description="Seconds that loading takes.")
    plan_s: float = Field(0.05, ge=0, description="Seconds that the simulated planner takes for a second of a song.")


class ScalingArgs(Section):
    """How many workers a model has, and the targets that decide it."""

    min_workers: int = Field(
        1,
        ge=0,
        description="Workers that keep running without work (a warm pool). With 0, an idle model has no worker and costs nothing.",
    )
    max_workers: int = Field(
        1,
        ge=1,
        description="The most workers, however many jobs wait. This bounds the cost. On CUDA each worker reserves `num_gpus` of a "
        "GPU.",
    )
    target_wait_s: float = Field(
        60,
        ge=0.1,
        le=86_400,
        description="Seconds that a job may wait for a worker. A larger value needs fewer workers and costs less.",
    )
    idle_s: float = Field(
        300, ge=0, description="Seconds without work after which the model scales down to `min_workers`."
    )
    startup_prior_s: float = Field(
        120,
        gt=0,
        le=86_400,
        description="Assumed seconds until a new worker is ready, including the start of its node. Used until a start has been "
        "measured.",
    )
    work_prior: float = Field(
        0.2,
        gt=0,
        le=1000,
        description="Assumed seconds of work for one second of audio. Used until the model's speed has been measured.",
    )

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.max_workers < self.min_workers:
            raise ValueError(f"max_workers ({self.max_workers}) must not be below min_workers ({self.min_workers})")
        return self


class AdapterArgs(Section):
    """One adapter (LoRA, LoKr or DoRA) of a model: where it comes from, and how strongly it counts."""

    source: str = Field(
        min_length=1,
        description="Where the adapter comes from: a Hugging Face repository id; an object store (`s3://bucket/prefix`, `gs://…`, "
        "`az://…`); or a local folder or .safetensors file, used in place. PEFT folders, ComfyUI's, diffusers' and LyCORIS's files "
        "are read.",
    )
    file: str | None = Field(
        None,
        min_length=1,
        description="Which adapter of the source to use, if it has several: a file such as `violin.safetensors`, or a folder.",
    )
    revision: str | None = Field(
        None, description="The repository's commit, tag or branch. Pin a commit in production."
    )
    scale: float = Field(
        1.0,
        ge=-LARGEST_SCALE,
        le=LARGEST_SCALE,
        description="How strongly the adapter counts in requests that name no scale. 0 is not at all.",
    )


class PlannerArgs(LanguageModelArgs):
    """The planner, a language model that decides about songs before they are rendered."""

    thinking: Thinking = Field(
        "none",
        description="What is planned for requests that do not say it: `none`; `metadata` (tempo, key, time signature, language and "
        "a fuller caption, where the request leaves them open); or `codes`, the same and the audio codes that are rendered.",
    )
    jobs_at_once: int = Field(
        8,
        ge=1,
        le=256,
        description="Jobs that one process plans at the same time, in one batch.",
    )
    placement: Literal["auto", "worker", "own"] = Field(
        "auto",
        description="Where the planner runs: `worker`, in the process and on the device of each worker, while it renders other "
        "songs; `own`, in processes that only plan, with their own device and scale; or `auto`, in the workers if it fits beside "
        "the model, which each of them measures when it has loaded the model, else in processes that only plan.",
    )
    render_reserve_gb: float = Field(
        3.0,
        ge=0,
        allow_inf_nan=False,
        description="With `placement: auto`, the GB of the device's memory that must stay free for rendering when model and "
        "planner are loaded. The following settings are for processes that only plan.",
    )
    num_cpus: float = Field(0.5, gt=0, description="Ray CPUs that a process that only plans reserves.")
    num_gpus: float = Field(
        1, gt=0, le=1, description="The part of a GPU that a process that only plans reserves on CUDA."
    )
    price_per_hour: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="The price per hour of a GPU (on the CPU: of a process) that only plans.",
    )
    scaling: ScalingArgs = ScalingArgs()

    @property
    def is_on(self) -> bool:
        """Whether the model has a planner."""
        return self.source != "none"

    @property
    def may_run_in_workers(self) -> bool:
        """Whether workers load the planner, or try to."""
        return self.is_on and self.placement != "own"

    @property
    def may_run_alone(self) -> bool:
        """Whether the planner has, or may get, processes that only plan."""
        return self.is_on and self.placement != "worker"

    @property
    def follows_workers(self) -> bool:
        """Whether the workers decide, when they have loaded the model, who plans."""
        return self.is_on and self.placement == "auto"


PLANNER_SUFFIX: Final = ":planner"


def planner_stage(model: str) -> str:
    """The name under which processes that only plan are counted: their rows, loads, scale and costs."""
    return f"{model}{PLANNER_SUFFIX}"


class ModelArgs(Section):
    """One model: where its checkpoint comes from, and where and how its workers run."""

    source: str = Field(
        "auto",
        min_length=1,
        description="Where the checkpoint comes from: a Hugging Face repository id; an object store (`s3://bucket/prefix`, "
        "`gs://…`, `az://…`), from which it is copied into the node's cache; a local folder, used in place, or one of ComfyUI's "
        "files; `embedded`, "
        f"which comes with Sophia ({NOTES[EMBEDDED]}), or `embedded-base`, its base variant; "
        "`random` (tiny random weights, which generate noise; tests only); `simulated` (sleeps; tests only); or `auto`, "
        "the released checkpoint if the cluster has a GPU, else `embedded`. A checkpoint in the layout of ACE-Step or ComfyUI is "
        "converted into the cache (docs/CHECKPOINTS.md).",
    )
    revision: str | None = Field(
        None, description="The repository's commit, tag or branch. Pin a commit in production."
    )
    dit: str | None = Field(
        None,
        min_length=1,
        description="Which diffusion model of the source to use, if it has several: a folder such as `acestep-v15-sft`, or a file "
        "such as `diffusion_models/acestep_v1.5_turbo.safetensors`.",
    )
    parts_from: str = Field(
        "ACE-Step/Ace-Step1.5",
        min_length=1,
        description="Where a conversion finds what the source lacks, such as the VAE, the text encoder, its tokenizer or "
        "`silence_latent.pt`: a repository id (also `owner/name@revision`), an object store or a local folder.",
    )
    variant: Variant | None = Field(
        None, description="`turbo`, `base` or `sft`. Without this setting, it is read from the checkpoint."
    )
    device: Literal["auto", "cuda", "cpu"] = Field(
        "auto", description="`cuda`, `cpu`, or `auto`: CUDA if the cluster has a GPU, else the CPU."
    )
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="`bfloat16`, `float32`, or `auto`: bfloat16 on CUDA, float32 on the CPU."
    )
    adapters: dict[Annotated[str, StringConstraints(pattern=ADAPTER_NAME)], AdapterArgs] = Field(
        default_factory=dict,
        description="Adapters that requests may choose with `lora`, by name. `sophia adapters add` adds more without a restart.",
    )
    adapter_memory_mb: int = Field(
        1024, ge=0, description="A worker keeps the adapters that it used last in host memory, up to this many MB."
    )
    scaling: ScalingArgs = ScalingArgs()
    label_selector: dict[str, Annotated[str, BeforeValidator(selector_text)]] = Field(
        default_factory=dict,
        description="Ray node labels that a worker's node must have, e.g. `ray.io/accelerator-type: GeForce-RTX-4090`. A list "
        "allows each of its values; `'!A'` allows every value but A.",
    )
    num_cpus: float = Field(0.5, gt=0, description="Ray CPUs that a worker reserves.")
    cpu_threads: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = Field(
        "auto",
        description="Threads with which a worker on the CPU computes. `auto`: its node's cores, divided by `max_workers`.",
    )
    num_gpus: float = Field(
        1,
        gt=0,
        le=1,
        description="The part of a GPU that a worker reserves on CUDA. With 1, nothing else is placed on its GPU; with 0.5, two "
        "workers share one.",
    )
    price_per_hour: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="The price of a GPU per hour (on the CPU: of a worker), in your currency. `sophia cost` and `/v1/health` "
        "compute from it what songs cost.",
    )
    planner: PlannerArgs = PlannerArgs()
    simulated: SimulatedArgs = SimulatedArgs()

    @field_validator("source")
    @classmethod
    def _known_source(cls, source: str) -> str:
        return checked_source(source, WORDS)

    @field_validator("parts_from")
    @classmethod
    def _known_parts_from(cls, source: str) -> str:
        return checked_source(source)


class BreakerArgs(Section):
    """When Sophia retries a load that failed, and when it stops trying."""

    open_after: int = Field(
        3,
        ge=1,
        description="The breaker opens after the same load failure this many times in a row: on one host if the cause is that "
        "host's, else for the model everywhere. No more workers start there until `sophia reset MODEL` or a deploy with a "
        "changed configuration; a host also gets trial loads (see `trial_s`). Running workers continue.",
    )
    backoff_s: float = Field(
        5,
        ge=0,
        description="Seconds before a node retries after its first failed load. Doubled after each further failure.",
    )
    max_backoff_s: float = Field(300, ge=0, description="The longest wait in seconds before such a retry.")
    trial_s: float = Field(
        1800,
        gt=0,
        description="Seconds after a host's last failed load until the host tries one more, where the breaker is open for that "
        "host alone. If the load succeeds, the breaker closes; if not, the host waits as long again.",
    )
    hang_s: float = Field(600, ge=1, description="Seconds without progress after which a load is reported as hung.")
