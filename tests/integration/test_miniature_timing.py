"""The figures of how a model follows lyrics, as `python -m miniature timing` finds them over HTTP."""

from pathlib import Path

import httpx
import numpy as np
import pytest

from miniature.dataset import held_out_clips
from miniature.pieces import Facts
from miniature.timing import measure, word_errors, word_starts
from serve_app.config import ModelArgs
from tests.support.engines import AligningToy
from tests.support.running import running, simulated


def sung_clip() -> Facts:
    """A held-out clip with a voice."""
    return next(facts for facts in held_out_clips() if facts.voice)


@pytest.mark.long
def test_all_figures_come_from_a_running_service(cache: Path, tmp_path: Path) -> None:
    """A clip's words are all timed, and its two scores and those of four songs are compared."""
    model = ModelArgs(source="embedded", device="cpu")
    facts = sung_clip()
    with running(tmp_path, {"toy": model}, AligningToy("toy", model, cache)) as service:
        figures = measure(service.client, [facts])

    assert figures.words == sum(start < 9.24 for start in word_starts(facts))
    assert 0 <= figures.median_s <= 10.24
    assert all(0 <= score <= 1 for score in (figures.close, figures.sung, figures.left_out, figures.falls))
    assert figures.best >= figures.mean


def test_a_service_that_cannot_is_reported(tmp_path: Path) -> None:
    """An answer that is no success ends the measuring with the answer in the error."""
    with (
        running(tmp_path, {"toy": simulated()}) as service,
        httpx.Client(base_url=f"{service.url}/no") as client,
        pytest.raises(RuntimeError, match=r"/no/v1/inputs: status 4\d\d, "),
    ):
        measure(client, [sung_clip()])


def test_words_start_with_their_first_syllable() -> None:
    """A word's error is that of its first syllable; words of the second that the model plays do not count."""
    facts = sung_clip()
    starts = word_starts(facts)
    times = [start_s for _, start_s in facts.syllables]

    errors = word_errors(facts, [start + 0.5 for start in starts])

    assert set(starts) <= set(times)
    assert starts == sorted(starts)
    assert len(errors) == sum(start < 9.24 for start in starts)
    assert np.allclose(errors, 0.5)
