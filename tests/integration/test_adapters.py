"""Adapters over HTTP and in the engine: chosen by each request, added while the service runs, and gone in the next song."""

import gc
import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import peft
import psutil
import pytest
import soundfile
import torch
from diffusers import AceStepTransformer1DModel

from serve_app.config import AdapterArgs, ModelArgs
from serve_app.engine.ace_step.adapters.adapters import Adapters
from serve_app.engine.ace_step.adapters.blend import Blend
from serve_app.engine.ace_step.conditioning import open_slots
from serve_app.engine.ace_step.engine import AceStepEngine
from serve_app.engine.ace_step.sampling import Slot, advance
from serve_app.engine.ace_step.settings import sampling_settings
from serve_app.engine.ace_step.sources import reference_latents
from serve_app.engine.ace_step.tasks import canvas
from serve_app.engine.protocol import NO_INPUTS
from serve_app.music import SAMPLE_RATE, MusicRequest
from serve_app.ops.cli import main
from tests.support.adapters import ATTENTION, edit_tensors, peft_folder
from tests.support.running import Service, running

LORA = peft.LoraConfig(r=4, lora_alpha=8, target_modules=ATTENTION)
ROUNDING = 1e-5
"""How far latents of size 1 may differ where the same rows are multiplied in a batch of another size."""
ADAPTERS = ("one", "other")
SONG: dict[str, Any] = {"duration": 2, "steps": 2, "format": "wav"}


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two random adapters of the random checkpoint, and an unrelated third."""
    folder = tmp_path_factory.mktemp("adapters")
    transformer = AceStepTransformer1DModel.from_pretrained(checkpoint / "transformer")
    for seed, name in enumerate((*ADAPTERS, "third")):
        peft_folder(transformer, folder / name, LORA, seed)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> ModelArgs:
    """A model with the random checkpoint and two adapters, of which the second counts half unless a request says otherwise."""
    adapters = {
        "one": AdapterArgs(source=str(folder / "one")),
        "other": AdapterArgs(source=str(folder / "other" / "adapter_model.safetensors"), scale=0.5),
    }
    return ModelArgs(source="random", device="cpu", adapters=adapters)


@pytest.fixture(scope="module")
def service(model: ModelArgs, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with one worker for that model, which knows adapters that are added later."""
    folder = tmp_path_factory.mktemp("service")
    with ExitStack() as stack:
        engine = AceStepEngine("ace-step", model, cache, lambda: store.adapters.known("ace-step", model.adapters))
        service = stack.enter_context(running(folder, {"ace-step": model}, engine))
        store = service.store
        yield service


@pytest.fixture
def sophia(
    service: Service, model: ModelArgs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., str]]:
    """Runs a command of `sophia` with the service's configuration and returns what it prints. Adapters that it adds are removed."""
    monkeypatch.chdir(service.args.data_dir)
    monkeypatch.setenv("SOPHIA_DATA_DIR", str(service.args.data_dir))
    monkeypatch.setenv("SOPHIA_MODELS", json.dumps({"ace-step": model.model_dump(mode="json")}))

    def run(*words: str) -> str:
        assert main(words) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    yield run
    for name in adapters_shown(service):
        service.store.adapters.remove("ace-step", name)


def test_an_adapter_changes_its_song_and_not_the_next(service: Service) -> None:
    """Same seed without, with and without an adapter: the first and third file are equal byte for byte, and the second is not."""
    without = heard(service)
    with_one = heard(service, lora=[{"name": "one", "scale": 1}])
    without_again = heard(service)

    assert without == without_again
    assert with_one != without
    assert heard(service, lora=[{"name": "one", "scale": 0}]) == without
    assert heard(service, lora="one") == with_one


def test_adapters_and_their_scales_are_heard(service: Service) -> None:
    """Each choice of adapters and scales is another song; the order of adapters does not matter."""
    choices: list[Any] = [
        ["one"],
        ["other"],
        ["one", "other"],
        [{"name": "one", "scale": 0.5}],
        [{"name": "one", "scale": -1}],
    ]

    songs = [heard(service, lora=choice) for choice in choices]

    assert len(set(songs)) == len(choices)


def test_what_a_request_says_about_adapters_is_understood(service: Service) -> None:
    """A name alone, a single object and numbers as text are understood, and the job's request has the adapter's own scale."""
    given: list[Any] = [
        "other",
        {"name": "other"},
        [{"name": "other", "scale": "0.5"}],
        ["one", {"name": "other", "scale": 2}],
        None,
        [],
    ]

    understood = [service.submit(lora=lora)["request"]["lora"] for lora in given]

    half = [{"name": "other", "scale": 0.5}]
    assert understood == [half, half, half, [{"name": "one", "scale": 1.0}, {"name": "other", "scale": 2}], [], []]


@pytest.mark.parametrize(
    ("lora", "field", "message"),
    [
        (["violin"], "lora.0.name", "must be one of the model's adapters: 'one' or 'other'"),
        ([{"name": "one"}, {"name": "violin"}], "lora.1.name", "must be one of the model's adapters: 'one' or 'other'"),
        (["one", "one"], "lora", "must name each adapter once, but names 'one' twice"),
        ([{"name": "one", "scale": 11}], "lora.0.scale", "must be less than or equal to 10"),
        ([{"name": "one", "strength": 1}], "lora.0.strength", "is not a known field; the fields are name, scale"),
        ([{"scale": 1}], "lora.0.name", "is required"),
        (["one"] * 9, "lora", "must have at most 8 entries"),
    ],
)
def test_a_wrong_adapter_is_reported_by_name(service: Service, lora: Any, field: str, message: str) -> None:
    """The error names the field, the value and what is allowed."""
    answer = service.client.post("/v1/jobs", json={"prompt": "x", "lora": lora})

    assert answer.status_code == 422
    [error] = answer.json()["errors"]
    assert error["field"] == field
    assert error["message"].startswith(message)


def test_a_wrong_adapter_is_reported_beside_other_wrong_fields(service: Service) -> None:
    """One answer has the errors of all fields, and an unknown model has no adapters to report."""
    both = service.client.post("/v1/jobs", json={"prompt": "x", "lora": "violin", "duration": -1})
    model = service.client.post("/v1/jobs", json={"prompt": "x", "lora": "violin", "model": "nope"})

    assert {error["field"] for error in both.json()["errors"]} == {"lora.0.name", "duration"}
    assert [error["field"] for error in model.json()["errors"]] == ["model"]


def test_adapters_are_added_and_removed_while_the_service_runs(
    service: Service, folder: Path, sophia: Callable[..., str]
) -> None:
    """An added adapter is listed, and the next request may name it; a job that names a removed one fails and says so."""
    plain = heard(service)
    added = sophia("adapters", "add", "ace-step", "third", str(folder / "third"), "--scale", "2")
    listed = adapters_shown(service)
    with_third = heard(service, lora="third")
    service.store.pauses.pause("ace-step", "test")
    job = service.submit(lora="third")
    removed = sophia("adapters", "remove", "ace-step", "third")
    service.store.pauses.resume("ace-step")
    failed = service.ended(job["id"])

    assert (added, removed) == ("Added the adapter third to ace-step.\n", "Removed the adapter third from ace-step.\n")
    assert listed == {"third": 2.0, "one": 1.0, "other": 0.5}
    assert with_third != plain
    assert failed["error"]["code"] == "bad_adapter"
    assert failed["error"]["message"] == "The adapter third no longer exists. The model's adapters are: one, other."
    assert adapters_shown(service) == {"one": 1.0, "other": 0.5}


def test_the_command_lists_all_adapters(service: Service, folder: Path, sophia: Callable[..., str]) -> None:
    """Each line has model, name, scale, source and origin; an adapter that is added again is replaced."""
    sophia("adapters", "add", "ace-step", "third", str(folder / "one"))
    sophia("adapters", "add", "ace-step", "third", str(folder), "--file", "third", "--scale", "-0.5")

    lines = sophia("adapters", "list").splitlines()

    assert lines == [
        f"ace-step\tthird\t-0.5\t{folder}/third\tadded",
        f"ace-step\tone\t1\t{folder}/one\tin the configuration",
        f"ace-step\tother\t0.5\t{folder}/other/adapter_model.safetensors\tin the configuration",
    ]


def test_pulling_a_model_pulls_its_adapters(service: Service, folder: Path, sophia: Callable[..., str]) -> None:
    """`sophia weights pull` names the file of each adapter in the configuration."""
    lines = sophia("weights", "pull", "ace-step").splitlines()

    files = {name: folder / name / "adapter_model.safetensors" for name in ADAPTERS}
    assert lines[1:] == [f"{file}: the adapter {name}" for name, file in files.items()]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["add", "nope", "third", "/x"], "The configuration has no model 'nope'"),
        (["add", "ace-step", "-third", "/x"], "no such option"),
        (["add", "ace-step", "a b", "/x"], "'a b' is not a valid name: use 1 to 64 letters"),
        (
            ["add", "ace-step", "third", "/x", "--scale", "11"],
            "scale: must be less than or equal to 10, got 11.0",
        ),
        (["add", "ace-step", "third", ""], "source: must have at least 1 character, got ''"),
        (["add", "ace-step", "one", "/x"], "The configuration has an adapter 'one' of ace-step. Change it there"),
        (["add", "ace-step", "third", "/nowhere"], "/nowhere does not exist on this node. [bad_adapter]"),
        (["remove", "ace-step", "one"], "The adapter 'one' of ace-step is in the configuration. Remove it there."),
        (["remove", "ace-step", "nope"], "ace-step has no adapter 'nope'. It has one, other."),
    ],
)
def test_wrong_commands_are_refused(
    words: list[str], message: str, service: Service, sophia: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The error names what is wrong and what is allowed."""
    assert main(["adapters", *words]) in (1, 2)
    assert message.lower() in capsys.readouterr().err.lower()


def test_an_adapter_of_another_model_is_not_added(
    service: Service, folder: Path, tmp_path: Path, sophia: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The command compares the shapes with the model's checkpoint, and names the first layer that does not fit."""
    shutil.copytree(folder / "one", tmp_path / "wide")
    edit_tensors(tmp_path / "wide" / "adapter_model.safetensors", widened)

    assert main(["adapters", "add", "ace-step", "wide", str(tmp_path / "wide")]) == 1

    assert "was made for another base model: 32 layers of 32 do not fit, the first is" in capsys.readouterr().err
    assert "wide" not in adapters_shown(service)


def test_songs_of_one_pass_do_not_hear_each_others_adapters(engine: AceStepEngine, folder: Path) -> None:
    """Songs that are sampled together, with no adapter, one or another, have the latents that each has alone."""
    adapters = engine_with(engine, folder)
    blends = [None, adapters.blend({"one": 1.0}), adapters.blend({"other": None}), adapters.blend({"one": 1.0})]

    alone = [sampled(engine, [slot_of(engine, blend)])[0] for blend in blends]
    together = sampled(engine, [slot_of(engine, blend) for blend in blends])

    assert blends[1] is blends[3]
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=ROUNDING)
    assert min((alone[i] - alone[j]).abs().max().item() for i, j in ((0, 1), (0, 2), (1, 2))) > 100 * ROUNDING


@pytest.mark.long
def test_many_adapters_in_turn_leave_memory_flat(cache: Path, checkpoint: Path, tmp_path: Path) -> None:
    """After twenty adapters have been used once, using them all again takes no more memory."""
    transformer = AceStepTransformer1DModel.from_pretrained(checkpoint / "transformer")
    config = peft.LoraConfig(r=64, lora_alpha=64, target_modules="all-linear")
    for i in range(20):
        peft_folder(transformer, tmp_path / str(i), config, i)
    adapters = {str(i): AdapterArgs(source=str(tmp_path / str(i))) for i in range(20)}
    engine = AceStepEngine("m", ModelArgs(source="random", device="cpu", adapters=adapters, adapter_memory_mb=5), cache)
    engine.load(lambda *progress: None)

    def play_all() -> int:
        for name in adapters:
            request = MusicRequest(prompt="x", duration=1, steps=1, seed=1, lora=[{"name": name}])  # type: ignore[list-item]
            list(engine.generate(request, lambda *step: None, lambda: False))
        gc.collect()
        return psutil.Process().memory_info().rss

    size = (tmp_path / "0" / "adapter_model.safetensors").stat().st_size
    rounds = [play_all() for _ in range(4)]
    growth = [after - before for before, after in pairwise(rounds)]

    # An engine that kept what it loads would grow by twenty sizes in each round; the allocator's own growth comes in single rounds.
    assert min(growth) < 5 * size, growth


def heard(service: Service, **fields: Any) -> bytes:
    """The file of a song with a fixed seed."""
    job = service.ended(service.submit(seed=7, **SONG, **fields)["id"])
    assert job["state"] == "succeeded", job
    answer = service.client.get(f"/v1/jobs/{job['id']}/audio")
    return samples_of(answer.content)


def samples_of(file: bytes) -> bytes:
    """The samples of a WAV file, without its tags, which have the job's id."""
    samples, rate = soundfile.read(io.BytesIO(file), dtype="int16")
    assert rate == SAMPLE_RATE
    return bytes(samples.tobytes())


def adapters_shown(service: Service) -> dict[str, float]:
    """Name and scale of each adapter in /v1/models."""
    [model] = service.client.get("/v1/models").json()["models"]
    return {adapter["name"]: adapter["scale"] for adapter in model["adapters"]}


def widened(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of an adapter whose layers have twice as many inputs."""
    return {name: tensor.repeat(1, 2) if "lora_A" in name else tensor for name, tensor in tensors.items()}


def engine_with(engine: AceStepEngine, folder: Path) -> Adapters:
    """The adapters in `folder` for a loaded engine."""
    known = {name: AdapterArgs(source=str(folder / name)) for name in ADAPTERS}
    return Adapters(
        engine._pipe.transformer,
        lambda: known,
        lambda name, args, report: Path(args.source) / "adapter_model.safetensors",
        1 << 30,
    )


def slot_of(engine: AceStepEngine, blend: Blend | None) -> Slot:
    """A song of one second before its first step."""
    request = MusicRequest(prompt="piano", duration=1, steps=2, seed=7)
    settings = sampling_settings(request, "turbo")
    with torch.inference_mode():
        made_on = canvas(engine._pipe, request, None, NO_INPUTS, "explicit")
        reference = reference_latents(engine._pipe, None, seed=0)
        [slot] = open_slots(engine._pipe, request, settings, made_on, reference)
    slot.adapters = blend
    return slot


def sampled(engine: AceStepEngine, slots: list[Slot]) -> list[torch.Tensor]:
    """The latents of songs that take all their steps together."""
    with torch.inference_mode():
        while not slots[0].finished:
            advance(engine._pipe.transformer, slots)
    return [slot.latents for slot in slots]
