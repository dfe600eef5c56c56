"""Path and header parameters that several routes take."""

from typing import Annotated
from uuid import UUID

from fastapi import Depends, Header, Path

from serve_app.api.auth import Owner, VisitorDep
from serve_app.api.context import ContextDep
from serve_app.jobs import Job

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="A key of your choice for this submission. Sending the same key and body again returns the same job, so that a "
        "retry after a broken connection makes no second song. The same key with another body gets 409.",
        examples=["order-4711"],
    ),
]

JobId = Annotated[UUID, Path(description="The job's id.", examples=["0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d"])]


async def _own_job(context: ContextDep, owner: Owner, job_id: JobId) -> Job:
    return await context.threads.run(context.store.jobs.get, str(job_id), owner)


OwnJob = Annotated[Job, Depends(_own_job)]
"""The caller's job with the id in the path. Raises NotFound if the caller has no such job."""


async def _visited_job(context: ContextDep, visitor: VisitorDep, job_id: JobId) -> Job:
    return await context.threads.run(context.store.jobs.get, str(job_id), visitor.owner)


VisitedJob = Annotated[Job, Depends(_visited_job)]
"""As OwnJob, for routes that signed links open, too."""
