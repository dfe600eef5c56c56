"""The planner's forward pass computes what transformers computes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from serve_app.engine.planner.network import Network
from serve_app.weights import planner_files, random_planner


@pytest.fixture(scope="module")
def folder(cache: Path) -> Path:
    """A small random language model."""
    return random_planner.build(cache, lambda *progress: None)


@pytest.fixture(scope="module")
def network(folder: Path) -> Network:
    """That language model in float32, with 5 rows of 600 tokens."""
    return Network(planner_files.verify(folder), torch.device("cpu"), torch.float32, rows=5, context=600)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    """The same language model in transformers."""
    from transformers import Qwen3Model

    return Qwen3Model.from_pretrained(folder, dtype=torch.float32).eval()


def _tokens(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 1300, (count,), generator=generator).tolist()


def _expected(reference: Any, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        states: torch.Tensor = reference(torch.tensor([tokens])).last_hidden_state
    return states[0, -1]


def test_a_pass_is_that_of_transformers(network: Network, reference: Any) -> None:
    """A prompt read in two pieces, then single tokens, give transformers' hidden states, also across a step of the keys."""
    tokens = _tokens(262, seed=1)

    with torch.inference_mode():
        network.read(2, tokens[:100], 0)
        read = network.read(2, tokens[100:250], 100)
        stepped = [network.step([None, None, tokens[at]], [0, 0, at])[2] for at in range(250, 262)]

    torch.testing.assert_close(read, _expected(reference, tokens[:250]), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(stepped[-1], _expected(reference, tokens), atol=2e-5, rtol=1e-4)


def test_rows_do_not_mix(network: Network, reference: Any) -> None:
    """Sequences of different lengths that are stepped together, and one that moves to another row, stay what they are."""
    first, second, third = _tokens(30, 1), _tokens(50, 2), _tokens(41, 3)

    with torch.inference_mode():
        network.read(0, first[:-1], 0)
        network.read(1, second[:-2], 0)
        network.read(2, third[:-1], 0)
        network.step([None, second[-2], None], [0, 48, 0])
        network.move(2, 0, 40)
        states = network.step([third[-1], second[-1]], [40, 49])

    torch.testing.assert_close(states[0], _expected(reference, third), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(states[1], _expected(reference, second), atol=2e-5, rtol=1e-4)
