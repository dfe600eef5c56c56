"""The FastAPI application of one API process: its routes, its error handlers and its background work."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Final

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi_offline import FastAPIOffline

from serve_app import __version__
from serve_app.api import codes, files, health, inputs, jobs, lyrics, models, music, plans, problems, usage, voices
from serve_app.api.body_limits import RecordingPaths
from serve_app.api.compat.families import served_families
from serve_app.api.context import Context
from serve_app.api.job_presenter import JobPresenter
from serve_app.api.limits import NON_PROBES, SharedSlots
from serve_app.api.middleware import PAGES_FILES, RequestMiddleware
from serve_app.api.openapi import openapi_of
from serve_app.api.origins import cors_options
from serve_app.api.readiness import check_readiness
from serve_app.api.stopping import answer_before_stop
from serve_app.api.threads import SingleFlight
from serve_app.api.watch import JobWatcher
from serve_app.artifacts import ArtifactStore
from serve_app.background.janitor import Janitor
from serve_app.background.storage_watch import StorageWatch
from serve_app.background.sweeper import Sweeper
from serve_app.background.webhook_sender import Sender
from serve_app.config import AppArgs
from serve_app.jobs import Job
from serve_app.ray_adapters.cluster import Node
from serve_app.store import Store

ROUTERS: Final = (
    jobs.router,
    music.router,
    files.router,
    codes.router,
    lyrics.router,
    plans.router,
    inputs.router,
    voices.router,
    usage.router,
    models.router,
    health.router,
)
"""All native routes."""

_DESCRIPTION: Final = """
Songs from ACE-Step 1.5: send a prompt and lyrics, get stereo audio at 48 kHz.

`POST /v1/music` answers with the song itself. `POST /v1/jobs` answers at once with a job that you can poll, follow, download or
cancel. Errors are `application/problem+json` with a stable `code`.
"""


def create_api(
    args: AppArgs,
    store: Store,
    artifacts: ArtifactStore,
    commit: str,
    *,
    deployment: str = "",
    cluster: Callable[[], list[Node]] | None = None,
    keys_needed: bool = False,
) -> FastAPI:
    """Create the application. It owns `store` from now on and closes it at shutdown.

    See `Context` for the other parameters.
    """

    def create_context() -> Context:
        storage = StorageWatch(artifacts, store.supervisor)
        return Context(args, store, artifacts, storage, JobWatcher(store), commit, deployment, cluster, keys_needed)

    open_requests = SharedSlots(int(args.api.max_ongoing * NON_PROBES))
    app = FastAPIOffline(
        title="Sophia",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=_lifespan(create_context, open_requests),
        static_url=PAGES_FILES,
    )
    families = served_families(args.api)
    recordings = RecordingPaths(
        multipart=(path for family in families.values() for path in family.multipart_paths),
        in_json=(path for family in families.values() for path in family.base64_paths),
    )
    app.add_middleware(RequestMiddleware, api=args.api, inputs=args.inputs, recordings=recordings, slots=open_requests)
    if args.api.cors_origins:
        app.add_middleware(CORSMiddleware, **cors_options(args.api.cors_origins))
    problems.install(app, {prefix: family.error_shape for family in families.values() for prefix in family.prefixes})
    for router in (*ROUTERS, *(family.router for family in families.values())):
        app.include_router(router)
    app.openapi = openapi_of(app, args)  # type: ignore[method-assign]  # the way to extend it that FastAPI documents
    return app


def _lifespan(
    create_context: Callable[[], Context], open_requests: SharedSlots
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """The application's lifespan. It creates the context on the event loop, to which the job watcher belongs."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        context = create_context()
        app.state.context = context
        app.state.readiness = SingleFlight(context.probe_threads, partial(check_readiness, context))
        background = _background_work(context)
        for work in background:
            await asyncio.to_thread(work.start)
        key_watch = asyncio.create_task(context.keys.watch_for_revoked())
        stop_watch = asyncio.create_task(answer_before_stop(context.watcher, open_requests))
        yield
        key_watch.cancel()
        stop_watch.cancel()
        await context.watcher.close()
        await context.plan_waits.close()
        for work in background:
            await asyncio.to_thread(work.close)
        await asyncio.to_thread(context.close)
        context.store.close()

    return lifespan


def _background_work(context: Context) -> list[StorageWatch | Sweeper | Janitor | Sender]:
    """The threads that every API process runs. Webhooks are sent only if there is a secret to sign them with."""
    work: list[StorageWatch | Sweeper | Janitor | Sender] = [
        context.storage,
        Sweeper(context.store, context.args, context.deployment),
        Janitor(context.store, context.artifacts, context.args.retention),
    ]
    if context.args.webhook_secret:
        families = served_families(context.args.api)
        forms = {name: family.webhook(context) for name, family in families.items() if family.webhook}
        work.append(Sender(context.store, context.args, partial(_webhook_data, context), forms=forms))
    return work


def _webhook_data(context: Context, job: Job) -> dict[str, Any]:
    return JobPresenter(context).view(job).model_dump(mode="json")
