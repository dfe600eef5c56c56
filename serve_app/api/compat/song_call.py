"""Calls of foreign APIs that are answered with a finished song."""

import asyncio
from typing import Any, Final, NamedTuple

from fastapi import Request, Response

from serve_app.api.compat.openai_shape import FinishedAnswer, do_not_repeat, not_to_repeat
from serve_app.api.compat.translation import Translated
from serve_app.api.context import Context
from serve_app.api.field_errors import shortened, wrong_field
from serve_app.api.file_answer import answer_file
from serve_app.api.repeated_calls import WaitingCall
from serve_app.api.submission import Origin, submit
from serve_app.api.waiting_calls import job_of_call, succeeded
from serve_app.errors import SophiaError
from serve_app.jobs import Job
from serve_app.music import spellings
from serve_app.music.lyric_text import has_words

_MOST_IGNORED: Final = 30
"""The most ignored fields that a warning names."""

IGNORED_HEADER: Final = "X-Ignored-Fields"
"""Names the fields of the request that Sophia cannot honour, and that the song does without."""


class SongCall(NamedTuple):
    """A song that a foreign API was asked for."""

    asked: Translated
    family: str
    ignored: tuple[str, ...] = ()
    """The client's names of the fields that Sophia cannot honour."""
    idempotency_key: str | None = None

    @property
    def origin(self) -> Origin:
        """The origin of the job. Fields that are ignored become a warning."""
        if not self.ignored:
            return Origin(self.family)
        names = ", ".join(map(shortened, self.ignored[:_MOST_IGNORED]))
        more = f" and {len(self.ignored) - _MOST_IGNORED} more" if len(self.ignored) > _MOST_IGNORED else ""
        return Origin(self.family, (f"Some fields are ignored, because they cannot be honoured: {names}{more}.",))


def without_singing(given: dict[str, Any]) -> tuple[str, ...]:
    """Put lyrics that mean an instrumental in place of the field `instrumental`. Returns the lyrics' field if it had any.

    Raises InvalidRequest unless the field is true or false.
    """
    wanted = spellings.switch(given.pop("instrumental", False))
    if not isinstance(wanted, bool):
        raise wrong_field("instrumental", shortened(wanted), "must be true or false")
    if not wanted:
        return ()
    had_words = has_words(str(given.get("lyrics", "")))
    given["lyrics"] = "[Instrumental]"
    return ("lyrics",) if had_words else ()


async def made_song(
    request: Request, context: Context, owner: str, call: SongCall, submitted: asyncio.Event | None = None
) -> Job:
    """Submit the job, and wait for its songs. `submitted` is set when there is a job.

    Raises what `finished_job` and `succeeded` raise. Errors name fields as the client does, and say whether to repeat the request.
    """
    has_begun = submitted or asyncio.Event()

    async def submission(waiting: WaitingCall) -> tuple[Job, bool]:
        with call.asked.errors_named_as_given():
            found = await submit(
                context, call.asked.song, owner, call.idempotency_key, origin=call.origin, call=waiting
            )
        has_begun.set()
        return found

    try:
        return succeeded(await job_of_call(request, context, owner, submission))
    except SophiaError as error:
        if has_begun.is_set():
            do_not_repeat(error)
        raise


async def answer_with_song(request: Request, context: Context, owner: str, call: SongCall) -> Response:
    """The song as a file. Raises what `made_song` and `answer_file` raise, and InvalidRequest for more than one song."""
    song = call.asked.song
    if song.songs > 1:
        name = "variations" if song.variations > 1 else "task_type"
        given = call.asked.names.get(name, name)
        raise wrong_field(given, str(getattr(song, name)), "must ask for one song, because the answer is one file")
    job = await made_song(request, context, owner, call)
    with not_to_repeat():
        answer = await answer_file(request, context, job, 0)
    if call.ignored:
        answer.headers[IGNORED_HEADER] = ", ".join(call.ignored)
    return FinishedAnswer(answer)
