"""A request together with the plan that it brings."""

from typing import Any, Final, NamedTuple

from serve_app.music.plan import CODES_PER_SECOND, Plan
from serve_app.music.plan_fields import GivenPlan, codes_in
from serve_app.music.request import MusicRequest
from serve_app.plurals import counted

_FIELD_OF: Final = {
    "lyrics": "lyrics",
    "bpm": "bpm",
    "keyscale": "keyscale",
    "timesignature": "timesignature",
    "duration": "duration",
    "language": "vocal_language",
}
"""The request's field for each field of a plan, but the caption and the codes."""


class GivenSong(NamedTuple):
    """A request that has taken over what its plan says, and the plan if there is nothing left to plan."""

    request: MusicRequest
    plan: Plan | None


def with_given_plan(request: MusicRequest, earlier: Plan | None) -> GivenSong:
    """Fill in the fields that a request leaves out from its `plan`; `earlier` is the plan of the job that it names.

    The request keeps its own fields. Raises ValueError, with a text that starts with the name of the wrong field.
    """
    given = request.plan
    if given is None:
        return GivenSong(request, None)
    fields = _plan_fields(given, earlier)
    codes: list[list[int]] = fields.pop("codes", [])
    if codes:
        fields["duration"] = _checked_duration(request, fields, codes)
    found = _left_out(request, fields)
    if "caption" in fields and request.plan_caption:
        found |= {"prompt": fields["caption"], "plan_caption": False}
    if not codes:
        return GivenSong(request.model_copy(update=found | {"plan": None}), None)
    filled = request.model_copy(update=found | {"thinking": "none"})
    return GivenSong(filled, _plan_of(filled, fields, codes))


def _plan_fields(given: GivenPlan, earlier: Plan | None) -> dict[str, Any]:
    """What the plan says, by its fields. What the request has written counts more than the plan of the job that it names."""
    found = {name: value for name, value in earlier.to_json().items() if value not in (None, ())} if earlier else {}
    written = given.model_dump(exclude_none=True, exclude={"job"})
    if earlier and earlier.codes and "duration" in written and "codes" not in written:
        raise ValueError(
            "plan.duration: must be left out, because the codes of the plan of `job` have their own length"
        )
    if "codes" in written:
        found.pop("duration", None)  # it is that of the other codes
    return found | written


def _left_out(request: MusicRequest, fields: dict[str, Any]) -> dict[str, Any]:
    """The values of a plan for those fields of the request that its author has left out."""
    found: dict[str, Any] = {}
    for name, ours in _FIELD_OF.items():
        if name in fields and _is_left_out(request, ours):
            found[ours] = fields[name]
    if "duration" in found:
        found["auto_duration"] = False
    if "vocal_language" in found:
        found["plan_language"] = False
    if "seed" in fields and request.plan_seed is None:
        found["plan_seed"] = fields["seed"]
    return found


def _is_left_out(request: MusicRequest, field: str) -> bool:
    return field not in request.model_fields_set or (field == "duration" and request.auto_duration)


def _checked_duration(request: MusicRequest, fields: dict[str, Any], codes: list[list[int]]) -> float:
    """The length of a song with these codes. Raises ValueError if it is not the request's, or codes of a song are missing."""
    if request.task_type != "text2music":
        raise ValueError(
            f"plan.codes: belong to task_type 'text2music'; this request's task_type is {request.task_type!r}"
        )
    if len(codes) < request.played_songs:
        raise ValueError(
            f"plan.codes: are those of {counted(len(codes), 'song')}, but the request needs {request.played_songs}"
        )
    length = len(codes[0])
    duration: float = fields.get("duration", length / CODES_PER_SECOND)
    if not _is_left_out(request, "duration") and codes_in(request.duration) != length:
        raise ValueError(f"duration: must be left out or {duration:g}, because the plan's codes have this length")
    return duration


def _plan_of(request: MusicRequest, fields: dict[str, Any], codes: list[list[int]]) -> Plan:
    return Plan(
        caption=request.prompt,
        lyrics=request.lyrics,
        bpm=request.bpm,
        keyscale=request.keyscale,
        timesignature=request.timesignature,
        duration=request.duration,
        language=request.vocal_language,
        instrumental=bool(fields.get("instrumental", False)),
        codes=tuple(tuple(song) for song in codes[: request.played_songs]),
        seed=fields.get("seed"),
    )
