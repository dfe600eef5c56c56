"""Fetching checkpoints from a hub: a real HTTP server and real files."""

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serve_app import errors, weights
from serve_app.config import ModelArgs
from tests.support.checkpoints import LARGEST, RANDOM, REMOTE
from tests.support.disks import fill, small_disk
from tests.support.helpers import eventually
from tests.support.hub import COMMIT, REPOSITORY, Hub, serving


@pytest.mark.long
def test_the_random_checkpoint_has_the_same_bytes_from_every_process(checkpoint: Path, tmp_path: Path) -> None:
    """Two processes that build the random checkpoint at once leave one folder, with the bytes of every other build."""
    code = (
        "import sys; from pathlib import Path; from serve_app import weights; from serve_app.config import ModelArgs\n"
        "print(weights.resolve('m', ModelArgs(source='random'), Path(sys.argv[1]), lambda *a: None))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    builders = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    built = {builder.communicate(timeout=120)[0].strip() for builder in builders}

    assert len(built) == 1
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]
    assert _digests(Path(built.pop())) == _digests(checkpoint)


def test_the_random_checkpoint_is_known_as_random_turbo(checkpoint: Path) -> None:
    """Facts say what a checkpoint is: variant, size, optional components, and that its weights are random."""
    facts = weights.verify(checkpoint, RANDOM)

    assert (facts.variant, facts.random_weights, facts.has_audio_tokenizer) == ("turbo", True, True)
    assert facts.bytes == sum(file.stat().st_size for file in checkpoint.rglob("*.safetensors"))
    assert 0 < facts.bytes - 4 * facts.parameters < 100_000  # float32, and what headers take


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


def test_a_branch_in_the_cache_survives_a_refused_token(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that has expired since a branch was fetched stops no worker: the branch means what it was then."""
    branch = ModelArgs(source=REPOSITORY, revision="main")
    before = weights.resolve("m", branch, tmp_path, lambda *report: None)
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    hub.revoked = "hf_expired"

    assert weights.resolve("m", branch, tmp_path, lambda *report: None) == before


def test_a_hub_that_stops_sending_keeps_what_came(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When connections bring nothing any more, the error says how much is kept for the next start."""
    monkeypatch.setattr(weights.cache, "MAX_FAILURES", 1)
    hub.cuts = {LARGEST: [1_000_000, 0, 0]}

    with pytest.raises(errors.HubUnreachable, match=r"3\.\d MB of 7\.0 MB are kept"):
        weights.resolve("m", REMOTE, tmp_path, lambda *report: None)

    assert not (tmp_path / "hub" / "sophia--tiny" / COMMIT / LARGEST).exists()


def test_a_repository_larger_than_the_disk_is_refused_before_it_is_fetched(hub: Hub, tmp_path: Path) -> None:
    """When the disk has less room than the repository needs, nothing is fetched and the error names both sizes."""
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


def test_a_repository_of_pickled_weights_is_refused_before_it_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights in a format that can run code are recognised from the hub's list of files."""
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"x")
    with serving(tmp_path / "pickled") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)

        with pytest.raises(errors.WrongLayout, match=r"pytorch_model\.bin, a format whose reading can run code"):
            weights.resolve("m", REMOTE, tmp_path / "cache", lambda *report: None)

    assert hub.served.total() == 0


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
