"""Builds the JSON views of jobs."""

from collections.abc import Sequence
from datetime import UTC, datetime

from serve_app.api.context import Context
from serve_app.api.explanations import why_not_ready, why_waiting
from serve_app.api.fleet import count_ready, has_planners_alone, living_workers, of_model
from serve_app.api.signed_links import LinkSigner
from serve_app.api.views.jobs import (
    AudioFile,
    JobError,
    JobLinks,
    JobView,
    Progress,
    SignedLinks,
    Timing,
    WebhookAttempt,
    WebhookView,
)
from serve_app.api.views.plans import JobPlan, PlanFacts
from serve_app.config import planner_stage
from serve_app.jobs import Job, Status
from serve_app.plurals import counted
from serve_app.store import PlanState, PlanTask, WorkerRow
from serve_app.store.pauses import Pause
from serve_app.store.places import FAR, Place
from serve_app.store.webhooks import Delivery


class JobPresenter:
    """Builds the views for one answer. Reads workers, pauses and speeds from the store once. Blocks."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._workers: list[WorkerRow] | None = None
        self._pauses: dict[str, Pause] | None = None
        self._speeds: dict[str, float | None] = {}
        self._plan_speeds: dict[str, float | None] = {}
        self._to_plan: dict[str, float] = {}

    def view(self, job: Job) -> JobView:
        """The view of one job."""
        return self.views([job])[0]

    def views(self, jobs: Sequence[Job]) -> list[JobView]:
        """The views of several jobs. Their queue positions are read together."""
        queued = [job for job in jobs if job.status is Status.QUEUED]
        places = self._context.store.backlog.places(queued)
        planned = [job.id for job in jobs if job.request.is_planned or job.request.plan is not None]
        plans = self._context.store.plans.of_jobs(planned) if planned else {}
        return [self._view(job, places.get(job.id), plans.get(job.id)) for job in jobs]

    def _view(self, job: Job, place: Place | None, plan: PlanTask | None) -> JobView:
        return JobView(
            id=job.id,
            state=job.status.value,
            model=job.model,
            created_at=utc(job.created_at),
            started_at=_utc_or_none(job.started_at),
            finished_at=_utc_or_none(job.finished_at),
            deadline_at=utc(job.deadline_at),
            attempt=job.attempt,
            position=place.ahead + 1 if place else None,
            eta_s=self._eta_s(job, place) if place else None,
            waiting_for=self._waiting_for(job.model, place, plan) if place else None,
            progress=Progress.model_validate(job.progress) if job.progress else None,
            request=job.request,
            plan=_plan(job, plan) if plan else None,
            warnings=list(job.warnings),
            audio=[_file(job, index) for index in range(len(job.audio))],
            audio_gone_at=_utc_or_none(job.audio_gone_at),
            timing=Timing.model_validate({**job.timing, **_plan_timing(plan)}) if job.timing else None,
            gpu_s=round(job.gpu_s + (plan.gpu_s if plan else 0.0), 3),
            error=_error(job),
            webhook=self._webhook(job),
            links=_links(job.id),
        )

    def _eta_s(self, job: Job, place: Place) -> float | None:
        """The work before the job's start, divided by those who do it: songs and, until the job is planned, plans.

        None if the model's speed is unknown, nobody is ready to do the work, and while the model is paused.
        """
        model = job.model
        if self._pause(model) is not None:
            return None
        ready = count_ready(self._workers_of(model))
        speed = self._speed(model)
        if not ready or speed is None or place.audio_s is None:
            return None
        rendering_s = place.audio_s * speed / ready
        if not job.unplanned:
            return round(rendering_s, 1)
        plan_speed = self._plan_speed(model)
        alone = self._planned_alone(model)
        planners = count_ready(self._workers_of(planner_stage(model))) if alone else ready
        if not planners or plan_speed is None:
            return None
        # Plans are made in the order of the songs, so no more plans come before this one than songs do.
        to_plan_s = min(self._audio_to_plan(model), place.audio_s + job.audio_seconds)
        planning_s = to_plan_s * plan_speed / planners
        return round(max(rendering_s, planning_s) if alone else rendering_s + planning_s, 1)

    def _waiting_for(self, model: str, place: Place, plan: PlanTask | None) -> str:
        if plan and plan.state is PlanState.PLANNING:
            return "its plan is being made"
        if plan and plan.state is PlanState.WAITING and self._planned_alone(model):
            return self._waiting_for_planner(planner_stage(model), self._pause(model))
        return why_waiting(self._context, model, place.ahead, self._workers_of(model), self._pause(model))

    def _waiting_for_planner(self, stage: str, pause: Pause | None) -> str:
        planners = self._workers_of(stage)
        ready = count_ready(planners)
        if ready and pause is None:
            return f"its plan waits for a planner; {counted(ready, 'planner')} at work"
        return f"its plan waits for a planner: {why_not_ready(self._context, stage, planners, pause)}"

    def _planned_alone(self, model: str) -> bool:
        return has_planners_alone(self._workers_of(model), model, self._context.args.models.get(model))

    def _webhook(self, job: Job) -> WebhookView | None:
        if not job.request.webhook_url:
            return None
        delivery = self._context.store.webhooks.latest(job.id)
        return _delivery(delivery) if delivery else None

    def _workers_of(self, model: str) -> list[WorkerRow]:
        if self._workers is None:
            self._workers = living_workers(self._context)
        return of_model(self._workers, model)

    def _pause(self, model: str) -> Pause | None:
        if self._pauses is None:
            self._pauses = self._context.store.pauses.all()
        return self._pauses.get(model)

    def _speed(self, model: str) -> float | None:
        """Seconds of work per second of audio; None before the model's first song."""
        if model not in self._speeds:
            self._speeds[model] = self._context.store.backlog.speed(model)
        return self._speeds[model]

    def _plan_speed(self, model: str) -> float | None:
        """Seconds of work for the plan of a second of audio; None before the model's first plan."""
        if model not in self._plan_speeds:
            self._plan_speeds[model] = self._context.store.plans.speed(model)
        return self._plan_speeds[model]

    def _audio_to_plan(self, model: str) -> float:
        """Seconds of audio in the plans that wait, of which more than FAR come before no job that gets an estimate."""
        if model not in self._to_plan:
            self._to_plan[model] = self._context.store.plans.audio_to_make(model, FAR)
        return self._to_plan[model]


def utc(seconds: float) -> datetime:
    """A time of the store (seconds since the epoch) in UTC, rounded to milliseconds."""
    return datetime.fromtimestamp(round(seconds, 3), UTC)


def _utc_or_none(seconds: float | None) -> datetime | None:
    return None if seconds is None else utc(seconds)


def _links(job: str) -> JobLinks:
    base = f"/v1/jobs/{job}"
    return JobLinks(
        self=base,
        events=f"{base}/events",
        audio=f"{base}/audio",
        songs=f"{base}/songs.zip",
        codes=f"{base}/codes",
        plan=f"{base}/plan",
        signed=f"{base}/links",
        cancel=f"{base}/cancel",
    )


def signed_links(job: Job, signer: LinkSigner) -> SignedLinks:
    """The links to a job's songs and events that open without an API key."""
    links = _links(job.id)
    return SignedLinks(
        expires_at=None if signer.digest is None else utc(signer.expires_at),
        audio=[signer.link(_file(job, index).url) for index in range(len(job.audio))],
        songs=signer.link(links.songs),
        events=signer.link(links.events),
    )


def _plan(job: Job, plan: PlanTask) -> JobPlan:
    facts = PlanFacts.model_validate(plan.result) if plan.state is PlanState.DONE else None
    return JobPlan(state=plan.state.value, facts=facts, url=f"/v1/jobs/{job.id}/plan")


def _plan_timing(plan: PlanTask | None) -> dict[str, float | None]:
    """The part of a finished job's times that planning took. Empty if nothing was planned for it."""
    if plan is None or plan.started_at is None or plan.finished_at is None:
        return {}
    return {
        "plan_queued_s": round(plan.started_at - plan.created_at, 3),
        "plan_s": round(plan.finished_at - plan.started_at, 3),
        "plan_gpu_s": round(plan.gpu_s, 3),
    }


def _file(job: Job, index: int) -> AudioFile:
    file = job.audio[index]
    base = f"/v1/jobs/{job.id}"
    urls = {"url": f"{base}/audio/{index}", "lyrics_url": f"{base}/lyrics/{index}" if file.lyrics else None}
    return AudioFile.model_validate({**file.to_json(), **urls})


def _delivery(delivery: Delivery) -> WebhookView:
    history = [WebhookAttempt.model_validate(attempt) for attempt in delivery.history]
    return WebhookView(
        state=delivery.state,
        attempts=delivery.attempts,
        last_status=history[-1].status if history else None,
        last_error=history[-1].error if history else None,
        next_attempt_at=utc(delivery.due_at) if delivery.state == "pending" else None,
        history=history,
    )


def _error(job: Job) -> JobError | None:
    """The job's final error. The store also keeps the error of an attempt that is retried; clients do not see that one."""
    if job.error is None or job.status not in (Status.FAILED, Status.EXPIRED):
        return None
    return JobError(code=job.error.code, message=job.error.message)
