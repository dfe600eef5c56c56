"""Calls that are answered with a plan. What happens when the caller leaves."""

import asyncio
from typing import NamedTuple

from fastapi import Request
from starlette.requests import ClientDisconnect

from serve_app import errors
from serve_app.api.context import Context
from serve_app.api.waiting_calls import disconnected
from serve_app.music.plan import Plan
from serve_app.store import NewPlan, PlanTask


class PlanCall(NamedTuple):
    """What a call asks for."""

    new: NewPlan
    model: str | None
    """None is the default model."""
    deadline_s: float | None
    """Seconds until the answer; None is the service's default."""
    priority: int


async def plan_of_call(request: Request, context: Context, owner: str, call: PlanCall) -> Plan:
    """Let a planner make a plan, and wait for it. It is deleted when it is answered, or its caller leaves.

    Raises TooManyRequests, DeadlineExceeded, InvalidRequest, GenerationError, ServiceStopping, StoreUnavailable, and
    ClientDisconnect when the caller has left.
    """
    queue = context.args.queue
    wait_s = call.deadline_s or queue.default_deadline_s
    with context.limits.waits.hold(owner):
        task = await context.threads.run(
            context.store.plans.submit,
            call.model or context.args.default_model or "",
            call.new,
            owner=owner,
            deadline_s=wait_s,
            max_attempts=queue.max_attempts,
            priority=call.priority,
        )
        try:
            return _result(await _ended(request, context, task, wait_s + 2 * queue.lease_s))
        finally:
            await asyncio.shield(context.threads.run(context.store.plans.delete, task.id))


async def _ended(request: Request, context: Context, task: PlanTask, timeout_s: float) -> PlanTask:
    ending = asyncio.create_task(context.plan_waits.ended(task.id, timeout_s))
    leaving = asyncio.create_task(disconnected(request))
    try:
        await asyncio.wait((ending, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():
            raise ClientDisconnect
        return ending.result()
    except TimeoutError as error:
        raise errors.DeadlineExceeded from error
    finally:
        ending.cancel()
        leaving.cancel()


def _result(task: PlanTask) -> Plan:
    """The plan of a task that has ended. Raises DeadlineExceeded, InvalidRequest and GenerationError."""
    if task.result is not None:
        return Plan.from_json(task.result)
    failure = task.error
    if failure is not None and failure.code == errors.DeadlineExceeded.code:
        raise errors.DeadlineExceeded
    if failure is not None and failure.code == errors.InvalidRequest.code:
        raise errors.InvalidRequest(failure.message)
    why = f"failed ({failure.code}): {failure.message}" if failure else f"was {task.state}"
    raise errors.GenerationError(f"There is no plan, because it {why}")
