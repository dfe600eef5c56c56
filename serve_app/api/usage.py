"""Route for what a caller has queued."""

from fastapi import APIRouter

from serve_app.api.auth import Owner
from serve_app.api.context import Context, ContextDep
from serve_app.api.error_responses import AUTHENTICATED, error_responses
from serve_app.api.views.jobs import UsageView

router = APIRouter(tags=["jobs"])


@router.get("/v1/usage", summary="Show your usage and limits", responses=error_responses(*AUTHENTICATED))
async def usage(context: ContextDep, owner: Owner) -> UsageView:
    """What your API key has queued, and its limits."""
    return await context.threads.run(_usage, context, owner)


def _usage(context: Context, owner: str) -> UsageView:
    use = context.store.backlog.use(owner)
    limits = context.args.queue
    return UsageView(
        queued_jobs=use.jobs,
        queued_audio_s=round(use.audio_s, 3),
        max_queued_jobs=limits.max_owner_jobs,
        max_queued_audio_s=limits.max_owner_audio_s,
        pending_webhooks=context.store.webhooks.pending(owner),
        max_pending_webhooks=limits.max_owner_webhooks,
        input_bytes=context.store.inputs.bytes_of(owner),
        max_input_bytes=context.args.inputs.max_owner_bytes,
        voices=context.store.voices.count(owner),
        max_voices=context.args.inputs.voices_per_key,
        max_waits=context.args.api.waits_per_key,
        max_streams=context.args.api.streams_per_key,
        max_requests_per_s=context.args.api.requests_per_s,
    )
