"""Decoding uploads in a child process: every format that people have, and files that are broken, hostile or no audio at all."""

from pathlib import Path

import numpy as np
import psutil
import pytest

from serve_app.decoding import AudioFacts, DecodingLimits, decode, inspect
from serve_app.errors import AudioTooLong, DamagedAudio, DecoderLimit, UnreadableAudio, UnusableAudio
from tests.support.failure_codes import provoked
from tests.support.recordings import FORMATS, long_silence, opened, pcm, recording, tones

LIMITS = DecodingLimits(seconds=600, timeout_s=60, memory_bytes=256 * 2**20)
LOSSLESS = ("wav", "wav32", "flac")
EDGE = 4096
"""AAC has errors at both ends of a file, where the signal begins and ends abruptly."""

PADDED = ("webm", "adts", "mov")
"""FFmpeg's muxers keep the padding of the last packet."""


def facts_of(data: bytes, limits: DecodingLimits = LIMITS) -> AudioFacts:
    with opened(data) as file:
        return inspect(file, limits)


def refusal_of(data: bytes, kind: type[UnusableAudio], limits: DecodingLimits = LIMITS) -> str:
    with pytest.raises(kind) as refused:
        facts_of(data, limits)
    assert type(refused.value) is kind
    return refused.value.message


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_decoded(format: str) -> None:
    """The samples are those that were encoded, within the error of the codec, and there are as many."""
    original = tones()
    with opened(recording(format)) as file:
        found = inspect(file, LIMITS)
        samples = decode(file, LIMITS)
    assert (found.channels, found.sample_rate, found.silent) == (2, 48_000, False)
    assert found.seconds == pytest.approx(len(samples) / 48_000)
    extra = len(samples) - len(original)
    assert 0 <= extra < (2048 if format in PADDED else 1), extra
    delay = 1024 if format in ("adts", "mov") else 0  # these files do not say how long their encoder's delay is
    error = np.abs(samples[delay : len(original)] - original[: len(original) - delay])[EDGE:-EDGE].max()
    assert error < (4e-5 if format in LOSSLESS else 0.06), error
    assert samples.flags.writeable


def test_a_float_file_at_48_khz_keeps_its_exact_samples() -> None:
    """No resampler and no mixer touches them."""
    original = tones()
    with opened(recording("wav32")) as file:
        samples = decode(file, LIMITS)
    np.testing.assert_array_equal(samples, original)


@pytest.mark.parametrize(
    ("rate", "channels"),
    [
        (8_000, 1),
        (44_100, 2),
        (44_100, 6),
        *(pytest.param(*other, marks=pytest.mark.long) for other in ((22_050, 2), (44_100, 1), (96_000, 2))),
    ],
)
def test_every_rate_and_layout_becomes_stereo_at_48_khz(rate: int, channels: int) -> None:
    """A tone keeps its frequency and length; mono is duplicated, six channels are mixed down."""
    tone = np.repeat(tones(1, rate)[:, :1], channels, axis=1)
    with opened(pcm(tone, rate)) as file:
        found = inspect(file, LIMITS)
        samples = decode(file, LIMITS)
    assert (found.channels, found.sample_rate) == (channels, rate)
    assert samples.shape[1] == 2
    assert abs(len(samples) - 48_000) <= 2
    spectrum = np.abs(np.fft.rfft(samples[:, 0] * np.hanning(len(samples))))
    assert round(np.argmax(spectrum) * 48_000 / len(samples)) == 440
    if channels < 3:
        np.testing.assert_array_equal(samples[:, 0], samples[:, 1])


def test_silence_is_reported() -> None:
    """A file of zeros is silent."""
    assert facts_of(pcm(np.zeros((480, 2), np.float32), 48_000)).silent


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_whose_second_half_is_missing_is_refused(format: str) -> None:
    """In every format that states its length; a stream of ADTS frames does not, but its last frame is broken."""
    data = recording(format)
    message = refusal_of(data[: len(data) // 2], DamagedAudio)
    assert "truncated" in message or "damaged" in message
    if format == "wav":
        provoked("damaged_audio", "a WAV file whose end is missing", message)
    if format == "mp3":
        provoked("damaged_audio", "an MP3 file whose second half is missing", message)


def test_what_is_not_audio_is_refused() -> None:
    """Text, an image, nothing, and playlists that name other files."""
    playlists = (b"#EXTM3U\nfile:///etc/passwd\n", b"ffconcat version 1.0\nfile /etc/passwd\n")
    for data in (b"Dear Sophia, sing this.\n" * 50, b"\x89PNG\r\n\x1a\n" + bytes(99), b"", bytes(999), *playlists):
        message = refusal_of(data, UnreadableAudio)
    assert "mp3" in message
    provoked("unreadable_audio", "a text file called .wav", message)


@pytest.mark.long
def test_a_bomb_stops_at_the_longest_length() -> None:
    """Six hours of silence in a small file are refused soon after the limit, whatever the header says."""
    data = long_silence(6)
    assert len(data) < 4_000_000
    provoked("audio_too_long", "six hours of silence in 3.5 MB", refusal_of(data, AudioTooLong))


def test_a_file_that_needs_too_much_memory_is_refused() -> None:
    """A second of samples alone does not fit into 100 kB."""
    limits = DecodingLimits(seconds=600, timeout_s=60, memory_bytes=100_000)
    provoked("decoder_limit", "a file that needs too much memory", refusal_of(recording("wav"), DecoderLimit, limits))


def test_samples_that_are_no_numbers_are_refused() -> None:
    """A float WAV file may contain NaN."""
    assert "NaN" in refusal_of(pcm(np.full((99, 2), np.nan, np.float32), 48_000, subtype="FLOAT"), DamagedAudio)


@pytest.mark.parametrize(
    ("codec", "timeout_s", "kind", "code"),
    [
        ("import os; os.kill(os.getpid(), 11)", 60, DamagedAudio, "damaged_audio"),
        ("import time; time.sleep(600)", 1, DecoderLimit, "decoder_limit"),
    ],
)
def test_a_codec_that_crashes_or_hangs_harms_nobody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, codec: str, timeout_s: float, kind: type[UnusableAudio], code: str
) -> None:
    """The child dies, the caller gets an error, and no process is left."""
    (tmp_path / "soxr.py").write_text(codec)
    monkeypatch.syspath_prepend(tmp_path)
    limits = DecodingLimits(seconds=600, timeout_s=timeout_s, memory_bytes=256 * 2**20)
    message = refusal_of(recording("wav"), kind, limits)
    provoked(code, "a codec that crashes" if kind is DamagedAudio else "a codec that hangs", message)
    assert not [child for child in psutil.Process().children() if "decoding" in " ".join(child.cmdline())]


def test_the_decoder_gets_no_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment of the child has no variable of Sophia's or of a cloud provider's."""
    seen = tmp_path / "seen"
    (tmp_path / "soxr.py").write_text(
        f"import os, pathlib; pathlib.Path({str(seen)!r}).write_text(' '.join(os.environ))"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SOPHIA_DATABASE_URL", "postgresql://secret")
    with pytest.raises(DamagedAudio):
        facts_of(recording("wav"))
    assert "SOPHIA_DATABASE_URL" not in seen.read_text().split()
