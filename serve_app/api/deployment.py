"""The Serve deployment of the HTTP side."""

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.api.application import create_api
from serve_app.api.listen_policy import keys_are_needed
from serve_app.artifacts import Artifacts
from serve_app.config import AppArgs
from serve_app.ray_adapters.cluster import AliveNodes, http_host
from serve_app.ray_adapters.raylet import watch_raylet
from serve_app.store import Store


@serve.ingress()
class Api:
    """A replica that answers HTTP requests."""

    def __init__(self, args: AppArgs, commit: str, deployment: str, *_workers: DeploymentHandle) -> None:
        """`commit` is that of the running code, `deployment` the id of this build of the application.

        `_workers` make the workers' deployments part of the application. The API never calls them: workers claim jobs themselves.
        """
        watch_raylet()
        self._args = args
        self._commit = commit
        self._deployment = deployment
        self._store = Store(args.resolved_database_url, args.database)
        self._keys_needed = keys_are_needed(args, http_host())

    def __serve_build_asgi_app__(self) -> FastAPI:
        artifacts = Artifacts(self._args.resolved_artifacts_url)
        return create_api(
            self._args,
            self._store,
            artifacts,
            self._commit,
            deployment=self._deployment,
            cluster=AliveNodes(),
            keys_needed=self._keys_needed,
        )
