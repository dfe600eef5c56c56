"""Models that cannot be loaded, each broken for real: a code of its own, the phase, what to do, and the traceback in the log."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from serve_app import errors, weights
from serve_app.artifacts import Artifacts
from serve_app.config import ModelArgs, QueueArgs
from serve_app.engine.ace_step.engine import AceStepEngine
from serve_app.store import Store
from serve_app.worker.worker import Worker
from tests.support.checkpoints import changed, edit, enlarged
from tests.support.disks import small_disk
from tests.support.environments import bare, distribution, finding, without
from tests.support.failure_codes import provoked
from tests.support.hub import COMMIT, REPOSITORY, Hub, serving
from tests.support.layouts import ORIGINAL_CONFIG, make_original
from tests.support.migrated import migrate

WEIGHTS = "vae/diffusion_pytorch_model.safetensors"
CONFIG = "transformer/config.json"


class Scene:
    """A copy of the random checkpoint to break, a hub and a small disk where they are asked for."""

    def __init__(self, checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, stack: ExitStack) -> None:
        self.checkpoint = checkpoint
        self.folder = folder
        self.monkeypatch = monkeypatch
        self.stack = stack
        self.cache = folder / "cache"

    def copy(self) -> Path:
        return Path(shutil.copytree(self.checkpoint, self.folder / "copy"))

    def local(self, folder: Path) -> ModelArgs:
        return ModelArgs(source=str(folder), device="cpu")

    def hub(self) -> Hub:
        hub = self.stack.enter_context(serving(self.checkpoint))
        self.monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        return hub

    def disk(self, megabytes: int) -> None:
        self.cache = self.stack.enter_context(small_disk(self.folder / "disk", megabytes))


@pytest.fixture
def scene(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """What a case breaks."""
    with ExitStack() as stack:
        yield Scene(checkpoint, tmp_path, monkeypatch, stack)


# --- The checkpoint and where it comes from -------------------------------------------------------------------------


def _without_a_file(scene: Scene) -> ModelArgs:
    (scene.copy() / WEIGHTS).unlink()
    return scene.local(scene.folder / "copy")


def _without_a_folder(scene: Scene) -> ModelArgs:
    return scene.local(scene.folder / "nowhere")


def _cut_short(scene: Scene) -> ModelArgs:
    os.truncate(scene.copy() / WEIGHTS, 100_000)
    return scene.local(scene.folder / "copy")


def _garbage_for_a_header(scene: Scene) -> ModelArgs:
    with (scene.copy() / WEIGHTS).open("r+b") as file:
        file.write(b"\xff" * 64)
    return scene.local(scene.folder / "copy")


def _without_a_tensor(scene: Scene) -> ModelArgs:
    return scene.local(changed(scene.checkpoint, scene.folder / "copy", "vae", lambda t: t.pop(sorted(t)[3])))


def _another_component(scene: Scene) -> ModelArgs:
    edit(scene.copy() / "model_index.json", {"transformer": ["diffusers", "StableAudioDiTModel"]})
    return scene.local(scene.folder / "copy")


def _pickled_weights(scene: Scene) -> ModelArgs:
    (scene.folder / "pickled").mkdir()
    (scene.folder / "pickled" / "pytorch_model.bin").write_bytes(b"")
    return scene.local(scene.folder / "pickled")


def _original_without_a_layer(scene: Scene) -> ModelArgs:
    make_original(scene.checkpoint, scene.folder / "original", config=ORIGINAL_CONFIG | {"num_hidden_layers": 5})
    return scene.local(scene.folder / "original")


def _refused_token(scene: Scene) -> ModelArgs:
    scene.monkeypatch.setenv("HF_TOKEN", "hf_expired")
    hub = scene.hub()
    hub.revoked = "hf_expired"
    return ModelArgs(source=REPOSITORY, device="cpu")


def _unknown_repository(scene: Scene) -> ModelArgs:
    scene.hub()
    return ModelArgs(source="sophia/other", device="cpu")


def _unknown_revision(scene: Scene) -> ModelArgs:
    scene.hub()
    return ModelArgs(source=REPOSITORY, revision="v9", device="cpu")


def _no_network(scene: Scene) -> ModelArgs:
    with serving(scene.checkpoint) as gone:
        scene.monkeypatch.setenv("HF_ENDPOINT", gone.endpoint)
    return ModelArgs(source=REPOSITORY, revision=COMMIT, device="cpu")


def _offline(scene: Scene) -> ModelArgs:
    scene.monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return ModelArgs(source=REPOSITORY, revision=COMMIT, device="cpu")


def _changed_on_the_way(scene: Scene) -> ModelArgs:
    scene.hub().flipped = {WEIGHTS: 100_000}
    return ModelArgs(source=REPOSITORY, revision=COMMIT, device="cpu")


def _disk_too_small(scene: Scene) -> ModelArgs:
    scene.hub()
    scene.disk(megabytes=4)
    return ModelArgs(source=REPOSITORY, revision=COMMIT, device="cpu")


def _disk_full_while_writing(scene: Scene) -> ModelArgs:
    scene.disk(megabytes=4)
    return ModelArgs(source="random", device="cpu")


def _no_gpu(scene: Scene) -> ModelArgs:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    return ModelArgs(source="random", device="cuda")


def _not_a_number(scene: Scene) -> ModelArgs:
    folder = changed(scene.checkpoint, scene.folder / "copy", "vae", lambda t: t["decoder.conv2.weight_g"].fill(np.nan))
    return scene.local(folder)


def _a_folder_for_a_file(scene: Scene) -> ModelArgs:
    (scene.copy() / CONFIG).unlink()
    (scene.folder / "copy" / CONFIG).mkdir()
    return scene.local(scene.folder / "copy")


def _a_word_for_a_number(scene: Scene) -> ModelArgs:
    edit(scene.copy() / "scheduler" / "scheduler_config.json", {"num_train_timesteps": "many"})
    return scene.local(scene.folder / "copy")


@dataclass(frozen=True)
class Case:
    """How the model is broken, and what its worker then says."""

    when: str
    broken: Callable[[Scene], ModelArgs]
    error: type[errors.LoadError]
    phase: str
    words: str


CASES = [
    Case("a weight file is missing", _without_a_file, errors.MissingFile, "load", "Fetch or copy the checkpoint again"),
    Case("the folder is missing", _without_a_folder, errors.MissingFile, "download", "Put the checkpoint there"),
    Case("a weight file is cut short", _cut_short, errors.CorruptFile, "load", r"truncated or corrupt \(100000 bytes"),
    Case("a weight file's header is garbage", _garbage_for_a_header, errors.CorruptFile, "load", "delete it and fetch"),
    Case("a tensor is missing", _without_a_tensor, errors.CorruptFile, "load", "lack tensors"),
    Case(
        "a file is changed during the download",
        _changed_on_the_way,
        errors.CorruptFile,
        "download",
        "expected .* sha256 [0-9a-f]{64}",
    ),
    Case("another model's class", _another_component, errors.WrongClass, "load", "Set another source"),
    Case(
        "weights that can run code",
        _pickled_weights,
        errors.WrongLayout,
        "download",
        "Use a checkpoint with safetensors",
    ),
    Case(
        "the original layout lacks a layer",
        _original_without_a_layer,
        errors.WrongTensors,
        "download",
        "has 4 layers of transformer, but its configuration says 5",
    ),
    Case("the hub has no such repository", _unknown_repository, errors.UnknownRepository, "download", "Check the name"),
    Case(
        "no such revision",
        _unknown_revision,
        errors.UnknownRevision,
        "download",
        "Set it to one of its commits, tags or branches",
    ),
    Case(
        "the hub refuses the token",
        _refused_token,
        errors.HubTokenRefused,
        "download",
        "Create a new token, or remove it",
    ),
    Case("no network, nothing cached", _no_network, errors.HubUnreachable, "download", "Check this node's network"),
    Case("offline, nothing cached", _offline, errors.HubUnreachable, "download", "sophia weights pull m"),
    Case("the disk is too small", _disk_too_small, errors.DiskFull, "download", "needs 7.0 MB more .* Free disk space"),
    Case("the disk fills up", _disk_full_while_writing, errors.DiskFull, "download", "Free disk space"),
    Case("device is cuda, and there is no GPU", _no_gpu, errors.DeviceUnavailable, "preflight", "or set device: cpu"),
    Case("weights of NaN", _not_a_number, errors.SelfTestFailed, "warm_up", "NaN or infinite samples"),
    Case(
        "a folder in place of a file", _a_folder_for_a_file, errors.LoadError, "load", "m failed with IsADirectoryError"
    ),
    Case("a text in place of a number", _a_word_for_a_number, errors.LoadError, "load", "m failed with TypeError"),
]


@pytest.mark.parametrize("case", CASES, ids=[case.when for case in CASES])
def test_a_worker_tells_why_its_model_cannot_be_loaded(
    case: Case, scene: Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker raises LoadError, its row says code, phase and what to do, and its log has the traceback."""
    monkeypatch.setattr(weights.cache, "MAX_FAILURES", 1)
    engine = AceStepEngine("m", case.broken(scene), scene.cache)
    store = Store(f"sqlite:///{tmp_path / 'jobs.db'}")
    migrate(store)
    worker = Worker("m", engine, store, Artifacts((tmp_path / "audio").as_uri()), QueueArgs())

    with pytest.raises(errors.LoadError):
        worker.start()

    [row] = store.workers.seen()
    store.close()
    assert row.phase == "failed"
    assert row.error
    assert (row.error["code"], row.error["phase"]) == (case.error.code, case.phase)
    _check_words(case.words, row.error["message"])
    [record] = [record for record in caplog.records if record.exc_info and record.levelno == logging.ERROR]
    assert record.exc_info
    assert isinstance(record.exc_info[1], case.error)
    provoked(row.error["code"], case.when, row.error["message"], row.error["phase"])


def _check_words(words: str, message: str) -> None:
    with pytest.raises(errors.LoadError, match=words):
        raise errors.LoadError(message)


# --- The process ----------------------------------------------------------------------------------------------------

WORKER = """
import json, resource, sys
from pathlib import Path
from serve_app import errors
from serve_app.artifacts import Artifacts
from serve_app.config import ModelArgs, QueueArgs
from serve_app.engine.ace_step.engine import AceStepEngine
from serve_app.store import Store
from serve_app.worker.worker import Worker

folder, source, limit = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if limit:
    import serve_app.engine.ace_step.loading
    serve_app.engine.ace_step.loading.import_packages()
    used = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (used + limit, resource.RLIM_INFINITY))
store = Store(f"sqlite:///{folder}/jobs.db")
store.migrate()
engine = AceStepEngine("m", ModelArgs(source=source, device="cpu"), folder / "weights")
try:
    Worker("m", engine, store, Artifacts((folder / "audio").as_uri()), QueueArgs()).start()
except errors.LoadError:
    print(json.dumps(store.workers.seen()[0].error))
"""


def _fails(
    folder: Path, python: list[str], environment: dict[str, str], source: str = "random", limit: int = 0
) -> tuple[dict[str, str], str]:
    """The error of a worker in a process of its own, which may take `limit` bytes more than it has, and its log."""
    ran = subprocess.run(
        [*python, "-c", WORKER, str(folder), source, str(limit)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    error: dict[str, str] = json.loads(ran.stdout.splitlines()[-1])
    return error, ran.stderr


@pytest.mark.parametrize(
    "package", ["diffusers", *(pytest.param(name, marks=pytest.mark.long) for name in ("accelerate", "transformers"))]
)
def test_a_missing_package_is_named_before_anything_is_fetched(package: str, tmp_path: Path) -> None:
    """Without a package that loading needs, the error names it and how to install it, in the first phase."""
    error, log = _fails(tmp_path, bare(), finding(without(package, tmp_path / "site")))

    assert (error["code"], error["phase"]) == ("package_missing", "preflight")
    assert error["message"].startswith(f"{package} cannot be imported (No module named '{package}')")
    assert error["message"].endswith(f"pip install {package}")
    assert f"ModuleNotFoundError: No module named '{package}'" in log
    provoked(error["code"], f"{package} is not installed", error["message"], error["phase"])


@pytest.mark.long
def test_packages_of_different_builds_are_recognised(tmp_path: Path) -> None:
    """The error for a CUDA torchaudio beside a CPU torch, as with the published wheel, names torchaudio and says what to do."""
    package = tmp_path / "site" / "torchaudio"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import ctypes\nctypes.CDLL('libc10_cuda.so')\n")
    distribution(tmp_path / "site", "torchaudio", "2.11.0")

    error, log = _fails(tmp_path, [sys.executable], finding(tmp_path / "site"))

    assert (error["code"], error["phase"]) == ("package_mismatch", "preflight")
    assert "pip uninstall torchaudio" in error["message"]
    assert "OSError: libc10_cuda.so" in log
    provoked(error["code"], "a CUDA torchaudio beside a CPU torch", error["message"], error["phase"])


@pytest.fixture(scope="module")
def large(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 200 MB."""
    return enlarged(checkpoint, tmp_path_factory.mktemp("large") / "checkpoint", megabytes=200)


@pytest.mark.parametrize(
    ("room", "when"),
    [
        (0.4, "less is free than the weights need"),
        pytest.param(1.2, "an allocation fails while loading", marks=pytest.mark.long),
    ],
)
def test_too_little_memory_is_reported_with_figures(room: float, when: str, large: Path, tmp_path: Path) -> None:
    """A process whose memory limit is too small reports what the weights need and what is free, and continues."""
    error, _ = _fails(tmp_path, [sys.executable], finding(), str(large), limit=int(room * 200e6))

    assert (error["code"], error["phase"]) == ("device_memory", "load")
    assert error["message"].startswith("The weights need 0.21 GB on cpu, but only 0.")
    provoked(error["code"], when, error["message"], error["phase"])


# --- What only a full check finds -----------------------------------------------------------------------------------


def test_a_flipped_bit_is_found_by_the_full_check(scene: Scene) -> None:
    """One wrong bit in the middle of the weights passes every quick check; reading all of it names the file and hashes."""
    file = scene.copy() / WEIGHTS
    content = bytearray(file.read_bytes())
    content[200_000] ^= 1
    file.write_bytes(content)

    with pytest.raises(errors.CorruptFile, match=f"{WEIGHTS} has sha256 [0-9a-f]+ but its manifest has") as caught:
        weights.check_hashes(scene.folder / "copy", lambda *report: None)

    assert weights.verify(scene.folder / "copy", ModelArgs(source="random")).bytes
    provoked(caught.value.code, "a bit of the weights is flipped", caught.value.message, "verify")
