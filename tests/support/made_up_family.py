"""A service that does not exist, with names of its own for everything: the whole of what a new family needs."""

from typing import Annotated, Any

from fastapi import APIRouter, Body

from serve_app.api.auth import Owner
from serve_app.api.compat.family import Family
from serve_app.api.compat.translation import translated
from serve_app.api.context import ContextDep
from serve_app.api.parameters import OwnJob
from serve_app.api.submission import Origin, submit
from serve_app.api.views.problem import Problem

router = APIRouter(prefix="/made-up", include_in_schema=False)


@router.post("/compose")
async def compose(body: Annotated[dict[str, Any], Body()], context: ContextDep, owner: Owner) -> dict[str, str]:
    asked = translated(body)
    with asked.errors_named_as_given():
        job, _ = await submit(context, asked.song, owner, origin=Origin("made-up"))
    return {"composition": job.id}


@router.get("/compositions/{job_id}")
async def composition(job: OwnJob) -> dict[str, str]:
    return {"composition": job.id, "phase": "over" if job.status.final else "pending"}


def _error_shape(problem: Problem) -> tuple[int, Any]:
    return problem.status, {"oops": problem.detail}


FAMILY = Family(router, ("/made-up/",), _error_shape)
