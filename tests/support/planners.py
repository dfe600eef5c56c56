"""Planners with random weights, wishes of many kinds, and what must hold of every plan."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from serve_app.config import ModelArgs
from serve_app.config.language_model import LanguageModelArgs
from serve_app.engine.planner.planner import QwenPlanner
from serve_app.engine.planner.protocol import Sampling, Wishes
from serve_app.engine.planner.vocabulary import FILE
from serve_app.music.plan import CODES, Plan
from serve_app.weights import random_planner

DECIDED: Final = Wishes(caption="jazz", bpm=90, keyscale="C major", timesignature="4", duration=6)
"""A song whose metadata its author has decided, so that only codes are planned."""


def tokenizer_folder(folder: Path, codes: int = 100) -> Path:
    """Write the tokenizer of a random planner to `folder`."""
    random_planner.tokenizer(codes).save(str(folder / FILE))
    return folder


def loaded(cache: Path, **settings: Any) -> QwenPlanner:
    """A planner on the CPU, loaded. It is random unless `settings` name another source."""
    planner = QwenPlanner("m", ModelArgs(device="cpu"), LanguageModelArgs(**{"source": "random", **settings}), cache)
    planner.load(lambda phase, fraction, detail: None)
    return planner


def planned(planner: QwenPlanner, wishes: Wishes) -> Plan:
    """The plan for these wishes."""
    return planner.plan(wishes, lambda stage, done, most: None, lambda: False)


def mixed(number: int) -> Wishes:
    """Wishes that differ from others in what matters to the loop."""
    decided = DECIDED if number % 3 else Wishes(caption="x", longest=10 + number)
    return replace(
        decided,
        caption=f"song {number} " * (1 + number * 3),
        lyrics="la " * (number * 5),
        duration=decided.duration and 1.0 + number,
        songs=1 + number % 2,
        seed=number,
        sampling=Sampling(
            temperature=0.5 + number / 20, guidance=1.0 if number % 4 == 1 else 2.0, top_k=(number % 5) * 20
        ),
    )


def check(wishes: Wishes, plan: Plan) -> None:
    """Every value is in range, what the author has decided is as it was, and there are five codes a second."""
    assert 30 <= (plan.bpm or 0) <= 300
    assert plan.timesignature in ("2", "3", "4", "6")
    assert plan.keyscale
    assert plan.keyscale.split(" ")[1] in ("major", "minor")
    assert plan.duration
    assert min(10, int(wishes.longest)) <= plan.duration <= wishes.longest or plan.duration == wishes.duration
    assert plan.caption.isprintable()
    for name in ("bpm", "keyscale", "timesignature", "duration", "language"):
        assert getattr(wishes, name) in (None, getattr(plan, name))
    assert [len(codes) for codes in plan.codes] == [int(5 * plan.duration)] * wishes.songs
    assert all(0 <= code < CODES for codes in plan.codes for code in codes)


def check_many(planner: QwenPlanner, count: int) -> None:
    """Plan `count` jobs of many kinds, 48 at a time, check every plan, and print the time. Closes the planner."""
    wishes = [replace(mixed(number % 16), seed=number) for number in range(count)]
    began = time.monotonic()
    with ThreadPoolExecutor(48) as pool:
        plans = list(pool.map(lambda one: planned(planner, one), wishes))
    took_s = time.monotonic() - began
    planner.close()

    for one, plan in zip(wishes, plans, strict=True):
        check(one, plan)
    codes = sum(len(song) for plan in plans for song in plan.codes)
    print(f"{len(plans)} plans with {codes} codes in {took_s:.0f} s")
