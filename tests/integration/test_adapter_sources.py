"""Adapters are fetched from hubs and buckets, as checkpoints are, and only what they consist of."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app import errors, weights
from serve_app.config import AdapterArgs
from serve_app.engine.ace_step.adapters.adapters import Adapters
from serve_app.engine.ace_step.engine import AceStepEngine
from serve_app.music import LoraUse, MusicRequest
from tests.support.buckets import s3
from tests.support.hub import COMMIT, REPOSITORY, Hub, serving


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A repository with an adapter, two more in a folder, and other files."""
    folder = tmp_path / "repository"
    for name in (
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
        "optimizer.bin",
        "more/a.safetensors",
        "more/b.safetensors",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def hub(files: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with that repository."""
    with serving(files) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


def fetched(cache: Path, args: AdapterArgs, online: bool | None = None) -> Path:
    return weights.adapter_file("m", "violin", args, cache, lambda *progress: None, online=online)


@pytest.mark.parametrize("file", [None, "adapter_model.safetensors"])
def test_an_adapter_comes_from_a_hub(file: str | None, hub: Hub, tmp_path: Path) -> None:
    """The weights and their adapter_config.json are fetched once, and nothing else."""
    args = AdapterArgs(source=REPOSITORY, revision=COMMIT, file=file)

    found = fetched(tmp_path, args)
    requests = hub.requests
    again = fetched(tmp_path, args)

    assert found.read_text() == "adapter_model.safetensors"
    assert found.with_name("adapter_config.json").read_text() == "adapter_config.json"
    assert set(hub.served) == {"adapter_model.safetensors", "adapter_config.json"}
    assert (again, hub.requests) == (found, requests)


def test_one_of_several_adapters_of_a_repository_is_chosen(hub: Hub, tmp_path: Path) -> None:
    """`file` names a file or a folder; adapters of one repository do not get in each other's way."""
    choices = ["more/a.safetensors", "more/b.safetensors", None]

    found = [fetched(tmp_path, AdapterArgs(source=REPOSITORY, file=file)) for file in choices]

    assert [file.read_text() for file in found] == [
        "more/a.safetensors",
        "more/b.safetensors",
        "adapter_model.safetensors",
    ]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("more", "sophia/tiny/more has 2 .safetensors files. Set `file` to one of them: a.safetensors, b.safetensors."),
        ("less", "sophia/tiny/less has no .safetensors file. Sophia reads no other format"),
        ("optimizer.bin", "sophia/tiny/optimizer.bin has no .safetensors file. Sophia reads no other format"),
    ],
)
def test_a_repository_without_such_an_adapter_is_refused(file: str, message: str, hub: Hub, tmp_path: Path) -> None:
    """The error names the repository and the choice."""
    with pytest.raises(errors.BadAdapter) as refused:
        fetched(tmp_path, AdapterArgs(source=REPOSITORY, file=file))

    assert refused.value.message.startswith(message)


def test_sources_that_do_not_exist_are_named(hub: Hub, tmp_path: Path) -> None:
    """The error names the setting."""
    with pytest.raises(
        errors.UnknownRepository, match=r"^models\.m\.adapters\.violin\.source: .* has no repository x/y"
    ):
        fetched(tmp_path, AdapterArgs(source="x/y"))
    with pytest.raises(errors.UnknownRevision, match=r"^models\.m\.adapters\.violin\.revision: "):
        fetched(tmp_path, AdapterArgs(source=REPOSITORY, revision="nope"))


def test_offline_an_adapter_comes_from_the_cache_or_not_at_all(hub: Hub, tmp_path: Path) -> None:
    """What was fetched is used, and for the rest the error says where to get it."""
    found = fetched(tmp_path, AdapterArgs(source=REPOSITORY))

    assert fetched(tmp_path, AdapterArgs(source=REPOSITORY), online=False) == found
    with pytest.raises(errors.HubUnreachable, match=r"^The adapter violin .* is not in the cache, and offline mode"):
        fetched(tmp_path, AdapterArgs(source=REPOSITORY, file="more/a.safetensors"), online=False)


def test_a_job_that_is_cancelled_does_not_wait_for_its_adapter(
    engine: AceStepEngine, hub: Hub, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fetching reports its progress as the stage `preparing`, and stops with the job. What arrived is kept."""
    (files / "adapter_model.safetensors").write_bytes(bytes(4_000_000))
    hub.bytes_per_s = 1_000_000
    known = {"violin": AdapterArgs(source=REPOSITORY)}
    steps: list[tuple[str, int, int]] = []

    def fetch(name: str, args: AdapterArgs, report: weights.Report) -> Path:
        return weights.adapter_file("m", name, args, tmp_path, report)

    monkeypatch.setattr(engine, "_adapters", Adapters(engine._pipe.transformer, lambda: known, fetch, 1 << 30))
    request = MusicRequest(prompt="piano", duration=1, seed=1, lora=[LoraUse(name="violin")])
    with pytest.raises(errors.Stopped):
        list(engine.generate(request, lambda *step: steps.append(step), lambda: len(steps) >= 3))

    assert {stage for stage, _, _ in steps} == {"preparing"}
    assert 0 < max(step for _, step, _ in steps) < 100
    assert list(tmp_path.rglob("*.partial"))


def test_an_adapter_comes_from_a_bucket(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in a bucket is fetched with its adapter_config.json, and used from the cache while the bucket is away."""
    monkeypatch.setattr(weights.bucket, "_RETRY_S", 1)
    args = AdapterArgs(source="s3://music/adapters", file="adapter_model.safetensors")
    with s3() as server:
        server.upload(files, "adapters")

        found = fetched(tmp_path, args)
        server.kill()
        again = fetched(tmp_path, args)

    assert found.read_text() == "adapter_model.safetensors"
    assert found.with_name("adapter_config.json").exists()
    assert again == found
