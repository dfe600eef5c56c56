"""From the body of a chat completion to the songs that it asks for."""

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

from fastapi import Request

from serve_app.api.compat.chat.messages import last_message, words_of
from serve_app.api.compat.json_bodies import kept_recording
from serve_app.api.compat.openai import without_foreign_voice
from serve_app.api.compat.openai_shape import served_name
from serve_app.api.compat.song_call import SongCall, without_singing
from serve_app.api.compat.translation import translated
from serve_app.api.context import Context
from serve_app.api.field_errors import check_field_count, shortened, wrong_field
from serve_app.api.plan_calls import written_song
from serve_app.api.planning import has_planner
from serve_app.config import AppArgs
from serve_app.music import SOURCE_TASKS, MusicRequest, spellings
from serve_app.music.plan_fields import GivenPlan
from serve_app.music.spellings import our_name

_OBJECTS: Final = ("audio_config", "audio")
"""Fields whose entries are fields of the song: ACE-Step's and OpenAI's."""

_WISHES: Final[tuple[Literal["sample_mode", "use_format"], ...]] = ("sample_mode", "use_format")
_NOT_OF_THE_SONG: Final = ("messages", "stream", "stream_options", "modalities", *_OBJECTS, *_WISHES)
_OWN_NAMES: Final = {"temperature": "plan_temperature", "top_p": "plan_top_p"}
_PLANNING: Final = ("thinking", "plan_")
"""The beginnings of the fields that only a planner can honour."""

_NOTHING: Final[tuple[object, ...]] = (False, "", [], {})


class ChatCall(NamedTuple):
    """The songs that a chat asks for."""

    songs: SongCall
    wish: Literal["sample", "format"] | None
    """What a planner makes of the words before the song is planned: a song for a wish, or better words."""


async def chat_call(context: Context, owner: str, body: Mapping[str, Any], family: str) -> ChatCall:
    """The songs that a body asks for. Raises InvalidRequest, and what `kept_recording` raises."""
    message = last_message(body.get("messages"))
    fields = _Fields.of(body)
    given = fields.given
    given["model"] = served_name(context.args, given.get("model"))
    is_planned = _has_planner(context.args, given["model"])
    wishes = [name for name in _WISHES if switch(body, name)]
    ignored = [*fields.without_unknown(), *fields.without_planning(is_planned), *([] if is_planned else wishes)]
    words = words_of(message.text, is_caption=bool(given.get("lyrics")) or "sample_mode" in wishes)
    given["messages"] = words.caption
    if words.lyrics is not None:
        given["lyrics"] = words.lyrics
    ignored += without_singing(given)
    ignored += await without_foreign_voice(context, owner, given)
    ignored += fields.with_one_seed()
    fields.drop_open_values()
    await _keep_recordings(context, owner, message.recordings, given)
    asked = translated(given, own_names=fields.own_names, defaults={"duration": "auto"})
    wish: Literal["sample", "format"] = "sample" if "sample_mode" in wishes else "format"
    return ChatCall(SongCall(asked, family, tuple(ignored)), wish if is_planned and wishes else None)


async def with_wish(request: Request, context: Context, owner: str, call: ChatCall) -> SongCall:
    """The songs with the words that a planner has found for the wish, if there is one. Raises what `written_song` raises."""
    if call.wish is None:
        return call.songs
    asked = call.songs.asked
    with asked.errors_named_as_given():
        found = await written_song(request, context, owner, call.wish, asked.song)
    facts = {name: value for name, value in found.to_json().items() if value is not None and name != "codes"}
    changed: dict[str, Any] = {"plan": GivenPlan.model_validate(facts)}
    if call.wish == "format":
        changed["lyrics"] = found.lyrics
    return call.songs._replace(asked=asked._replace(song=asked.song.model_copy(update=changed)))


def switch(body: Mapping[str, Any], name: str) -> bool:
    """A field that is true or false; false without it. Raises InvalidRequest."""
    value = spellings.switch(body.get(name) or False)
    if not isinstance(value, bool):
        raise wrong_field(name, shortened(value), "must be true or false")
    return value


class _Fields(NamedTuple):
    """The fields of the song in a body, by the client's names."""

    given: dict[str, Any]
    own_names: dict[str, str]
    """Sophia's names for those that mean something else elsewhere."""

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> "_Fields":
        """The fields of a body, those in its objects too. Raises InvalidRequest."""
        check_field_count(body)
        given = {name: value for name, value in body.items() if name not in _NOT_OF_THE_SONG and value is not None}
        own_names = {**_OWN_NAMES, "messages": "prompt"}
        for outer in _OBJECTS:
            inside = body.get(outer) or {}
            if not isinstance(inside, dict):
                raise wrong_field(outer, shortened(inside), "must be an object")
            check_field_count(inside)
            for name, value in inside.items():
                if name in ("instrumental", "voice"):
                    given[name] = value
                elif value is not None:
                    given[f"{outer}.{name}"] = value
                    own_names[f"{outer}.{name}"] = _sophias(name)
        return cls(given, own_names)

    def without_unknown(self) -> list[str]:
        """Remove the fields that Sophia does not know, as ACE-Step's server ignores them. Returns those that ask for something."""
        unknown = [name for name in self.given if self._ours(name) not in _KNOWN]
        return [name for name in unknown if self.given.pop(name) not in _NOTHING]

    def without_planning(self, is_planned: bool) -> list[str]:
        """Remove the fields that only a planner can honour unless there is one. Returns that which asks for planning."""
        planning = [name for name in self.given if self._ours(name).startswith(_PLANNING) and not is_planned]
        values = {name: spellings.thinking(self.given.pop(name)) for name in planning}
        return [name for name, value in values.items() if self._ours(name) == "thinking" and value != "none"]

    def with_one_seed(self) -> list[str]:
        """Take the first of several seeds. Returns the field unless the others are the next numbers, as further songs have them."""
        changed = []
        for name, value in self.given.items():
            if self._ours(name) == "seed" and isinstance(value, str | list) and "," in str(value):
                seeds = [spellings.number(seed) for seed in (value.split(",") if isinstance(value, str) else value)]
                self.given[name] = seeds[0]
                if seeds != [seeds[0] + number if isinstance(seeds[0], int) else None for number in range(len(seeds))]:
                    changed.append(name)
        return changed

    def drop_open_values(self) -> None:
        """Remove a length of 0 or less, and an end of a repaint of -1: they leave both open."""
        for name, value in list(self.given.items()):
            ours = self._ours(name)
            number = spellings.number(value)
            is_number = isinstance(number, int | float) and not isinstance(number, bool)
            if is_number and ((ours == "duration" and number <= 0) or (ours == "repaint_end" and number == -1)):
                del self.given[name]

    def _ours(self, name: str) -> str:
        return self.own_names.get(name) or _sophias(name)


_KNOWN: Final = frozenset({*MusicRequest.model_fields, "instrumental"})


def _sophias(name: str) -> str:
    return name if name in _KNOWN else our_name(name) or name


def _has_planner(args: AppArgs, model: object) -> bool:
    name = args.default_model if model is None else model
    return isinstance(name, str) and name in args.models and has_planner(args.models[name])


async def _keep_recordings(context: Context, owner: str, recordings: tuple[str, ...], given: dict[str, Any]) -> None:
    """Keep the recordings of a message as inputs: the reference of a song from words, else its source, then its reference."""
    from_source = spellings.choice(given.get("task_type")) in SOURCE_TASKS
    fields = ("source", "reference") if from_source else ("reference",)
    if len(recordings) > len(fields):
        raise wrong_field("messages", "", f"must have at most {len(fields)} `input_audio` for this task_type")
    for field, data in zip(fields, recordings, strict=False):
        given[field] = await kept_recording(context, field, data, owner)
