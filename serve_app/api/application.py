"""The FastAPI application: its routes, its errors, and the background work of its process."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline

from serve_app import __version__
from serve_app.api import health, problems
from serve_app.api.context import Context
from serve_app.api.job_viewer import Viewer
from serve_app.api.jobs import job_routes
from serve_app.api.middleware import PAGES_FILES, RequestMiddleware
from serve_app.api.threads import Flight
from serve_app.api.views import Problem
from serve_app.api.watch import JobWatcher
from serve_app.artifacts import Artifacts
from serve_app.background.janitor import Janitor
from serve_app.background.storage_watch import StorageWatch
from serve_app.background.sweeper import Sweeper
from serve_app.background.webhook_sender import Sender
from serve_app.config import AppArgs
from serve_app.jobs import Job
from serve_app.ray_adapters.cluster import Node
from serve_app.store import Store

_DESCRIPTION = """
Songs from ACE-Step 1.5: send a caption and lyrics, get stereo audio at 48 kHz.

`POST /v1/music` answers with the song itself; `POST /v1/jobs` answers at once with a job to look at, follow, fetch or cancel.
Errors are `application/problem+json` with a stable `code`.
"""


def create_api(
    args: AppArgs,
    store: Store,
    artifacts: Artifacts,
    commit: str,
    deployment: str = "",
    cluster: Callable[[], list[Node]] | None = None,
    keys_needed: bool = False,
) -> FastAPI:
    """The application. It owns `store` from now on and closes it when it shuts down.

    `keys_needed`: every caller needs an API key, even while there is none (`listen_policy.keys_are_needed`).
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        storage = StorageWatch(artifacts, store.supervisor)
        context = Context(args, store, artifacts, storage, JobWatcher(store), commit, deployment, cluster, keys_needed)
        app.state.context = context
        app.state.readiness = Flight(context.probes, lambda: health.readiness(context))
        busy: list[Sweeper | Janitor | Sender | StorageWatch] = [
            storage,
            Sweeper(store, args, deployment),
            Janitor(store, artifacts, args.retention),
        ]
        if args.webhook_secret:
            busy.append(Sender(store, args, lambda job: _rendered(context, job)))
        for part in busy:
            await asyncio.to_thread(part.start)
        keys = asyncio.create_task(context.keys.keep_fresh())
        yield
        keys.cancel()
        await context.watcher.close()
        for part in busy:
            await asyncio.to_thread(part.close)
        await asyncio.to_thread(context.close)
        store.close()

    app = FastAPIOffline(
        title="Sophia", version=__version__, description=_DESCRIPTION, lifespan=lifespan, static_url=PAGES_FILES
    )
    app.add_middleware(RequestMiddleware, args=args.api)
    problems.install(app)
    app.include_router(job_routes(args))
    app.include_router(health.router)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    return app


def _rendered(context: Context, job: Job) -> dict[str, Any]:
    return Viewer(context).view(job).model_dump(mode="json")


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's page, with our errors instead of its own validation error, which is never sent."""
    if app.openapi_schema is None:
        page = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schemas = page["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(problem.pop("$defs"))
        schemas["Problem"] = problem
        events = page["paths"]["/v1/jobs/{job_id}/events"]["get"]["responses"]["200"]["content"]["text/event-stream"]
        del events["schema"]  # FastAPI says that every stream is a string; `itemSchema` says what this one's parts are
        app.openapi_schema = page
    return app.openapi_schema
