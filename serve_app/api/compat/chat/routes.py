"""Chat completions that are answered with songs, for ACE-Step's clients and for those of OpenAI's and OpenRouter's audio models.

An answer has ACE-Step's shape, a list of data URLs, unless the request has OpenAI's field `audio`. What a message may say is in
`messages.py`, the fields beside it are in `wishes.py`.
"""

import time
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from serve_app.api.auth import Owner
from serve_app.api.compat.chat.answers import Chunk, ListShape, OpenAiShape, Shape, Songs, completion
from serve_app.api.compat.chat.stream import ChatStream
from serve_app.api.compat.chat.wishes import chat_call, switch, with_wish
from serve_app.api.compat.family import Family
from serve_app.api.compat.json_bodies import json_object
from serve_app.api.compat.openai_shape import FinishedAnswer, not_to_repeat, openai_error
from serve_app.api.compat.song_call import SongCall, made_song
from serve_app.api.context import Context, ContextDep
from serve_app.api.parameters import IdempotencyKey
from serve_app.api.views.problem import Problem
from serve_app.jobs import new_id

_NAME: Final = "chat"
_COMPLETIONS: Final = "/v1/chat/completions"

router = APIRouter(include_in_schema=False)


@router.post(_COMPLETIONS)
async def complete(
    request: Request, context: ContextDep, owner: Owner, idempotency_key: IdempotencyKey = None
) -> Response:
    """Make the songs that the last message asks for, and answer with them."""
    body = await json_object(request, context, owner)
    shape: Shape = OpenAiShape() if body.get("audio") else ListShape()
    is_streamed = switch(body, "stream")
    call = await chat_call(context, owner, body, _NAME)
    body.clear()  # it may have recordings, and the songs take long
    songs = (await with_wish(request, context, owner, call))._replace(idempotency_key=idempotency_key)
    if is_streamed:
        return ChatStream(context, owner, songs, shape, _chunk(context, songs))
    return await _answer(request, context, owner, songs, shape)


def _chunk(context: Context, call: SongCall) -> Chunk:
    model = call.asked.song.model or context.args.default_model or ""
    return Chunk(f"chatcmpl-{new_id()}", round(time.time()), model)


async def _answer(request: Request, context: Context, owner: str, call: SongCall, shape: Shape) -> Response:
    job = await made_song(request, context, owner, call)
    with not_to_repeat():
        songs = await context.threads.run(Songs.of, context, job)
        return FinishedAnswer(await songs.audio.answer(completion(songs, shape)))


def _error_shape(problem: Problem) -> tuple[int, dict[str, Any]]:
    """OpenAI's error, and its text where ACE-Step's clients look for it."""
    status, body = openai_error(problem)
    return status, {**body, "detail": problem.detail}


FAMILY: Final = Family(router, ("/v1/chat/",), _error_shape, base64_paths=(_COMPLETIONS,))
