"""A job as its client sees it."""

from datetime import UTC, datetime

from serve_app.api.context import Context
from serve_app.jobs import Job, Status
from serve_app.schemas import AudioFile, JobError, JobLinks, JobView, Progress, Timing
from serve_app.store import WorkerRow

_READY = ("idle", "generating")
_COMING = ("starting", "preflight", "download", "load", "warm_up")


class Viewer:
    """Shows the jobs of one answer; asks the store about workers and speed once a model. Blocks: call it in a thread."""

    def __init__(self, parts: Context):
        self._parts = parts
        self._workers: list[WorkerRow] | None = None
        self._speed: dict[str, float | None] = {}

    def view(self, job: Job) -> JobView:
        """What the native API answers for a job."""
        position, eta_s, waiting_for = self._queue_facts(job) if job.status is Status.QUEUED else (None, None, None)
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
            timing=Timing.model_validate(job.timing) if job.timing else None,
            error=_error(job),
            links=_links(job.id),
        )

    def _queue_facts(self, job: Job) -> tuple[int, float | None, str]:
        ahead, seconds = self._parts.store.jobs.ahead(job)
        workers = [worker for worker in self.workers() if worker.model == job.model]
        ready = [worker for worker in workers if worker.phase in _READY]
        if job.model not in self._speed:
            self._speed[job.model] = self._parts.store.jobs.speed(job.model)
        speed = self._speed[job.model]
        eta_s = round(seconds * speed / len(ready), 1) if ready and speed is not None else None
        return ahead + 1, eta_s, _reason(ahead, ready, workers)

    def workers(self) -> list[WorkerRow]:
        """The workers that are alive, or failed lately."""
        if self._workers is None:
            self._workers = living(self._parts)
        return self._workers


def living(parts: Context) -> list[WorkerRow]:
    """The workers heard of within a lease; those that failed to load are kept in sight longer."""
    lease_s = parts.args.queue.lease_s
    return [row for row, age in parts.store.workers.seen() if age < lease_s or row.phase == "failed"]


def _reason(ahead: int, ready: list[WorkerRow], workers: list[WorkerRow]) -> str:
    if ready:
        jobs = "no job" if ahead == 0 else "1 job" if ahead == 1 else f"{ahead} jobs"
        return f"{jobs} before this one, {len(ready)} worker{'s' * (len(ready) != 1)} at work"
    coming = [worker for worker in workers if worker.phase in _COMING]
    if coming:
        return f"workers are starting: {coming[0].detail or coming[0].phase}"
    failed = [worker for worker in workers if worker.error]
    if failed and failed[-1].error:
        return f"the model cannot be loaded: {failed[-1].error['message']}"
    return "no worker of this model is running yet"


def is_ready(worker: WorkerRow) -> bool:
    """Whether it can generate."""
    return worker.phase in _READY


def is_coming(worker: WorkerRow) -> bool:
    """Whether it is on its way to being ready."""
    return worker.phase in _COMING


def moment(seconds: float) -> datetime:
    """A time of the store as a time in UTC."""
    return datetime.fromtimestamp(round(seconds, 3), UTC)


def _links(job: str) -> JobLinks:
    base = f"/v1/jobs/{job}"
    return JobLinks(self=base, events=f"{base}/events", audio=f"{base}/audio", cancel=f"{base}/cancel")


def _file(job: Job, index: int) -> AudioFile:
    return AudioFile.model_validate({**job.audio[index], "url": f"/v1/jobs/{job.id}/audio/{index}"})


def _error(job: Job) -> JobError | None:
    """A job that is tried again keeps its last error for those who look at the store; its client sees the outcome only."""
    shown = job.error and job.status in (Status.FAILED, Status.EXPIRED)
    return JobError.model_validate(job.error) if shown else None
