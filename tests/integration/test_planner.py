"""A planner with random weights plans songs: what it writes, and how it ends."""

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from serve_app import errors
from serve_app.engine.planner.decoding import DecodeLoop
from serve_app.engine.planner.network import Network
from serve_app.engine.planner.planner import QwenPlanner
from serve_app.engine.planner.protocol import Wishes
from serve_app.weights import random_planner
from tests.support.failure_codes import provoked
from tests.support.helpers import eventually
from tests.support.planners import DECIDED, check, check_many, loaded, mixed, planned


@pytest.fixture(scope="module")
def planner(cache: Path) -> Iterator[QwenPlanner]:
    """A small random planner that decodes 12 sequences at once, with short captions."""
    planner = loaded(cache, rows=12, context=2048)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serve_app.engine.planner.grammar.CAPTION_TOKENS", 40)
        yield planner
    planner.close()


def test_songs_plan_the_same_alone_and_in_company(planner: QwenPlanner) -> None:
    """Sixteen jobs of other prompts, lengths, seeds and ways of sampling have, all at once, the plans that each has alone."""
    wishes = [mixed(number) for number in range(16)]

    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda one: planned(planner, one), wishes))
    alone = [planned(planner, one) for one in wishes]

    assert together == alone
    for one, plan in zip(wishes, together, strict=True):
        check(one, plan)


def test_every_token_is_chosen_after_all_others_were_read(
    planner: QwenPlanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model has read all that is written of a song whenever it chooses, also right after a line that was certain."""
    drawn = DecodeLoop._drawn
    had_read_all: list[bool] = []

    def watched(loop: DecodeLoop, group: Any) -> Any:
        had_read_all.extend(writing.waits for writing in group)
        return drawn(loop, group)

    monkeypatch.setattr(DecodeLoop, "_drawn", watched)

    planned(planner, Wishes(caption="jazz", duration=6.0, thinking="metadata"))

    assert had_read_all
    assert all(had_read_all)


def test_a_song_of_a_job_has_its_own_seed(planner: QwenPlanner) -> None:
    """Song i has the codes that a job with seed + i has, and other songs have others."""
    both = planned(planner, replace(DECIDED, songs=2, seed=2**32 - 1))
    second = planned(planner, replace(DECIDED, songs=1, seed=0))

    assert both.codes[1] == second.codes[0]
    assert both.codes[0] != both.codes[1]


def test_thinking_decides_what_is_planned(planner: QwenPlanner) -> None:
    """Without thinking nothing is planned, and metadata alone come without codes; a decided length may be a fraction."""
    wishes = replace(DECIDED, duration=2.5, language="fr")

    nothing = planned(planner, Wishes(caption="jazz", thinking="none"))
    metadata = planned(
        planner, Wishes(caption="jazz", thinking="metadata", keyscale="A♭ minor", duration=7.5, instrumental=True)
    )
    codes = planned(planner, wishes)

    assert (nothing.caption, nothing.bpm, nothing.codes) == ("jazz", None, ())
    assert (metadata.keyscale, metadata.duration, metadata.language, metadata.codes) == ("A♭ minor", 7.5, "unknown", ())
    assert (codes.caption, codes.language, len(codes.codes[0])) == ("jazz", "fr", 12)


def test_captions_and_lyrics_are_written(planner: QwenPlanner) -> None:
    """Formatting, sampling and understanding give caption, lyrics and metadata; what is decided stays."""
    wishes = Wishes(caption="jazz", lyrics="la", bpm=77)

    formatted = planner.format(wishes, lambda: False)
    sampled = planner.sample("a slow song", True, wishes, lambda: False)
    understood = planner.understand((1, 2, 3), wishes, lambda: False)

    assert {plan.bpm for plan in (formatted, sampled, understood)} == {77}
    assert all(plan.caption and plan.duration and not plan.codes for plan in (formatted, sampled, understood))
    assert (sampled.lyrics, sampled.instrumental) == ("[Instrumental]", True)
    with pytest.raises(errors.InvalidRequest, match="5000 is not an audio code"):
        planner.understand((5000,), wishes, lambda: False)


def test_progress_counts_tokens(planner: QwenPlanner) -> None:
    """Both stages report how many of their tokens are there."""
    seen: list[tuple[str, int, int]] = []

    planner.plan(
        replace(DECIDED, bpm=None, songs=2), lambda stage, done, most: seen.append((stage, done, most)), lambda: False
    )

    assert {stage for stage, _, _ in seen} == {"metadata", "codes"}
    assert seen[-1] == ("codes", 60, 60)
    assert all(0 < done <= most for _, done, most in seen)


def test_a_cancelled_song_ends_at_once_and_others_go_on(planner: QwenPlanner) -> None:
    """A song that is stopped in the middle raises Stopped, and the one beside it has the plan that it has alone."""
    begun = threading.Event()
    stop = threading.Event()

    def cancelled() -> None:
        with pytest.raises(errors.Stopped):
            planner.plan(replace(DECIDED, duration=150), lambda stage, done, most: begun.set(), stop.is_set)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cancelled)
        assert begun.wait(60)
        second = pool.submit(planned, planner, DECIDED)
        stop.set()
        first.result(60)
        beside = second.result(60)

    assert beside == planned(planner, DECIDED)
    assert _is_empty(planner)


def _is_empty(planner: QwenPlanner) -> bool:
    """Whether no song holds a place in the loop."""
    return not (planner._loop._lanes or planner._loop._active or planner._loop._waiting)


def test_a_song_that_waits_can_be_cancelled(planner: QwenPlanner) -> None:
    """A job whose songs do not all fit waits for rows, and ends at once when it is stopped."""
    seen: list[int] = []

    with pytest.raises(errors.Stopped):
        planner.plan(
            replace(DECIDED, duration=100, songs=8), lambda stage, done, most: seen.append(done), lambda: len(seen) > 5
        )

    assert eventually(lambda: _is_empty(planner))


def test_an_error_of_one_song_ends_that_song_only(planner: QwenPlanner) -> None:
    """An exception in a song's own callback is its error, and the song beside it is planned."""

    def broken(stage: str, done: int, most: int) -> None:
        if done == 3:
            raise KeyError("broken")

    with ThreadPoolExecutor(2) as pool:
        failing = pool.submit(planner.plan, DECIDED, broken, lambda: False)
        beside = pool.submit(planned, planner, DECIDED)
        with pytest.raises(errors.GenerationError, match="Planning failed with KeyError: 'broken'"):
            failing.result(60)
        assert len(beside.result(60).codes[0]) == 30
    assert _is_empty(planner)


@pytest.mark.parametrize("method", ["read", "step"])
def test_out_of_memory_ends_songs_and_frees_their_rows(
    method: str, planner: QwenPlanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too little memory in the middle is an error that says what to do, and the next song is planned."""

    def fails(*args: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Network, method, fails)
        with pytest.raises(errors.OutOfDeviceMemory, match="not enough memory on cpu to plan a song") as caught:
            planned(planner, DECIDED)

    provoked("out_of_device_memory", "planning with too little memory", caught.value.message, "run")
    assert _is_empty(planner)
    assert planned(planner, DECIDED).codes


def test_a_song_that_is_too_long_is_refused(planner: QwenPlanner) -> None:
    """A prompt and codes beyond the context are an error that names both lengths."""
    with pytest.raises(errors.PlanTooLong, match=r"sequence of \d+ tokens for this song, but has 2048") as caught:
        planned(planner, replace(DECIDED, duration=400))

    provoked("plan_too_long", "a song beyond the planner's context", caught.value.message, "run")


def test_a_closed_planner_stops_its_songs(cache: Path) -> None:
    """Closing ends the songs that are being planned, and those that come later."""
    planner = loaded(cache, rows=2, context=2048)
    begun = threading.Event()

    with ThreadPoolExecutor(1) as pool:
        song = pool.submit(planner.plan, replace(DECIDED, duration=150), lambda *progress: begun.set(), lambda: False)
        assert begun.wait(60)
        planner.close()
        with pytest.raises(errors.Stopped):
            song.result(60)

    with pytest.raises(errors.Stopped):
        planned(planner, DECIDED)


def test_too_little_memory_for_the_planner_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planner that does not fit beside what is on the device is an error with both sizes, before it is loaded."""
    monkeypatch.setattr("serve_app.engine.planner.planner.free_memory", lambda device: 5000)

    with pytest.raises(errors.DeviceMemory, match=r"The planner needs \d\.\d\d GB on cpu, .* but 0\.00 GB are free"):
        loaded(cache)


def test_weights_that_are_not_numbers_fail_the_self_test(cache: Path, tmp_path: Path) -> None:
    """A language model whose weights are NaN is refused when it is loaded, by name."""
    folder = shutil.copytree(random_planner.build(cache, lambda *progress: None), tmp_path / "copy")
    file = folder / "model.safetensors"
    file.chmod(0o600)
    save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in load_file(file).items()}, file)

    with pytest.raises(errors.SelfTestFailed, match=r"The planner of m cannot plan: .* not a number") as caught:
        loaded(cache, source=str(folder))

    provoked("self_test_failed", "a planner whose weights are not numbers", caught.value.message, "load")


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.plans)])
def test_many_plans_are_valid(cache: Path, count: int) -> None:
    """Of a language model that knows nothing, every plan parses and every value is in range."""
    check_many(loaded(cache, rows=64, context=2048), count)
