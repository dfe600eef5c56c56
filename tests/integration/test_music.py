"""Songs of the embedded checkpoint, fetched over HTTP and listened to."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import torch
from diffusers import AutoencoderOobleck

from miniature.listening import listen
from miniature.measures import heard_bpm, tempo_is
from miniature.start import start_folder
from serve_app.config import ModelArgs
from serve_app.engine.ace_step.engine import AceStepEngine
from serve_app.engine.ace_step.narrow_encoder import use_narrow_encoder
from serve_app.music import SAMPLE_RATE
from tests.support.listening import best_key, centroid_hz, chromagram, scale_notes, scale_share
from tests.support.running import Service, running

Song = npt.NDArray[np.float32]

EMBEDDED = ModelArgs(source="embedded", device="cpu")
DURATION_S = 5
FAR = {"C major": "F# major", "F# major": "C major", "A minor": "D# minor", "D# minor": "A minor"}
"""Keys, and for each the one whose scale shares two notes with it. Music that ignores the key fits two of them at most."""


@pytest.fixture(scope="module")
def musical(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with the embedded checkpoint."""
    engine = AceStepEngine("ace-step", EMBEDDED, cache)
    engine.load(lambda phase, fraction, detail: None)
    with running(tmp_path_factory.mktemp("music"), {"ace-step": EMBEDDED}, engine) as service:
        yield service


@pytest.fixture(scope="module")
def pianos(musical: Service) -> dict[str, Song]:
    """A song in each key of FAR, which differ in nothing else that was asked for."""
    return {key: _samples(_file(musical, "solo piano, calm", keyscale=key)) for key in FAR}


def test_a_song_is_heard_for_as_long_as_was_asked(pianos: dict[str, Song]) -> None:
    """A song has the asked duration, and each second of it is loud enough to be heard."""
    song = pianos["C major"]

    assert song.shape == (2, DURATION_S * SAMPLE_RATE)
    seconds = song.reshape(2, DURATION_S, SAMPLE_RATE)
    assert np.sqrt(np.square(seconds).mean((0, 2))).min() > 0.005


def test_a_song_ends_without_a_click(pianos: dict[str, Song]) -> None:
    """Its last samples are no louder than twice what comes before them."""
    for song in pianos.values():
        ending = np.abs(song[:, -12:]).max()
        before = np.abs(song[:, -480:-24]).max()
        assert ending < 2 * before


def test_songs_are_in_the_key_that_was_asked_for(pianos: dict[str, Song]) -> None:
    """More than .85 of the energy is on the notes of the requested key's scale, and less than .45 on those of a distant key's."""
    asked = [scale_share(song, key) for key, song in pianos.items()]
    far = [scale_share(song, FAR[key]) for key, song in pianos.items()]

    assert np.mean(asked) > 0.85, asked
    assert np.mean(far) < 0.45, far


def test_the_key_that_is_heard_is_the_asked_one_or_near_it(pianos: dict[str, Song]) -> None:
    """The key that fits best shares five or more of seven notes with the asked one, in all songs but one at most."""
    heard = {key: best_key(song) for key, song in pianos.items()}
    shared = [len({*scale_notes(asked)} & {*scale_notes(found)}) for asked, found in heard.items()]

    assert sum(notes >= 5 for notes in shared) >= len(FAR) - 1, heard


def test_the_seed_decides_what_is_played(musical: Service) -> None:
    """The same request and seed give the same file, and another seed gives other notes in the same key."""
    first = _file(musical, "solo organ, calm", keyscale="D major", seed=3)
    again = _file(musical, "solo organ, calm", keyscale="D major", seed=3)
    other = _file(musical, "solo organ, calm", keyscale="D major", seed=4)

    assert again == first
    assert scale_share(_samples(other), "D major") > 0.8
    melodies = [np.sqrt(chromagram(_samples(file))).ravel() for file in (first, other)]
    assert np.corrcoef(melodies)[0, 1] < 0.8


@pytest.mark.long
def test_the_tempo_that_is_heard_is_the_requested_one(musical: Service) -> None:
    """Five of six songs at 80 and 120 bpm are heard at their tempo, its half or its double, within 4 %."""
    heard = {
        (bpm, seed): heard_bpm(_samples(_file(musical, "piano with drums", bpm=bpm, seed=seed, duration=8)))
        for bpm in (80, 120)
        for seed in (1, 2, 3)
    }

    assert sum(tempo_is(found, bpm) for (bpm, _seed), found in heard.items()) >= 5, heard


@pytest.mark.long
@pytest.mark.parametrize("instrument", ["piano", "flute"])
def test_drums_are_heard_when_they_are_asked_for(musical: Service, instrument: str) -> None:
    """Drums are heard in five of six songs with drums, and in one of six of the instrument alone at most."""
    heard = {
        prompt: sum(listen(_samples(_file(musical, prompt, seed=seed))).sounds.drums for seed in range(1, 7))
        for prompt in (f"solo {instrument}, calm", f"{instrument} with drums, calm")
    }
    alone, accompanied = heard.values()

    assert accompanied >= 5, heard
    assert alone <= 1, heard


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_encoding_and_decoding_keep_key_and_tempo(musical: Service, tmp_path: Path) -> None:
    """A served song that the VAE encodes and decodes is heard in its key or the relative one and at its tempo, as in the file."""
    folder = start_folder(None, tmp_path)
    vae = AutoencoderOobleck.from_pretrained(folder / "vae")
    use_narrow_encoder(vae, folder)
    served = _samples(_file(musical, "piano with drums", bpm=120, duration=8))

    with torch.inference_mode():
        latents = vae.encode(torch.from_numpy(served)[None]).latent_dist.mode()
        decoded = vae.decode(latents).sample[0].numpy()

    before = listen(served)
    after = listen(decoded)
    assert after.key in (before.key, before.key.relative)
    assert tempo_is(after.bpm, 120)
    assert np.corrcoef(before.pitch_classes, after.pitch_classes)[0, 1] > 0.95
    assert after.sounds.drums == before.sounds.drums


@pytest.mark.long
@pytest.mark.parametrize(("bright", "dark"), [("music box", "piano"), ("music box", "strings"), ("organ", "flute")])
def test_an_instrument_has_its_brightness(musical: Service, bright: str, dark: str) -> None:
    """An instrument with stronger overtones or higher notes has the higher spectral centroid, over two songs each."""
    centroids = {
        name: np.mean([centroid_hz(_samples(_file(musical, f"solo {name}, calm", seed=s))) for s in (1, 2)])
        for name in (bright, dark)
    }

    assert centroids[bright] > 1.03 * centroids[dark], centroids


@pytest.mark.long
def test_a_song_goes_on_in_its_key(musical: Service) -> None:
    """An extended song keeps its samples. In three of four extensions what follows is loud, and most of it in the song's key."""
    fields: dict[str, Any] = {
        "prompt": "piano with drums",
        "bpm": 120,
        "keyscale": "D major",
        "duration": 8,
        "format": "wav",
    }
    made = musical.client.post("/v1/music", json=fields | {"seed": 1})
    song = _samples(made.content)
    job = made.headers["content-location"].split("/")[3]  # /v1/jobs/ID/audio/0
    task: dict[str, Any] = {"task_type": "repaint", "source": f"job:{job}/0", "extend_after": 5}

    longer = [_samples(_file(musical, **fields, **task, seed=seed)) for seed in (2, 3, 4, 5)]

    old = song.shape[1]
    assert all(np.array_equal(one[:, :old], song) for one in longer)
    assert {one.shape for one in longer} == {(2, old + 5 * SAMPLE_RATE)}
    heard = [
        (np.square(one[:, old:]).mean() / np.square(song).mean(), scale_share(one[:, old:], "D major"))
        for one in longer
    ]
    assert sum(loudness > 0.1 and share > 0.85 for loudness, share in heard) >= 3, heard


def _file(service: Service, prompt: str, **fields: Any) -> bytes:
    """The FLAC file of a song: in C major and with seed 1, unless `fields` say otherwise."""
    request = {"prompt": prompt, "keyscale": "C major", "seed": 1, "duration": DURATION_S, "format": "flac"} | fields
    answer = service.client.post("/v1/music", json=request)
    assert answer.status_code == 200, answer.text
    return answer.content


def _samples(file: bytes) -> Song:
    """The song in an audio file: (2, samples)."""
    samples, _rate = soundfile.read(io.BytesIO(file), dtype="float32")
    song: Song = samples.T
    return song
