"""The embedded checkpoint: package data, unpacked once a machine."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from miniature.pack import main, pack
from serve_app import errors, weights
from serve_app.config import ModelArgs
from serve_app.weights import embedded

EMBEDDED = ModelArgs(source="embedded", device="cpu")
_RESOLVE = (
    "import sys; from pathlib import Path; from serve_app import weights; from serve_app.config import ModelArgs\n"
    "print(weights.resolve('m', ModelArgs(source='embedded'), Path(sys.argv[1]), lambda *a: None))"
)


def test_the_package_stays_within_its_budget() -> None:
    """The packed checkpoint takes at most 20 MB of the wheel."""
    assert sum(file.stat().st_size for file in embedded.PACKED.rglob("*") if file.is_file()) <= 20_000_000


def test_the_embedded_checkpoint_is_unpacked_once(tmp_path: Path) -> None:
    """Unpacking reports a fraction up to 1; afterwards the same folder is used, with no more reports of work."""
    reports: list[tuple[str, float | None, str]] = []

    folder = weights.resolve("m", EMBEDDED, tmp_path, lambda *report: reports.append(report))
    times = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    again = weights.resolve("m", EMBEDDED, tmp_path, lambda *report: None, online=False)

    assert (reports[-1][0], reports[-1][1], "unpacking 100%" in reports[-1][2]) == ("download", 1.0, True)
    assert again == folder
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == times
    facts = weights.verify(folder, EMBEDDED)
    assert (facts.variant, facts.random_weights) == ("turbo", False)


def test_base_is_packed_as_what_it_has_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    """A base variant adds only the files in which it differs, and unpacks to a whole checkpoint of its own."""
    base = tmp_path / "base"
    shutil.copytree(checkpoint, base)
    config = base / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "is_turbo": False, "model_version": "base"}))
    pack(checkpoint, tmp_path / "packed", base)
    monkeypatch.setattr(embedded, "PACKED", tmp_path / "packed")

    folders = {
        source: weights.resolve("m", ModelArgs(source=source), tmp_path / "cache", lambda *report: None)
        for source in ("embedded", "embedded-base")
    }

    added = [file.relative_to(tmp_path / "packed" / "base") for file in (tmp_path / "packed" / "base").rglob("*.*")]
    assert {str(file) for file in added} == {"sophia.manifest.json", "transformer/config.json"}
    assert weights.verify(folders["embedded-base"], ModelArgs(source="embedded-base")).variant == "base"
    assert weights.verify(folders["embedded"], EMBEDDED).variant == "turbo"


def test_two_processes_that_unpack_at_once_leave_one_checkpoint(tmp_path: Path) -> None:
    """Two processes that find no checkpoint end with the same complete folder."""
    command = [sys.executable, "-c", _RESOLVE, str(tmp_path)]
    unpackers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    folders = {unpacker.communicate(timeout=120)[0].strip() for unpacker in unpackers}

    assert len(folders) == 1
    assert weights.check_hashes(Path(folders.pop()), lambda *report: None)


def test_a_damaged_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    """A packed file that does not unpack to the listed content is a CorruptFile, and nothing is left that looks complete."""
    pack(checkpoint, tmp_path / "packed")
    (tmp_path / "packed" / "model_index.json").write_text("{}" * 200)
    monkeypatch.setattr(embedded, "PACKED", tmp_path / "packed")

    with pytest.raises(errors.CorruptFile, match=r"model_index\.json of the embedded checkpoint"):
        weights.resolve("m", EMBEDDED, tmp_path / "cache", lambda *report: None)

    assert not [*(tmp_path / "cache").rglob("sophia.manifest.json")]


def test_a_damaged_archive_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    """A compressed file that cannot be decompressed is a CorruptFile that names it and what to do."""
    pack(checkpoint, tmp_path / "packed")
    archive = tmp_path / "packed" / "vae" / "diffusion_pytorch_model.safetensors.xz"
    archive.write_bytes(archive.read_bytes()[:1000])
    monkeypatch.setattr(embedded, "PACKED", tmp_path / "packed")

    with pytest.raises(errors.CorruptFile, match=r"safetensors\.xz is damaged .* Install Sophia again"):
        weights.resolve("m", EMBEDDED, tmp_path / "cache", lambda *report: None)


def test_packing_is_reproducible(checkpoint: Path, tmp_path: Path) -> None:
    """The same pipeline is packed to the same bytes, and replaces what was packed before."""
    first = pack(checkpoint, tmp_path / "a")
    second = pack(checkpoint, tmp_path / "a")
    pack(checkpoint, tmp_path / "b")

    names = sorted(file.relative_to(tmp_path / "a") for file in (tmp_path / "a").rglob("*") if file.is_file())
    assert first == second
    assert names
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)


def test_bases_weights_are_packed_as_a_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    """Base's weights are stored as their difference from turbo's, and unpack to what they were."""
    base = tmp_path / "base"
    shutil.copytree(checkpoint, base)
    weight_file = base / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({name: -2 * tensor for name, tensor in load_file(weight_file).items()}, weight_file)
    pack(checkpoint, tmp_path / "packed", base)
    monkeypatch.setattr(embedded, "PACKED", tmp_path / "packed")

    unpacked = weights.resolve("m", ModelArgs(source="embedded-base"), tmp_path / "cache", lambda *report: None)

    assert (tmp_path / "packed" / "base" / "transformer" / f"{weight_file.name}.difference.xz").exists()
    expected = {name: tensor.bfloat16() for name, tensor in load_file(weight_file).items()}
    found = load_file(unpacked / "transformer" / weight_file.name)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.long
def test_parts_that_were_not_exported_stay_packed(tmp_path: Path, checkpoint: Path) -> None:
    """Packing a folder with turbo only keeps the packed planner and base; an empty folder is refused."""
    shutil.copytree(checkpoint, tmp_path / "exported" / "turbo")
    (tmp_path / "empty").mkdir()

    main([str(tmp_path / "exported"), "--target", str(tmp_path / "packed")])

    for name in ("planner/model.safetensors.xz", "planner/sophia.manifest.json"):
        assert (tmp_path / "packed" / name).read_bytes() == (embedded.PACKED / name).read_bytes()
    assert (tmp_path / "packed" / "base" / "sophia.manifest.json").exists()
    with pytest.raises(SystemExit):
        main([str(tmp_path / "empty")])
