"""Notices in /v1/health about storage, the database and models that are no full checkpoint."""

from serve_app.api.context import Context
from serve_app.api.fleet import note_on
from serve_app.store import WorkerRow
from serve_app.store.postgresql import POOLER


def operator_notices(context: Context, workers: list[WorkerRow]) -> list[str]:
    """All notices; they may name folders and buckets. Blocks."""
    failure = context.storage.failure()
    database = context.store.database
    installation = context.store.installation
    found = (
        f"No song can be stored. {failure.message}" if failure else "",
        installation.refusal(),
        installation.held_back(),
        database.newer_schema,
        POOLER if database.is_pooled else "",
    )
    return [*filter(None, found), *_model_notices(context, workers)]


def public_notices(context: Context, workers: list[WorkerRow]) -> list[str]:
    """The notices that any caller may read: they name no folder or bucket."""
    failure = context.storage.failure()
    stored = [f"No song can be stored: {failure.public_why}"] if failure else []
    return [*stored, *_model_notices(context, workers)]


def _model_notices(context: Context, workers: list[WorkerRow]) -> list[str]:
    notes = {name: note_on(workers, name, model) for name, model in context.args.models.items()}
    return [
        f"{name} is {note}. For real songs, set models.{name}.source to another checkpoint"
        for name, note in notes.items()
        if note
    ]
