"""What a family of foreign clients consists of."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter

from serve_app.api.context import Context
from serve_app.api.problems import ErrorShape
from serve_app.background.webhook_sender import WebhookForm


@dataclass(frozen=True, slots=True)
class Family:
    """The routes of another service's API, and how its clients expect errors and webhooks.

    The routes call what the native routes call: `identify_caller`, `submit` or `finished_job`, and the store. A family has
    tables of names and shapes, and no jobs, checks or keys of its own.
    """

    router: APIRouter
    prefixes: tuple[str, ...]
    """The beginnings of the family's paths. Every error under them has the family's shape, also one of an unknown route."""
    error_shape: ErrorShape
    webhook: Callable[[Context], WebhookForm] | None = None
    """How its jobs' webhooks are sent; None: as native ones."""
    multipart_paths: tuple[str, ...] = ()
    """The paths whose multipart bodies may have recordings, and so may be larger than other bodies."""
    base64_paths: tuple[str, ...] = ()
    """The same for JSON that has recordings as base64."""


def leave_out_none(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None}
