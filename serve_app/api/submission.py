"""Submitting a job. Every route that adds a job to the queue calls `submit`."""

import secrets
from collections.abc import Iterable, Iterator
from typing import Final

from serve_app.api.context import Context
from serve_app.background.webhook_sender import check_url
from serve_app.config import AppArgs
from serve_app.errors import InvalidRequest, WrongField
from serve_app.jobs import Job
from serve_app.music import MAX_SEED, MusicRequest
from serve_app.store.jobs import fingerprint

NOT_BLANK: Final = r"^[^\x00]*[^\s\x00][^\x00]*$"
"""A prompt must not be blank. `MusicRequest` itself allows it, because jobs of earlier versions may have a blank prompt."""

_MAX_VARIATIONS: Final = 8


async def submit(
    context: Context, request: MusicRequest, owner: str, idempotency_key: str | None = None
) -> tuple[Job, bool]:
    """Add a job to the queue. Return the job, which is on disk by then, and whether it is new.

    Fills in `model` and `seed` if the request leaves them out. A job is not new if the owner has submitted the same request
    with the same idempotency key before. Raises InvalidRequest, IdempotencyConflict, QuotaExceeded, QueueFull and
    StoreUnavailable.
    """
    _check(context.args, request)
    queue = context.args.queue
    return await context.threads.run(
        context.store.jobs.submit,
        _filled_in(context.args, request),
        owner=owner,
        deadline_s=request.deadline_s or queue.default_deadline_s,
        max_attempts=queue.max_attempts,
        idempotency_key=idempotency_key,
        fingerprint=fingerprint(request),
        limits=queue,
    )


def _check(args: AppArgs, request: MusicRequest) -> None:
    """Check what depends on this service's configuration; `MusicRequest` has checked everything else. Raises InvalidRequest."""
    wrong = tuple(wrong_fields(args, request.prompt, request.model, request.webhook_url))
    if wrong:
        error = InvalidRequest("; ".join(f"{field.field}: {field.message}" for field in wrong))
        error.wrong_fields = wrong
        raise error
    if request.webhook_url:
        check_url(request.webhook_url, args.webhooks.allow_private)


def wrong_fields(args: AppArgs, prompt: object, model: object, webhook_url: object) -> Iterator[WrongField]:
    """The fields with text that this service's configuration does not allow. `MusicRequest` checks all other values."""
    if isinstance(prompt, str) and prompt and not prompt.strip():
        yield WrongField("prompt", prompt, "must not be blank")
    if isinstance(model, str) and model not in args.models:
        yield WrongField("model", model, f"must be a served model: {_alternatives(args.models)}")
    if isinstance(webhook_url, str) and not args.webhook_secret:
        yield WrongField(
            "webhook_url",
            webhook_url,
            "must be left out: this service cannot sign webhooks, because its operator has set no webhook_secret",
        )


def _alternatives(names: Iterable[str]) -> str:
    """The names as in `'a', 'b' or 'c'`."""
    *first, last = (repr(name) for name in names)
    return f"{', '.join(first)} or {last}" if first else last


def _filled_in(args: AppArgs, request: MusicRequest) -> MusicRequest:
    """The request with a model and a seed, so that every attempt generates the same song."""
    seed = _random_seed() if request.seed is None else request.seed
    return request.model_copy(update={"model": request.model or args.default_model, "seed": seed})


def _random_seed() -> int:
    """A seed that leaves room below MAX_SEED for the seeds of the other variations."""
    return secrets.randbelow(MAX_SEED - _MAX_VARIATIONS)
