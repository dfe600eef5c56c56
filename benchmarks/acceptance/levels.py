"""Levels of a song: loudness, silence, and what is heard of key and tempo. Songs are arrays (2, samples) at 48 kHz."""

from typing import Final

import av
import numpy as np

from benchmarks.player import Samples
from serve_app.music import SAMPLE_RATE

_SILENT: Final = 1e-3
"""A block whose loudest sample is below this, -60 dBFS, is silent."""
_BLOCK: Final = SAMPLE_RATE // 20
_LOUDNESS: Final = "lavfi.r128.I"


def silent_share(song: Samples) -> float:
    """The share of blocks of 50 ms that are silent."""
    blocks = song[:, : song.shape[1] // _BLOCK * _BLOCK].reshape(2, -1, _BLOCK)
    return float((np.abs(blocks).max((0, 2)) < _SILENT).mean())


def loudness_lufs(song: Samples) -> float:
    """The integrated loudness by EBU R 128, in LUFS; -70 for silence. The song is at least 0.4 s long."""
    graph = av.filter.Graph()
    source = graph.add_abuffer(sample_rate=SAMPLE_RATE, format="flt", layout="stereo")
    meter = graph.add("ebur128", "metadata=1")
    sink = graph.add("abuffersink")
    source.link_to(meter)
    meter.link_to(sink)
    graph.configure()
    interleaved = np.ascontiguousarray(song.T, np.float32).reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(interleaved, format="flt", layout="stereo")
    frame.sample_rate = SAMPLE_RATE
    source.push(frame)
    source.push(None)
    return _last_loudness(sink)


def _last_loudness(sink: av.filter.context.FilterContext) -> float:
    """The loudness that the meter attached to its last frame."""
    loudness = -70.0
    while True:
        try:
            frame = sink.pull()
        except (av.error.EOFError, av.error.BlockingIOError):
            return loudness
        loudness = float(frame.metadata.get(_LOUDNESS, loudness))
