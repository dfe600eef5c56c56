"""How the planner draws tokens."""

from collections import Counter

import pytest
import torch

from serve_app.engine.planner.protocol import Sampling
from serve_app.engine.planner.sampling import draw, guided

_LOGITS = torch.log(torch.tensor([0.5, 0.25, 0.15, 0.1]))


def _drawn(sampling: Sampling, count: int = 2000, logits: torch.Tensor = _LOGITS) -> dict[int, float]:
    """How often each column is drawn."""
    generator = torch.Generator().manual_seed(3)
    drawn = Counter(draw(logits[None], [4], [sampling], [generator])[0] for _ in range(count))
    return {column: drawn[column] / count for column in range(4) if drawn[column]}


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=1, top_p=1), {0: 0.5, 1: 0.25, 2: 0.15, 3: 0.1}),
        (Sampling(temperature=0.5, top_p=1), {0: 0.725, 1: 0.181, 2: 0.065, 3: 0.029}),
        (Sampling(temperature=1, top_p=0.7), {0: 2 / 3, 1: 1 / 3}),
        (Sampling(temperature=1, top_p=1, top_k=3), {0: 0.556, 1: 0.278, 2: 0.167}),
        (Sampling(temperature=0, top_p=1), {0: 1}),
        (Sampling(temperature=1, top_p=0), {0: 1}),
    ],
)
def test_tokens_are_drawn_as_often_as_likely(sampling: Sampling, expected: dict[int, float]) -> None:
    """Temperature, top-k and top-p give each token its probability."""
    assert _drawn(sampling) == pytest.approx(expected, abs=0.035)


def test_what_is_not_allowed_is_never_drawn() -> None:
    """A column of minus infinity is not drawn at any temperature."""
    logits = _LOGITS.clone()
    logits[0] = -torch.inf

    assert 0 not in _drawn(Sampling(temperature=100, top_p=1), logits=logits)


def test_songs_draw_the_same_alone_and_in_company() -> None:
    """Rows with other ways of sampling and other seeds beside a song do not change what it draws."""
    ways = [Sampling(), Sampling(temperature=0.3, top_k=5), Sampling(temperature=0), Sampling(top_p=1)]
    widths = [500, 3, 500, 40]
    logits = torch.randn(4, 500, generator=torch.Generator().manual_seed(1))
    logits[torch.arange(500) >= torch.tensor(widths)[:, None]] = -torch.inf
    seeded = [torch.Generator().manual_seed(seed) for seed in range(4)]
    alone = [torch.Generator().manual_seed(seed) for seed in range(4)]

    together = [draw(logits, widths, ways, seeded) for _ in range(20)]
    apart = [
        [draw(logits[at : at + 1, : widths[at]], widths[at : at + 1], [ways[at]], [alone[at]])[0] for at in range(4)]
        for _ in range(20)
    ]

    assert together == apart


def test_a_row_that_is_not_a_number_is_known() -> None:
    """NaN in one song's logits gives None for that song, and a token for the other."""
    logits = torch.stack([_LOGITS, torch.full((4,), torch.nan)])
    generators = [torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)]

    first, second = draw(logits, [4, 4], [Sampling(), Sampling()], generators)

    assert first in range(4)
    assert second is None


def test_guidance_goes_from_the_unconditional_side() -> None:
    """Guidance 1 is the conditional side, 2 goes as far again beyond it, each song by its own."""
    conditional, unconditional = torch.tensor([[3.0], [3.0]]), torch.tensor([[1.0], [1.0]])

    assert guided(conditional, unconditional, torch.tensor([1.0, 2.0])).flatten().tolist() == [3, 5]
