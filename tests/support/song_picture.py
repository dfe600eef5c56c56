"""Draws the notes of a song that Sophia made: `python -m tests.support.song_picture SONG.flac [PICTURE.png] [--key KEY]`.

The picture shows how loud each pitch class is over time, with the notes of a key marked. Without a second argument it is
written to docs/pictures/quickstart.png, for the song of README.md's first example.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib
import numpy as np
import soundfile

from serve_app.music import SAMPLE_RATE
from tests.support.listening import CHROMAGRAM_HOP, NOTES, Samples, best_key, chromagram, scale_notes, scale_share
from tests.support.paths import ROOT

matplotlib.use("Agg")

from matplotlib import pyplot as plt

QUICKSTART: Final = ROOT / "docs" / "pictures" / "quickstart.png"
_IN_KEY: Final = "#1a56b0"
_QUIETEST_DB: Final = -30


def draw(song: Samples, key: str, picture: Path) -> None:
    """Writes the chromagram of a song (2, samples) as a PNG, with the notes of `key` marked."""
    energies = chromagram(song)
    levels = 10 * np.log10(energies / energies.max() + 1e-12)
    seconds = energies.shape[1] * CHROMAGRAM_HOP / SAMPLE_RATE
    figure, axes = plt.subplots(figsize=(9, 3.2), layout="constrained")
    image = axes.imshow(
        levels,
        aspect="auto",
        origin="lower",
        cmap="Greys",
        vmin=_QUIETEST_DB,
        vmax=0,
        extent=(0, seconds, -0.5, 11.5),
        interpolation="nearest",
    )
    figure.colorbar(image, label="level [dB]", pad=0.01)
    axes.set_yticks(range(12), NOTES)
    for note in scale_notes(key):
        axes.axhspan(note - 0.5, note + 0.5, color=_IN_KEY, alpha=0.13, linewidth=0)
        axes.get_yticklabels()[note].set(color=_IN_KEY, fontweight="bold")
    axes.set_xlabel("time [s]")
    axes.set_title(f"Notes of {key} in blue: {scale_share(song, key):.0%} of the energy", fontsize=10)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110, metadata={"Software": ""})
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws the song that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.song_picture", description=__doc__)
    parser.add_argument("song", type=Path, help="a FLAC file that Sophia made")
    parser.add_argument(
        "picture", type=Path, nargs="?", default=QUICKSTART, help="the PNG to write (default: %(default)s)"
    )
    parser.add_argument("--key", help="the key to mark, such as 'C major' (default: the one that fits best)")
    chosen = parser.parse_args(arguments)
    samples, _rate = soundfile.read(chosen.song, always_2d=True)
    key = chosen.key or best_key(samples.T)
    draw(samples.T, key, chosen.picture)
    print(f"{chosen.picture}: {key}, {chosen.picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
