"""Runs what the README shows: `make serve`'s service, then every example, exactly as they stand there."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import soundfile
import yaml

from tests.support.helpers import eventually, free_port
from tests.support.paths import ROOT

pytestmark = [pytest.mark.timeout(600)]

EXAMPLES: list[tuple[str, str]] = re.findall(r"```(bash|python)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@dataclass(frozen=True)
class Served:
    """A running `serve run`, and the port of its API."""

    process: "subprocess.Popen[bytes]"
    port: int


@pytest.fixture(scope="module")
def port(served: Served) -> int:
    """Where the service answers."""
    return served.port


@pytest.fixture(scope="module")
def dashboard(served: Served) -> str:
    """The URL of that service's Ray dashboard; its port differs if another Ray runs on this machine."""
    family = psutil.Process(served.process.pid).children(recursive=True)
    (head,) = [each for each in family if any(word.endswith("dashboard/dashboard.py") for word in each.cmdline())]
    ports = [each.laddr.port for each in head.net_connections("inet") if each.status == psutil.CONN_LISTEN]
    (its_port,) = [number for number in ports if 8265 <= number < 8365]
    return f"http://127.0.0.1:{its_port}"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, cache: Path, checkpoint: Path) -> Iterator[Served]:
    """The service as `make serve` starts it, on a port of its own; ended with Ctrl-C."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "weights").symlink_to(cache)
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    config["http_options"]["port"] = free_port()
    (folder / "serve_config.yaml").write_text(yaml.safe_dump(config))
    serve = str(Path(sys.executable).with_name("serve"))
    environment = {**os.environ, "RAY_ADDRESS": "local", "SOPHIA_DATA_DIR": str(folder)}
    log = (folder / "serve.log").open("w")
    process = subprocess.Popen(
        [serve, "run", "serve_config.yaml"],
        cwd=folder,
        env=environment,
        stdout=log,
        stderr=log,
        preexec_fn=_hear_ctrl_c,
    )
    url = f"http://127.0.0.1:{config['http_options']['port']}"
    try:
        eventually(lambda: process.poll() is not None or _answers(f"{url}/readyz"), seconds=180, every=0.5)
        assert process.poll() is None, (folder / "serve.log").read_text()[-4000:]
        yield Served(process, config["http_options"]["port"])
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
        log.close()
        said = (folder / "serve.log").read_text()
        assert "is ready on cpu" in said
        assert "toy model trained on synthetic music" in said


def _hear_ctrl_c() -> None:
    """Restores SIGINT, which a shell ignores for its background jobs."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _run(language: str, code: str, port: int, folder: Path) -> None:
    code = code.replace("localhost:8000", f"127.0.0.1:{port}")
    command = ["bash", "-euo", "pipefail", "-c", code] if language == "bash" else [sys.executable, "-c", code]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, f"{code}\n{ran.stdout}{ran.stderr}"


def test_the_readme_has_its_two_commands_its_song_and_seven_examples() -> None:
    """This file runs every command block of the README."""
    assert EXAMPLES[0][1].count("make ") == 2
    assert len(EXAMPLES) == 2 + 7


@pytest.fixture(scope="module")
def with_song(port: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the command of the first song has run."""
    folder = tmp_path_factory.mktemp("song")
    _run(*EXAMPLES[1], port, folder)
    return folder


def test_the_song_of_the_readme(port: int, with_song: Path, tmp_path: Path) -> None:
    """The song is 10.0 s, stereo, 48 kHz and not silent; the same command again gives the same bytes."""
    _run(*EXAMPLES[1], port, tmp_path)
    assert (tmp_path / "song.flac").read_bytes() == (with_song / "song.flac").read_bytes()
    _is_audio(tmp_path / "song.flac", 10)


def test_a_song_in_one_call_with_lyrics(port: int, tmp_path: Path) -> None:
    """Example 1 leaves an MP3 of 12 s."""
    _run(*EXAMPLES[2], port, tmp_path)
    _is_audio(tmp_path / "verse.mp3", 12)


def test_a_job_followed_to_its_end(port: int, tmp_path: Path) -> None:
    """Example 2 leaves the events, of which the last is done, and the second variation."""
    _run(*EXAMPLES[3], port, tmp_path)
    events = re.findall(r"^event: (\w+)$", (tmp_path / "events.txt").read_text(), re.MULTILINE)
    assert events[0] == "state"
    assert events[-1] == "done"
    _is_audio(tmp_path / "second.opus", 8)


def test_a_submission_that_is_safe_to_repeat(port: int, tmp_path: Path) -> None:
    """Example 3 gets the same job twice, finished."""
    _run(*EXAMPLES[4], port, tmp_path)
    first, second = (json.loads((tmp_path / f"answer{i}.json").read_text()) for i in (1, 2))
    assert first["id"] == second["id"]
    assert second["state"] == "succeeded"


def test_changing_ones_mind(port: int, tmp_path: Path) -> None:
    """Example 4 leaves a job that was cancelled and then deleted."""
    _run(*EXAMPLES[5], port, tmp_path)
    job = json.loads((tmp_path / "cancelled.json").read_text())
    assert job["state"] == "cancelled"
    assert httpx.get(f"http://127.0.0.1:{port}/v1/jobs/{job['id']}").status_code == 404


@pytest.mark.long
@pytest.mark.fault("E34")
def test_ray_answers_from_another_shell(port: int, dashboard: str, tmp_path: Path) -> None:
    """`make status` and `make deploy` reach the running service with Ray's token."""
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    config["http_options"]["port"] = port
    (tmp_path / "serve_config.yaml").write_text(yaml.safe_dump(config))
    deployed = _make(dashboard, "deploy", f"CONFIG={tmp_path / 'serve_config.yaml'}")
    assert deployed.returncode == 0, deployed.stderr
    status = _make(dashboard, "status")
    assert status.returncode == 0, status.stderr
    assert yaml.safe_load(status.stdout)["applications"]["sophia"]["status"] == "RUNNING"


def _make(dashboard: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs a make target against this dashboard's Ray, with the packages of this checkout."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    clean["RAY_DASHBOARD_ADDRESS"] = dashboard
    command = ["make", "-s", "-o", ".venv/installed", f"BIN={Path(sys.executable).parent}", *words]
    return subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=120, check=False)


def test_a_longer_song(port: int, tmp_path: Path) -> None:
    """Example 5 leaves a song of 8 s, and one of 14 s which begins with the same samples."""
    _run(*EXAMPLES[6], port, tmp_path)
    _is_audio(tmp_path / "longer.flac", 14)
    short, _ = soundfile.read(tmp_path / "short.flac")
    longer, _ = soundfile.read(tmp_path / "longer.flac")
    assert np.array_equal(longer[: len(short)], short)


def test_a_cover_of_ones_own_recording(port: int, with_song: Path) -> None:
    """Example 6 makes a cover of the first song, which is as long."""
    _run(*EXAMPLES[7], port, with_song)
    _is_audio(with_song / "cover.flac", 10)


def test_from_python(port: int, tmp_path: Path) -> None:
    """Example 7 leaves a WAV of 6 s."""
    _run(*EXAMPLES[8], port, tmp_path)
    _is_audio(tmp_path / "trio.wav", 6)


def _is_audio(path: Path, seconds: float) -> None:
    samples, rate = soundfile.read(path)
    assert (rate, samples.shape) == (48_000, (round(seconds * 48_000), 2))
    assert np.abs(samples).max() > 0.1
