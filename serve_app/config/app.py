"""The whole configuration of a Sophia application."""

import os
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from serve_app.config.api import ApiArgs, AuthArgs
from serve_app.config.database import DatabaseArgs
from serve_app.config.inputs import InputArgs
from serve_app.config.jobs import EncodingArgs, QueueArgs, RetentionArgs
from serve_app.config.models import PLANNER_SUFFIX, BreakerArgs, ModelArgs, ScalingArgs, planner_stage
from serve_app.config.webhooks import WebhookArgs, decode_keys


def _default_data_dir() -> Path:
    return Path.home() / ".sophia"


class AppArgs(BaseSettings):
    """The whole configuration of one Sophia application."""

    model_config = SettingsConfigDict(
        extra="forbid",
        hide_input_in_errors=True,  # a misplaced value may be a password
        env_prefix="SOPHIA_",
        env_nested_delimiter="__",
        secrets_dir=os.environ.get("SOPHIA_SECRETS_DIR"),
        validate_default=True,
    )

    data_dir: Path = Field(
        default_factory=_default_data_dir,
        description="The folder of the local database, audio and checkpoints. It must be absolute, because Ray starts processes "
        "in other folders.",
    )
    database_url: SecretStr | None = Field(
        None,
        description="`postgresql://user:password@host/name`; several nodes need it. Without this setting, SQLite in `data_dir`.",
    )
    artifacts_url: str | None = Field(
        None,
        description="Where audio is stored: `s3://bucket/prefix`, `gs://…`, `az://…` or `file:///folder`. Without this setting, "
        "`data_dir`/audio.",
    )
    webhook_secret: SecretStr | None = Field(
        None,
        description="The key that signs webhooks: `whsec_` and 24 to 64 random bytes in base64. Without it, webhooks are off. Two "
        "keys, separated by a space, both sign, so that receivers can change from one to the other.",
    )
    models: dict[str, ModelArgs] = Field(default_factory=lambda: {"ace-step": ModelArgs()}, min_length=1)
    default_model: str | None = Field(
        None, description="The model for requests that name none. Without this setting, the first one."
    )
    cluster_name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="This cluster's name. Clusters that share a database must have different names. Without this setting, Ray's "
        "own id of the cluster, which changes when the cluster's head restarts.",
    )
    api: ApiArgs = ApiArgs()
    auth: AuthArgs = AuthArgs()
    queue: QueueArgs = QueueArgs()
    encoding: EncodingArgs = EncodingArgs()
    inputs: InputArgs = InputArgs()
    webhooks: WebhookArgs = WebhookArgs()
    retention: RetentionArgs = RetentionArgs()
    database: DatabaseArgs = DatabaseArgs()
    breaker: BreakerArgs = BreakerArgs()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic-settings fixes the signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the same
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment takes precedence over secret files, and these over the YAML."""
        return env_settings, file_secret_settings, init_settings

    @field_validator("data_dir")
    @classmethod
    def _expand_data_dir(cls, folder: Path) -> Path:
        folder = folder.expanduser()
        if not folder.is_absolute():
            raise ValueError("must be an absolute path or start with ~")
        return folder

    @field_validator("webhook_secret")
    @classmethod
    def _check_webhook_secret(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None:
            decode_keys(secret.get_secret_value())
        return secret

    @model_validator(mode="after")
    def _settle_default_model(self) -> Self:
        if self.default_model is None:
            self.default_model = next(iter(self.models))
        if self.default_model not in self.models:
            raise ValueError(f"default_model is not among the models {sorted(self.models)}")
        return self

    @field_validator("models")
    @classmethod
    def _check_names(cls, models: dict[str, ModelArgs]) -> dict[str, ModelArgs]:
        for name in models:
            if name.endswith(PLANNER_SUFFIX):
                raise ValueError(f"models: {name!r} must not end in {PLANNER_SUFFIX!r}, which names a model's planners")
        return models

    @model_validator(mode="after")
    def _check_runpod_endpoints(self) -> Self:
        for model in self.api.runpod_endpoints.values():
            if model not in self.models:
                raise ValueError(f"api.runpod_endpoints: {model!r} is not among the models {sorted(self.models)}")
        return self

    @property
    def resolved_database_url(self) -> str:
        """The database's URL; by default SQLite in `data_dir`."""
        if self.database_url is None:
            return f"sqlite:///{self.data_dir / 'sophia.db'}"
        return self.database_url.get_secret_value()

    @property
    def stages(self) -> dict[str, ScalingArgs]:
        """The scale of each kind of process with a device: the workers of each model, and processes that only plan.

        Of those that the workers must ask for first, none is wanted without being asked.
        """
        found = {name: model.scaling for name, model in self.models.items()}
        for name, model in self.models.items():
            planner = model.planner
            if planner.may_run_alone:
                changes = {"min_workers": 0} if planner.follows_workers else {}
                found[planner_stage(name)] = planner.scaling.model_copy(update=changes)
        return found

    def settings_of(self, stage: str) -> ModelArgs | None:
        """The settings of a stage: for processes that only plan, their model's with the resources and price of the planner."""
        model = self.models.get(stage.removesuffix(PLANNER_SUFFIX))
        if model is None or stage in self.models:
            return model
        alone = {name: getattr(model.planner, name) for name in ("num_cpus", "num_gpus", "price_per_hour", "scaling")}
        return model.model_copy(update=alone)

    @property
    def webhook_keys(self) -> tuple[bytes, ...]:
        """The keys that sign webhooks, the current one first; empty if webhooks are off."""
        return decode_keys(self.webhook_secret.get_secret_value()) if self.webhook_secret else ()

    @property
    def weights_dir(self) -> Path:
        """The folder in which this node caches checkpoints."""
        return self.data_dir / "weights"

    @property
    def resolved_artifacts_url(self) -> str:
        """The audio store's URL; by default a folder in `data_dir`."""
        return self.artifacts_url or (self.data_dir / "audio").as_uri()
