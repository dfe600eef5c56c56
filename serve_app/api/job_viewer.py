"""A job as its client sees it."""

from collections.abc import Sequence
from datetime import UTC, datetime

from serve_app.api.context import Context
from serve_app.api.reasons import is_ready, living, why_waiting
from serve_app.api.views import AudioFile, JobError, JobLinks, JobView, Progress, Timing, WebhookAttempt, WebhookView
from serve_app.jobs import Job, Status
from serve_app.store import WorkerRow
from serve_app.store.pauses import Pause
from serve_app.store.places import Place
from serve_app.store.webhooks import Delivery


class Viewer:
    """Shows the jobs of one answer; asks the store about workers and speed once a model. Blocks: call it in a thread."""

    def __init__(self, parts: Context) -> None:
        self._parts = parts
        self._workers: list[WorkerRow] | None = None
        self._pauses: dict[str, Pause] | None = None
        self._speed: dict[str, float | None] = {}

    def view(self, job: Job) -> JobView:
        """What the native API answers for a job."""
        return self.views([job])[0]

    def views(self, found: Sequence[Job]) -> list[JobView]:
        """What the native API answers for several jobs: their places in the queue are looked up together."""
        places = self._parts.store.backlog.places([job for job in found if job.status is Status.QUEUED])
        return [self._view(job, places.get(job.id)) for job in found]

    def _view(self, job: Job, place: Place | None) -> JobView:
        position, eta_s, waiting_for = self._queue_facts(job, place) if place else (None, None, None)
        return JobView(
            id=job.id,
            state=job.status.value,
            model=job.model,
            created_at=moment(job.created_at),
            started_at=moment(job.started_at) if job.started_at else None,
            finished_at=moment(job.finished_at) if job.finished_at else None,
            deadline_at=moment(job.deadline_at),
            attempt=job.attempt,
            position=position,
            eta_s=eta_s,
            waiting_for=waiting_for,
            progress=Progress.model_validate(job.progress) if job.progress else None,
            request=job.request,
            warnings=list(job.warnings),
            audio=[_file(job, index) for index in range(len(job.audio))],
            audio_gone_at=moment(job.audio_gone_at) if job.audio_gone_at else None,
            timing=Timing.model_validate(job.timing) if job.timing else None,
            gpu_s=round(job.gpu_s, 3),
            error=_error(job),
            webhook=self._webhook(job),
            links=_links(job.id),
        )

    def _webhook(self, job: Job) -> WebhookView | None:
        if not job.request.webhook_url:
            return None
        delivery = self._parts.store.webhooks.latest(job.id)
        return _delivery(delivery) if delivery else None

    def _queue_facts(self, job: Job, place: Place) -> tuple[int, float | None, str]:
        workers = [worker for worker in self.workers() if worker.model == job.model]
        ready = [worker for worker in workers if is_ready(worker)]
        if job.model not in self._speed:
            self._speed[job.model] = self._parts.store.backlog.speed(job.model)
        speed = self._speed[job.model]
        eta_s = None
        if ready and speed is not None and place.audio_s is not None:
            eta_s = round(place.audio_s * speed / len(ready), 1)
        return place.ahead + 1, eta_s, why_waiting(self._parts, job.model, place.ahead, workers, self._pause(job.model))

    def _pause(self, model: str) -> Pause | None:
        if self._pauses is None:
            self._pauses = self._parts.store.pauses.all()
        return self._pauses.get(model)

    def workers(self) -> list[WorkerRow]:
        """The workers that are alive, or failed lately."""
        if self._workers is None:
            self._workers = living(self._parts)
        return self._workers


def moment(seconds: float) -> datetime:
    """A time of the store as a time in UTC."""
    return datetime.fromtimestamp(round(seconds, 3), UTC)


def _links(job: str) -> JobLinks:
    base = f"/v1/jobs/{job}"
    return JobLinks(self=base, events=f"{base}/events", audio=f"{base}/audio", cancel=f"{base}/cancel")


def _file(job: Job, index: int) -> AudioFile:
    return AudioFile.model_validate({**job.audio[index].to_json(), "url": f"/v1/jobs/{job.id}/audio/{index}"})


def _delivery(delivery: Delivery) -> WebhookView:
    history = [WebhookAttempt.model_validate(attempt) for attempt in delivery.history]
    return WebhookView(
        state=delivery.state,
        attempts=delivery.attempts,
        last_status=history[-1].status if history else None,
        last_error=history[-1].error if history else None,
        next_attempt_at=moment(delivery.due_at) if delivery.state == "pending" else None,
        history=history,
    )


def _error(job: Job) -> JobError | None:
    """A job that is tried again keeps its last error for those who look at the store; its client sees the outcome only."""
    if job.error is None or job.status not in (Status.FAILED, Status.EXPIRED):
        return None
    return JobError(code=job.error.code, message=job.error.message)
