"""What `auto` becomes, by what the cluster has."""

from collections.abc import Callable

import pytest

from serve_app.config import ModelArgs
from serve_app.weights import DEFAULT_REPOSITORY, DEFAULT_REVISION
from serve_app.weights.auto import Hardware, settled


def must_not_look() -> Hardware:
    raise AssertionError("the hardware does not matter here")


def has(gpu: bool) -> Callable[[], Hardware]:
    return lambda: Hardware(gpu, "the cluster")


@pytest.mark.parametrize(
    ("given", "look", "device", "source"),
    [
        ({}, has(True), "cuda", DEFAULT_REPOSITORY),
        ({}, has(False), "cpu", "embedded"),
        ({"device": "cuda"}, must_not_look, "cuda", DEFAULT_REPOSITORY),
        ({"device": "cpu"}, must_not_look, "cpu", "embedded"),
        ({"source": "a/b"}, has(True), "cuda", "a/b"),
        ({"source": "a/b"}, has(False), "cpu", "a/b"),
        ({"source": "a/b", "device": "cpu"}, must_not_look, "cpu", "a/b"),
        ({"source": "simulated"}, must_not_look, "cpu", "simulated"),
    ],
)
def test_auto_is_what_the_cluster_can_run(
    given: dict[str, str], look: Callable[[], Hardware], device: str, source: str
) -> None:
    """A GPU means CUDA and the released checkpoint at its pinned commit; configured values are kept."""
    found, why = settled("m", ModelArgs.model_validate(given), look)

    assert (found.device, found.source) == (device, source)
    assert found.revision == (DEFAULT_REVISION if source == DEFAULT_REPOSITORY else None)
    assert bool(why) is ("source" not in given)
