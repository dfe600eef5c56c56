"""The audio of clips, which is rendered from their seeds whenever it is needed."""

import numpy as np

from miniature.latents import SAMPLE_RATE, SAMPLES
from miniature.pieces import CLIP_S, Facts, compose
from miniature.synthesizer import LOUDNESS, Audio, render

CLIP_FRAMES = round(CLIP_S * SAMPLE_RATE / SAMPLES)
CLIP_SAMPLES = CLIP_FRAMES * SAMPLES


def render_stems(facts: Facts) -> dict[str, Audio]:
    """A clip's tracks, (2, CLIP_SAMPLES) each, at one gain: their sum has the root mean square LOUDNESS while it plays."""
    stems = {track: render(notes, CLIP_SAMPLES) for track, notes in compose(facts.seed).tracks.items()}
    played = min(facts.piece_s * SAMPLE_RATE, CLIP_SAMPLES)
    power = (mix(stems)[:, :played] ** 2).mean()
    gain = np.float32(LOUDNESS / np.sqrt(power))
    return {track: stem * gain for track, stem in stems.items()}


def render_clip(facts: Facts) -> Audio:
    """A clip's audio (2, CLIP_SAMPLES): the sum of its tracks."""
    return mix(render_stems(facts))


def mix(stems: dict[str, Audio]) -> Audio:
    """The sum of tracks, one or more."""
    audio: Audio = np.sum(list(stems.values()), axis=0)
    return audio
