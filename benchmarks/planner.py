"""How many audio codes a second a planner writes, for one song and for several at once, and beside transformers' `generate`.

`python -m benchmarks.planner [--small] [--dtype bfloat16] [--codes 40]` makes a language model of the smallest released one's
shapes with random weights (1.3 GB in the temporary folder) and runs on the CPU, or on a GPU if there is one. Both sides guide,
mask and sample in the same way. Rates count while all songs are being written, so without the reading of their prompts. On the CPU,
they are codes a second of processor time with one thread, so that other programs on the machine disturb little.
"""

import argparse
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.markdown import table
from serve_app.config import ModelArgs
from serve_app.config.language_model import LanguageModelArgs
from serve_app.engine.planner import prompts
from serve_app.engine.planner.planner import QwenPlanner
from serve_app.engine.planner.protocol import Sampling, Wishes
from serve_app.engine.planner.vocabulary import Vocabulary
from serve_app.weights import random_planner

SONGS: Final = (1, 4, 16)
SAMPLING: Final = Sampling()
METADATA: Final = {"bpm": 90, "keyscale": "C major", "timesignature": "4"}


def now() -> float:
    """Seconds: of the clock with a GPU, else of this process on a processor."""
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


def wishes(codes: int, seed: int) -> Wishes:
    return Wishes(caption="slow piano", lyrics="[verse]\nRain", duration=codes / 5, seed=seed, **METADATA)  # type: ignore[arg-type]


def ours(planner: QwenPlanner, songs: int, codes: int) -> float:
    """Codes a second of songs that are planned at the same time."""
    seen: list[list[float]] = [[] for _ in range(songs)]

    def plan(song: int) -> None:
        planner.plan(wishes(codes, song), lambda *progress: seen[song].append(now()), lambda: False)

    with ThreadPoolExecutor(songs) as pool:
        list(pool.map(plan, range(songs)))
    return rate(seen)


def theirs(model: Any, vocabulary: Vocabulary, songs: int, codes: int) -> float:
    """Codes a second of a batch in transformers, which guides in a second pass over a batch of unconditional prompts."""
    wanted = wishes(codes, 0)
    prompt = vocabulary.encode(prompts.codes_prompt(wanted, {**METADATA, "duration": codes / 5}))
    other = vocabulary.encode(prompts.codes_prompt_without(wanted))
    seen: list[float] = []
    allowed = torch.full((model.config.vocab_size,), -torch.inf, device=model.device)
    allowed[list(vocabulary.code_ids)] = 0

    def mask(tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append(now())
        return scores + allowed

    with torch.inference_mode():
        model.generate(
            torch.tensor([prompt] * songs, device=model.device),
            negative_prompt_ids=torch.tensor([other] * songs, device=model.device),
            guidance_scale=SAMPLING.guidance,
            logits_processor=[mask],
            do_sample=True,
            temperature=SAMPLING.temperature,
            top_p=SAMPLING.top_p,
            top_k=0,
            max_new_tokens=codes,
            min_new_tokens=codes,
        )
    return songs * rate([seen])


def rate(songs: list[list[float]]) -> float:
    """Codes a second while all songs are being written. `songs` are the moments at which their codes were there."""
    begin = max(moments[0] for moments in songs)
    end = min(moments[-1] for moments in songs)
    return sum(begin < moment <= end for moments in songs for moment in moments) / (end - begin)


def main() -> None:
    """Measure both sides in turns, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the program itself")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--codes", type=int, default=40, help="codes of each song")
    options = parser.parse_args()
    from transformers import Qwen3ForCausalLM

    size = random_planner.SMALL if options.small else random_planner.RELEASED_600M
    cache = Path(tempfile.gettempdir()) / "sophia-planner-benchmark"
    folder = random_planner.build(cache, lambda *progress: None, size)
    args = LanguageModelArgs(source=str(folder), dtype=options.dtype, rows=2 * max(SONGS), context=1024)
    planner = QwenPlanner("benchmark", ModelArgs(cpu_threads=1), args, cache)
    facts = planner.load(lambda *progress: None)
    device = "cuda" if facts.device.startswith("cuda") else "cpu"
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=getattr(torch, options.dtype)).eval().to(device)
    vocabulary = Vocabulary(folder)
    rows = []
    for songs in SONGS:
        rate = ours(planner, songs, options.codes)
        other = theirs(model, vocabulary, songs, options.codes)
        rows.append([songs, f"{rate:.1f}", f"{other:.1f}", f"{rate / other:.2f}"])
    planner.close()
    print(f"{facts.device}, {facts.dtype}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(table(["songs at once", "codes/s", "transformers, codes/s", "ratio"], rows))


if __name__ == "__main__":
    main()
