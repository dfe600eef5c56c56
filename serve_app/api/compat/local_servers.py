"""Routes of local servers and gateways that answer a request with its song.

LocalAI's `/v1/sound-generation` and `/tts`, Lemonade's `/v1/audio/generations`, vLLM-Omni's `/v1/audio/generate` and OmniRoute's
`/v1/music/generations`. The last one's answer is JSON, that of the others the file.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

from fastapi import APIRouter, Body, Request, Response

from serve_app.api.audio_in_text import AudioInText
from serve_app.api.auth import Owner
from serve_app.api.compat.family import Family
from serve_app.api.compat.openai import speech_call
from serve_app.api.compat.openai_shape import FinishedAnswer, not_to_repeat, openai_error, served_name
from serve_app.api.compat.song_call import IGNORED_HEADER, SongCall, answer_with_song, made_song, without_singing
from serve_app.api.compat.translation import translated
from serve_app.api.context import Context, ContextDep
from serve_app.api.field_errors import shortened, wrong_field
from serve_app.api.parameters import IdempotencyKey

_NAME: Final = "local-servers"
_MODEL_FIELDS: Final = ("model", "model_id")

_Body = Annotated[dict[str, Any], Body()]


@dataclass(frozen=True)
class _Fields:
    """What a route makes of the fields of its body that are not understood everywhere."""

    names: Mapping[str, str] = field(default_factory=dict)
    """Sophia's names for names that mean something else elsewhere."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """The values of Sophia's fields that the body leaves out."""
    ignored: Mapping[str, Any] = field(default_factory=dict)
    """Fields that Sophia cannot honour, with the value that asks for nothing; any other value is reported."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Fields that can have this value only; others are refused."""

    def call(self, context: Context, body: Mapping[str, Any]) -> SongCall:
        """The song that a body asks for. Raises InvalidRequest."""
        given = {name: value for name, value in body.items() if value is not None}
        for name, only in self.fixed.items():
            value = given.pop(name, only)
            if value != only:
                raise wrong_field(name, shortened(value), f"must be {json.dumps(only)}, or left out")
        ignored = tuple(name for name, nothing in self.ignored.items() if given.pop(name, nothing) != nothing)
        for name in _MODEL_FIELDS:
            if name in given:
                given[name] = served_name(context.args, given[name])
        unsung = without_singing(given)
        asked = translated(given, own_names=self.names, defaults=self.defaults)
        return SongCall(asked, _NAME, (*ignored, *unsung))


_LOCALAI: Final = _Fields(
    names={"think": "thinking"},
    defaults={"format": "wav"},
    ignored={"do_sample": True, "prompt_influence": None},
)
_LEMONADE: Final = _Fields(defaults={"format": "wav"})
_VLLM_OMNI: Final = _Fields(
    names={"input": "prompt"},
    defaults={"format": "wav"},
    ignored={"negative_prompt": "", "audio_start": 0},
    fixed={"speed": 1},
)
_OMNIROUTE: Final = _Fields(defaults={"duration": 10}, ignored={"negative_prompt": ""})

router = APIRouter(include_in_schema=False)


def _answering_with_file(fields: _Fields) -> Callable[..., Awaitable[Response]]:
    """A route that makes a song and answers with its file."""

    async def make(
        body: _Body, request: Request, context: ContextDep, owner: Owner, idempotency_key: IdempotencyKey = None
    ) -> Response:
        call = fields.call(context, body)._replace(idempotency_key=idempotency_key)
        return await answer_with_song(request, context, owner, call)

    return make


router.add_api_route("/v1/sound-generation", _answering_with_file(_LOCALAI), methods=["POST"])
router.add_api_route("/v1/audio/generations", _answering_with_file(_LEMONADE), methods=["POST"])
router.add_api_route("/api/v1/audio/generations", _answering_with_file(_LEMONADE), methods=["POST"])
router.add_api_route("/v1/audio/generate", _answering_with_file(_VLLM_OMNI), methods=["POST"])


@router.post("/tts")
async def text_to_speech(
    body: _Body, request: Request, context: ContextDep, owner: Owner, idempotency_key: IdempotencyKey = None
) -> Response:
    """LocalAI's form of OpenAI's /v1/audio/speech: further fields are in `params`, and the file is a WAV file."""
    given = {"response_format": "wav", **{name: value for name, value in body.items() if name != "backend"}}
    call = await speech_call(context, owner, given, _NAME, inside="params")
    ignored = (*call.ignored, *(("backend",) if body.get("backend") else ()))
    call = call._replace(ignored=ignored, idempotency_key=idempotency_key)
    return await answer_with_song(request, context, owner, call)


@router.post("/v1/music/generations")
async def music_generations(
    body: _Body, request: Request, context: ContextDep, owner: Owner, idempotency_key: IdempotencyKey = None
) -> Response:
    """OmniRoute's route: JSON with the songs as base64. `tags` are more words for the prompt."""
    given = dict(body)
    _add_tags(given)
    call = _OMNIROUTE.call(context, given)._replace(idempotency_key=idempotency_key)
    job = await made_song(request, context, owner, call)
    audio = AudioInText(context, job)
    data = [{"b64_json": audio.place(number), "format": file.format} for number, file in enumerate(job.audio)]
    with not_to_repeat():
        answer = await audio.answer(json.dumps({"created": round(job.created_at), "data": data}))
    if call.ignored:
        answer.headers[IGNORED_HEADER] = ", ".join(call.ignored)
    return FinishedAnswer(answer)


def _add_tags(given: dict[str, Any]) -> None:
    """Put `tags`, a text or a list of texts, behind the prompt. Without a prompt, they are it. Raises InvalidRequest."""
    tags = given.pop("tags", None)
    if isinstance(tags, list) and all(isinstance(tag, str) for tag in tags):
        tags = ", ".join(tags)
    if tags is not None and not isinstance(tags, str):
        raise wrong_field("tags", shortened(tags), "must be a text, or a list of texts")
    prompt = given.get("prompt")
    if tags and not prompt:
        given["prompt"] = tags
    elif tags and isinstance(prompt, str):
        given["prompt"] = f"{prompt}, {tags}"


_PATHS: Final = (
    "/v1/sound-generation",
    "/tts",
    "/v1/audio/generations",
    "/api/v1/audio/generations",
    "/v1/audio/generate",
    "/v1/music/generations",
)
FAMILY: Final = Family(router, _PATHS, openai_error)
