"""Teaches the lyric encoder to tell the syllables around each token, before heads look for them.

Turbo's lyric encoder gives neighbouring tokens nearly the same states. Heads that are to tell them apart wait for it to learn, and
it waits for them; alone, with a probe, it learns within half a minute.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miniature.conditioning import LYRICS_TOKENS, Networks, Tokens
from miniature.pieces import Facts
from miniature.singing import sung_syllables
from miniature.sounds import QUICKNESS, SoundProbe, token_sounds
from miniature.tasks import Texts as Words

STEPS = 200
BATCH = 24
RATE = 1.5e-3
PROBE_RATE = 1e-2
WARM_UP_STEPS = 20
KEEPING_WEIGHT = 0.3
"""Of the states' distance from what they were, as a share of their mean square."""
REPORT_EVERY = 50


def teach(networks: Networks, probe: SoundProbe, sung: Sequence[Facts], words: Words, tokenizer: Any) -> None:
    """Trains the networks' lyric encoder and the probe on the lyrics of sung clips: always in the same way."""
    encoder = networks.condition_encoder.lyric_encoder
    embeddings = networks.text_encoder.get_input_embeddings()
    groups = [
        {"params": encoder.parameters(), "lr": RATE},
        {"params": probe.parameters(), "lr": PROBE_RATE / QUICKNESS},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate)
    batches = [_batch(step, sung, words, tokenizer) for step in range(STEPS)]
    with torch.no_grad():
        former = [encoder(inputs_embeds=embeddings(tokens.ids), attention_mask=tokens.mask) for tokens, _ in batches]
    for step, ((tokens, sounds), before) in enumerate(zip(batches, former, strict=True), 1):
        states = encoder(inputs_embeds=embeddings(tokens.ids), attention_mask=tokens.mask)
        moved = (states - before)[tokens.mask].square().mean() / before[tokens.mask].square().mean()
        loss = probe.loss(states, sounds)
        optimizer.zero_grad()
        torch.autograd.backward(loss + KEEPING_WEIGHT * moved)
        optimizer.step()
        schedule.step()
        if step % REPORT_EVERY == 0:
            print(f"lyric encoder: step {step}  loss {loss.detach():.3f}  moved by {moved.detach():.2f}", flush=True)


def _rate(step: int) -> float:
    """It rises in the first steps, and falls in the second half."""
    return min(1.0, (step + 1) / WARM_UP_STEPS) * min(1.0, 2 * (1 - step / STEPS))


def _batch(step: int, sung: Sequence[Facts], words: Words, tokenizer: Any) -> tuple[Tokens, Tensor]:
    random = np.random.default_rng([23, step])
    facts = [sung[index] for index in random.integers(len(sung), size=BATCH)]
    texts = [words(known, random, True)[1] for known in facts]
    tokens = Tokens(tokenizer, texts, LYRICS_TOKENS)
    sounds = [
        token_sounds(text, sung_syllables(known, text), offsets)
        for known, text, offsets in zip(facts, texts, tokens.offsets, strict=True)
    ]
    return tokens, torch.from_numpy(np.stack(sounds))
