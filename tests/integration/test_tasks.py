"""Songs from songs: what each task shows to the model, what it keeps of the source, and what is refused."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from serve_app.audio import Song
from serve_app.config import Variant
from serve_app.engine.ace_step.conditioning import open_slots
from serve_app.engine.ace_step.engine import AceStepEngine
from serve_app.engine.ace_step.sampling import Slot, advance
from serve_app.engine.ace_step.settings import sampling_settings, shifted_levels
from serve_app.engine.ace_step.sources import (
    codes_of,
    encoded,
    heard_as_codes,
    reference_latents,
    reference_pieces,
    silence,
)
from serve_app.engine.ace_step.splice import spliced
from serve_app.engine.ace_step.tasks import Canvas, binding, canvas, instruction
from serve_app.engine.ace_step.work import work_of
from serve_app.engine.protocol import NO_INPUTS, SongInputs
from serve_app.errors import InvalidRequest
from serve_app.music import MusicRequest, Window, source_plan
from tests.support.engines import generate

Samples = npt.NDArray[np.float32]

RATE = 48_000
SOURCE_S = 6.03
"""Neither a whole number of latent frames nor of seconds."""


@pytest.fixture(scope="module")
def source() -> Samples:
    """Quiet noise in stereo."""
    return _noise(SOURCE_S, seed=1)


@pytest.mark.parametrize("mode", ["conservative", "balanced", "aggressive"])
def test_a_repaint_keeps_every_sample_outside_its_part(mode: str, base: AceStepEngine, source: Samples) -> None:
    """In every mode the samples outside the part are the source's, bit for bit, and those inside are others."""
    [song] = _songs(base, source, task_type="repaint", repaint_start=1.234, repaint_end=3.456, repaint_mode=mode)

    start = round(1.234 * RATE)
    stop = round(3.456 * RATE)
    assert song.samples.shape == source.shape
    assert np.array_equal(song.samples[:start], source[:start])
    assert np.array_equal(song.samples[stop:], source[stop:])
    assert (song.samples[start:stop] != source[start:stop]).mean() > 0.99


def test_an_extension_keeps_the_whole_source(base: AceStepEngine, source: Samples) -> None:
    """Seconds are added before and after the source, whose samples stay as they are; the start is rounded to latent frames."""
    [song] = _songs(base, source, task_type="repaint", extend_before=2.05, extend_after=1.5)

    before = round(2.05 * 25) * 1920
    assert len(song.samples) == before + len(source) + round(1.5 * RATE)
    assert np.array_equal(song.samples[before : before + len(source)], source)
    assert np.abs(song.samples[:before]).max() > 0
    assert np.abs(song.samples[before + len(source) :]).max() > 0


def test_extending_and_repainting_go_together(base: AceStepEngine, source: Samples) -> None:
    """With a part and an extension, both are new and the rest is kept."""
    [song] = _songs(base, source, task_type="repaint", repaint_start=5.0, extend_after=1.0)

    assert np.array_equal(song.samples[: 5 * RATE], source[: 5 * RATE])
    assert len(song.samples) == len(source) + RATE
    assert (song.samples[5 * RATE : len(source)] != source[5 * RATE :]).mean() > 0.99


def test_kept_latents_are_the_sources_with_noise_and_end_in_ramps(base: AceStepEngine, source: Samples) -> None:
    """After each of the first steps the kept frames are t * noise + (1 - t) * source; at the end ramps lead into the source."""
    request = _request(task_type="repaint", repaint_start=2.0, repaint_end=4.0, repaint_strength=0.8, steps=6)
    made_on = _canvas(base, request, source)
    [slot] = _slots(base, request, made_on)
    kept = slot.kept
    assert kept is not None
    assert made_on.source is not None
    noise = slot.latents

    assert (kept.steps, kept.ramp_frames, kept.windows) == (round(0.2 * 6), round(0.2 * 25), (slice(50, 100),))
    with torch.inference_mode():
        advance(base._pipe.transformer, [slot])
        held = slot.next_level if slot.finished else slot.noise_level
        expected = held * noise + (1 - held) * made_on.source
        torch.testing.assert_close(slot.latents[:, :50], expected[:, :50], atol=1e-6, rtol=0)
        torch.testing.assert_close(slot.latents[:, 100:], expected[:, 100:], atol=1e-6, rtol=0)
        assert (slot.latents[:, 50:100] - expected[:, 50:100]).abs().mean() > 1e-3
        advance(base._pipe.transformer, [slot])
        assert (slot.latents[:, :50] - made_on.source[:, :50]).abs().mean() > 1e-3

    blended = kept.blended(torch.zeros_like(noise))[0, :, 0] / made_on.source[0, :, 0]
    ramp = torch.arange(1, 6) / 6
    torch.testing.assert_close(blended[100:106], torch.cat([ramp, torch.ones(1)]), atol=1e-5, rtol=0)
    torch.testing.assert_close(blended[44:50], torch.cat([torch.ones(1), ramp.flip(0)]), atol=1e-5, rtol=0)
    assert blended[50:100].abs().max() == 0


@pytest.mark.parametrize(
    ("fields", "held", "frames", "seconds"),
    [
        ({"repaint_mode": "aggressive"}, 0.0, 0, 0.0),
        ({"repaint_mode": "conservative"}, 1.0, 25, 0.05),
        ({}, 0.5, 12, 0.025),
        ({"repaint_strength": 0.2}, 0.8, 20, 0.04),
    ],
)
def test_repaint_modes_bind_as_in_the_original(
    fields: dict[str, Any], held: float, frames: int, seconds: float
) -> None:
    """Each mode has the original's share of held steps, latent ramp and sample ramp."""
    bound = binding(_request(task_type="repaint", **fields))

    assert bound.held_share == pytest.approx(held)
    assert bound.ramp_frames == frames
    assert bound.ramp_s == pytest.approx(seconds)


def test_a_splice_has_straight_ramps_within_the_part() -> None:
    """At each edge of the part the share of the new samples rises in a straight line; a part beyond the source meets its end."""
    source = np.full((4 * RATE, 2), 0.5, np.float32)
    new = np.full((2, 5 * RATE), -0.25, np.float32)
    plan = source_plan(_request(task_type="repaint", repaint_start=1, repaint_end=3, extend_after=1), len(source))

    song = spliced(new, source, plan, ramp_s=0.01, seed=0)

    share = np.arange(1, 481) / 481
    np.testing.assert_allclose(song[RATE : RATE + 480, 0], 0.5 * (1 - share) - 0.25 * share, atol=1e-6)
    np.testing.assert_allclose(song[3 * RATE - 480 : 3 * RATE, 1], (0.5 * (1 - share) - 0.25 * share)[::-1], atol=1e-6)
    np.testing.assert_allclose(song[4 * RATE : 4 * RATE + 480, 0], 0.5 * (1 - share) - 0.25 * share, atol=1e-6)
    assert (song[RATE + 480 : 3 * RATE - 480] == -0.25).all()
    assert (song[3 * RATE : 4 * RATE] == 0.5).all()


def test_a_cover_hears_the_source_through_the_audio_codes(base: AceStepEngine, source: Samples) -> None:
    """A cover is shown what the detokenizer makes of the source's codes, cover-nofsq the source's latents; both have its length."""
    pipe = base._pipe
    cover = _canvas(base, _request(task_type="cover"), source)
    plain = _canvas(base, _request(task_type="cover-nofsq"), source)

    latents = encoded(pipe, source)
    padded = torch.cat([latents, silence(pipe, 4)], dim=1)  # 151 frames, of which five make a code
    with torch.inference_mode():
        heard = pipe.audio_token_detokenizer(pipe.audio_tokenizer(padded.view(1, 31, 5, 64))[0])[:, :151]
    assert torch.equal(cover.context[..., :64], heard)
    assert torch.equal(plain.context[..., :64], latents)
    assert cover.instruction == plain.instruction == "Generate audio semantic tokens based on the given conditions:"
    assert cover.text_duration == pytest.approx(SOURCE_S)
    assert len(_songs(base, source, task_type="cover", duration=60)[0].samples) == len(source)


def test_cover_strength_switches_to_the_words_at_one_step(base: AceStepEngine, source: Samples) -> None:
    """From step int(N * strength) on, the model is told the words and silence alone: the same as a plain loop that switches."""
    request = _request(task_type="cover", cover_strength=0.5, steps=5)
    made_on = _canvas(base, request, source)
    [slot] = _slots(base, request, made_on)
    words = _request(steps=5, duration=SOURCE_S, chunk_mask_mode="explicit")
    [plain] = _slots(base, words, _canvas(base, words, None))
    noise = slot.latents
    levels = shifted_levels(5, 1.0)
    latents = noise

    with torch.inference_mode():
        for step, (level, after) in enumerate(pairwise([*levels, 0.0])):
            told = slot.told if step < 2 else plain.told
            [velocity] = base._pipe.transformer(
                hidden_states=latents,
                timestep=torch.tensor([level]),
                timestep_r=torch.tensor([level]),
                encoder_hidden_states=told.conditions,
                context_latents=told.context,
                return_dict=False,
            )
            latents = latents + (after - level) * velocity
            advance(base._pipe.transformer, [slot])
            torch.testing.assert_close(slot.latents, latents, atol=1e-5, rtol=0)
    assert not torch.allclose(slot.told.context, plain.told.context)


def test_cover_noise_strength_starts_from_the_source(base: AceStepEngine, source: Samples) -> None:
    """Sampling starts at the level nearest to 1 - strength, from the source with that much noise; the switch counts the rest."""
    fields = {"task_type": "cover-nofsq", "steps": 10, "seed": 3}
    request = _request(cover_noise_strength=0.33, cover_strength=0.5, **fields)
    made_on = _canvas(base, request, source)
    assert made_on.source is not None

    [slot] = _slots(base, request, made_on)

    [plain] = _slots(base, _request(**fields), made_on)
    assert slot.levels == pytest.approx([0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert slot.switch_step == 3
    torch.testing.assert_close(slot.latents, 0.7 * plain.latents + 0.3 * made_on.source, atol=1e-6, rtol=0)


def test_a_reference_is_three_pieces_of_ten_seconds() -> None:
    """From each third of the reference ten seconds are taken, from starts that the seed decides; a short one is repeated."""
    long = _noise(33.0, seed=2)
    short = _noise(4.0, seed=3)

    heard = reference_pieces(long, seed=5)

    random = np.random.default_rng(5)
    starts = [third * 11 * RATE + int(random.integers(RATE + 1)) for third in range(3)]
    np.testing.assert_array_equal(heard, np.concatenate([long[start : start + 10 * RATE] for start in starts]))
    assert not np.array_equal(heard, reference_pieces(long, seed=6))
    np.testing.assert_array_equal(reference_pieces(short, seed=5), reference_pieces(np.tile(short, (8, 1)), seed=5))


def test_a_reference_is_heard_as_its_latents(base: AceStepEngine) -> None:
    """The condition encoder is given the latents of the pieces, and those of silence for a silent reference."""
    pipe = base._pipe
    long = _noise(33.0, seed=2)

    heard = reference_latents(pipe, long, seed=5)

    first = reference_pieces(long, seed=5)[: 4 * RATE]
    assert heard.shape == (1, 750, 64)
    torch.testing.assert_close(heard[:, :80], encoded(pipe, first)[:, :80], atol=1e-4, rtol=0)
    assert torch.equal(reference_latents(pipe, np.zeros_like(long), seed=5), silence(pipe, 750))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"task_type": "extract", "track": "drums"}, "Extract the DRUMS track from the audio:"),
        (
            {"task_type": "lego", "track": "backing_vocals"},
            "Generate the BACKING_VOCALS track based on the audio context:",
        ),
        ({"task_type": "complete", "tracks": ["drums", "bass"]}, "Complete the input track with DRUMS | BASS:"),
        ({"task_type": "complete"}, "Complete the input track:"),
        ({"task_type": "repaint"}, "Repaint the mask area based on the given conditions:"),
    ],
)
def test_tracks_are_named_in_the_instruction(fields: dict[str, Any], sentence: str) -> None:
    """The model is told the task and the tracks in the original's words."""
    assert instruction(_request(**fields)) == sentence


@pytest.mark.parametrize("task", ["extract", "lego", "complete"])
def test_tracks_are_made_to_the_whole_source(task: str, base: AceStepEngine, source: Samples) -> None:
    """Extract, lego and complete are shown the source's latents; lego's part is named in the mask only."""
    fields = {"repaint_start": 2.0, "repaint_end": 4.0} if task == "lego" else {}
    made_on = _canvas(base, _request(task_type=task, chunk_mask_mode="explicit", **fields), source)

    mask = made_on.context[0, :, 64]
    assert torch.equal(made_on.context[..., :64], encoded(base._pipe, source))
    assert mask[50:100].min() == 1.0
    assert mask[:50].max() == (0.0 if task == "lego" else 1.0)
    assert made_on.windows == ()


def test_stems_are_one_song_for_each_track(base: AceStepEngine, source: Samples) -> None:
    """Stems are as long as the source, keep their level, and each is what extract makes of its track before normalisation."""
    steps: list[tuple[str, int, int]] = []
    request = _request(task_type="stems", tracks=["vocals", "drums"])
    songs = list(base.generate(request, lambda *step: steps.append(step), lambda: False, SongInputs(source=source)))
    [drums] = _songs(base, source, task_type="extract", track="drums")

    assert [song.track for song in songs] == ["vocals", "drums"]
    assert {song.samples.shape for song in songs} == {source.shape}
    level = np.abs(drums.samples).max() / np.abs(songs[1].samples).max()
    np.testing.assert_allclose(songs[1].samples * level, drums.samples, atol=1e-5)
    assert [step for step in steps if step[0] == "denoising"] == [("denoising", n, 4) for n in (1, 2, 3, 4)]


def test_a_sources_audio_codes_make_a_cover_of_it(base: AceStepEngine, source: Samples) -> None:
    """The codes of a source, sent as numbers or as text, show the model the same as a cover of that source does."""
    pipe = base._pipe
    quiet = silence(pipe, pipe.audio_tokenizer.pool_window_size)
    codes = pipe.audio_tokenizer.tokenize(encoded(pipe, source), quiet)[1].flatten().tolist()
    text = "".join(f"<|audio_code_{code}|>" for code in codes)

    by_codes = _canvas(base, _request(audio_codes=codes, duration=SOURCE_S), None)

    cover = _canvas(base, _request(task_type="cover"), source)
    assert len(codes) == 31
    assert _request(audio_codes=text).audio_codes == codes
    assert _request(audio_codes=[7.0, 8]).audio_codes == [7, 8]
    torch.testing.assert_close(by_codes.context[:, :150], cover.context[:, :150], atol=1e-4, rtol=0)
    assert by_codes.instruction == cover.instruction
    longer = _canvas(base, _request(audio_codes=codes, duration=10.0), None)
    assert torch.equal(longer.context[0, 155:, :64], silence(pipe, 95)[0])


def test_a_songs_own_audio_codes_make_a_cover_of_it(base: AceStepEngine) -> None:
    """They show the model what a cover of the song's latents does. A request that keeps no latents gets none."""
    fields: dict[str, Any] = {"duration": 6.02, "seed": 3}
    [song] = generate(base, **fields)
    [without] = generate(base, **fields, keep_latents=False)
    assert song.codes is not None
    assert song.latents is not None

    by_codes = _canvas(base, _request(audio_codes=list(song.codes), duration=6.02), None)

    with torch.inference_mode():
        heard = heard_as_codes(base._pipe, torch.from_numpy(song.latents)[None])
    assert len(song.codes) == 31
    assert len(set(song.codes)) > 10
    torch.testing.assert_close(by_codes.context[:, :151, :64], heard, atol=1e-4, rtol=0)
    assert by_codes.instruction == "Generate audio semantic tokens based on the given conditions:"
    assert without.codes is None


def test_a_checkpoint_without_a_tokenizer_has_no_codes(base: AceStepEngine) -> None:
    """Nor has one that needs several codes for five frames, which no request can send."""
    latents = torch.zeros(1, 10, 64)
    several = SimpleNamespace(audio_tokenizer=SimpleNamespace(quantizer=SimpleNamespace(num_quantizers=2)))

    assert codes_of(SimpleNamespace(audio_tokenizer=None), latents) is None
    assert codes_of(several, latents) is None
    assert codes_of(base._pipe, latents) is not None


def test_kept_latents_stand_for_the_source(base: AceStepEngine, source: Samples) -> None:
    """With the source's latents, nothing is encoded: another source's latents give another song, and the kept samples stay."""
    fields: dict[str, Any] = {"task_type": "repaint", "repaint_start": 2.0, "repaint_end": 4.0}
    latents = encoded(base._pipe, source)[0].detach().numpy()
    [song] = _songs(base, source, **fields)

    same, other = (
        next(
            base.generate(_request(**fields), lambda *step: None, lambda: False, SongInputs(source, None, given))
        ).samples
        for given in (latents, latents + 1)
    )

    assert np.array_equal(same, song.samples)
    assert not np.array_equal(other, song.samples)
    assert np.array_equal(other[: 2 * RATE], source[: 2 * RATE])


def test_a_part_is_new_from_its_first_frame_to_its_last() -> None:
    """The latent frames in which the part starts and ends are new; a source of silence is that of the model."""
    assert Window(1920 * 3 + 5, 1920 * 7 + 5).frames == slice(3, 8)
    assert Window(1920 * 3, 1920 * 7).frames == slice(3, 7)
    assert Window(10, 20).frames == slice(0, 1)


def test_a_silent_source_is_the_models_silence(base: AceStepEngine) -> None:
    """A source of zeros is not encoded: its latents are those that stand for silence."""
    assert torch.equal(encoded(base._pipe, np.zeros((5000, 2), np.float32)), silence(base._pipe, 3))


@pytest.mark.parametrize(
    ("fields", "variant", "message"),
    [
        ({"task_type": "extract"}, "turbo", "turbo models cannot do; they do text2music, cover, cover-nofsq, repaint"),
        ({"task_type": "stems"}, "sft", "sft models cannot do"),
        ({"task_type": "cover"}, "base", "source: is missing"),
        ({"task_type": "repaint", "repaint_start": 7.0}, "base", "repaint_start: is 7, but the source ends at 6.03 s"),
        ({"task_type": "repaint", "repaint_end": 7.0}, "base", "repaint_end: is 7, but the source ends at 6.03 s"),
    ],
)
def test_what_cannot_be_done_is_refused(
    fields: dict[str, Any], variant: Variant, message: str, source: Samples
) -> None:
    """A task of other models, a missing source, and a part outside of it are refused, with the field's name."""
    inputs = NO_INPUTS if "missing" in message else SongInputs(source=source)

    with pytest.raises(InvalidRequest, match=message):
        work_of(_request(**fields), inputs, variant)


def _request(**fields: Any) -> MusicRequest:
    """A request for two steps without guidance and DCW, unless `fields` say otherwise."""
    least: dict[str, Any] = {"prompt": "piano", "steps": 2, "seed": 7, "guidance_scale": 1.0, "dcw": False}
    if fields.get("task_type", "text2music") != "text2music":
        least["source"] = f"input:{'0' * 64}"
    return MusicRequest.model_validate(least | fields)


def _songs(engine: AceStepEngine, source: Samples, **fields: Any) -> list[Song]:
    inputs = SongInputs(source=source)
    return list(engine.generate(_request(**fields), lambda *step: None, lambda: False, inputs))


def _canvas(engine: AceStepEngine, request: MusicRequest, source: Samples | None) -> Canvas:
    inputs = SongInputs(source=source)
    work = work_of(request, inputs, "base")
    with torch.inference_mode():
        return canvas(engine._pipe, work.request, work.plan, inputs, request.chunk_mask_mode or "explicit")


def _slots(engine: AceStepEngine, request: MusicRequest, made_on: Canvas) -> list[Slot]:
    with torch.inference_mode():
        reference = reference_latents(engine._pipe, None, seed=0)
        return open_slots(engine._pipe, request, sampling_settings(request, "base"), made_on, reference)


def _noise(seconds: float, seed: int) -> Samples:
    """Quiet noise: (frames, 2)."""
    random = np.random.default_rng(seed)
    return (0.1 * random.standard_normal((round(seconds * RATE), 2))).astype(np.float32)
