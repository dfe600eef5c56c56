"""Jobs as /query_result shows them."""

import json
import re
from collections.abc import Sequence
from typing import Any, Final

from serve_app.api.compat.acestep.handles import file_url
from serve_app.api.context import Context
from serve_app.api.explanations import why_no_songs
from serve_app.api.field_errors import shortened
from serve_app.api.job_presenter import JobPresenter
from serve_app.api.signed_links import LinkSigner
from serve_app.api.views.jobs import JobView
from serve_app.jobs import Job, Status
from serve_app.music.plan import Plan
from serve_app.music.planned import rendered_request

JOB_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""The form of a task's id."""

_RUNNING: Final = 0
_DONE: Final = 1
_FAILED: Final = 2
_NOT_KNOWN: Final = "N/A"

_MOST_TEXT: Final = 4_000_000
"""The characters of results after which an answer has no more of them. A song's lyrics are in each of its results twice."""


def results(context: Context, ids: Sequence[str], owner: str, signer: LinkSigner) -> list[dict[str, Any]]:
    """The results of the owner's jobs, each once, in the order of `ids`. Blocks.

    Those that would make the answer too long look as if they had not ended: clients ask again for them, without the others.
    The original says for ever that an unknown job is queued; here it has failed, so that nobody waits for it.
    """
    known = [name for name in ids if JOB_ID.fullmatch(name)]
    found = {name: job for name, job in context.store.jobs.get_many(known).items() if job.owner == owner}
    views = JobPresenter(context).views(list(found.values()))
    of_ids = {view.id: view for view in views}
    rows = []
    left = _MOST_TEXT
    for name in dict.fromkeys(ids):
        if name not in found:
            rows.append(_unknown(name))
        elif left > 0:
            rows.append(_result(found[name], of_ids[name], signer))
            left -= len(rows[-1]["result"])
        else:
            rows.append(_later(name))
    return rows


def _result(job: Job, view: JobView, signer: LinkSigner) -> dict[str, Any]:
    status = _RUNNING if not job.status.final else _DONE if job.status is Status.SUCCEEDED else _FAILED
    facts = _facts(job, view, status)
    items = [{**facts, "file": file_url(job, number, signer)} for number in range(len(job.audio))]
    return _row(job.id, status, items or [facts], _progress_text(view))


def _row(task: str, status: int, items: list[dict[str, Any]], progress_text: str = "") -> dict[str, Any]:
    text = json.dumps(items, ensure_ascii=False)
    return {"task_id": shortened(task), "result": text, "status": status, "progress_text": progress_text}


def _unknown(task: str) -> dict[str, Any]:
    message = "There is no such task"
    return _row(
        task, _FAILED, [{"file": "", "wave": "", "status": _FAILED, "progress": 0.0, "stage": "", "error": message}]
    )


def _later(task: str) -> dict[str, Any]:
    return _row(task, _RUNNING, [], "this answer is full: ask again, without the tasks that are done")


def _facts(job: Job, view: JobView, status: int) -> dict[str, Any]:
    """What all songs of a job have in common."""
    plan = view.plan.facts if view.plan else None
    sung = rendered_request(job.request, Plan(**plan.model_dump())) if plan else job.request
    facts = {
        "file": "",
        "wave": "",
        "status": status,
        "create_time": int(job.created_at),
        "env": "production",
        "prompt": sung.prompt,
        "lyrics": sung.lyrics,
        "metas": {
            "bpm": sung.bpm or _NOT_KNOWN,
            "duration": job.audio[0].seconds if job.audio else sung.duration,
            "genres": _NOT_KNOWN,
            "keyscale": sung.keyscale or _NOT_KNOWN,
            "timesignature": sung.timesignature or _NOT_KNOWN,
            "prompt": job.request.prompt,
            "lyrics": job.request.lyrics,
        },
        "generation_info": _generation_info(view),
        "seed_value": ",".join(str(file.seed) for file in job.audio),
        "lm_model": "planner" if plan else "",
        "dit_model": job.model,
        "progress": _fraction(view, status),
        "stage": _stage(view),
        "error": None,
    }
    return facts | {"error": f"Job {job.id} has no songs: {why_no_songs(job)}"} if status == _FAILED else facts


def _generation_info(view: JobView) -> str:
    times = (
        f"Generated in {view.timing.generate_s:.1f} s, encoded in {view.timing.encode_s:.1f} s." if view.timing else ""
    )
    return " ".join([times, *view.warnings]).strip()


def _fraction(view: JobView, status: int) -> float:
    if status == _DONE:
        return 1.0
    return view.progress.fraction if view.progress else 0.0


def _stage(view: JobView) -> str:
    return view.progress.stage if view.state == "running" and view.progress else str(view.state)


def _progress_text(view: JobView) -> str:
    """Why a job waits, or how far it is."""
    if view.waiting_for:
        return f"Position {view.position}: {view.waiting_for}"
    if view.state == "running" and view.progress:
        return f"{view.progress.stage}: {view.progress.step}/{view.progress.steps}"
    return str(view.state)


def ids_of(given: Any) -> list[str] | None:
    """The ids in `task_id_list`: a list, or the JSON text of one. None for anything else."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            given = [given]
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        return None
    return given
