"""Routes for probes and for the state of the service. /ping and /healthz use nothing but memory."""

import asyncio

from fastapi import APIRouter, Request, Response

from serve_app import __version__, errors
from serve_app.api.auth import IsOperator, Owner
from serve_app.api.context import ContextDep
from serve_app.api.error_responses import AUTHENTICATED, error_responses
from serve_app.api.health_report import build_health, for_owner
from serve_app.api.threads import SingleFlight
from serve_app.api.views.health import Health, Pong, Ready

router = APIRouter(tags=["health"])


@router.get("/ping", summary="Ping")
async def ping(context: ContextDep) -> Pong:
    """Answer within milliseconds, even if the database is down or no worker runs."""
    return Pong(version=__version__, commit=context.commit)


@router.get("/healthz", summary="Liveness probe")
async def healthz(context: ContextDep) -> Pong:
    """Answer if the API process is alive."""
    return Pong(version=__version__, commit=context.commit)


@router.get(
    "/readyz",
    summary="Readiness probe",
    responses={
        503: {"model": Ready, "description": "A model has no worker that can generate, or songs cannot be stored"},
        **error_responses(errors.MethodNotAllowed),
    },
)
async def readyz(context: ContextDep, request: Request, response: Response) -> Ready:
    """Check that every model that needs a worker has one that can generate, and that songs can be stored."""
    limit_s = context.args.api.ready_timeout_s
    readiness: SingleFlight[Ready] = request.app.state.readiness
    try:
        ready = await asyncio.wait_for(readiness.result(), limit_s)
    except TimeoutError:
        ready = Ready(ready=False, reason=f"the job database did not answer within {limit_s:g} s")
    except errors.StoreUnavailable as error:
        ready = Ready(ready=False, reason=error.message)
    if not ready.ready:
        response.status_code = 503
    return ready


@router.get("/v1/health", summary="State of the service", responses=error_responses(*AUTHENTICATED))
async def health(context: ContextDep, owner: Owner, is_operator: IsOperator) -> Health:
    """Jobs by state, every worker's phase, progress and last error, scaling and its reasons, costs.

    If there are several API keys, a key sees neither the job ids of others nor costs, unless `auth.operators` lists it.
    """
    report = await context.threads.run(build_health, context)
    if is_operator:
        return report
    return await context.threads.run(for_owner, context, report, owner)
