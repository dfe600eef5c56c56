"""A file of a megabyte that holds a day of silence: what the service answers, how long it takes, and whether it lives."""

import io
import time
from fractions import Fraction
from typing import Final

import av
import httpx
import numpy as np

from benchmarks.markdown import table
from benchmarks.player import Player

_HOURS: Final = 24
_RATE: Final = 48_000
_PACKET: Final = 65_535
"""Samples in one packet, as many as FLAC allows."""


def bombs(client: httpx.Client, player: Player) -> str:
    """A table with the answer to the file, and whether a song is made after it."""
    file = _day_of_silence()
    began = time.monotonic()
    answer = client.post("/v1/inputs", content=file)
    took = time.monotonic() - began
    problem = answer.json()
    song = player.make(prompt="solo piano", duration=2, seed=1).song
    return table(
        ["file", "answer", "seconds", "detail", "the next song"],
        [
            [
                f"{_HOURS} h in {len(file) / 1e6:.2f} MB of FLAC",
                f"{answer.status_code} `{problem.get('code')}`",
                f"{took:.2f}",
                problem.get("detail"),
                f"{song.shape[1] / 48_000:g} s",
            ]
        ],
    )


def _day_of_silence() -> bytes:
    """A FLAC file with the largest packets."""
    file = io.BytesIO()
    with av.open(file, "w", format="flac") as output:
        options = {"frame_size": str(_PACKET), "strict": "experimental"}
        stream = output.add_stream("flac", rate=_RATE, options=options)
        stream.codec_context.layout = "mono"
        stream.codec_context.format = "s16"
        stream.codec_context.open()
        size = stream.codec_context.frame_size
        frame = av.AudioFrame.from_ndarray(np.zeros((1, size), np.int16), format="s16", layout="mono")
        frame.sample_rate = _RATE
        frame.time_base = Fraction(1, _RATE)
        for number in range(_HOURS * 3600 * _RATE // size):
            frame.pts = number * size
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()
