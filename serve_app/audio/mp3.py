"""Encodes MP3 with LAME and adds the Xing/LAME tag, which lameenc does not write.

The tag is a silent frame at the start of the file. It holds the number of frames and bytes, the position in the file of each
hundredth of the song, and the number of samples to drop at both ends (encoder delay and padding). Without it, players guess the
length of a VBR file, and their guess is too long.
"""

import struct
from typing import Final

import lameenc
import numpy as np
import numpy.typing as npt

from serve_app.music import SAMPLE_RATE

_VBR_MTRH: Final = 4
_VBR_LEVEL: Final = 2
"""LAME's preset V2, about 190 kbit/s."""

_QUALITY: Final = 7
"""LAME's quality level, from 0 (best) to 9. 7 omits noise shaping, which VBR hardly needs.

Compared with 5, it is 1.5 times as fast, its files are 10 % smaller, and its error on music is the same within 0.4 dB. No
difference between 0 and 5 could be measured.
"""

_FRAME_SAMPLES: Final = 1152
_DELAY: Final = 576
"""Samples of silence that LAME puts before a song. A decoder adds another 529, which players already drop."""

_BIT_RATES: Final = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
"""Bit rates in kbit/s, by the index in the header of an MPEG-1 layer III frame."""

_TAG_HEADER: Final = bytes.fromhex("fffb9464")
"""Header of an MPEG-1 layer III frame of 128 kbit/s, 48 kHz, joint stereo. Such a frame has 384 bytes, enough for the tag."""
_TAG_BYTES: Final = 384
_SIDE_INFO: Final = bytes(32)
_ALL_FIELDS: Final = 0x0F  # the fields frames, bytes, table and quality are all present
_LOWPASS_HZ: Final = 18_500  # LAME's default at V2


class Mp3Encoder:
    """Encodes blocks of float32 samples of shape (frames, 2) at 48 kHz to MP3 frames."""

    def __init__(self) -> None:
        self._lame = lameenc.Encoder()
        self._lame.silence()
        self._lame.set_channels(2)
        self._lame.set_in_sample_rate(SAMPLE_RATE)
        self._lame.set_out_sample_rate(SAMPLE_RATE)
        self._lame.set_vbr(_VBR_MTRH)
        self._lame.set_vbr_quality(_VBR_LEVEL)
        self._lame.set_quality(_QUALITY)

    def write(self, block: npt.NDArray[np.float32]) -> bytes:
        """Encodes `block` and returns the frames that are complete. Samples out of [-1, 1] are clipped."""
        pcm = np.rint(np.clip(block, -1, 1) * 32767).astype("<i2")
        return bytes(self._lame.encode(pcm.tobytes()))

    def finish(self) -> bytes:
        """Returns the remaining frames."""
        return bytes(self._lame.flush())


def xing_frame(frames: bytes, samples: int) -> bytes:
    """Returns the tag for a file. `frames` are all its MP3 frames, and `samples` is the number of encoded samples per channel."""
    starts = _frame_starts(frames)
    total = _TAG_BYTES + len(frames)
    padding = len(starts) * _FRAME_SAMPLES - _DELAY - samples
    table = bytes((_TAG_BYTES + starts[percent * len(starts) // 100]) * 256 // total for percent in range(100))
    xing = struct.pack(">4sIII100sI", b"Xing", _ALL_FIELDS, len(starts), total, table, 100 - 10 * _VBR_LEVEL - _QUALITY)
    lame = struct.pack(
        ">9sBBIHHBB3sBBHIH",
        b"LAME3.100",
        _VBR_MTRH,  # upper four bits: revision 0 of the tag
        _LOWPASS_HZ // 100,
        0,  # peak: not measured
        0,  # radio gain: not measured
        0,  # audiophile gain: not measured
        4,  # LAME's ATH type
        0,  # no minimum bit rate
        (_DELAY << 12 | padding).to_bytes(3, "big"),
        0x64,  # 48 kHz, joint stereo
        0,
        500 - 10 * _VBR_LEVEL,  # LAME's number for the preset V2
        total,
        0,  # CRC of the frames: not computed, as players do not check it
    )
    tag = _TAG_HEADER + _SIDE_INFO + xing + lame
    tag += _crc16(tag).to_bytes(2, "big")
    return tag.ljust(_TAG_BYTES, b"\0")


def _frame_starts(frames: bytes) -> list[int]:
    """Returns the position of each frame, computed from the bit rates in the headers."""
    starts = []
    position = 0
    while position < len(frames):
        starts.append(position)
        flags = frames[position + 2]
        bit_rate = _BIT_RATES[flags >> 4]
        padded = flags >> 1 & 1
        position += 144_000 * bit_rate // SAMPLE_RATE + padded
    return starts


def _crc16(data: bytes) -> int:
    """Returns the CRC-16/ARC of `data`, the last field of LAME's tag."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xA001 if crc & 1 else 0)
    return crc
