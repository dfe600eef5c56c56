"""Hooks for schemathesis: songs stay short, because each one is really generated and encoded, and uploads are real recordings."""

import os
import re
from typing import Any

import httpx
import numpy as np
import schemathesis
from hypothesis import strategies as st
from pydantic import ValidationError

from serve_app.music import AUDIO_FIELDS, VOICE_NAME, MusicRequest
from serve_app.music.edit_fields import EditFields
from serve_app.music.lyric_fields import LyricFields
from serve_app.music.spellings import thinking
from serve_app.music.task_fields import TaskFields
from tests.support.recordings import pcm

SHORT_S = 1.5
NAME = re.compile("input:|job:|https?:")
NEEDS_A_SOURCE = ("makes a song from another one", "belongs to task_type", "unless source_prompt is given")
OF_A_PLAN = ("for each second of the duration", "must have the same length for each song", "at least one field")
NUMBER = re.compile(r"[0-9]{1,3}(\.[0-9]{1,12})?")


RECORDINGS = st.sampled_from(
    [
        pcm(np.full((48, 2), 1 / (2 + number), np.float32), 48_000, format)
        for number in range(9)
        for format in ("WAV", "FLAC")
    ]
)
VOICE = pcm(np.full((48, 2), 0.5, np.float32), 48_000)
schemathesis.openapi.media_type("application/octet-stream", RECORDINGS)  # since a schema cannot say what audio is


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Replaces a long valid duration by a short valid one, and leaves everything else unchanged."""
    if isinstance(body, dict):
        duration = body.get("duration", 60.0)
        if isinstance(duration, str) and (duration == "auto" or NUMBER.fullmatch(duration)):
            return {**body, "duration": str(SHORT_S)}
        if isinstance(duration, int | float) and not isinstance(duration, bool) and SHORT_S < duration <= 600:
            return {**body, "duration": SHORT_S}
    return body


@schemathesis.hook
def filter_headers(context: Any, headers: Any) -> bool:
    """Leaves out an empty Prefer header: schemathesis takes it for an invalid list, and HTTP for no preference."""
    return not (headers and "prefer" in headers and not headers["prefer"])


@schemathesis.hook
def before_load_schema(context: Any, raw_schema: dict[str, Any]) -> None:
    """Removes multipart bodies: schemathesis takes a valid one with a custom encoding for an invalid one."""
    for path in ("/v1/jobs", "/v1/music", "/v1/inputs", "/v1/voices"):
        del raw_schema["paths"][path]["post"]["requestBody"]["content"]["multipart/form-data"]


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Removes what a schema allows and the service refuses, in the cases of every phase.

    These are names of recordings, which nobody has uploaded, tasks that need one, with their fields, names of adapters, of
    which the model has none, names of voices, and what needs lyrics and a model that aligns them. A new voice gets a
    recording that was uploaded. Plans of jobs are removed, as there are no such jobs, and plans with codes, which are as many as
    their song is long. A song to understand is named in one way.
    """
    if case.path == "/v1/understand" and isinstance(case.body, dict):
        case.body = _named_once(case.body)
        return
    if case.path == "/v1/voices" and isinstance(case.body, dict):
        if _names_a_recording(case.body.get("source")):
            case.body = {**case.body, "source": _uploaded(case.operation.base_url.rstrip("/"))}
        return
    if isinstance(case.body, dict):
        named = {name for name in AUDIO_FIELDS if _names_a_recording(case.body.get(name))}
        named |= {
            name
            for name in (*TaskFields.model_fields, *EditFields.model_fields)
            if name in case.body and _needs_a_source(name, case.body[name])
        }
        if _is_of_adapters(case.body.get("lora")):
            named.add("lora")
        named |= {
            name for name in LyricFields.model_fields if name in case.body and _needs_alignment(name, case.body[name])
        }
        if _is_plan(case.body.get("plan")):
            named.add("plan")
        if case.body.get("audio_codes") is not None or (case.path == "/v1/plan" and _is_thinking(case.body, "none")):
            named |= {"thinking"} if _is_thinking(case.body, "codes", "none") else set()
        if isinstance(case.body.get("voice"), str) and re.fullmatch(VOICE_NAME, case.body["voice"]):
            named.add("voice")
        case.body = {name: value for name, value in case.body.items() if name not in named}


def _names_a_recording(value: Any) -> bool:
    return isinstance(value, str) and NAME.match(value) is not None


def _uploaded(url: str) -> str:
    """The name of a recording that is uploaded, again if it was deleted."""
    key = {"Authorization": f"Bearer {os.environ['FUZZ_KEY']}"}
    answer = httpx.post(f"{url}/v1/inputs", content=VOICE, headers=key, timeout=60)
    return str(answer.raise_for_status().json()["name"])


def _is_of_adapters(lora: Any) -> bool:
    """Whether each entry of the field is right, apart from adapters that do not exist or are named twice."""
    entries = lora if isinstance(lora, list) else [lora]
    try:
        for entry in entries:
            MusicRequest.model_validate({"prompt": "x", "lora": [entry]})
    except ValidationError:
        return False
    return len(entries) <= 8


def _needs_alignment(name: str, value: Any) -> bool:
    """Whether the field asks for something that a simulated model cannot do."""
    try:
        return MusicRequest.model_validate({"prompt": "x", "lyrics": "la", name: value}).needs_alignment
    except ValidationError:
        return False


def _is_plan(plan: Any) -> bool:
    """Whether a plan is right, apart from what its fields say together."""
    try:
        MusicRequest.model_validate({"prompt": "x", "plan": plan})
    except ValidationError as error:
        return all(any(reason in e["msg"] for reason in OF_A_PLAN) for e in error.errors())
    return plan is not None


def _is_thinking(body: dict[str, Any], *values: str) -> bool:
    return thinking(body.get("thinking")) in values


def _named_once(body: dict[str, Any]) -> dict[str, Any]:
    """A request to understand a song without the name of one that nobody has made, but with codes."""
    kept = {name: value for name, value in body.items() if name != "source" or not _names_a_recording(value)}
    return kept if kept.get("audio_codes") is not None else {**kept, "audio_codes": [1]}


def _needs_a_source(name: str, value: Any) -> bool:
    """Whether the field is refused, and only because there is no source or no task that it belongs to."""
    try:
        MusicRequest.model_validate({"prompt": "x", name: value})
    except ValidationError as error:
        return all(any(reason in e["msg"] for reason in NEEDS_A_SOURCE) for e in error.errors())
    return False
