"""What `auto` means is one answer, and the cluster's."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
import torch
import yaml

from serve_app.app import build
from serve_app.config import AppArgs, ModelArgs
from serve_app.ops import doctor
from serve_app.ops.cli import main
from serve_app.weights import DEFAULT_REPOSITORY, DEFAULT_REVISION, auto
from serve_app.weights.auto import Hardware, settled

needs_no_gpu = pytest.mark.skipif(
    torch.cuda.is_available(), reason="this machine has a GPU, which the test must not see"
)


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
    """A GPU means CUDA and the released checkpoint at its pinned commit; what is configured is never changed."""
    found, why = settled("m", ModelArgs.model_validate(given), look)

    assert (found.device, found.source) == (device, source)
    assert found.revision == (DEFAULT_REVISION if source == DEFAULT_REPOSITORY else None)
    assert bool(why) is ("source" not in given)


@needs_no_gpu
@pytest.mark.fault("C13")
def test_without_a_cluster_the_command_line_says_what_it_assumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: Path, checkpoint: Path
) -> None:
    """`weights pull` tells that no cluster answered, that the checkpoint is noise, and how to choose."""
    monkeypatch.setattr(auto, "PATIENCE_S", 0.01)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    (tmp_path / "weights").symlink_to(cache)

    assert main(["--config", str(_config(tmp_path)), "weights", "pull", "m"]) == 0

    said = capsys.readouterr().err
    assert "m plays the embedded checkpoint, tiny random weights" in said
    assert "no Ray cluster answers here, and this machine has no GPU" in said
    assert "set models.m.source" in said


@pytest.fixture(scope="module")
def cluster_with_gpu() -> Iterator[str]:
    """A Ray cluster that says it has a GPU, on a machine without one."""
    ray.init("local", num_cpus=1, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@needs_no_gpu
@pytest.mark.ray
@pytest.mark.fault("C13")
def test_on_a_head_without_a_gpu_the_command_line_asks_the_cluster(
    cluster_with_gpu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`weights pull` fetches the released checkpoint, which the cluster's workers will play, as the service itself settles it."""
    monkeypatch.setenv("RAY_ADDRESS", cluster_with_gpu)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = _config(tmp_path)

    assert main(["--config", str(config), "weights", "pull", "m"]) == 1

    said = capsys.readouterr().err
    assert f"m plays {DEFAULT_REPOSITORY}: the Ray cluster that answers here has a GPU" in said
    assert f"{DEFAULT_REPOSITORY} at " in said  # offline, so it cannot be fetched, and is named
    assert not list(tmp_path.glob("weights/**/*.safetensors"))
    args = AppArgs.model_validate({"data_dir": tmp_path, "models": {"m": {}}})
    assert doctor._source("m", args.models["m"]).source == DEFAULT_REPOSITORY
    assert DEFAULT_REPOSITORY in repr(build(args)._bound_deployment.init_args[0].models)


def _config(folder: Path) -> Path:
    file = folder / "serve.yaml"
    args = {"data_dir": str(folder), "models": {"m": {}}}
    file.write_text(yaml.safe_dump({"applications": [{"import_path": "serve_app.app:build", "args": args}]}))
    return file
