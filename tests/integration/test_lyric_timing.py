"""When the words of a song are sung, how closely it follows them, and the best of several songs: from the engine to HTTP."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AceStepTransformer1DModel

from serve_app import weights
from serve_app.audio import Candidate, Song
from serve_app.background import janitor
from serve_app.config import ModelArgs, ScalingArgs
from serve_app.engine.ace_step.alignment import token_times
from serve_app.engine.ace_step.alignment_heads import alignment_heads
from serve_app.engine.ace_step.engine import AceStepEngine
from serve_app.engine.ace_step.lyric_attention import AttentionSum, head_weights
from serve_app.engine.ace_step.song_lyrics import lyric_tokens, timed_lines
from serve_app.engine.protocol import NO_INPUTS, EngineFacts, SongInputs
from serve_app.engine.simulated import SimulatedEngine
from serve_app.errors import InvalidRequest
from serve_app.music import MusicRequest
from serve_app.music.lyric_times import LineTime, WordTime
from serve_app.weights.layout import LYRIC_HEADS
from tests.support.checkpoints import edit
from tests.support.engines import AligningToy, generate
from tests.support.retention import KEPT, always, keys
from tests.support.running import running, simulated

LYRICS = "[verse]\nla da bo, mi\n\n[chorus]\nhello hello moon"
WORDS = [["la", "da", "bo,", "mi"], ["hello", "hello", "moon"]]
FRAME_S = 0.08


@pytest.fixture(scope="module")
def aligning(cache: Path) -> AceStepEngine:
    """A loaded AligningToy."""
    engine = AligningToy("aligning", ModelArgs(source="embedded", device="cpu"), cache)
    engine.load(lambda phase, fraction, detail: None)
    return engine


# --- The engine ---------------------------------------------------------------------------------------------------------


def test_heads_come_from_the_config_or_the_models_size(
    copy: Path, engine: AceStepEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """Those in config.json come first, without a warning; 2B and XL have known ones; others have none, nor has a wrong entry."""
    edit(copy / "transformer" / "config.json", {LYRIC_HEADS: {"1": [0, 1], "3": [1]}})
    with weights.quiet_libraries():
        named = AceStepTransformer1DModel.from_pretrained(copy / "transformer")
    two_b = SimpleNamespace(num_hidden_layers=24, num_attention_heads=16)
    wrong = [{}, [6], {"2": 6}, {"24": [1]}, {"2": [16]}, {"x": [1]}, {"2": []}]
    xl = SimpleNamespace(num_hidden_layers=32, num_attention_heads=32)

    assert alignment_heads(named) == {1: (0, 1), 3: (1,)}
    assert LYRIC_HEADS not in caplog.text
    assert alignment_heads(engine._pipe.transformer) is None
    assert alignment_heads(SimpleNamespace(config=two_b)) == {2: [6], 3: [10, 11], 4: [3], 5: [8, 9], 6: [8]}
    assert list(alignment_heads(SimpleNamespace(config=xl)) or ()) == [3, 4, 5, 6, 7]
    for entry in wrong:
        assert (
            alignment_heads(SimpleNamespace(config=SimpleNamespace(**vars(two_b), **{LYRIC_HEADS: entry}))) is None
        ), entry


def test_the_weights_of_heads_are_those_that_the_layer_uses(aligning: AceStepEngine) -> None:
    """The values that the tokens have, weighted by them, are what the layer's own fused attention gives."""
    layer = aligning._pipe.transformer.layers[1].cross_attn
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 30, layer.to_q.in_features, generator=random)
    conditions = torch.randn(1, 12, layer.to_k.in_features, generator=random)

    with torch.inference_mode():
        weights = list(head_weights(layer, hidden, conditions, range(layer.heads)))
        values = layer.to_v(conditions)[0].unflatten(-1, (layer.kv_heads, layer.head_dim))
        sharing = layer.heads // layer.kv_heads
        mixed = [head.T @ values[:, number // sharing] for number, head in enumerate(weights)]
        expected = layer(hidden, encoder_hidden_states=conditions)

    torch.testing.assert_close(layer.to_out[0](torch.cat(mixed, dim=-1))[None], expected)
    torch.testing.assert_close(weights[0].sum(0), torch.ones(30))


def test_planted_attention_gives_the_planted_times() -> None:
    """Heads that follow the lyrics are heard through noise, a token that all frames attend to, and a head without order."""
    random = torch.Generator().manual_seed(0)
    starts = [0, 9, 15, 31, 40, 58, 63, 80]
    planted = torch.rand(8, 100, generator=random) * 2
    for token, (start, end) in enumerate(zip(starts, [*starts[1:], 100], strict=True)):
        planted[token, start:end] += 6.0
    planted[3] += 3.0  # a token with a horizontal line across the map
    total = AttentionSum()

    for scores in (planted, planted + torch.rand(8, 100, generator=random), torch.rand(8, 100, generator=random)):
        total.add(torch.softmax(scores, dim=0))
    times = token_times(total.maps(), FRAME_S)

    assert np.median(np.abs(times[:, 0] - np.array(starts) * FRAME_S)) <= 0.08
    assert np.abs(times[:, 0] - np.array(starts) * FRAME_S).max() <= 0.15


def test_words_get_the_times_of_their_tokens(aligning: AceStepEngine) -> None:
    """A word lasts from the start of its first token to the end of its last one, a line from its first word to its last."""
    tokens = lyric_tokens(aligning._pipe, _request())
    starts = np.arange(len(tokens.places), dtype=np.float64)

    timed = timed_lines(tokens, np.stack([starts, starts + 1], axis=1))

    assert [[word.text for word in line.words] for line in timed] == WORDS
    for word in (word for line in timed for word in line.words):
        sung = [place for place, start in zip(tokens.places, starts, strict=True) if word.start <= start < word.end]
        covered = tokens.lyrics[sung[0].start : sung[-1].end]
        assert covered.strip() == word.text
    assert all((line.start, line.end) == (line.words[0].start, line.words[-1].end) for line in timed)
    assert tokens.lyrics[tokens.places[0].start] == "["
    assert [tokens.is_word[0], tokens.is_word[-1]] == [False, True]


def test_each_variation_has_times_and_a_score_of_its_own(aligning: AceStepEngine) -> None:
    """The times rise within the song, and asking for them changes no sample."""
    songs = _songs(aligning, lyrics_timing=True, variations=2)
    plain = _songs(aligning, variations=2)

    assert [song.samples.tobytes() for song in songs] == [song.samples.tobytes() for song in plain]
    assert [(song.lyrics, song.lyric_score) for song in plain] == [(None, None)] * 2
    assert songs[0].lyrics != songs[1].lyrics
    for song in songs:
        assert song.lyrics is not None
        assert song.lyric_score is not None
        assert 0 <= song.lyric_score <= 1
        words = [word for line in song.lyrics for word in line.words]
        assert [[word.text for word in line.words] for line in song.lyrics] == WORDS
        times = [time for word in words for time in (word.start, word.end)]
        assert times[0] >= 0
        assert times[-1] <= 4.0
        assert [word.start for word in words] == sorted(word.start for word in words)


def test_only_songs_that_ask_cost_another_pass(aligning: AceStepEngine) -> None:
    """Two steps are two passes of the transformer; the alignment is one more for each song, and leaves nothing behind."""
    passes: list[int] = []
    hook = aligning._pipe.transformer.register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        _songs(aligning)
        plain = len(passes)
        _songs(aligning, lyrics_timing=True)
        asked = len(passes) - plain
    finally:
        hook.remove()
    assert (plain, asked) == (2, 3)
    assert not any(layer.cross_attn._forward_pre_hooks for layer in aligning._pipe.transformer.layers)


def test_the_best_of_four_is_published(aligning: AceStepEngine) -> None:
    """Its score is the best one, above the mean, and its samples are those of a request with its seed."""
    steps: list[tuple[str, int, int]] = []

    [song] = _songs(aligning, best_of=4, on_step=lambda *step: steps.append(step))

    assert song.candidates is not None
    scores = [candidate.lyric_score for candidate in song.candidates]
    assert [candidate.seed for candidate in song.candidates] == [7, 8, 9, 10]
    assert song.lyric_score == max(scores) > np.mean(scores)
    assert song.seed == song.candidates[scores.index(max(scores))].seed
    [alone] = _songs(aligning, seed=song.seed)
    np.testing.assert_allclose(song.samples, alone.samples, atol=1e-5)
    assert song.lyrics is None
    assert steps[-1] == ("decoding", 1, 1)


def test_a_model_without_alignment_refuses(engine: AceStepEngine) -> None:
    """It is not known which of the random checkpoint's heads follow the lyrics, so no times are made up."""
    for field in ({"lyrics_timing": True}, {"best_of": 2}):
        with pytest.raises(InvalidRequest, match=f"{next(iter(field))}: cannot be used with this model"):
            _songs(engine, **field)


# --- Over HTTP ----------------------------------------------------------------------------------------------------------

TIMES = (LineTime("hello moon", 0.4, 1.5, (WordTime("hello", 0.4, 0.96), WordTime("moon", 1.0, 1.5))),)


class Aligning(SimulatedEngine):
    """Says that it aligns lyrics, and gives songs times and scores, as the real engine does."""

    def load(self, report: Callable[[str, float | None, str], None]) -> EngineFacts:
        return replace(super().load(report), aligns_lyrics=True)

    def generate(
        self,
        request: MusicRequest,
        on_step: Callable[[str, int, int], None],
        stopped: Callable[[], bool],
        inputs: SongInputs = NO_INPUTS,
    ) -> Iterator[Song]:
        candidates = tuple(Candidate(song, 0.1 * song) for song in range(request.best_of))
        for song in super().generate(request, on_step, stopped, inputs):
            yield replace(
                song,
                lyric_score=0.25 if request.needs_alignment else None,
                lyrics=TIMES if request.lyrics_timing else None,
                candidates=candidates if request.best_of > 1 else None,
            )


def service(folder: Path, **settings: Any) -> Any:
    return running(folder, engine=Aligning("ace-step", simulated()), **settings)


def test_times_are_served_as_json_and_lrc_until_the_job_is_deleted(tmp_path: Path) -> None:
    """They are a file beside each song, which an audit keeps and DELETE removes. A job that did not ask has none."""
    with service(tmp_path) as here:
        job = here.ended(here.submit(lyrics="hello moon", lyrics_timing="true", variations=2)["id"])
        plain = here.ended(here.submit(lyrics="hello moon")["id"])
        janitor.audit(here.store, here.artifacts, KEPT, always)
        kept = sorted(key.rpartition("/")[2] for key in keys(here.artifacts) if key.endswith(".lyrics"))
        second = here.client.get(job["audio"][1]["lyrics_url"])
        first = here.client.get(f"/v1/jobs/{job['id']}/lyrics?format=lrc")
        missing = here.client.get(f"/v1/jobs/{plain['id']}/lyrics")
        third = here.client.get(f"/v1/jobs/{job['id']}/lyrics/2")
        here.client.delete(f"/v1/jobs/{job['id']}")
        here.client.delete(f"/v1/jobs/{plain['id']}")
        left = keys(here.artifacts)
    assert kept == ["0.lyrics", "1.lyrics"]
    words = [{"text": "hello", "start": 0.4, "end": 0.96}, {"text": "moon", "start": 1.0, "end": 1.5}]
    assert second.json() == {"lines": [{"text": "hello moon", "start": 0.4, "end": 1.5, "words": words}]}
    assert first.text == "[00:00.40]hello moon\n"
    assert first.headers["content-type"] == "text/x-lrc; charset=utf-8"
    assert ".lrc" in first.headers["content-disposition"]
    assert (missing.status_code, third.status_code) == (404, 404)
    assert missing.json()["detail"].endswith("""POST the job's `request` with "lyrics_timing": true""")
    assert [file["lyric_score"] for file in job["audio"]] == [0.25, 0.25]
    assert [plain["audio"][0][name] for name in ("lyric_score", "lyrics_url", "candidates")] == [None] * 3
    assert left == set()


def test_the_real_engines_times_and_scores_are_served(cache: Path, tmp_path: Path) -> None:
    """The best of two songs, with each candidate's score, and when its words are sung."""
    model = ModelArgs(source="embedded", device="cpu", scaling=ScalingArgs(min_workers=1, max_workers=1))
    with running(tmp_path, {"toy": model}, AligningToy("toy", model, cache)) as here:
        fields = {"lyrics": LYRICS, "duration": 4, "steps": 2, "seed": 7, "best_of": 2, "lyrics_timing": True}
        [file] = here.ended(here.submit(**fields)["id"])["audio"]
        lines = here.client.get(file["lyrics_url"]).json()["lines"]
    assert [[word["text"] for word in line["words"]] for line in lines] == WORDS
    assert {candidate["seed"]: candidate["lyric_score"] for candidate in file["candidates"]}.keys() == {7, 8}
    assert file["lyric_score"] == max(candidate["lyric_score"] for candidate in file["candidates"])


@pytest.mark.long
def test_the_advice_without_times_leads_to_the_same_song(cache: Path, tmp_path: Path) -> None:
    """The best of two songs, whose seed is not the request's, is played again with the fields that the 404 names."""
    model = ModelArgs(source="embedded", device="cpu", scaling=ScalingArgs(min_workers=1, max_workers=1))
    fields = {"lyrics": LYRICS, "duration": 4, "steps": 2, "best_of": 2, "retake_variance": 0.1, "retake_seed": 3}
    with running(tmp_path, {"toy": model}, AligningToy("toy", model, cache)) as here:
        for seed in range(20):
            job = here.ended(here.submit(**fields, seed=seed)["id"])
            if job["audio"][0]["seed"] != seed:
                break
        detail = here.client.get(f"/v1/jobs/{job['id']}/lyrics").json()["detail"]
        advice = json.loads("{" + detail.partition("`request` with ")[2] + "}")
        again = here.ended(here.submit(**(job["request"] | advice))["id"])
    assert advice == {"lyrics_timing": True, "best_of": 1, "seed": seed + 1, "retake_seed": 4}
    assert again["audio"][0]["lyric_score"] == pytest.approx(job["audio"][0]["lyric_score"], abs=1e-3)
    assert again["audio"][0]["lyrics_url"] is not None


def test_damaged_times_are_an_error_that_says_so(tmp_path: Path) -> None:
    """In both formats."""
    with service(tmp_path) as here:
        job = here.ended(here.submit(lyrics="hello moon", lyrics_timing=True)["id"])
        [key] = [key for key in keys(here.artifacts) if key.endswith(".lyrics")]
        here.artifacts.put(key, b'{"lines": [')
        answers = [here.client.get(f"/v1/jobs/{job['id']}/lyrics?format={format}") for format in ("json", "lrc")]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert "is damaged" in answers[0].json()["detail"]


@pytest.mark.parametrize("lyrics", ["L", "y", "Lyric", "# Lyric", "[a][b] c"])
def test_words_are_found_in_lyrics_that_look_like_the_heading(aligning: AceStepEngine, lyrics: str) -> None:
    """The lyrics begin after the heading, whatever they are."""
    tokens = lyric_tokens(aligning._pipe, _request(lyrics=lyrics))

    assert tokens.lyrics[tokens.places[0].start : tokens.places[-1].end] == lyrics
    assert tokens.is_word[-1]


def test_all_candidates_count(tmp_path: Path) -> None:
    """The job shows each one's seed and score, and pays for all of them in queue and account."""
    with service(tmp_path) as here:
        job = here.ended(here.submit(lyrics="hello moon", best_of=3, duration=2)["id"])
        stored = here.store.jobs.get(job["id"])
        [account] = here.store.costs.owners(1)
        untimed = here.client.get(f"/v1/jobs/{job['id']}/lyrics").json()["detail"]
        models = here.client.get("/v1/models").json()
    assert [candidate["seed"] for candidate in job["audio"][0]["candidates"]] == [0, 1, 2]
    assert untimed.endswith(
        f"""`request` with "lyrics_timing": true, "best_of": 1, "seed": {job["audio"][0]["seed"]}"""
    )
    assert len(job["audio"]) == 1
    assert stored.audio_seconds == 6.0
    assert (account.songs, account.audio_s) == (1, 6.0)
    assert (models["models"][0]["aligns_lyrics"], models["max_best_of"]) == (True, 8)


def test_candidates_count_in_an_owners_limit(tmp_path: Path) -> None:
    """Eight songs of ten minutes fit into a limit of two hours once."""
    song = {"prompt": "x", "lyrics": "hello moon", "duration": 600, "best_of": 8}
    with running(tmp_path, workers=0, queue={"max_owner_audio_s": 7200}) as here:
        answers = [here.client.post("/v1/jobs", json=song) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 429]


def test_a_model_that_cannot_is_refused_at_once(tmp_path: Path) -> None:
    """A model whose worker has loaded it is known to be able or not; the answer names the field and the model."""
    with running(tmp_path) as here:
        answers = [
            here.client.post("/v1/jobs", json={"prompt": "x", "lyrics": "hello moon", **fields})
            for fields in ({"lyrics_timing": True}, {"best_of": 2})
        ]
        models = here.client.get("/v1/models").json()
    assert [answer.status_code for answer in answers] == [422, 422]
    assert [answer.json()["errors"][0]["field"] for answer in answers] == ["lyrics_timing", "best_of"]
    assert "needs a model that can tell when words are sung, and 'ace-step' cannot" in answers[0].json()["detail"]
    assert models["models"][0]["aligns_lyrics"] is False


def _request(**fields: Any) -> MusicRequest:
    return MusicRequest.model_validate({"prompt": "song", "lyrics": LYRICS, "duration": 4.0, "seed": 7} | fields)


def _songs(engine: AceStepEngine, **fields: Any) -> list[Song]:
    on_step = fields.pop("on_step", lambda stage, step, steps: None)
    return generate(engine, on_step, **{"lyrics": LYRICS, "duration": 4.0, **fields})
