"""Splices the new parts of a repaint into its source, whose samples stay as they are everywhere else."""

import numpy as np

from serve_app import errors
from serve_app.music import SAMPLE_RATE, SourcePlan, Window


def spliced(raw: np.ndarray, source: np.ndarray, plan: SourcePlan, ramp_s: float, seed: int) -> np.ndarray:
    """Returns the song, float32 of shape (frames, 2): the source, with the samples of `raw` in the plan's windows.

    `raw` (2, at least as many frames) is the decoded song, `source` (frames, 2). Outside the windows the samples are the source's,
    bit for bit, so they are not normalised; the original splices before it normalises, which changes the level of what is kept.
    The new parts are divided by their peak if that is above 1. Within a window, `ramp_s` seconds at each edge lead from the source
    to the new part. Where the source ends at the edge, they lead from its last sample.

    Raises:
        BadAudio: a new part has NaN or infinity.
    """
    new = np.ascontiguousarray(raw[:, : plan.samples].T)
    peak = float(np.max([np.abs(new[window.start : window.stop]).max() for window in plan.windows]))
    if not np.isfinite(peak):
        raise errors.BadAudio(f"The model produced NaN or infinite samples with seed {seed}. Try another seed.")
    if peak > 1.0:
        new /= peak
    song = np.zeros((plan.samples, 2), np.float32)
    place = slice(plan.offset, plan.offset + len(source))
    song[place] = source
    for window in plan.windows:
        part = slice(window.start, window.stop)
        song[part] = new[part] + _bridge(new, song, place, window, round(ramp_s * SAMPLE_RATE))
    return song


def _bridge(new: np.ndarray, song: np.ndarray, place: slice, window: Window, ramp: int) -> np.ndarray:
    """Returns what is added to a window's new samples, of shape (frames, 2), so that its edges meet the source at `place`.

    It is the difference to the source, times a share that falls from each edge in a straight line over `ramp` samples, or half the
    window.
    """
    length = window.stop - window.start
    ramp = min(ramp, length // 2)
    added = np.zeros((length, 2), np.float32)
    share = (1.0 - np.arange(1, ramp + 1, dtype=np.float32) / (ramp + 1))[:, None]
    if window.start > place.start:
        added[:ramp] += share * _apart(new, song, place, range(window.start, window.start + ramp), window.start - 1)
    if window.stop < place.stop:
        ends = range(window.stop - ramp, window.stop)
        added[length - ramp :] += share[::-1] * _apart(new, song, place, ends, window.stop)
    return added


def _apart(new: np.ndarray, song: np.ndarray, place: slice, moments: range, edge: int) -> np.ndarray:
    """Returns how far the source is from the new samples at `moments`; where there is no source, how far it is at `edge`."""
    if place.start <= moments.start and moments.stop <= place.stop:
        part = slice(moments.start, moments.stop)
        apart: np.ndarray = song[part] - new[part]
        return apart
    return np.repeat((song[edge] - new[edge])[None], len(moments), axis=0)
