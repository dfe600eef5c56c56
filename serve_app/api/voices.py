"""Routes for voices: recordings with names, which requests imitate."""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import UploadFile

from serve_app import errors
from serve_app.api.audio_names import check_sound, find_input, find_song, keep_as
from serve_app.api.auth import Owner, identify_request
from serve_app.api.body_limits import MULTIPART
from serve_app.api.context import Context, ContextDep
from serve_app.api.error_responses import UPLOAD, WITH_PARAMETERS, error_responses
from serve_app.api.field_errors import wrong_field
from serve_app.api.job_presenter import utc
from serve_app.api.multipart import form_of, is_multipart, with_json
from serve_app.api.uploads import chunks_of, new_recording, receive
from serve_app.api.views.voices import VoiceList, VoiceView
from serve_app.errors import BodyTooLarge, InvalidRequest
from serve_app.music import VOICE_NAME, NewVoice, song_of
from serve_app.store.inputs import StoredInput
from serve_app.store.voices import Voice

_NAME: Final = "name"
_SOURCE: Final = "source"
_PARTS: Final = (_NAME, _SOURCE)
_NAME_BYTES: Final = 4096
"""The most bytes of a part of text, which is kept in memory."""

_PARTS_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "content": {
            MULTIPART.decode(): {
                "schema": {
                    "type": "object",
                    "properties": {
                        _NAME: {"type": "string", "pattern": VOICE_NAME},
                        _SOURCE: {"type": "string", "format": "binary"},
                    },
                    "required": list(_PARTS),
                    "additionalProperties": False,
                },
                "encoding": {_SOURCE: {"contentType": "audio/*"}},
            }
        }
    }
}


class VoiceRoute(APIRoute):
    """Takes a multipart body, too: it keeps the file as an input, and the route gets JSON that names it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_parts(request: Request) -> Response:
            if is_multipart(request):
                request = await _as_json(request.app.state.context, request)
            return await handle(request)

        return handle_parts


router = APIRouter(tags=["voices"], route_class=VoiceRoute)

VoiceName = Annotated[str, Path(pattern=VOICE_NAME, description="The voice's name.", examples=["anna"])]


async def _as_json(context: Context, request: Request) -> Request:
    owner = await identify_request(request, context)
    with context.limits.uploads.hold(owner):
        async with form_of(request, max_files=1, max_fields=len(_PARTS), max_part_size=_NAME_BYTES) as form:
            name = form.get(_NAME)
            part = form.get(_SOURCE)
            if set(form) != set(_PARTS) or not isinstance(name, str) or not isinstance(part, UploadFile):
                raise InvalidRequest(
                    f"A multipart body must have the part {_NAME!r} and a file as its part {_SOURCE!r}"
                )
            with new_recording(context) as recording:
                await receive(context, recording, chunks_of(part))
                stored = await keep_as(_SOURCE, context, recording, owner)
    return with_json(request, {_NAME: name, _SOURCE: f"input:{stored.sha256}"})


@router.post(
    "/v1/voices",
    status_code=201,
    summary="Make or change a voice",
    openapi_extra=_PARTS_BODY,
    responses={
        200: {"model": VoiceView, "description": "You had a voice of this name; it has the new recording now"},
        **error_responses(*UPLOAD, errors.MalformedBody),
    },
)
async def put_voice(body: NewVoice, context: ContextDep, owner: Owner, response: Response) -> VoiceView:
    """Give a name to a recording: an input, a song, an address or, in a multipart body, a file as the part `source`.

    Requests then name it in `voice`. The recording stays as long as the voice.
    """
    recording = await _recording(context, body.source, owner)
    check_sound(_SOURCE, recording)
    args = context.args.inputs
    try:
        is_new = await context.threads.run(
            context.store.voices.put, owner, body.name, recording.sha256, args.ttl_s, args.voices_per_key
        )
    except errors.NotFound as error:  # the input was deleted or expired after it was found
        raise wrong_field(_SOURCE, body.source, error.message) from error
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = f"/v1/voices/{body.name}"
    return _view(await context.threads.run(context.store.voices.get, owner, body.name))


async def _recording(context: Context, name: str, owner: str) -> StoredInput:
    """The input that a voice is made of. A song is copied to one, so that its job can be deleted."""
    song = song_of(name)
    if song is None:
        return await find_input(context, _SOURCE, name, owner)
    file = await context.threads.run(find_song, context, _SOURCE, name, song, owner)
    with context.limits.uploads.hold(owner), new_recording(context) as recording:
        try:
            await receive(context, recording, context.artifacts.stream(file.key, 0, file.bytes))
        except BodyTooLarge as error:
            raise wrong_field(_SOURCE, name, error.message) from error
        except errors.NotFound as error:
            raise wrong_field(_SOURCE, name, f"names a song that is missing. {error.message}") from error
        return await keep_as(_SOURCE, context, recording, owner)


@router.get("/v1/voices", summary="List voices", responses=error_responses(*WITH_PARAMETERS))
async def list_voices(context: ContextDep, owner: Owner) -> VoiceList:
    """Your voices, by name."""
    return VoiceList(voices=[_view(one) for one in await context.threads.run(context.store.voices.all, owner)])


@router.get("/v1/voices/{name}", summary="Get a voice", responses=error_responses(*WITH_PARAMETERS, errors.NotFound))
async def get_voice(context: ContextDep, owner: Owner, name: VoiceName) -> VoiceView:
    """What is known about a voice."""
    return _view(await context.threads.run(context.store.voices.get, owner, name))


@router.delete(
    "/v1/voices/{name}",
    status_code=204,
    summary="Delete a voice",
    responses=error_responses(*WITH_PARAMETERS, errors.NotFound),
)
async def delete_voice(context: ContextDep, owner: Owner, name: VoiceName) -> None:
    """Delete a voice. Jobs that were submitted with it keep its recording."""
    await context.threads.run(context.store.voices.delete, owner, name)


def _view(voice: Voice) -> VoiceView:
    return VoiceView(
        name=voice.name,
        input=f"input:{voice.sha256}",
        seconds=round(voice.seconds, 6),
        created_at=utc(voice.created_at),
        changed_at=utc(voice.changed_at),
    )
