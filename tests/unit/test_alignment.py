"""Alignment of lyrics to time, on attention maps in which it is known what is sung when."""

import numpy as np
import pytest

from serve_app.engine.ace_step.alignment import AttentionMaps, Floats, best_path, lyric_score, token_times

FRAMES = 100
FRAME_S = 0.08
STARTS = np.array([4, 10, 17, 30, 36, 50, 52, 70, 81, 90])
"""The frame in which each of ten tokens begins."""


def test_the_path_is_the_best_of_all() -> None:
    """On small maps, no other path has a larger sum than the one that is found, and its steps are legal."""
    random = np.random.default_rng(0)
    for _ in range(50):
        gain = random.normal(size=tuple(random.integers(1, 6, 2)))

        tokens, frames = best_path(gain)

        assert (tokens[0], frames[0]) == (0, 0)
        assert (tokens[-1] + 1, frames[-1] + 1) == gain.shape
        assert {*zip(np.diff(tokens), np.diff(frames), strict=True)} <= {(0, 1), (1, 0), (1, 1)}
        assert gain[tokens, frames].sum() == pytest.approx(_largest_sum(gain, 0, 0))


def test_planted_times_are_found() -> None:
    """Each token starts in the frame in which its attention starts, and ends where the next one starts."""
    maps = AttentionMaps(_planted(), _planted())

    times = token_times(maps, FRAME_S)

    np.testing.assert_allclose(times[1:, 0], STARTS[1:] * FRAME_S)
    np.testing.assert_allclose(times[:-1, 1], STARTS[1:] * FRAME_S)
    assert times[0, 0] == 0
    assert times[-1, 1] == pytest.approx(FRAMES * FRAME_S)


def test_a_song_that_follows_its_lyrics_has_the_best_score() -> None:
    """It falls when lines are left out, and when they are sung in another order."""
    sung = _planted()
    left_out = sung.copy()
    left_out[5:] = 0.01
    reversed_ = sung[::-1]

    scores = [_score(weights) for weights in (sung, left_out, reversed_)]

    assert scores[0] > 0.8
    assert all(score < 0.9 * scores[0] for score in scores[1:])
    assert _score(np.full_like(sung, 0.3)) == 0.0


def test_the_score_is_the_originals_formula() -> None:
    """Half of four tokens heard, one of three neighbours out of order, and the mean attention along the path."""
    weights = np.full((4, 40), 0.001)
    weights[0, 0:10] = 1.0
    weights[1, 30:40] = 0.8
    weights[2, 10:20] = 0.05
    weights[3, 20:30] = 0.05

    score = _score(weights)

    energy = (weights - 0.001) / 0.999
    tokens, frames = best_path(energy**2)
    assert score == pytest.approx((2 / 4) ** 2 * (2 / 3) ** 2 * energy[tokens, frames].mean())


def test_tags_need_not_be_sung() -> None:
    """Tokens of section tags count neither as missing nor as out of order."""
    weights = np.vstack([np.full((3, FRAMES), 0.001), _planted()])
    is_word = np.arange(len(weights)) >= 3

    with_tags = lyric_score(AttentionMaps(weights, weights), is_word)

    assert with_tags > 1.5 * lyric_score(AttentionMaps(weights, weights), np.ones(len(weights), np.bool_))


def _score(weights: Floats) -> float:
    return lyric_score(AttentionMaps(weights, weights), np.ones(len(weights), np.bool_))


def _planted() -> Floats:
    """Attention of shape (10, FRAMES): each frame attends to the token that it sings, with a little noise."""
    weights = np.random.default_rng(1).uniform(0, 0.05, (len(STARTS), FRAMES))
    for token, (start, end) in enumerate(zip(STARTS, [*STARTS[1:], FRAMES], strict=True)):
        weights[token, start:end] += 0.9
    return weights


def _largest_sum(gain: Floats, token: int, frame: int) -> float:
    """The largest sum of the paths from a cell to the last one, by trying all of them."""
    if (token + 1, frame + 1) == gain.shape:
        return float(gain[token, frame])
    further = [(token + 1, frame + 1), (token + 1, frame), (token, frame + 1)]
    inside = [(row, column) for row, column in further if row < gain.shape[0] and column < gain.shape[1]]
    return float(gain[token, frame]) + max(_largest_sum(gain, row, column) for row, column in inside)
