"""What `auto` becomes on the command line beside a Ray cluster."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from serve_app.app import build
from serve_app.config import AppArgs
from serve_app.ops import doctor
from serve_app.ops.cli import main
from serve_app.weights import DEFAULT_REPOSITORY
from tests.support.hardware import needs_no_gpu
from tests.support.serve_files import minimal_serve_file


@pytest.fixture(scope="module")
def cluster_with_gpu() -> Iterator[str]:
    """A Ray cluster that says it has a GPU, on a machine without one."""
    ray.init("local", num_cpus=1, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@needs_no_gpu
@pytest.mark.fault("C13")
def test_on_a_head_without_a_gpu_the_command_line_asks_the_cluster(
    cluster_with_gpu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`weights pull` fetches the released checkpoint, which the cluster's workers will play, as the service itself settles it."""
    monkeypatch.setenv("RAY_ADDRESS", cluster_with_gpu)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = minimal_serve_file(tmp_path)

    assert main(["--config", str(config), "weights", "pull", "m"]) == 1

    said = capsys.readouterr().err
    assert f"m uses {DEFAULT_REPOSITORY}, because the Ray cluster that this machine can reach has a GPU" in said
    assert f"{DEFAULT_REPOSITORY} at " in said  # offline, so it cannot be fetched, and is named
    assert not list(tmp_path.glob("weights/**/*.safetensors"))
    args = AppArgs.model_validate({"data_dir": tmp_path, "models": {"m": {}}})
    assert doctor._source("m", args.models["m"]).source == DEFAULT_REPOSITORY
    assert DEFAULT_REPOSITORY in repr(build(args)._bound_deployment.init_args[0].models)
