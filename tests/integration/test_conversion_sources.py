"""Conversions of checkpoints that are on a hub or in a bucket: what travels, what is kept, and what a kill costs."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from serve_app import errors, weights
from serve_app.config import ModelArgs
from tests.support.buckets import s3
from tests.support.checkpoints import REMOTE
from tests.support.helpers import eventually
from tests.support.hub import COMMIT, REPOSITORY, Hub, serving
from tests.support.layouts import load, make_all_in_one, make_original, make_parts

MODEL = "acestep-v15-turbo/model.safetensors"


@pytest.fixture
def original_hub(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub whose repository is in ACE-Step's layout."""
    with serving(make_original(checkpoint, tmp_path / "original")) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running


def _assert_converted(folder: Path, checkpoint: Path) -> None:
    for component in ("transformer", "condition_encoder", "audio_tokenizer", "audio_token_detokenizer", "vae"):
        found = load(folder, component)
        expected = load(checkpoint, component)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_repository_is_converted_while_it_is_fetched(original_hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    """The cache gets the converted files only, every one with its hash, and a second start asks the hub for nothing."""
    folder = weights.resolve("m", REMOTE, tmp_path / "cache", lambda *report: None)

    _assert_converted(folder, checkpoint)
    assert folder.name.startswith(f"{COMMIT}.")
    assert weights.check_hashes(folder, lambda *report: None)
    kept = sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*") if file.is_file())
    print(f"{sum(original_hub.sizes.values()) / 1e6:.1f} MB on the hub, {kept / 1e6:.1f} MB in the cache")
    assert kept < 1.05 * sum(original_hub.sizes.values())
    asked = original_hub.requests
    assert weights.resolve("m", REMOTE, tmp_path / "cache", lambda *report: None) == folder
    assert original_hub.requests == asked


def test_offline_a_converted_branch_is_what_was_fetched_last(
    original_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the hub, a branch of a converted repository is used from the cache, but not with another `dit`."""
    branch = ModelArgs(source=REPOSITORY, revision="main")
    folder = weights.resolve("m", branch, tmp_path / "cache", lambda *report: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    assert weights.resolve("m", branch, tmp_path / "cache", lambda *report: None) == folder
    with pytest.raises(errors.HubUnreachable, match="is not in the cache, and offline mode"):
        weights.resolve(
            "m", branch.model_copy(update={"dit": "acestep-v15-turbo"}), tmp_path / "cache", lambda *report: None
        )


@pytest.mark.long
def test_a_killed_conversion_goes_on_where_it_stopped(original_hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    """A worker that is killed while it converts costs no more than the bytes that were on their way."""
    original_hub.bytes_per_s = 1e6
    code = (
        "import sys; from pathlib import Path; from serve_app import weights; from serve_app.config import ModelArgs\n"
        f"weights.resolve('m', ModelArgs(source='{REPOSITORY}', revision='{COMMIT}'), Path(sys.argv[1]), lambda *a: None)"
    )
    killed = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "cache")])
    partial = "transformer/diffusion_pytorch_model.safetensors.partial"

    def _written() -> int:
        return sum(file.stat().st_size for file in (tmp_path / "cache").rglob(partial))

    try:
        eventually(lambda: _written() > 300_000, seconds=60)
    finally:
        killed.kill()
        killed.wait()
    kept = _written()
    original_hub.bytes_per_s = None
    fractions: list[float | None] = []

    folder = weights.resolve("m", REMOTE, tmp_path / "cache", lambda _, fraction, __: fractions.append(fraction))

    _assert_converted(folder, checkpoint)
    print(f"{kept / 1e6:.1f} MB of the transformer were kept")
    assert fractions[0] is not None
    assert fractions[0] * sum(original_hub.sizes.values()) >= kept
    assert weights.check_hashes(folder, lambda *report: None)
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_a_wrong_byte_of_a_tensor_is_found_by_the_files_hash(
    original_hub: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    """The hub's hash of the whole file is compared, although the file is spread over several; the next try is clean."""
    original_hub.flipped = {MODEL: original_hub.sizes[MODEL] - 1000}

    with pytest.raises(errors.CorruptFile, match=rf"{MODEL} of {REPOSITORY} arrived with sha256 [0-9a-f]+, expected"):
        weights.resolve("m", REMOTE, tmp_path / "cache", lambda *report: None)
    original_hub.flipped = {}

    _assert_converted(weights.resolve("m", REMOTE, tmp_path / "cache", lambda *report: None), checkpoint)


def test_a_broken_connection_while_headers_are_read_is_tried_again(
    original_hub: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    """Connections that break in a header cost a pause, not the conversion."""
    original_hub.cuts = {MODEL: [4, 4]}

    _assert_converted(weights.resolve("m", REMOTE, tmp_path / "cache", lambda *report: None), checkpoint)


def test_what_a_local_file_lacks_comes_from_a_repository(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ComfyUI's file on this machine gets its tokenizer and silence from the hub, once: then it works offline."""
    source = make_all_in_one(checkpoint, tmp_path / "comfyui")
    args = ModelArgs(source=str(source), parts_from=f"{REPOSITORY}@{COMMIT}")
    with serving(make_parts(checkpoint, tmp_path / "parts")) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        folder = weights.resolve("m", args, tmp_path / "cache", lambda *report: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    _assert_converted(folder, checkpoint)
    assert weights.resolve("m", args, tmp_path / "cache", lambda *report: None) == folder
    record = json.loads((folder / "conversion.json").read_text())
    assert record["components"]["tokenizer"] == f"Qwen3-Embedding-0.6B/tokenizer.json of {REPOSITORY}"


def test_a_repository_whose_index_lacks_entries_is_completed(
    copy: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A diffusers repository with all files, but with entries missing in its model_index.json, is fetched and then completed."""
    index = json.loads((copy / "model_index.json").read_text())
    del index["scheduler"]
    (copy / "model_index.json").write_text(json.dumps(index))
    with serving(copy) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)

        folder = weights.resolve("m", REMOTE, tmp_path / "cache", lambda *report: None)
        asked = hub.requests
        again = weights.resolve("m", REMOTE, tmp_path / "cache", lambda *report: None)

    _assert_converted(folder, checkpoint)
    assert weights.verify(folder, REMOTE).variant == "turbo"
    assert (again, hub.requests) == (folder, asked)


def test_without_network_the_missing_parts_are_explained(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conversion that needs a repository while offline names it, and is transient: the breaker stays closed."""
    source = make_all_in_one(checkpoint, tmp_path / "comfyui")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    with pytest.raises(errors.HubUnreachable, match=r"ACE-Step/Ace-Step1\.5 at main is not in the cache"):
        weights.resolve("m", ModelArgs(source=str(source)), tmp_path / "cache", lambda *report: None)


def test_a_bucket_is_converted(checkpoint: Path, tmp_path: Path) -> None:
    """The original layout in an object store is converted like a repository."""
    original = make_original(checkpoint, tmp_path / "original", shards=2)
    with s3() as server:
        server.upload(original, "ace")

        folder = weights.resolve("m", ModelArgs(source="s3://music/ace"), tmp_path / "cache", lambda *report: None)

    _assert_converted(folder, checkpoint)


def test_a_changed_local_source_is_converted_again(checkpoint: Path, tmp_path: Path) -> None:
    """A file of the source with a new time or size leads to a new conversion; an unrelated file does not."""
    source = make_original(checkpoint, tmp_path / "original")
    args = ModelArgs(source=str(source))
    first = weights.resolve("m", args, tmp_path / "cache", lambda *report: None)
    (source / "another_model.safetensors").write_bytes(b"x")
    same = weights.resolve("m", args, tmp_path / "cache", lambda *report: None)
    (source / MODEL).touch()

    second = weights.resolve("m", args, tmp_path / "cache", lambda *report: None)

    assert same == first
    assert second != first
