"""A request together with what its plan has decided."""

from typing import Any

from serve_app.music.plan import Plan
from serve_app.music.request import MusicRequest


def rendered_request(request: MusicRequest, plan: Plan) -> MusicRequest:
    """The request as its songs are rendered: the plan decides what the request leaves open, as in the original.

    Lyrics are the request's, and caption and language as well unless it lets the planner choose them. The plan's length
    is that of the songs, unless their source decides it. The audio codes of the first song become the request's `audio_codes`.
    """
    found: dict[str, Any] = {
        "prompt": plan.caption if request.plan_caption else request.prompt,
        "bpm": request.bpm or plan.bpm,
        "keyscale": request.keyscale or plan.keyscale,
        "timesignature": request.timesignature or plan.timesignature,
    }
    if request.plan_language and plan.language != "unknown":
        found["vocal_language"] = plan.language
    if request.task_type == "text2music":
        found["duration"] = plan.duration or request.duration
        if plan.codes:
            found["audio_codes"] = list(plan.codes[0])
    return request.model_copy(update=found)
