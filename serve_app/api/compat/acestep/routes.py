"""All routes of ACE-Step's server, and the paths under which errors have its shape."""

from typing import Final

from fastapi import APIRouter

from serve_app.api.compat.acestep import lora, server, tasks, writing
from serve_app.api.compat.acestep.envelope import error_shape
from serve_app.api.compat.acestep.handles import AUDIO
from serve_app.api.compat.family import Family

_router: Final = APIRouter()
for _part in (tasks.router, server.router, lora.router, writing.router):
    _router.include_router(_part)

_PATHS: Final = (
    tasks.SUBMIT,
    "/query_result",
    "/cancel_task",
    AUDIO,
    "/health",
    "/v1/model_inventory",
    "/v1/stats",
    "/v1/init",
    "/v1/reinitialize",
    "/format_input",
    "/v1/create_sample",
    "/create_random_sample",
    lora.LORA,
    "/v1/transcribe",
)
FAMILY: Final = Family(_router, _PATHS, error_shape, multipart_paths=(tasks.SUBMIT,))
