"""OpenAI's `POST /v1/audio/speech`, for its SDKs and for the services that make music by this route.

vLLM-Omni and Xinference have lyrics in `input` and the style in `instructions`, or in `instruct` of Xinference's `kwargs`. LiteLLM
has the style in `input`. So `input` has lyrics if the style stands elsewhere. `GET /v1/models`, which these clients read as well,
is a native route.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Final

from fastapi import APIRouter, Body, Request, Response

from serve_app.api.auth import Owner
from serve_app.api.compat.family import Family
from serve_app.api.compat.openai_shape import openai_error, served_name
from serve_app.api.compat.song_call import SongCall, answer_with_song
from serve_app.api.compat.translation import translated
from serve_app.api.context import Context, ContextDep
from serve_app.api.field_errors import shortened, wrong_field
from serve_app.api.parameters import IdempotencyKey
from serve_app.errors import NotFound

_NAME: Final = "openai"

_STYLES: Final = ("instructions", "instruct")
_CODEC_TOKENS_PER_S: Final = 25
"""vLLM-Omni's `max_new_tokens` for one second of music."""

_MOST_TOKENS: Final = 10**9
"""A larger number is no length, and is refused as it is given."""

_NO_VOICES: Final = ("", "default")
_VOICES: Final = (
    "alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage", "shimmer", "verse",
)  # fmt: skip
"""OpenAI's own voices. Its SDKs demand one, so that many clients send one that they do not care about."""

router = APIRouter(include_in_schema=False)


@router.post("/v1/audio/speech")
async def speech(
    body: Annotated[dict[str, Any], Body()],
    request: Request,
    context: ContextDep,
    owner: Owner,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Make a song and answer with its file."""
    call = await speech_call(context, owner, body, _NAME)
    return await answer_with_song(request, context, owner, call._replace(idempotency_key=idempotency_key))


async def speech_call(
    context: Context, owner: str, body: Mapping[str, Any], family: str, inside: str = "kwargs"
) -> SongCall:
    """The song that the body of `/v1/audio/speech` asks for; `inside` is the field with further fields. Raises InvalidRequest."""
    given = {**body, **_further_fields(body, inside)}
    given.pop(inside, None)
    _check(given)
    ignored = await without_foreign_voice(context, owner, given)
    given["model"] = served_name(context.args, given.get("model"))
    tokens = given.get("max_new_tokens")
    if isinstance(tokens, int) and not isinstance(tokens, bool) and abs(tokens) <= _MOST_TOKENS:
        given["max_new_tokens"] = tokens / _CODEC_TOKENS_PER_S
    styles = [name for name in _STYLES if given.get(name)]
    own_names = {
        "input": "lyrics" if styles else "prompt",
        "max_new_tokens": "duration",
        **dict.fromkeys(_STYLES, "prompt"),
    }
    wanted = {name: value for name, value in given.items() if name not in _STYLES or name in styles}
    return SongCall(translated(wanted, own_names=own_names), family, ignored)


def _further_fields(body: Mapping[str, Any], inside: str) -> dict[str, Any]:
    """The fields in an object, or in a text with JSON. Raises InvalidRequest, also for fields that are given twice."""
    given = body.get(inside)
    if given is None:
        return {}
    try:
        fields = json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise wrong_field(inside, shortened(given), "must be a JSON object, or a text with one")
    for name in fields:
        if name in body:
            raise wrong_field(
                f"{inside}.{name}", shortened(fields[name]), "must be left out, because the body has it, too"
            )
    return fields


def _check(given: dict[str, Any]) -> None:
    """Remove the fields that can have one value only. Raises InvalidRequest for another value, and without `input`."""
    if not given.get("input"):
        raise wrong_field("input", "", "is required: what the song is like, or its lyrics if `instructions` say that")
    if (speed := given.pop("speed", None)) not in (None, 1):
        raise wrong_field("speed", shortened(speed), "must be 1: a song has a tempo instead, which `bpm` sets")
    if (kind := given.pop("stream_format", None)) not in (None, "audio"):
        raise wrong_field("stream_format", shortened(kind), "must be 'audio'")


async def without_foreign_voice(context: Context, owner: str, given: dict[str, Any]) -> tuple[str, ...]:
    """Remove the field `voice` if it means none, or a voice of OpenAI's unless the caller has one of this name.

    Returns the field if it was a voice of OpenAI's. Raises StoreUnavailable.
    """
    voice = given.pop("voice", None)
    if isinstance(voice, dict):
        voice = voice.get("id")
    if voice is None or voice in _NO_VOICES:
        return ()
    if voice in _VOICES and not await _has_voice(context, owner, voice):
        return ("voice",)
    given["voice"] = voice
    return ()


async def _has_voice(context: Context, owner: str, name: str) -> bool:
    try:
        await context.threads.run(context.store.voices.get, owner, name)
    except NotFound:
        return False
    return True


FAMILY: Final = Family(router, ("/v1/audio/",), openai_error)
