"""Finding, fetching and checking checkpoints: from a real HTTP server, on real files."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serve_app import errors, weights
from serve_app.config import ModelArgs
from serve_app.weights import manifest
from tests.support.disks import fill, small_disk
from tests.support.helpers import eventually
from tests.support.hub import COMMIT, REPOSITORY, Hub, serving

EMBEDDED = ModelArgs(source="embedded")
REMOTE = ModelArgs(source=REPOSITORY, revision=COMMIT)
LARGEST = "condition_encoder/diffusion_pytorch_model.safetensors"


@pytest.fixture
def hub(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the embedded checkpoint, which this process is pointed at."""
    with serving(checkpoint) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the embedded checkpoint that a test may break."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


# --- The embedded checkpoint ----------------------------------------------------------------------------------------


def test_the_embedded_checkpoint_has_the_same_bytes_from_every_process(checkpoint: Path, tmp_path: Path) -> None:
    """Two processes that build the embedded checkpoint at once leave one folder, with the bytes of every other build."""
    code = (
        "import sys; from pathlib import Path; from serve_app import weights; from serve_app.config import ModelArgs\n"
        "print(weights.resolve('m', ModelArgs(source='embedded'), Path(sys.argv[1]), lambda *a: None))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    builders = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    built = {builder.communicate(timeout=120)[0].strip() for builder in builders}

    assert len(built) == 1
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]
    assert _digests(Path(built.pop())) == _digests(checkpoint)


def test_the_embedded_checkpoint_is_known_as_random_turbo(checkpoint: Path) -> None:
    """Facts say what a checkpoint is: variant, size, optional components, and that its weights are random."""
    facts = weights.verify(checkpoint, EMBEDDED)

    assert (facts.variant, facts.random_weights, facts.has_audio_tokenizer) == ("turbo", True, True)
    assert facts.bytes == sum(file.stat().st_size for file in checkpoint.rglob("*.safetensors"))
    assert 0 < facts.bytes - 4 * facts.parameters < 100_000  # float32, and what headers take


# --- A repository ---------------------------------------------------------------------------------------------------


def test_a_repository_is_fetched_with_progress(hub: Hub, tmp_path: Path) -> None:
    """Fetching reports a fraction that grows to 1 while bytes flow, and leaves a checkpoint that is whole."""
    hub.bytes_per_s = 3e6
    reports: list[tuple[str, float | None, str]] = []

    folder = weights.resolve("m", REMOTE, tmp_path, lambda *report: reports.append(report))

    fractions = [fraction for _, fraction, _ in reports if fraction is not None]
    assert len(fractions) == len(reports)
    assert fractions == sorted(fractions)
    assert fractions[0] == 0
    assert fractions[-1] == 1
    assert len([fraction for fraction in fractions if 0 < fraction < 1]) >= 2
    assert {phase for phase, _, _ in reports} == {"download"}
    assert reports[-1][2] == "downloading 100% of 7.0 MB"
    assert weights.verify(folder, REMOTE).bytes == weights.verify(hub.folder, REMOTE).bytes


def test_only_files_of_the_pipeline_are_fetched(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the pipeline does not read stays on the hub, and no name leads out of the checkpoint's folder."""
    (copy / "README.md").write_text("hello")
    (copy / "vae" / "deeper").mkdir()
    (copy / "vae" / "deeper" / "config.json").write_text("{}")
    with serving(copy) as hub:
        hub.claimed_sizes = {"../../evil.json": 2, "vae/../../evil.json": 2}
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)

        folder = weights.resolve("m", REMOTE, tmp_path / "cache", lambda *report: None)

    names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert "README.md" not in names
    assert "vae/deeper/config.json" not in names
    assert "vae/config.json" in names
    assert not list(tmp_path.rglob("evil.json"))


def test_a_broken_connection_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    """After a connection breaks in the middle of a file, only the rest of the file is asked for."""
    hub.cuts = {LARGEST: [1_000_000, 2_000_000]}

    folder = weights.resolve("m", REMOTE, tmp_path, lambda *report: None)

    assert hub.cuts == {LARGEST: []}
    assert hub.served[LARGEST] == hub.sizes[LARGEST]
    assert _digests(folder)[LARGEST] == _digests(hub.folder)[LARGEST]


def test_a_killed_process_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    """A worker that is killed while it fetches costs no more than the bytes that were on their way."""
    hub.bytes_per_s = 1e6
    code = (
        "import sys; from pathlib import Path; from serve_app import weights; from serve_app.config import ModelArgs\n"
        f"weights.resolve('m', ModelArgs(source='{REPOSITORY}', revision='{COMMIT}'), Path(sys.argv[1]), lambda *a: None)"
    )
    killed = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    try:
        eventually(lambda: hub.served[LARGEST] > 1_000_000, seconds=60)
    finally:
        killed.kill()
        killed.wait()
    hub.bytes_per_s = None
    fractions: list[float | None] = []

    folder = weights.resolve("m", REMOTE, tmp_path, lambda _, fraction, __: fractions.append(fraction))

    assert fractions[0] is not None
    assert fractions[0] > 0.1
    assert hub.served[LARGEST] < hub.sizes[LARGEST] + 1_000_000
    assert _digests(folder)[LARGEST] == _digests(hub.folder)[LARGEST]


def test_a_pinned_checkpoint_in_the_cache_needs_no_hub(hub: Hub, tmp_path: Path) -> None:
    """A commit that is in the cache is used without asking the hub for anything."""
    folder = weights.resolve("m", REMOTE, tmp_path, lambda *report: None)
    asked = hub.requests

    again = weights.resolve("m", REMOTE, tmp_path, lambda *report: None)

    assert again == folder
    assert hub.requests == asked


def test_a_branch_in_the_cache_survives_a_hub_that_is_away(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the hub is down, a branch means the commit that it was at last time."""
    branch = ModelArgs(source=REPOSITORY, revision="main")
    with serving(checkpoint) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        folder = weights.resolve("m", branch, tmp_path, lambda *report: None)

    again = weights.resolve("m", branch, tmp_path, lambda *report: None)

    assert again == folder
    assert folder.name == COMMIT


def test_a_file_lost_from_the_cache_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    """A file that is gone from a cached checkpoint, or has another size, is fetched again, and nothing else is."""
    folder = weights.resolve("m", REMOTE, tmp_path, lambda *report: None)
    (folder / "vae" / "config.json").unlink()
    served = hub.served.total()

    weights.resolve("m", REMOTE, tmp_path, lambda *report: None)

    assert (folder / "vae" / "config.json").exists()
    assert hub.served.total() - served == hub.sizes["vae/config.json"]


def test_a_token_is_sent_to_the_hub_only(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_TOKEN goes to the hub and not to the storage host that it redirects to."""
    monkeypatch.setenv("HF_TOKEN", "hf_not_a_real_token")

    weights.resolve("m", REMOTE, tmp_path, lambda *report: None)

    assert hub.authorized == {"127.0.0.1"}


def test_an_unknown_repository_is_named(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository that the hub does not know is an error that names it and keeps the token to itself."""
    monkeypatch.setenv("HF_TOKEN", "hf_not_a_real_token")

    with pytest.raises(errors.UnknownRepository, match=r"no repository sophia/other.*HF_TOKEN") as caught:
        weights.resolve("m", ModelArgs(source="sophia/other"), tmp_path, lambda *report: None)

    assert "hf_not" not in caught.value.message


@pytest.mark.fault("E13")
def test_a_gated_repository_says_what_to_do(hub: Hub, tmp_path: Path) -> None:
    """A repository whose terms were not accepted is an error that says so, at the first refusal of a file."""
    hub.gated = True

    with pytest.raises(errors.UnknownRepository, match="is gated"):
        weights.resolve("m", REMOTE, tmp_path, lambda *report: None)

    assert set(hub.refused.values()) == {1}  # no file is asked for again


@pytest.mark.fault("E12")
def test_a_refused_token_is_named_as_the_cause(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that the hub refuses is an error of its own, which does not repeat the token."""
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    hub.revoked = "hf_expired"

    with pytest.raises(errors.HubTokenRefused, match="refuses this node's token") as caught:
        weights.resolve("m", REMOTE, tmp_path, lambda *report: None)

    assert "hf_expired" not in caught.value.message


def test_a_branch_in_the_cache_survives_a_refused_token(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that has expired since a branch was fetched stops no worker: the branch means what it was then."""
    branch = ModelArgs(source=REPOSITORY, revision="main")
    before = weights.resolve("m", branch, tmp_path, lambda *report: None)
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    hub.revoked = "hf_expired"

    assert weights.resolve("m", branch, tmp_path, lambda *report: None) == before


@pytest.mark.fault("E3", "E12")
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_cannot_serve_is_told_by_its_answer(status: int, hub: Hub, tmp_path: Path) -> None:
    """A hub that answers 429 or 5xx is a cause that passes, told with the status and the wait that it asks for."""
    hub.refusals = [status] * 20

    with pytest.raises(errors.HubUnreachable, match=rf"it answered {status}, and asks to wait 30 s") as caught:
        weights.resolve("m", REMOTE, tmp_path, lambda *report: None)

    assert caught.value.cause == "transient"


@pytest.mark.parametrize("source", ["not a repository", "a/b/c", "./models/ace"])
def test_a_source_of_no_known_form_is_refused(source: str, tmp_path: Path) -> None:
    """A source that is neither a repository id nor an absolute folder is refused, before any network is used."""
    with pytest.raises(errors.UnknownRepository, match="neither a repository id"):
        weights.resolve("m", ModelArgs(source=source), tmp_path, lambda *report: None)


def test_an_unknown_revision_is_named(hub: Hub, tmp_path: Path) -> None:
    """A revision that the repository does not have is an error that names both."""
    with pytest.raises(errors.UnknownRevision, match=r"models\.m\.revision: sophia/tiny has no revision 'v9'"):
        weights.resolve("m", ModelArgs(source=REPOSITORY, revision="v9"), tmp_path, lambda *report: None)


def test_an_unreachable_hub_with_nothing_cached_says_so(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a hub and without a cached checkpoint, the error names the host and what can be done."""
    with serving(checkpoint) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)

    with pytest.raises(errors.HubUnreachable, match=r"127\.0\.0\.1 did not answer .* not in the cache"):
        weights.resolve("m", REMOTE, tmp_path, lambda *report: None)


def test_a_hub_that_stops_sending_keeps_what_came(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When connections bring nothing any more, the error says how much is kept for the next start."""
    monkeypatch.setattr(weights.cache, "PATIENCE", 1)
    hub.cuts = {LARGEST: [1_000_000, 0, 0]}

    with pytest.raises(errors.HubUnreachable, match=r"3\.\d MB of 7\.0 MB are kept"):
        weights.resolve("m", REMOTE, tmp_path, lambda *report: None)

    assert not (tmp_path / "hub" / "sophia--tiny" / COMMIT / LARGEST).exists()


def test_a_repository_larger_than_the_disk_is_refused_before_it_is_fetched(hub: Hub, tmp_path: Path) -> None:
    """When the disk has less room than the repository needs, nothing is fetched and both sizes are told."""
    hub.claimed_sizes = {LARGEST: 10**15}

    with pytest.raises(errors.DiskFull, match=r"needs 10000\d\d\.\d GB more .* are free"):
        weights.resolve("m", REMOTE, tmp_path, lambda *report: None)

    assert hub.served.total() == 0


def test_a_disk_that_fills_up_while_fetching_keeps_what_came(hub: Hub, tmp_path: Path) -> None:
    """A write that finds the disk full ends as DiskFull; when there is room again, fetching goes on from there."""
    hub.bytes_per_s = 2e6
    with small_disk(tmp_path / "disk", megabytes=9) as disk, ThreadPoolExecutor(1) as pool:
        fetching = pool.submit(weights.resolve, "m", REMOTE, disk, lambda *report: None)
        eventually(lambda: hub.served[LARGEST] > 500_000)
        filler = fill(disk)
        hub.bytes_per_s = None
        with pytest.raises(errors.DiskFull, match=r"The disk was full after \d\.\d MB of 7\.0 MB of sophia/tiny"):
            fetching.result()
        filler.unlink()
        fractions: list[float | None] = []

        folder = weights.resolve("m", REMOTE, disk, lambda _, fraction, __: fractions.append(fraction))

        assert fractions[0]
        assert fractions[0] > 0.05
        assert _digests(folder)[LARGEST] == _digests(hub.folder)[LARGEST]


def test_a_repository_in_the_original_layout_is_refused_before_it_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ACE-Step's own layout is recognised from the hub's list of files, with the way to convert it."""
    original = _original_layout(tmp_path / "original")
    with serving(original) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)

        with pytest.raises(errors.WrongLayout, match=r"original layout.*convert_ace_step_to_diffusers"):
            weights.resolve("m", REMOTE, tmp_path / "cache", lambda *report: None)

    assert hub.served.total() == 0


# --- A local folder -------------------------------------------------------------------------------------------------


def test_a_local_folder_is_used_where_it_is(copy: Path, tmp_path: Path) -> None:
    """An absolute folder is the checkpoint itself: nothing is copied."""
    assert weights.resolve("m", ModelArgs(source=str(copy)), tmp_path / "cache", lambda *report: None) == copy


def test_a_local_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A folder that does not exist is an error that names the setting and the folder."""
    with pytest.raises(errors.MissingFile, match=r"models\.m\.source: there is no folder .*/nowhere"):
        weights.resolve("m", ModelArgs(source=str(tmp_path / "nowhere")), tmp_path, lambda *report: None)


# --- Checking -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "scheduler/scheduler_config.json",
        "model_index.json",
    ],
)
def test_a_missing_file_is_named(name: str, copy: Path) -> None:
    """A checkpoint that lacks a file is refused with the file's name."""
    (copy / name).unlink()

    with pytest.raises(errors.MissingFile, match=name):
        weights.verify(copy, EMBEDDED)


def test_a_truncated_weight_file_is_found_without_reading_it(copy: Path) -> None:
    """A weight file one byte shorter than its header says is refused with its name and size."""
    file = copy / LARGEST
    size = file.stat().st_size
    with file.open("r+b") as stream:
        stream.truncate(size - 1)

    with pytest.raises(errors.CorruptFile, match=rf"{LARGEST} is truncated or corrupt \({size - 1} bytes;"):
        weights.verify(copy, EMBEDDED)


def test_a_weight_file_with_bytes_appended_is_refused(copy: Path) -> None:
    """A weight file one byte longer than its header says is refused with its name."""
    with (copy / LARGEST).open("ab") as stream:
        stream.write(b"x")

    with pytest.raises(errors.CorruptFile, match=f"{LARGEST} is truncated or corrupt"):
        weights.verify(copy, EMBEDDED)


@pytest.mark.parametrize(
    "content", [b"", b"\x01\x02", b"\xff" * 64, b"<!DOCTYPE html>" * 20, b"\x02" + bytes(7) + b"[]"]
)
def test_a_weight_file_that_is_something_else_is_refused(content: bytes, copy: Path) -> None:
    """An empty file, garbage, or an error page saved in a weight file's place is refused with the file's name."""
    (copy / LARGEST).write_bytes(content)

    with pytest.raises(errors.CorruptFile, match=rf"{LARGEST} is truncated or corrupt \({len(content)} bytes;"):
        weights.verify(copy, EMBEDDED)


def test_a_configuration_that_is_not_json_is_refused(copy: Path) -> None:
    """A configuration file that was cut is refused with the file's name."""
    (copy / "transformer" / "config.json").write_text('{"is_turbo": tr')

    with pytest.raises(errors.CorruptFile, match=r"transformer/config\.json is not JSON"):
        weights.verify(copy, EMBEDDED)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("_class_name", "StableAudioPipeline", "the pipeline 'StableAudioPipeline'"),
        ("transformer", ["diffusers", "StableAudioDiTModel"], "the class StableAudioDiTModel for transformer"),
        ("text_encoder", ["transformers", "T5EncoderModel"], "the class T5EncoderModel for text_encoder"),
    ],
)
def test_another_class_is_refused(key: str, value: object, expected: str, copy: Path) -> None:
    """A checkpoint of another pipeline or component class is refused with that class's name."""
    _edit(copy / "model_index.json", {key: value})

    with pytest.raises(errors.WrongClass, match=expected):
        weights.verify(copy, EMBEDDED)


def test_a_folder_in_the_original_layout_is_refused(tmp_path: Path) -> None:
    """A folder in ACE-Step's own layout is refused with the way to convert it."""
    with pytest.raises(errors.WrongLayout, match=r"original layout.*convert_ace_step_to_diffusers"):
        weights.verify(_original_layout(tmp_path / "original"), EMBEDDED)


def test_optional_components_may_be_absent(copy: Path) -> None:
    """A checkpoint without the audio tokenizer, as some published ones are, is accepted and says so."""
    _edit(copy / "model_index.json", {"audio_tokenizer": [None, None], "audio_token_detokenizer": [None, None]})
    shutil.rmtree(copy / "audio_tokenizer")

    assert not weights.verify(copy, EMBEDDED).has_audio_tokenizer


def test_shards_are_checked_like_one_file(copy: Path) -> None:
    """Weights in several files are found through their index, and a missing one is named."""
    whole = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    shards = [whole.with_name(f"diffusion_pytorch_model-0000{i}-of-00002.safetensors") for i in (1, 2)]
    shutil.copy(copy / "vae" / whole.name, shards[0])
    whole.rename(shards[1])
    index = {"weight_map": {"a": shards[0].name, "b": shards[1].name, "c": shards[1].name}}
    whole.with_name(whole.name + ".index.json").write_text(json.dumps(index))

    facts = weights.verify(copy, EMBEDDED)
    shards[0].unlink()

    assert {f"transformer/{shard.name}" for shard in shards} <= facts.files.keys()
    with pytest.raises(errors.MissingFile, match=shards[0].name):
        weights.verify(copy, EMBEDDED)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"is_turbo": True, "model_version": None}, "turbo"),
        ({"is_turbo": False, "model_version": "turbo"}, "turbo"),
        ({"is_turbo": False, "model_version": "sft"}, "sft"),
        ({"is_turbo": False, "model_version": "base"}, "base"),
        ({"is_turbo": False, "model_version": None}, "base"),
    ],
)
def test_the_variant_is_read_from_the_transformer(config: dict[str, object], expected: str, copy: Path) -> None:
    """turbo, base or sft comes from the transformer's configuration."""
    _edit(copy / "transformer" / "config.json", config)

    assert weights.verify(copy, EMBEDDED).variant == expected


def test_the_configured_variant_beats_the_checkpoint(checkpoint: Path) -> None:
    """`variant` in the configuration is believed over the checkpoint."""
    assert weights.verify(checkpoint, ModelArgs(source="embedded", variant="sft")).variant == "sft"


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _original_layout(folder: Path) -> Path:
    for name in ("model.safetensors", "silence_latent.pt", "vae/config.json", "Qwen3-Embedding-0.6B/config.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def _edit(file: Path, changes: dict[str, object]) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_small_file_is_whole_whoever_writes_it_at_once(tmp_path: Path) -> None:
    """Writers with one process id, as two containers may have, neither fail nor mix what they write, and leave no draft."""
    texts = [letter * 100_000 for letter in "abcd"]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda turn: manifest.write_whole(tmp_path / "ref", texts[turn % 4]), range(200)))

    assert (tmp_path / "ref").read_text() in texts
    assert [file.name for file in tmp_path.iterdir()] == ["ref"]
