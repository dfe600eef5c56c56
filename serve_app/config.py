"""Every setting of Sophia, its default and its meaning: `args:` in serve_config.yaml, overridden by `SOPHIA_…` variables.

`SOPHIA_DATA_DIR` sets `data_dir`; `SOPHIA_API__REPLICAS` sets `replicas` in `api`. A variable beats the file, so that one
file serves several machines. Secrets (a database password) belong in the environment or in a file in `SOPHIA_SECRETS_DIR`
named like the variable, never in the YAML.
"""

import base64
import os
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from serve_app.ray_adapters.label_selectors import selector_text

Variant = Literal["turbo", "base", "sft"]


_WEBHOOK_PREFIX: Final = "whsec_"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class SimulatedArgs(_Strict):
    """The engine that sleeps instead of computing, for tests of scheduling and scaling."""

    step_s: float = Field(0.05, ge=0, description="Seconds that one denoising step takes.")
    load_s: float = Field(0.0, ge=0, description="Seconds that loading takes.")


class ScalingArgs(_Strict):
    """The bounds within which a model's workers are scaled, and what they are for."""

    min_workers: int = Field(
        1,
        ge=0,
        description="Workers that are kept even when there is no work: a warm pool. 0: none are, and an idle model costs nothing.",
    )
    max_workers: int = Field(
        1,
        ge=1,
        description="The most workers, whatever waits: what bounds the bill. Each has a GPU of its own on CUDA (see num_gpus).",
    )
    target_wait_s: float = Field(
        60, ge=0.1, le=86_400, description="Seconds that a job may wait for a worker. Longer is cheaper."
    )
    idle_s: float = Field(
        300, ge=0, description="Seconds without any work after which only min_workers are kept, usually none."
    )
    startup_prior_s: float = Field(
        120,
        gt=0,
        le=86_400,
        description="Seconds until a new worker is ready, node included, as long as none was measured.",
    )
    work_prior: float = Field(
        0.2, gt=0, le=1000, description="Seconds of work for a second of audio, as long as none was measured."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_workers < self.min_workers:
            raise ValueError(f"max_workers ({self.max_workers}) is below min_workers ({self.min_workers})")
        return self


class ModelArgs(_Strict):
    """One model: where its checkpoint comes from and where it runs."""

    source: str = Field(
        "auto",
        min_length=1,
        description="A Hugging Face repository id, an object store (`s3://bucket/prefix`, `gs://…`, `az://…`; fetched into the "
        "node's cache), a local folder (used in place), `embedded` (tiny random weights: noise, for trying Sophia "
        "out), `simulated` (sleeps; tests only), or `auto`: the released checkpoint when the cluster has a GPU, else `embedded`.",
    )
    revision: str | None = Field(
        None, description="The repository's commit, tag or branch. Pin a commit in production."
    )
    variant: Variant | None = Field(
        None, description="turbo, base or sft; read from the checkpoint when it is not given."
    )
    device: Literal["auto", "cuda", "cpu"] = Field(
        "auto", description="`auto`: CUDA when the cluster has a GPU, else the CPU."
    )
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="`auto`: bfloat16 on CUDA, float32 on the CPU."
    )
    scaling: ScalingArgs = ScalingArgs()
    label_selector: dict[str, Annotated[str, BeforeValidator(selector_text)]] = Field(
        default_factory=dict,
        description="Ray node labels that a worker's node must have, e.g. `ray.io/accelerator-type: GeForce-RTX-4090`; with a list "
        "of values, one of them; with `'!A'`, any other than A.",
    )
    num_cpus: float = Field(0.5, gt=0, description="Ray CPUs that a worker reserves.")
    num_gpus: float = Field(
        1,
        gt=0,
        le=1,
        description="What a worker reserves of a GPU on CUDA: all of it, so that nobody else is put there. 0.5: two share one.",
    )
    price_per_hour: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="What a GPU (on the CPU: a worker) costs an hour, in your currency; `sophia cost` and health tell songs' cost.",
    )
    simulated: SimulatedArgs = SimulatedArgs()


class ApiArgs(_Strict):
    """The HTTP side."""

    replicas: int = Field(1, ge=1, description="API processes.")
    num_cpus: float = Field(0.1, gt=0, description="Ray CPUs that an API process reserves.")
    threads: int = Field(
        16, ge=1, le=256, description="Threads of an API process for calls of the database; further calls wait for one."
    )
    ready_timeout_s: float = Field(
        3, gt=0, le=60, description="Seconds after which /readyz answers 503 when the database says nothing."
    )
    max_ongoing: int = Field(
        2000,
        ge=20,
        le=10_000,
        description="Requests that an API process has under way at once; more get 429. Seven in ten may wait or follow, one in "
        "ten is kept for probes.",
    )
    waits_per_key: int = Field(
        500,
        ge=1,
        description="Requests of one API key that wait for a song at once (`/v1/music`, `Prefer: wait`); more get 429.",
    )
    streams_per_key: int = Field(1000, ge=1, description="Event streams of one API key at once; more get 429.")
    download_bytes: int = Field(
        2_000_000_000,
        ge=1,
        description="Bytes of files that an API process has under way to readers at once: what they have not read, Serve holds in "
        "memory, then on disk. A further download gets 429. One file always has room.",
    )
    download_bytes_per_key: int = Field(
        500_000_000,
        ge=1,
        description="The part of `download_bytes` that one API key may have. One file always has room.",
    )
    requests_per_s: float = Field(200, gt=0, description="Requests a second of one API key, on average; more get 429.")
    request_burst: int = Field(2000, ge=1, description="Requests that an API key may make at once after a rest.")
    allowed_hosts: list[str] = Field(
        [],
        description="Host names, besides those of this machine, to which Sophia answers while nobody needs an API key. With keys "
        "every name is answered.",
    )
    max_body_bytes: int = Field(1_048_576, ge=1024, description="Largest request body in bytes; a larger one gets 413.")
    body_timeout_s: float = Field(
        30, gt=0, le=600, description="Seconds within which a request's body must have come; a slower one gets 408."
    )


class AuthArgs(_Strict):
    """Who may call."""

    mode: Literal["auto", "keys", "none"] = Field(
        "auto",
        description="`keys`: every call needs an API key. `none`: nobody does, wherever Sophia listens. `auto`: beyond "
        "loopback addresses every call needs a key, on them only while there is one.",
    )
    operators: list[str] = Field(
        [],
        description="Names of the API keys that see everything in `/v1/health`: other keys' job ids and what songs cost. A key "
        "that is the only one does, too.",
    )


class EncodingArgs(_Strict):
    """How a worker makes its songs into files, in processes beside the one that generates."""

    processes: int | None = Field(
        None, ge=1, le=64, description="Encoder processes of a worker. Left out: one for each of its cores, at most 4."
    )
    audio_in_hand_s: float = Field(
        1200,
        gt=0,
        description="Seconds of finished audio that a worker holds until it is stored, 23 MB a minute; then the device waits. One "
        "song always has room.",
    )


class QueueArgs(_Strict):
    """How jobs are held and tried again."""

    lease_s: float = Field(
        15, ge=1, le=3600, description="Seconds without a heartbeat after which a worker's job is given to another."
    )
    max_attempts: int = Field(
        3, ge=1, le=100, description="How often a job is started before it fails as `worker_lost`."
    )
    run_limit_s: float = Field(
        3600,
        ge=1,
        description="Seconds that one attempt may run before the job fails as `run_limit_exceeded`; draining waits as long.",
    )
    default_deadline_s: float = Field(
        3600, ge=1, description="Seconds from submission to the end, for jobs that name none."
    )
    max_owner_jobs: int = Field(
        5000,
        ge=1,
        description="Jobs that one API key may have waiting; one more gets 429. A catalogue's worth, which a program in a loop "
        "passes within a minute.",
    )
    max_owner_audio_s: float = Field(
        500_000,
        ge=4800,  # the longest request: 8 variations of 600 s
        description="Seconds of audio that one API key may have waiting; beyond it gets 429. 139 hours, about a day of one "
        "consumer GPU's work.",
    )
    max_owner_webhooks: int = Field(
        5000,
        ge=1,
        description="Webhooks of one API key that may be on their way; with so many, a job that names a `webhook_url` gets 429. "
        "Those of jobs that wait already come on top.",
    )
    max_jobs: int = Field(
        50_000,
        ge=1,
        description="Jobs that may wait in all; one more gets 429. Ten keys' worth; keys that submit in the same instant may "
        "pass it by one job each.",
    )


class WebhookArgs(_Strict):
    """How clients' servers are told that a job has ended. Off until `webhook_secret` is set."""

    allow_private: bool = Field(
        False,
        description="Send to private, loopback and other internal addresses, too. Only where every client is trusted: it lets "
        "them reach what this machine reaches.",
    )
    retries_s: list[Annotated[float, Field(gt=0, le=604_800)]] = Field(
        # about what the Standard Webhooks specification advises, over 17 hours
        [5, 30, 120, 600, 3600, 10_800, 18_000, 28_800],
        max_length=20,
        description="Seconds to wait before each further attempt; after the last one the delivery has failed.",
    )
    timeout_s: float = Field(15, gt=0, le=60, description="Seconds that one attempt may take in all.")
    per_receiver: int = Field(
        2,
        ge=1,
        description="Attempts at one time to one host, by its name and by its address, whatever the port; each API process makes 8 "
        "in all.",
    )
    per_owner: int = Field(4, ge=1, description="Of the 8 attempts of an API process, those for one API key at most.")


class RetentionArgs(_Strict):
    """What is kept for how long."""

    results_s: float = Field(
        604_800, ge=0, description="Seconds after its end that a job's audio is kept; the job stays, without it."
    )
    rows_s: float = Field(
        2_592_000,
        ge=0,
        description="Seconds after its end that a job is kept; then it is forgotten, with its audio. Accounts are kept as long.",
    )
    orphans_s: float = Field(
        86_400,
        ge=0,
        description="Age in seconds from which a file that belongs to no job is removed. After the database was restored from a "
        "backup, what was made since then belongs to no job.",
    )
    orphans_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="The share of all files that may be removed as belonging to no job at a time; 10 files always may. When "
        "there are more, none is removed until `sophia artifacts sweep --confirm`.",
    )
    expiry_share: float = Field(
        0.1,
        gt=0,
        le=1,
        description="The share of all songs, and of all ended jobs, that may go in one round because their time is over; 100 "
        "always may. When there are more, a round comes once an hour, and `/v1/health` says so, until all are gone "
        "or `sophia artifacts expire --confirm`: a wrong clock or a slip in `results_s` costs that much and not everything.",
    )


class DatabaseArgs(_Strict):
    """How long a silent PostgreSQL is waited for, and how many connections a process opens. SQLite needs none of it."""

    connect_s: int = Field(5, ge=2, le=60, description="Seconds that opening a connection to PostgreSQL may take.")
    statement_s: float = Field(
        15,
        ge=1,
        le=600,
        description="Seconds that a statement may take, its wait for another's lock included, before PostgreSQL ends it.",
    )
    silent_s: float = Field(
        5,
        ge=1,
        le=60,
        description="Seconds without a word from PostgreSQL, beyond statement_s, after which a connection is given up.",
    )
    pool_size: int = Field(
        8,
        ge=1,
        le=100,
        description="Connections to PostgreSQL that an API process keeps. One more listens.",
    )
    pool_overflow: int = Field(
        8, ge=0, le=100, description="Connections that it opens besides in a rush, and closes when they are not needed."
    )
    worker_pool_size: int = Field(
        3, ge=2, le=100, description="The most connections to PostgreSQL that a worker opens. One more listens."
    )

    @property
    def of_a_worker(self) -> Self:
        """The same for a worker, of which there are many."""
        return self.model_copy(update={"pool_size": self.worker_pool_size, "pool_overflow": 0})

    @property
    def answer_s(self) -> float:
        """Seconds within which every statement has an answer, or its connection is given up."""
        return self.statement_s + self.silent_s


class BreakerArgs(_Strict):
    """When a model that cannot be loaded is left alone."""

    open_after: int = Field(
        3,
        ge=1,
        description="The same failure so often in a row starts no more workers on that host, or anywhere when the cause is the "
        "model's, until `sophia reset MODEL` or a deploy with a changed configuration; a host has trials, see trial_s. "
        "Workers that work go on.",
    )
    backoff_s: float = Field(
        5, ge=0, description="Seconds before a node tries again after its first failure; doubled each time."
    )
    max_backoff_s: float = Field(300, ge=0, description="The longest such pause in seconds.")
    trial_s: float = Field(
        1800,
        gt=0,
        description="Seconds after its last failure when a host that was left alone for a cause of its own tries one more load. "
        "If it works the breaker closes, else it stays open for as long again.",
    )
    hang_s: float = Field(600, ge=1, description="A load without any progress for so many seconds is reported as hung.")


def _default_data_dir() -> Path:
    return Path.home() / ".sophia"


class AppArgs(BaseSettings):
    """The whole configuration of one Sophia application."""

    model_config = SettingsConfigDict(
        extra="forbid",
        hide_input_in_errors=True,  # a value in the wrong place may be a password
        env_prefix="SOPHIA_",
        env_nested_delimiter="__",
        secrets_dir=os.environ.get("SOPHIA_SECRETS_DIR"),
        validate_default=True,
    )

    data_dir: Path = Field(
        default_factory=_default_data_dir,
        description="Where the local database, audio and checkpoints lie. Absolute, as Ray's processes start elsewhere.",
    )
    database_url: SecretStr | None = Field(
        None,
        description="`postgresql://user:password@host/name` for several nodes; SQLite in `data_dir` when not given.",
    )
    artifacts_url: str | None = Field(
        None,
        description="`s3://bucket/prefix`, `gs://…`, `az://…` or `file:///folder`; `data_dir`/audio when not given.",
    )
    webhook_secret: SecretStr | None = Field(
        None,
        description="Signs webhooks: `whsec_` and 24 to 64 random bytes in base64; none, no webhooks. Two of them, with a space "
        "between, sign both, while receivers change from one to the other.",
    )
    models: dict[str, ModelArgs] = Field(default_factory=lambda: {"ace-step": ModelArgs()}, min_length=1)
    default_model: str | None = Field(
        None, description="The model of requests that name none; the first one when not given."
    )
    cluster_name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="This cluster's name among the clusters that share one database; no two may have the same. Ray's own id of the "
        "cluster when not given, which is another after its head started again.",
    )
    api: ApiArgs = ApiArgs()
    auth: AuthArgs = AuthArgs()
    queue: QueueArgs = QueueArgs()
    encoding: EncodingArgs = EncodingArgs()
    webhooks: WebhookArgs = WebhookArgs()
    retention: RetentionArgs = RetentionArgs()
    database: DatabaseArgs = DatabaseArgs()
    breaker: BreakerArgs = BreakerArgs()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment beats secret files, which beat the YAML."""
        return env_settings, file_secret_settings, init_settings

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, folder: Path) -> Path:
        folder = folder.expanduser()
        if not folder.is_absolute():
            raise ValueError("data_dir must be an absolute path or start with ~")
        return folder

    @field_validator("webhook_secret")
    @classmethod
    def _signs(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None:
            _webhook_keys(secret.get_secret_value())
        return secret

    @model_validator(mode="after")
    def _default_model_is_served(self) -> Self:
        if self.default_model is None:
            self.default_model = next(iter(self.models))
        if self.default_model not in self.models:
            raise ValueError(f"default_model is not among the models {sorted(self.models)}")
        return self

    @property
    def resolved_database_url(self) -> str:
        """The database's address, SQLite in `data_dir` by default."""
        if self.database_url is None:
            return f"sqlite:///{self.data_dir / 'sophia.db'}"
        return self.database_url.get_secret_value()

    @property
    def webhook_keys(self) -> tuple[bytes, ...]:
        """What webhooks are signed with, the current key first; empty where there are none."""
        return _webhook_keys(self.webhook_secret.get_secret_value()) if self.webhook_secret else ()

    @property
    def resolved_artifacts_url(self) -> str:
        """The artifact store's address, a folder in `data_dir` by default."""
        return self.artifacts_url or (self.data_dir / "audio").as_uri()


def _webhook_keys(secret: str) -> tuple[bytes, ...]:
    """The keys in `webhook_secret`. Raises ValueError, which does not repeat it."""
    try:
        keys = tuple(base64.b64decode(part.removeprefix(_WEBHOOK_PREFIX), validate=True) for part in secret.split())
    except ValueError:
        keys = ()
    if not keys or not all(24 <= len(key) <= 64 for key in keys):  # the specification's bounds
        raise ValueError("webhook_secret must be whsec_ followed by 24 to 64 random bytes in base64")
    return keys


def setting_rows(model: type[BaseModel] = AppArgs, prefix: str = "") -> list[tuple[str, str, str]]:
    """(name, default, meaning) of every setting: docs/SETTINGS.md is written and checked from it."""
    rows: list[tuple[str, str, str]] = []
    for name, field in model.model_fields.items():
        kind: Any = field.annotation
        if name == "models":
            rows += setting_rows(ModelArgs, f"{prefix}models.NAME.")
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            rows += setting_rows(kind, f"{prefix}{name}.")
        else:
            default = field.get_default(call_default_factory=True, validated_data={})
            shown = "~/.sophia" if name == "data_dir" else "" if default in (None, {}) else str(default)
            rows.append((f"{prefix}{name}", shown, field.description or ""))
    return rows
