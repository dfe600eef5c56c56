"""Listens to songs: a summary of all measures, and how well it agrees with what was asked for.

Instrument, drums, bass and voice are told by probes, linear in statistics of a song's latents and in their squares. They were
fitted on clips of the synthesizer by `python -m miniature measures --fit` and are kept in `probes.npz`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from miniature.dataset import Dataset
from miniature.latents import SAMPLE_RATE, SAMPLES, analyse
from miniature.measures import Key, ends, heard_bpm, heard_key, in_scale, pitch_classes, played_samples, tempo_is
from miniature.mixing import ENERGY_FLOOR, LINEAR, Latents, energy_scale
from miniature.pieces import FINAL_SILENCE_S, INSTRUMENTS, Facts
from miniature.synthesizer import LOUDNESS
from miniature.tasks import HELD_OUT

PROBES_FILE = Path(__file__).with_name("probes.npz")
ADDED = ("drums", "bass", "voice")
RIDGE = 30.0
MOST_DEVIATION = 4.0
"""No statistic counts for further from its mean than this many standard deviations: songs may be unlike all clips."""
DECODED_COPIES = 2
QUANTILES = (0.1, 0.5, 0.9, 0.98)


@dataclass(frozen=True)
class Probes:
    """The probes: `mean` and `scale` (statistics,), and `weights` (2 * statistics + 1, outputs).

    The weights are those of the scaled statistics, of their squares and of a constant. The outputs are the instruments,
    then ADDED; each is about 1 where it is heard and 0 where not.
    """

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray

    def outputs(self, statistics: np.ndarray) -> np.ndarray:
        """(songs, outputs) of (songs, statistics)."""
        outputs: np.ndarray = _inputs(statistics, self.mean, self.scale) @ self.weights
        return outputs

    def save(self, file: Path) -> None:
        """Writes the probes."""
        np.savez(file, mean=self.mean, scale=self.scale, weights=self.weights)

    @classmethod
    def load(cls, file: Path) -> "Probes":
        """Reads what `save` wrote."""
        with np.load(file) as saved:
            return cls(saved["mean"], saved["scale"], saved["weights"])


@dataclass(frozen=True)
class Sounds:
    """What plays in a song."""

    instrument: str
    drums: bool
    bass: bool
    voice: bool


@dataclass(frozen=True)
class Heard:
    """What is heard in a song."""

    sounds: Sounds
    pitch_classes: np.ndarray
    key: Key
    bpm: float
    ending: bool


def listen(audio: np.ndarray) -> Heard:
    """What is heard in a song (2, samples) at 48 kHz, of any loudness. Raises ValueError for silence."""
    classes = pitch_classes(audio)
    sounds = sounds_in(analyse(_normalised(audio)))
    return Heard(sounds, classes, heard_key(classes), heard_bpm(audio), ends(audio))


def sound_scores(audio: np.ndarray) -> dict[str, float]:
    """How clearly each instrument, drums, bass and voice are heard in a song (2, samples): about 1 where one plays, 0 where not.

    Raises ValueError for silence.
    """
    outputs = _outputs(analyse(_normalised(audio)))
    return dict(zip((*INSTRUMENTS, *ADDED), map(float, outputs), strict=True))


def sounds_in(latents: Latents) -> Sounds:
    """What plays in latents (frames, 64) of the loudness of clips, without silence after the end."""
    outputs = _outputs(latents)
    instrument = INSTRUMENTS[int(outputs[: len(INSTRUMENTS)].argmax())]
    drums, bass, voice = (bool(output > 0.5) for output in outputs[len(INSTRUMENTS) :])
    return Sounds(instrument, drums, bass, voice)


AGREEMENTS: Mapping[str, Callable[[Heard, Facts], bool]] = {
    "key": lambda heard, facts: heard.key == _key(facts),
    "key or relative": lambda heard, facts: heard.key in (_key(facts), _key(facts).relative),
    "tempo": lambda heard, facts: tempo_is(heard.bpm, facts.bpm),
    "instrument": lambda heard, facts: heard.sounds.instrument == facts.instrument,
    "drums": lambda heard, facts: heard.sounds.drums == facts.drums,
    "bass": lambda heard, facts: heard.sounds.bass == facts.bass,
    "voice": lambda heard, facts: heard.sounds.voice == facts.voice,
    "ending": lambda heard, facts: heard.ending == facts.ending,
}
"""Whether a song is as asked for, by the name of what was asked for."""


def agreements(songs: Sequence[np.ndarray], facts: Sequence[Facts]) -> dict[str, tuple[float, float]]:
    """How often songs are as asked for, and how often by chance.

    Each figure is a share of the songs, or for "energy in scale" of their energy. Chance is the agreement with what was
    asked of the other songs; `songs` and `facts` need at least two.
    """
    return {name: _with_chance(pairs) for name, pairs in _pairs(songs, facts).items()}


def song_agreements(songs: Sequence[np.ndarray], facts: Sequence[Facts]) -> dict[str, np.ndarray]:
    """Whether each song is as asked for, 1 or 0, and for "energy in scale" its share: (songs,) for each name."""
    return {name: pairs.diagonal() for name, pairs in _pairs(songs, facts).items()}


def fit(data: Dataset) -> Probes:
    """Probes fitted on the clips of a data set that are not held out."""
    random = np.random.default_rng(0)
    statistics = []
    wanted = []
    for clip, facts in enumerate(data.facts[:-HELD_OUT]):
        played = _played(data.mix[clip], facts)
        heard = [played, *(_decoded(played, random) for _ in range(DECODED_COPIES))]
        statistics += [_statistics(latents) for latents in heard]
        wanted += [_wanted(facts)] * len(heard)
    return _solved(np.stack(statistics), np.array(wanted))


def _solved(statistics: np.ndarray, wanted: np.ndarray) -> Probes:
    """The probes with the least squared error, by ridge regression."""
    mean = statistics.mean(0)
    scale = statistics.std(0) + 1e-6
    inputs = _inputs(statistics, mean, scale)
    weights = np.linalg.solve(inputs.T @ inputs + RIDGE * np.eye(inputs.shape[1]), inputs.T @ wanted)
    return Probes(mean.astype(np.float32), scale.astype(np.float32), weights.astype(np.float32))


def _outputs(latents: Latents) -> np.ndarray:
    """The probes' outputs for latents (frames, 64)."""
    outputs: np.ndarray = _probes().outputs(_statistics(latents)[None])[0]
    return outputs


def _key(facts: Facts) -> Key:
    return Key(facts.key, facts.mode)


def _pairs(songs: Sequence[np.ndarray], facts: Sequence[Facts]) -> dict[str, np.ndarray]:
    """How each song agrees with what was asked of each: (songs, facts) for each name."""
    all_heard = [listen(song) for song in songs]
    energies = [[in_scale(heard.pitch_classes, _key(asked)) for asked in facts] for heard in all_heard]
    pairs = {"energy in scale": np.array(energies)}
    for name, agrees in AGREEMENTS.items():
        pairs[name] = np.array([[float(agrees(heard, asked)) for asked in facts] for heard in all_heard])
    return pairs


def _with_chance(pairs: np.ndarray) -> tuple[float, float]:
    """The mean of the diagonal and of the rest of a square matrix, songs by facts."""
    count = len(pairs)
    right = float(np.trace(pairs))
    return right / count, (float(pairs.sum()) - right) / (count * (count - 1))


def _wanted(facts: Facts) -> list[float]:
    instruments = [float(facts.instrument == name) for name in INSTRUMENTS]
    return [*instruments, *(float(getattr(facts, name)) for name in ADDED)]


def _played(latents: np.ndarray, facts: Facts) -> Latents:
    """A clip's latents without the silence after its end."""
    frames = int((facts.piece_s - FINAL_SILENCE_S) * SAMPLE_RATE / SAMPLES)
    played: Latents = latents[:frames].astype(np.float32)
    return played


def _decoded(latents: Latents, random: np.random.Generator) -> Latents:
    """What a decoder may make of a clip: the higher a band, the weaker it is, and there is noise where silence was.

    The study's decoder weakens the uppermost bands of some instruments by up to 30 dB.
    """
    mean, scale = energy_scale()
    energies = 10 ** (latents[:, LINEAR:] * scale + mean) - ENERGY_FLOOR
    weaker = np.cumsum(random.uniform(0, 0.8, 5) * random.random()) + 0.2 * random.standard_normal(5)
    dulled = np.maximum(energies, 0) * 10 ** -np.tile(weaker.clip(-0.3, 3), 2) + 10 ** random.uniform(-6.5, -5)
    waveform = latents[:, :LINEAR]
    noise = random.uniform(0, 0.1) * random.standard_normal(waveform.shape)
    bands = (np.log10(dulled + ENERGY_FLOOR) - mean) / scale
    decoded: Latents = np.concatenate([waveform + noise, bands], 1).astype(np.float32)
    return decoded


def _normalised(audio: np.ndarray) -> np.ndarray:
    """A song without the silence after its end, as loud as clips are."""
    played = audio[:, : played_samples(audio)]
    loudness = float(np.sqrt((played**2).mean()))
    if loudness < 1e-6:
        raise ValueError("the song is silent, so nothing can be heard in it")
    scaled: np.ndarray = played * (LOUDNESS / loudness)
    return scaled


def _statistics(latents: Latents) -> np.ndarray:
    """What tells timbres apart, whatever is played: levels of bands over time, and how much they rise."""
    bands = latents[:, LINEAR:]
    # The waveform's numbers have a random sign, so their energies over two latents are taken.
    pairs = latents[: len(latents) // 2 * 2, :LINEAR].reshape(-1, 2, LINEAR)
    fine = np.log((pairs**2).sum(1) + 0.01)
    low = np.log((latents[:, :LINEAR] ** 2).sum(1, keepdims=True) + 0.05)
    rises = np.maximum(0, np.diff(np.concatenate([low, bands], 1), axis=0))
    spreads = [moment for values in (bands, fine, rises) for moment in (values.mean(0), values.std(0))]
    return np.concatenate([*spreads, *np.quantile(bands, QUANTILES, axis=0)])


def _inputs(statistics: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """What the weights are multiplied with: (songs, 2 * statistics + 1)."""
    scaled = np.clip((statistics - mean) / scale, -MOST_DEVIATION, MOST_DEVIATION)
    return np.concatenate([scaled, scaled**2, np.ones((len(scaled), 1))], 1)


@cache
def _probes() -> Probes:
    return Probes.load(PROBES_FILE)
