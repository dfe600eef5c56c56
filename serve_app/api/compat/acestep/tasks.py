"""The routes for songs: submit a task, ask for its result until there is one, fetch the files that it names, cancel it."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response

from serve_app.api.audio_names import named_audio
from serve_app.api.auth import identify_request, identify_signer
from serve_app.api.compat.acestep.bodies import Call, CallDep
from serve_app.api.compat.acestep.envelope import enveloped, without_planner
from serve_app.api.compat.acestep.fields import Given, fields_of, is_blank
from serve_app.api.compat.acestep.handles import AUDIO, Handle, handle_of, recording_name
from serve_app.api.compat.acestep.lora import take_adapter
from serve_app.api.compat.acestep.names import FAMILY_NAME
from serve_app.api.compat.acestep.results import JOB_ID, ids_of, results
from serve_app.api.compat.acestep.served import served_model
from serve_app.api.compat.acestep.songs import Wish, ignore_the_rest, planned, wish_of
from serve_app.api.context import Context, ContextDep
from serve_app.api.field_errors import shortened, wrong_field
from serve_app.api.file_answer import answer_file, check_has_songs
from serve_app.api.files import ByteRange
from serve_app.api.multipart import keep_part
from serve_app.api.plan_calls import written_song
from serve_app.api.planning import has_planner
from serve_app.api.signed_links import link_signer
from serve_app.api.submission import Origin
from serve_app.api.waiting_calls import finished_job
from serve_app.errors import Conflict, NotFound
from serve_app.jobs import Job, Status
from serve_app.music import SAMPLE_RATE, SOURCE_TASKS
from serve_app.music.source_plan import FRAME_SAMPLES

SUBMIT: Final = "/release_task"
_MOST_TASKS: Final = 200
"""The most tasks that one call may ask for."""

_RECORDINGS: Final = (
    ("source", ("src_audio", "ctx_audio"), ("src_audio_path", "ctx_audio_path")),
    ("reference", ("reference_audio", "ref_audio"), ("reference_audio_path", "ref_audio_path")),
)
"""For each field that names a recording, the parts of a form that have its file, and the fields that have its name."""

router = APIRouter(include_in_schema=False)


@router.post(SUBMIT)
async def release_task(call: CallDep, context: ContextDep) -> Any:
    """Submit a song.

    A client that repeats a call which could not be answered gets the same task.
    """
    wish = wish_of(fields_of(call.body))
    model = served_model(context, wish.decided.get("model"))
    able = has_planner(context.args.models[model])
    wish = planned(wish, able)
    if wish.written == "sample" and not able:
        return without_planner(model)
    await take_adapter(context, call.owner, wish, model)
    await _take_recordings(context, call, wish)
    ignore_the_rest(wish)
    if wish.written is not None:
        asked = wish.translated
        with asked.errors_named_as_given():
            wish.take_plan(await written_song(call.request, context, call.owner, wish.written, asked.song))
    await _take_extension(context, call.owner, wish)
    job = await _submitted(context, call, wish)
    place = (await context.threads.run(context.store.backlog.places, [job])).get(job.id)
    task = {"task_id": job.id, "status": "queued", "queue_position": place.ahead + 1 if place else 1}
    return enveloped(task, wish.fields.ignored)


async def _submitted(context: Context, call: Call, wish: Wish) -> Job:
    asked = wish.translated
    origin = Origin(FAMILY_NAME, tuple(one.sentence for one in wish.fields.ignored))
    with asked.errors_named_as_given():
        job = await finished_job(call.request, context, asked.song, call.owner, origin=origin, timeout_s=0)
    if job is None:
        raise NotFound("The task was deleted")
    return job


async def _take_recordings(context: Context, call: Call, wish: Wish) -> None:
    """Keep the files that a song needs, and find those that it names."""
    unused = dict(call.files)
    for ours, parts, names in _RECORDINGS:
        files = {name: unused.pop(name) for name in parts if name in unused}
        named = wish.fields.take(*parts, *names)
        part, file = next(((name, file) for name, file in files.items() if file.size), (parts[0], None))
        given = Given(part, "a file") if file is not None else named
        if given is None or is_blank(given.value):
            continue
        if ours == "source" and wish.task not in SOURCE_TASKS:
            wish.fields.ignore(given, f"task_type {wish.task!r} has no source")
        elif file is not None:
            wish.set(ours, Given(part, await keep_part(part, context, file, call.owner)))
        else:
            wish.set(ours, Given(given.name, recording_name(given.name, given.value, parts[0])))
    if wish.task in SOURCE_TASKS and "source" not in wish.decided:
        raise wrong_field(
            "src_audio",
            "",
            f"is required, because task_type {wish.task!r} makes a song from another one: send its file as this part of a "
            "multipart body, or the `file` of an earlier song as src_audio_path",
        )
    for name in unused:
        wish.fields.ignore(Given(name, "a file"), "it is not a part that Sophia knows")


async def _take_extension(context: Context, owner: str, wish: Wish) -> None:
    """A part that ends after its source adds something to the source, as in ACE-Step."""
    end = wish.value("repaint_end")
    if wish.task != "repaint" or end is None:
        return
    named = await named_audio(context, wish.translated.song, owner)
    source_s = named.seconds.get("source")
    if source_s is None or end <= source_s + FRAME_SAMPLES / SAMPLE_RATE:
        return
    name, _ = wish.decided.pop("repaint_end")
    wish.set("extend_after", Given(name, end - source_s))
    if (wish.value("repaint_start") or 0) >= source_s:
        del wish.decided["repaint_start"]
    else:
        wish.decided.setdefault("repaint_start", ("repainting_start", 0))


@router.post("/query_result")
async def query_result(call: CallDep, context: ContextDep) -> dict[str, Any]:
    """How tasks stand, and the songs of those that are done."""
    given = fields_of(call.body).take("task_id_list", "task_id")
    ids = ids_of(given.value) if given else None
    if given is None or ids is None or len(ids) > _MOST_TASKS:
        value = shortened(given.value) if given else ""
        raise wrong_field("task_id_list", value, f"must be a list of at most {_MOST_TASKS} task ids")
    signer = await link_signer(context, call.owner)
    return enveloped(await context.threads.run(results, context, ids, call.owner, signer))


@router.post("/cancel_task")
async def cancel_task(call: CallDep, context: ContextDep) -> dict[str, Any]:
    """Cancel a queued or running task. One that is cancelled already stays so."""
    given = fields_of(call.body).take("task_id")
    task = str(given.value) if given else ""
    if not JOB_ID.fullmatch(task):
        raise NotFound(f"There is no task {shortened(task)}")
    try:
        job = await context.threads.run(context.store.jobs.cancel, task, call.owner)
    except Conflict:
        job = await context.threads.run(context.store.jobs.get, task, call.owner)
        if job.status is not Status.CANCELLED:
            raise
    return enveloped({"task_id": job.id, "status": job.status.value})


@router.api_route(AUDIO, methods=["GET", "HEAD"])
async def audio(
    request: Request,
    context: ContextDep,
    path: Annotated[str, Query(max_length=2000)],
    byte_range: ByteRange = None,
) -> Response:
    """The file of a song. Where callers need a key, the path that /query_result gave opens it without one for a while."""
    handle = handle_of(path)
    if handle is None:
        raise NotFound("path names no song: it must be as /query_result returns it in `file`")
    owner = await _opener(request, context, handle)
    job = await context.threads.run(context.store.jobs.get, handle.job, owner)
    return await answer_file(request, context, check_has_songs(job), handle.number, byte_range)


async def _opener(request: Request, context: Context, handle: Handle) -> str:
    """Who opens a file: the caller or, without a key, the owner of the link."""
    if handle.is_open or "authorization" in request.headers:
        return await identify_request(request, context)
    return await identify_signer(request, context, handle.path, handle.expires, handle.signature)
