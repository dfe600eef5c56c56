"""How `source: auto` and `device: auto` are resolved."""

from pathlib import Path

import pytest

from serve_app.ops.cli import main
from serve_app.weights import auto
from tests.support.hardware import needs_no_gpu
from tests.support.serve_files import minimal_serve_file


@needs_no_gpu
@pytest.mark.fault("C13")
def test_without_a_cluster_the_command_line_says_what_it_assumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: Path, checkpoint: Path
) -> None:
    """`weights pull` reports that no cluster answered, which checkpoint it assumes, and how to choose another."""
    monkeypatch.setattr(auto, "QUERY_TIMEOUT_S", 0.01)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    (tmp_path / "weights").symlink_to(cache)

    assert main(["--config", str(minimal_serve_file(tmp_path)), "weights", "pull", "m"]) == 0

    said = capsys.readouterr().err
    assert "m uses the embedded checkpoint, a toy model trained on synthetic music" in said
    assert "no Ray cluster is reachable, and this machine has no GPU" in said
    assert "set models.m.source" in said
