"""Every setting of Sophia, its default and its meaning; one file for each group of sections.

Settings come from `args:` in serve_config.yaml and from `SOPHIA_…` environment variables, which take precedence, so that one
file serves several machines. `SOPHIA_DATA_DIR` sets `data_dir`; `SOPHIA_API__REPLICAS` sets `replicas` in the section `api`.
Secrets such as a database password belong in the environment or in a file in `SOPHIA_SECRETS_DIR` that is named like the
variable, never in the YAML.
"""

from serve_app.config.api import ApiArgs, AuthArgs
from serve_app.config.app import AppArgs
from serve_app.config.database import DatabaseArgs
from serve_app.config.inputs import InputArgs
from serve_app.config.jobs import EncodingArgs, QueueArgs, RetentionArgs
from serve_app.config.models import (
    AdapterArgs,
    BreakerArgs,
    ModelArgs,
    PlannerArgs,
    ScalingArgs,
    SimulatedArgs,
    Thinking,
    Variant,
    planner_stage,
)
from serve_app.config.webhooks import WebhookArgs

__all__ = [
    "AdapterArgs",
    "ApiArgs",
    "AppArgs",
    "AuthArgs",
    "BreakerArgs",
    "DatabaseArgs",
    "EncodingArgs",
    "InputArgs",
    "ModelArgs",
    "PlannerArgs",
    "QueueArgs",
    "RetentionArgs",
    "ScalingArgs",
    "SimulatedArgs",
    "Thinking",
    "Variant",
    "WebhookArgs",
    "planner_stage",
]
