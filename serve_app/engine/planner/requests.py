"""What a request for a song asks of a planner."""

from serve_app.engine.planner.protocol import Sampling, Wishes
from serve_app.music import MusicRequest
from serve_app.music.lyric_text import has_words


def wishes_of(request: MusicRequest) -> Wishes:
    """What the request has decided, and how the rest is planned. The submission has set its seeds."""
    return Wishes(
        caption=request.prompt,
        lyrics=request.lyrics,
        bpm=request.bpm,
        keyscale=request.keyscale,
        timesignature=request.timesignature,
        duration=None if request.auto_duration else request.duration,
        longest=request.duration,
        language=None if request.plan_language else request.vocal_language,
        instrumental=not has_words(request.lyrics),
        thinking=request.thinking or "none",
        songs=request.played_songs,
        seed=request.plan_seed or 0,
        sampling=Sampling(
            temperature=request.plan_temperature,
            guidance=request.plan_guidance,
            top_k=request.plan_top_k,
            top_p=request.plan_top_p,
            negative_prompt=request.plan_negative_prompt,
        ),
    )
