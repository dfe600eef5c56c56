"""The doctor finds what would stop a deploy."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from miniature.pack import pack
from serve_app.config import AppArgs
from serve_app.ops import doctor
from serve_app.ops.cli import main
from serve_app.weights import embedded
from tests.support.checkpoints import changed
from tests.support.disks import fill, small_disk
from tests.support.environments import bare, distribution, finding, without
from tests.support.failure_codes import provoked
from tests.support.hub import COMMIT, REPOSITORY, serving

DOCTOR = """
import sys
from pathlib import Path
from serve_app.ops import doctor
from serve_app.config import AppArgs
# Nothing is `auto` here: a Ray cluster that answers on this machine, such as another test's, may have GPUs.
models = {"m": {"source": "embedded", "device": "cpu"}}
sys.exit(doctor.run(AppArgs.model_validate({"data_dir": Path(sys.argv[1]), "models": models})))
"""


def _args(folder: Path, model: dict[str, Any] | None = None, **settings: Any) -> AppArgs:
    models = {"m": {"source": "embedded", "device": "cpu"} | (model or {})}
    return AppArgs.model_validate({"data_dir": folder / "data", "models": models, **settings})


def _failures(args: AppArgs, **asked: Any) -> list[doctor.Finding]:
    return [found for found in doctor.check(args, **asked) if found.code is not None]


def test_a_healthy_machine_gets_a_line_a_check_and_exit_status_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a healthy machine every check, loading and generating included, reports what it found."""
    status = doctor.run(_args(tmp_path), http_host="127.0.0.1", load=True)

    lines = capsys.readouterr().out.splitlines()
    assert status == 0
    assert [line[:4] for line in lines] == ["ok  "] * 8
    assert re.search(r"torch 2\.13\.\d+.*, diffusers ", lines[0])
    assert "SQLite answers. The first start creates its tables." in lines[1]
    assert re.search(r"loaded on cpu and generated a test song in \d", lines[-1])


def test_the_probe_leaves_nothing_in_the_audio_store(tmp_path: Path) -> None:
    """The file that the probe wrote is deleted afterwards."""
    assert not _failures(_args(tmp_path))

    assert not [file for file in (tmp_path / "data" / "audio").rglob("*") if file.is_file()]


def test_nothing_is_fetched_to_see_whether_it_could_be(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that is not cached is looked up and its size reported, without downloading any of it."""
    with serving(checkpoint) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)

        findings = list(doctor.check(_args(tmp_path, {"source": REPOSITORY, "revision": COMMIT})))

    assert not [found for found in findings if found.code]
    assert "The first start fetches 0.01 GB" in findings[-1].message
    assert hub.served.total() == 0


@pytest.mark.parametrize(
    ("check", "code", "words", "settings"),
    [
        (
            "database",
            "store_unavailable",
            "unavailable: it refuses connections",
            {"database_url": "postgresql://sophia@127.0.0.1:1/sophia"},
        ),
        ("audio store", "configuration_error", "artifacts_url", {"artifacts_url": "file:///dev/null/audio"}),
        ("m, device", "device_unavailable", "set device: cpu", {"model": {"device": "cuda"}}),
        ("m, checkpoint", "missing_file", "the folder /nowhere does not exist", {"model": {"source": "/nowhere"}}),
        ("m, checkpoint", "unknown_repository", "neither a repository id", {"model": {"source": "a/b/c"}}),
    ],
)
def test_what_would_stop_a_deploy_is_found(
    check: str, code: str, words: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    """A wrong setting is reported with the code that the service would fail with, and the other checks run."""
    [found] = _failures(_args(tmp_path, **settings))

    assert (found.check, found.code) == (check, code)
    assert words in found.message
    assert str(found).startswith(f"FAIL {code}: {check}: ")
    provoked(code, f"doctor: {check}", found.message, "doctor")


def test_listening_to_everybody_without_keys_is_found(tmp_path: Path) -> None:
    """An address beyond loopback without any API key is reported."""
    [found] = _failures(_args(tmp_path), http_host="0.0.0.0")  # noqa: S104 - only looked at

    assert found.code == "auth_not_configured"
    provoked(found.code, "doctor: beyond loopback without keys", found.message, "doctor")


def test_a_serve_config_without_a_host_listens_to_everybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Serve's default host in a config file is 0.0.0.0, so the doctor asks for an API key there too."""
    models = {"m": {"source": "embedded", "device": "cpu"}}
    application = {"import_path": "serve_app.app:build", "args": {"data_dir": str(tmp_path), "models": models}}
    (tmp_path / "serve_config.yaml").write_text(yaml.safe_dump({"applications": [application]}))
    monkeypatch.chdir(tmp_path)

    assert main(["doctor"]) == 1

    failures = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert len(failures) == 1
    assert failures[0].startswith("FAIL auth_not_configured: API keys: Sophia listens on 0.0.0.0")


def test_a_full_disk_is_found(tmp_path: Path) -> None:
    """A full disk is reported by the disk check and by the checks that write to it."""
    with small_disk(tmp_path / "disk", megabytes=4) as disk:
        fill(disk)

        found = {found.check: found.code for found in _failures(_args(disk))}

    assert found["disk"] == "disk_full"
    assert found["audio store"] in ("configuration_error", "artifacts_unavailable")


def test_weights_that_give_no_music_are_found_only_by_playing(checkpoint: Path, tmp_path: Path) -> None:
    """Weights of NaN pass the quick checks and are found by `--load`, which generates."""
    folder = changed(checkpoint, tmp_path / "nan", "vae", lambda t: t["decoder.conv2.weight_g"].fill(np.nan))
    args = _args(tmp_path, {"source": str(folder)})

    assert not _failures(args)
    [found] = _failures(args, load=True)
    assert (found.check, found.code) == ("m, load", "self_test_failed")


def test_a_truncated_checkpoint_is_found(checkpoint: Path, tmp_path: Path) -> None:
    """A truncated weight file is found without loading."""
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    with (copy / "vae" / "diffusion_pytorch_model.safetensors").open("r+b") as file:
        file.truncate(1000)

    [found] = _failures(_args(tmp_path, {"source": str(copy)}))

    assert (found.check, found.code) == ("m, checkpoint", "corrupt_file")


@pytest.mark.parametrize(
    ("source", "file", "content", "code"),
    [
        ("embedded", "sophia.manifest.json", None, "missing_file"),
        ("embedded", "sophia.manifest.json", "{", "corrupt_file"),
        ("embedded", "vae/diffusion_pytorch_model.safetensors.xz", None, "missing_file"),
        ("embedded-base", "base/sophia.manifest.json", None, "missing_file"),
    ],
)
def test_an_incomplete_packaged_checkpoint_is_found(
    source: str,
    file: str,
    content: str | None,
    code: str,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A packaged checkpoint whose manifest is missing or damaged, or that lacks a file, is reported with the file's name."""
    packed = tmp_path / "packed"
    base = Path(shutil.copytree(checkpoint, tmp_path / "base"))
    (base / "vae" / "config.json").write_text("{}")
    pack(checkpoint, packed, base)
    monkeypatch.setattr(embedded, "PACKED", packed)
    args = _args(tmp_path, {"source": source})
    assert not _failures(args)
    if content is None:
        (packed / file).unlink()
    else:
        (packed / file).write_text(content)

    [found] = _failures(args)

    assert (found.check, found.code) == ("m, checkpoint", code)
    assert str(packed / file).removesuffix(".xz") in found.message


def test_a_database_of_a_newer_sophia_is_found(tmp_path: Path) -> None:
    """A database that a newer version has changed is reported."""
    from serve_app.store import Store

    args = _args(tmp_path)
    store = Store(args.resolved_database_url)
    store.migrate()
    assert not _failures(args)
    with store.database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    store.close()

    [found] = _failures(args)

    assert (found.check, found.code) == ("database", "database_too_new")
    assert "Run that version" in found.message


def test_a_missing_package_is_found(tmp_path: Path) -> None:
    """A required package that is not installed is named with its command, and the exit status is 1."""
    ran = _doctor(bare(), finding(without("mutagen", tmp_path / "site")), tmp_path)

    assert ran.returncode == 1
    assert re.search(
        r"^FAIL package_missing: packages: mutagen is not installed.* pip install 'mutagen", ran.stdout, re.M
    )


@pytest.mark.long
def test_a_package_that_is_too_old_is_found(tmp_path: Path) -> None:
    """An installed version that pyproject.toml excludes is named with what is needed."""
    distribution(tmp_path / "site", "mutagen", "0.1")

    ran = _doctor([sys.executable], finding(tmp_path / "site"), tmp_path)

    assert ran.returncode == 1
    failures = [line for line in ran.stdout.splitlines() if line.startswith("FAIL")]
    assert len(failures) == 1, ran.stdout
    line = failures[0]
    assert line.startswith("FAIL package_mismatch: packages: mutagen 0.1 is installed; Sophia needs mutagen>=1.48")
    provoked("package_mismatch", "doctor: a package that is too old", line.partition("packages: ")[2], "doctor")


def _doctor(python: list[str], environment: dict[str, str], folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*python, "-c", DOCTOR, str(folder / "data")], env=environment, capture_output=True, text=True, timeout=200
    )
