"""Where a source lies in the song that is made from it, and which parts of that song are new."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from typing import Final

from serve_app.music.request import MusicRequest
from serve_app.music.vocabulary import SAMPLE_RATE

FRAME_SAMPLES: Final = 1920
"""Samples in one latent frame of ACE-Step 1.5's VAE: 40 ms."""


@dataclass(frozen=True)
class Window:
    """A part of a song, from sample `start` up to, not including, sample `stop`."""

    start: int
    stop: int

    @property
    def frames(self) -> slice:
        """The latent frames that are generated for it: from the one in which it starts to the one in which it ends."""
        return slice(self.start // FRAME_SAMPLES, max(ceil(self.stop / FRAME_SAMPLES), self.start // FRAME_SAMPLES + 1))


@dataclass(frozen=True)
class SourcePlan:
    """The song of one request with a source. Numbers are samples at 48 kHz."""

    samples: int
    """The length of the song."""
    offset: int
    """How much is new before the source: a whole number of latent frames."""
    windows: tuple[Window, ...]
    """The new parts, in the song's own time. Empty: all of the song is new."""

    @property
    def duration(self) -> float:
        """The length of the song in seconds."""
        return self.samples / SAMPLE_RATE


def source_plan(request: MusicRequest, source_samples: int) -> SourcePlan:
    """Returns the plan of a request whose source has `source_samples` samples.

    Raises ValueError, with a text that starts with the field's name, if the named part lies outside the source.
    """
    names_part = request.repaint_start is not None or request.repaint_end is not None
    offset = round(request.extend_before * SAMPLE_RATE / FRAME_SAMPLES) * FRAME_SAMPLES
    after = round(request.extend_after * SAMPLE_RATE)
    windows = []
    if offset:
        windows.append(Window(0, offset))
    if names_part or (request.task_type == "repaint" and not offset and not after):
        windows.append(_named_part(request, source_samples, offset))
    if after:
        windows.append(Window(offset + source_samples, offset + source_samples + after))
    return SourcePlan(offset + source_samples + after, offset, _joined(windows))


def _joined(windows: Iterable[Window]) -> tuple[Window, ...]:
    """Returns `windows`, which are in order, with those that touch made one."""
    joined: list[Window] = []
    for window in windows:
        if joined and joined[-1].stop == window.start:
            joined[-1] = Window(joined[-1].start, window.stop)
        else:
            joined.append(window)
    return tuple(joined)


def _named_part(request: MusicRequest, source_samples: int, offset: int) -> Window:
    start = round((request.repaint_start or 0.0) * SAMPLE_RATE)
    stop = source_samples if request.repaint_end is None else round(request.repaint_end * SAMPLE_RATE)
    seconds = source_samples / SAMPLE_RATE
    if start >= source_samples:
        raise ValueError(f"repaint_start: is {request.repaint_start:g}, but the source ends at {seconds:g} s")
    if stop > source_samples + FRAME_SAMPLES:
        raise ValueError(
            f"repaint_end: is {request.repaint_end:g}, but the source ends at {seconds:g} s; extend_after adds to it"
        )
    return Window(offset + start, offset + min(stop, source_samples))
