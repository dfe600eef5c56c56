"""The cache of checkpoints on a node: many workers at once, a kill in the middle, wrong bytes, no network."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serve_app import errors, weights
from serve_app.config import ModelArgs
from tests.support.checkpoints import enlarged
from tests.support.helpers import eventually
from tests.support.hub import COMMIT, REPOSITORY, Hub, serving

pytestmark = pytest.mark.long

REMOTE = ModelArgs(source=REPOSITORY, revision=COMMIT, device="cpu")
LARGEST = "text_encoder/model.safetensors"
WORKERS = 8

FETCH = f"""
import sys
from pathlib import Path
from serve_app import weights
from serve_app.config import ModelArgs
model = ModelArgs(source="{REPOSITORY}", revision="{COMMIT}", device="cpu")
folder = weights.resolve("m", model, Path(sys.argv[1]), lambda *report: print(*report, flush=True))
print(weights.verify(folder, model).bytes)
"""

LOAD = f"""
import sys
from pathlib import Path
from serve_app.config import ModelArgs
from serve_app.engine.ace_step.engine import AceStepEngine
model = ModelArgs(source="{REPOSITORY}", revision="{COMMIT}", device="cpu")
print(AceStepEngine("m", model, Path(sys.argv[1])).load(lambda *report: None).weights_bytes)
"""


@pytest.fixture(scope="module")
def large(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 200 MB."""
    return enlarged(checkpoint, tmp_path_factory.mktemp("large") / "checkpoint", megabytes=200)


@pytest.fixture
def hub(large: Path) -> Iterator[Hub]:
    """A hub that has it."""
    with serving(large) as running:
        yield running


@contextmanager
def _processes(program: str, count: int, cache: Path, **environment: str) -> Iterator[list["subprocess.Popen[str]"]]:
    command = [sys.executable, "-c", program, str(cache)]
    env = os.environ | environment
    started = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def _outputs(processes: list["subprocess.Popen[str]"]) -> list[str]:
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return outputs


def test_eight_workers_of_a_node_fetch_a_checkpoint_once_through_a_kill_and_load_it_offline(
    hub: Hub, tmp_path: Path
) -> None:
    """Eight processes start at once, the one that fetches is killed half way, another goes on, and then all load offline."""
    began = time.monotonic()
    hub.bytes_per_s = 60e6
    with _processes(FETCH, WORKERS, tmp_path, HF_ENDPOINT=hub.endpoint) as workers:
        eventually(lambda: hub.served[LARGEST] > hub.sizes[LARGEST] / 2)
        fetching = _holder_of_the_lock(tmp_path)
        [killed] = [worker for worker in workers if worker.pid == fetching]
        killed.kill()
        killed.wait()
        hub.bytes_per_s = None
        outputs = _outputs([worker for worker in workers if worker is not killed])
    fetched_s = time.monotonic() - began

    again = hub.served.total() - sum(hub.sizes[name] for name in hub.served)
    size = sum(hub.sizes.values())
    print(
        f"{WORKERS} processes, {size / 1e6:.0f} MB, killed half way: {fetched_s:.1f} s, {again / 1e6:.1f} MB sent twice"
    )
    assert again < 0.1 * hub.sizes[LARGEST]  # what was on its way when the process died
    assert sum("another worker on this node is fetching" in output for output in outputs) >= WORKERS - 2
    assert len({output.splitlines()[-1] for output in outputs}) == 1
    began = time.monotonic()
    asked = hub.requests

    with _processes(LOAD, WORKERS, tmp_path, HF_ENDPOINT="http://127.0.0.1:1", HF_HUB_OFFLINE="1") as loading:
        loaded = _outputs(loading)

    print(f"{WORKERS} loads at once with the network off: {time.monotonic() - began:.1f} s")
    assert {int(output) for output in loaded} == {int(outputs[0].splitlines()[-1])}
    assert hub.requests == asked


def _holder_of_the_lock(cache: Path) -> int:
    """The process that holds the lock, as Linux reports it."""
    inode = next(cache.rglob("*.lock")).stat().st_ino
    held = [line.split() for line in Path("/proc/locks").read_text().splitlines() if "->" not in line]
    return next(int(words[4]) for words in held if words[1] == "FLOCK" and words[5].endswith(f":{inode}"))


def test_what_was_fetched_is_read_only_and_passes_the_full_check(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of the cache cannot be written to by accident, and every one has the hash that the manifest says."""
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)

    folder = weights.resolve("m", REMOTE, tmp_path, lambda *report: None)
    fractions: list[float | None] = []
    checked = weights.check_hashes(folder, lambda _, fraction, __: fractions.append(fraction))

    assert {file.stat().st_mode & 0o222 for file in folder.rglob("*.safetensors")} == {0}
    assert checked == sum(
        size for name, size in hub.sizes.items() if (folder / name).exists() and "manifest" not in name
    )
    assert fractions[-1] == 1


def test_a_byte_that_is_wrong_once_is_fetched_again(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that arrives with a wrong byte is thrown away and fetched once more, and that is enough where it was chance."""
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    hub.flipped = {LARGEST: 100_000_000}
    hub.flips = 1

    folder = weights.resolve("m", REMOTE, tmp_path, lambda *report: None)

    assert hub.served[LARGEST] == 2 * hub.sizes[LARGEST]
    assert weights.check_hashes(folder, lambda *report: None)


def test_a_byte_that_is_always_wrong_is_refused_by_name(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that arrives wrong twice is refused with its name and both hashes, and nothing of it is left."""
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    hub.flipped = {LARGEST: 100_000_000}

    with pytest.raises(errors.CorruptFile, match=rf"{LARGEST} of {REPOSITORY} .* sha256 [0-9a-f]{{64}}, expected"):
        weights.resolve("m", REMOTE, tmp_path, lambda *report: None)

    assert not list(tmp_path.rglob(f"{LARGEST}*"))
    assert hub.served[LARGEST] == 2 * hub.sizes[LARGEST]


def test_a_partial_file_with_a_wrong_byte_is_not_built_upon(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that rotted in a partial file are found by the hash of the whole, and the file is fetched anew."""
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    partial = tmp_path / "hub" / "sophia--tiny" / COMMIT / f"{LARGEST}.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(bytes(1_000_000))

    folder = weights.resolve("m", REMOTE, tmp_path, lambda *report: None)

    assert weights.check_hashes(folder, lambda *report: None)


def test_files_that_no_manifest_vouches_for_are_checked(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of the right size with a wrong byte, whose manifest is gone, is found and fetched again, and it alone."""
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    folder = weights.resolve("m", REMOTE, tmp_path, lambda *report: None)
    (folder / "sophia.manifest.json").unlink()
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.chmod(0o644)
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    before = hub.served.copy()

    weights.resolve("m", REMOTE, tmp_path, lambda *report: None)

    assert set(hub.served - before) == {"vae/diffusion_pytorch_model.safetensors"}
    assert weights.check_hashes(folder, lambda *report: None)


def test_offline_a_branch_means_what_was_fetched_last(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In offline mode nobody is asked: a cached branch is used, and another is refused."""
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    branch = ModelArgs(source=REPOSITORY, revision="main")
    folder = weights.resolve("m", branch, tmp_path, lambda *report: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = hub.requests

    assert weights.resolve("m", branch, tmp_path, lambda *report: None) == folder
    with pytest.raises(errors.HubUnreachable, match=r"sophia/tiny at v2 is not in the cache, and offline mode"):
        weights.resolve("m", ModelArgs(source=REPOSITORY, revision="v2"), tmp_path, lambda *report: None)

    assert hub.requests == asked
