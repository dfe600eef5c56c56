"""The real pipeline with broken weights, without audio, and at the limits of memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from serve_app import errors
from serve_app.config import ModelArgs
from serve_app.engine.ace_step.engine import AceStepEngine
from serve_app.music import SAMPLE_RATE
from tests.support.checkpoints import changed
from tests.support.engines import generate


@pytest.mark.parametrize(("value", "expected"), [(0.0, "silence"), (float("nan"), "NaN or infinite samples")])
def test_a_model_that_gives_no_audio_fails_its_self_test(
    value: float, expected: str, checkpoint: Path, tmp_path: Path
) -> None:
    """Weights that give silence or NaN are found while loading, before any job is taken."""
    broken = changed(
        checkpoint, tmp_path / "broken", "vae", lambda tensors: tensors["decoder.conv2.weight_g"].fill(value)
    )
    engine = AceStepEngine("m", ModelArgs(source=str(broken), device="cpu"), tmp_path)

    with pytest.raises(errors.SelfTestFailed, match=f"The self-test of m failed: The model produced {expected}"):
        engine.load(lambda phase, fraction, detail: None)


@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
def test_weights_that_lack_a_tensor_are_refused(part: str, checkpoint: Path, tmp_path: Path) -> None:
    """A weight file without one of its tensors is refused, where the libraries would fill in random numbers."""
    broken = changed(checkpoint, tmp_path / "broken", part, lambda tensors: tensors.pop(sorted(tensors)[3]))
    engine = AceStepEngine("m", ModelArgs(source=str(broken), device="cpu"), tmp_path)

    with pytest.raises(errors.CorruptFile, match=r"weights .*/broken lack "):
        engine.load(lambda phase, fraction, detail: None)


@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
def test_weights_of_another_shape_are_refused(part: str, checkpoint: Path, tmp_path: Path) -> None:
    """A tensor of another shape than the configuration says is refused as a fault of the checkpoint."""

    def double(tensors: dict[str, np.ndarray]) -> None:
        name = sorted(tensors)[3]
        tensors[name] = tensors[name].repeat(2, axis=0)

    broken = changed(checkpoint, tmp_path / "broken", part, double)
    engine = AceStepEngine("m", ModelArgs(source=str(broken), device="cpu"), tmp_path)

    with pytest.raises(errors.CorruptFile, match="or do not match their configuration"):
        engine.load(lambda phase, fraction, detail: None)


def test_a_song_without_audio_names_seed_and_steps(engine: AceStepEngine) -> None:
    """A song that comes out silent is an error with the seed and the steps that gave it."""
    last = engine._pipe.vae.decoder.conv2.weight
    kept = last.clone()
    last.zero_()
    try:
        with pytest.raises(errors.BadAudio, match="silence with seed 7 and 2 steps"):
            generate(engine)
    finally:
        last.copy_(kept)


@pytest.mark.long
def test_a_request_that_does_not_fit_leaves_the_engine_usable(checkpoint: Path, cache: Path) -> None:
    """Running out of memory is an error that says what to lower, and the next, smaller request is played."""
    output = _run_with_engine(
        cache,
        """
        import resource
        before = next(engine.generate(small, quiet, never)).samples.tobytes()
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000, resource.RLIM_INFINITY))
        try:
            list(engine.generate(large, quiet, never))
        except errors.OutOfDeviceMemory as error:
            print(error.message)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(next(engine.generate(small, quiet, never)).samples.tobytes() == before)
        """,
    )

    assert output.splitlines() == [
        "There is not enough memory on cpu for 1 variation of 600 s. Ask for fewer variations or a shorter duration.",
        "True",
    ]


@pytest.mark.long
def test_the_longest_song_keeps_memory_bounded(checkpoint: Path, cache: Path) -> None:
    """Ten minutes of audio take the whole process less than 2.5 GB."""
    output = _run_with_engine(
        cache,
        """
        from tests.support.peak_memory import peak_kilobytes
        for song in engine.generate(large, quiet, never):
            print(len(song.samples), peak_kilobytes())
        """,
    )

    frames, kilobytes = map(int, output.split())
    print(f"peak memory of a 600 s song: {kilobytes / 1e6:.2f} GB")
    assert frames == 600 * SAMPLE_RATE
    assert kilobytes < 2_500_000


def _run_with_engine(cache: Path, code: str) -> str:
    """Runs `code` in a process of its own, with an engine and two requests at hand, and gives what it printed."""
    setup = f"""
        import sys
        from pathlib import Path
        from serve_app import errors
        from serve_app.config import ModelArgs
        from serve_app.engine.ace_step.engine import AceStepEngine
        from serve_app.music import MusicRequest
        def quiet(*step): pass
        def never(): return False
        engine = AceStepEngine("m", ModelArgs(source="random", device="cpu"), Path({str(cache)!r}))
        engine.load(quiet)
        small = MusicRequest(prompt="piano", duration=1.0, steps=1, seed=7)
        large = MusicRequest(prompt="piano", duration=600.0, steps=1, seed=7)
    """
    program = "\n".join(line[8:] for line in (setup + code).splitlines())
    return subprocess.check_output([sys.executable, "-c", program], text=True, timeout=200)
