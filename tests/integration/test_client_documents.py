"""The examples of our own client in docs/CLIENTS.md, and its command, against a running service."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import soundfile

from serve_app.background.webhook_sender.signing import sign
from sophia_client.command import main
from tests.support.paths import ROOT
from tests.support.running import Service, running, simulated
from tests.support.webhooks import SECRET

SECTION: Final = (ROOT / "docs" / "CLIENTS.md").read_text().partition("## Clients of other services")[0]
PYTHON: Final = re.findall(r"^```python\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)
SHELL: Final = re.findall(r"^```bash\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with one model that has a worker and one that has none."""
    models = {"ace-step": simulated(), "asleep": simulated(workers=0)}
    with running(tmp_path_factory.mktemp("command"), models) as service:
        yield service


@pytest.fixture
def folder(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, in which the client's environment names the service."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOPHIA_URL", service.url)
    monkeypatch.delenv("SOPHIA_KEY", raising=False)
    return tmp_path


def seconds_of(path: Path) -> float:
    return float(round(soundfile.info(path).duration, 1))


def execute(code: str, service: Service) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(code.replace("http://localhost:8000", service.url), "CLIENTS.md", "exec"), names)  # noqa: S102
    return names


def test_the_example_that_blocks_runs(folder: Path, service: Service) -> None:
    """It leaves a song, a longer one and a cover."""
    execute(PYTHON[0], service)

    assert seconds_of(folder / "piano.flac") == 5
    assert seconds_of(folder / "longer.flac") == 8
    assert [seconds_of(path) for path in (folder / "covers").iterdir()] == [5]


def test_the_example_for_asyncio_runs(folder: Path, service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    """It leaves two songs and prints the states of a third."""
    execute(PYTHON[1], service)

    assert len(list((folder / "songs").iterdir())) == 2
    assert capsys.readouterr().out.splitlines()[-1].startswith("succeeded")


def test_the_example_of_webhooks_runs(service: Service) -> None:
    """It answers a webhook that is not signed with 401."""
    receive = execute(PYTHON[2], service)["receive"]
    headers = {"webhook-id": "1", "webhook-timestamp": "1", "webhook-signature": sign([b"k"], "1", 1, b"{}")}

    assert receive(headers, b"{}", SECRET) == 401


def test_the_examples_in_a_shell_run(folder: Path, service: Service) -> None:
    """The commands leave the songs that they name."""
    program = folder / "bin" / "sophia-client"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sophia_client.command "$@"\n')
    program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "client"),
    }
    code = SHELL[0].replace("http://localhost:8000", service.url)

    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code], env=environment, capture_output=True, text=True, check=False
    )

    assert ran.returncode == 0, ran.stderr
    assert [seconds_of(folder / name) for name in ("first.flac", "cover.mp3", "cello.mp3", "longer.mp3")] == [
        5,
        5,
        4,
        7,
    ]
    assert "\tsucceeded\t" in ran.stdout


def test_jobs_are_managed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """job, cancel, retry and delete do what they say; the same --once makes no second song."""
    song = ["song", "piano", "--set", "model=asleep", "--no-wait", "--once", "order-1"]
    for words in (song, song):
        assert main(words) == 0
    first, second = capsys.readouterr().out.split()
    codes = [main([action, first]) for action in ("cancel", "retry", "job", "delete", "job")]
    output = capsys.readouterr()

    assert first == second
    assert codes == [0, 0, 0, 0, 1]
    assert output.out.startswith('cancelled\nqueued\n{\n  "id"')
    assert output.err.startswith("sophia-client: There is no job ")
    assert output.err.endswith("[not_found]\n")


def test_a_folder_gets_all_songs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Songs of several variations are written into the current folder, and refused where --output is a file."""
    song = ["song", "piano", "--set", "variations=2", "--set", "duration=2", "--set", "format=wav"]
    lyrics = folder / "words.txt"
    lyrics.write_text("[verse]\nla la")

    assert main([*song, "--lyrics", str(lyrics)]) == 0
    files = capsys.readouterr().out.split()
    assert main([*song, "-o", "one.wav"]) == 1

    assert [seconds_of(Path(file)) for file in files] == [2, 2]
    assert "--output must be an existing folder, got one.wav" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (
            ["song", "piano", "--set", "duration=900"],
            1,
            "duration: must be less than or equal to 600 [invalid_request]",
        ),
        (["song", "piano", "--source", "missing.wav"], 1, "No such file or directory: 'missing.wav'"),
        (["extend", "x/y"], 1, "N must be the number of a song, from 0, got 'y'"),
        (["--url", "localhost", "models"], 2, "url must begin with http:// or https://"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], status: int, text: str
) -> None:
    """A refusal, a missing file or a wrong address is one line on stderr, and the exit status tells them apart."""
    assert main(words) == status

    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("words", [["sing"], ["song"], ["song", "piano", "--set", "duration"]])
def test_a_wrong_command_line_exits_with_2(folder: Path, words: list[str]) -> None:
    """argparse prints what the command accepts."""
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2


def test_the_models_are_listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """models prints a line for each model, and upload the name of a recording."""
    (folder / "no.wav").write_bytes(b"no audio")

    assert (main(["models"]), main(["upload", "no.wav"])) == (0, 1)

    output = capsys.readouterr()
    assert [line.split("\t")[0] for line in output.out.splitlines()] == ["ace-step", "asleep"]
    assert "[unreadable_audio]" in output.err
