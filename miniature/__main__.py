"""Makes the miniature, the small ACE-Step that is packaged with Sophia: `python -m miniature --help`."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import httpx
import typer

from miniature import aligning, dataset, listening, mixes, stage
from miniature.captions import text_pair
from miniature.clips import render_clip
from miniature.codes import Codes, coder
from miniature.codes import train as train_codes
from miniature.codes import trained as trained_codes
from miniature.evaluate import compare as compare_songs
from miniature.evaluate import evaluate as evaluate_songs
from miniature.evaluate import own_service
from miniature.export import export as save_variant
from miniature.export import is_trained, play
from miniature.planner import is_trained as is_planner_trained
from miniature.planner import save as save_planner
from miniature.planner import train as train_planner
from miniature.songs import build as build_songs
from miniature.start import start_folder, start_planner
from miniature.tasks import HELD_OUT
from miniature.timing import measure as measure_timing
from miniature.transformer import VARIANTS, Material, Plan, on_gpu
from miniature.transformer import train as train_transformer
from miniature.vae import PARTS
from miniature.vae import Data as Audio
from miniature.vae import train as train_vae

Work = Annotated[Path, typer.Option(help="The folder of all stages' states.")]
Hours = Annotated[float, typer.Option(help="The time that this call may take.")]
Checkpoint = Annotated[
    Path | None, typer.Option(help="A saved pipeline to start from; the packaged checkpoint if none is named.")
]
FromScratch = Annotated[bool, typer.Option("--from-scratch", help="Begin with random weights.")]
Threads = Annotated[int, typer.Option(min=1)]
Gpu = Annotated[bool, typer.Option("--gpu", help="Train on a GPU, with larger batches.")]

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def stages() -> None:
    """Each command is a stage. It keeps its state in the work folder, and goes on from there when it is run again."""


@app.command()
def data(
    *,
    work: Work = stage.WORK_FOLDER,
    clips: Annotated[int, typer.Option(help="How many clips, with the held-out ones.")] = 8000,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal data.")] = 0,
    processes: Annotated[int, typer.Option(min=1)] = 1,
    hours: Hours = 1.0,
) -> None:
    """Composes clips of 10.24 s and analyses them to latents."""
    stage.be_idle(1)
    with stage.Session(hours) as session:
        finished = dataset.build(work / "data", clips=clips, seed=seed, processes=processes, session=session)
    typer.echo("finished" if finished else "interrupted: run the command again to go on")


@app.command()
def measures(
    *,
    work: Work = stage.WORK_FOLDER,
    fit: Annotated[bool, typer.Option("--fit", help="Fit the probes on the data first, and write them.")] = False,
) -> None:
    """Shows how well the measures hear the facts of held-out clips, beside chance."""
    known = dataset.load(work / "data")
    if fit:
        listening.fit(known).save(listening.PROBES_FILE)
    facts = known.facts[-HELD_OUT:]
    songs = [render_clip(clip) for clip in facts]
    typer.echo(f"{'':18}{'clips':>8}{'chance':>8}")
    for name, (right, chance) in listening.agreements(songs, facts).items():
        typer.echo(f"{name:18}{right:8.2f}{chance:8.2f}")


@app.command()
def vae(
    *,
    part: Annotated[
        Literal["encoder", "decoder"] | None, typer.Option(help="The part that learns; both if none is named.")
    ] = None,
    work: Work = stage.WORK_FOLDER,
    checkpoint: Checkpoint = None,
    from_scratch: FromScratch = False,
    hours: Hours = 0.5,
    threads: Threads = 1,
    gpu: Gpu = False,
) -> None:
    """Trains the autoencoder's encoder and decoder."""
    start = None if from_scratch else start_folder(checkpoint, work)
    parts = (part,) if part else PARTS
    stage.be_idle(threads)
    with stage.Session(hours) as session:
        train_vae(
            work, Audio.of(dataset.load(work / "data")), session, start, device="cuda" if gpu else "cpu", parts=parts
        )


@app.command()
def codes(
    *,
    work: Work = stage.WORK_FOLDER,
    checkpoint: Checkpoint = None,
    from_scratch: FromScratch = False,
    hours: Hours = 0.5,
    threads: Threads = 1,
) -> None:
    """Trains the audio tokenizer and detokenizer."""
    start = None if from_scratch else start_folder(checkpoint, work)
    stage.be_idle(threads)
    with stage.Session(hours) as session:
        train_codes(work, dataset.load(work / "data"), session, start)


@app.command()
def transformer(
    *,
    variant: Annotated[str, typer.Option(help="base, or then turbo.")] = "base",
    work: Work = stage.WORK_FOLDER,
    checkpoint: Checkpoint = None,
    from_scratch: FromScratch = False,
    hours: Hours = 1.0,
    threads: Threads = 1,
    gpu: Gpu = False,
) -> None:
    """Trains base's encoders and transformer, or distils base's guided transformer to turbo's."""
    if variant not in VARIANTS:
        raise typer.BadParameter(f"variant is {variant!r}: it must be one of {', '.join(VARIANTS)}")
    known = dataset.load(work / "data")
    plan = Plan(variant, work, start_folder(checkpoint, work), from_scratch=from_scratch)
    if gpu:
        plan = on_gpu(plan)
    stage.be_idle(threads)
    with stage.Session(hours) as session:
        known_codes = trained_codes(work)
        code = coder(known_codes.to(plan.device)) if known_codes else None
        train_transformer(plan, Material(known, text_pair, code), session)


@app.command()
def align(
    *,
    work: Work = stage.WORK_FOLDER,
    checkpoint: Checkpoint = None,
    clips: Annotated[
        int, typer.Option(min=3, help="How many clips to learn from; two thirds of them are sung.")
    ] = 1500,
    hours: Hours = 1.0,
    threads: Threads = 1,
) -> None:
    """Teaches heads of a finished turbo where the lyrics are sung, as `lyrics_timing` and `best_of` need."""
    start = start_folder(checkpoint, work)
    stage.be_idle(threads)
    known = mixes.build(work / "mixes", clips)
    codes = Codes.load(start)
    with stage.Session(hours) as session:
        aligning.train(work, start, aligning.Material(known, text_pair, coder(codes) if codes else None), session)


@app.command()
def songs(
    *,
    work: Work = stage.WORK_FOLDER,
    checkpoint: Checkpoint = None,
    count: Annotated[int, typer.Option(min=1, help="How many songs, with the held-out ones.")] = 6000,
    processes: Annotated[int, typer.Option(min=1)] = 1,
    hours: Hours = 0.5,
) -> None:
    """Composes whole songs and finds their audio codes: what the planner learns from."""
    stage.be_idle(1)
    with stage.Session(hours) as session:
        finished = build_songs(
            work / "songs", start_folder(checkpoint, work), songs=count, processes=processes, session=session
        )
    typer.echo("finished" if finished else "interrupted: run the command again to go on")


@app.command()
def planner(
    *,
    work: Work = stage.WORK_FOLDER,
    checkpoint: Checkpoint = None,
    from_scratch: FromScratch = False,
    hours: Hours = 0.5,
    threads: Threads = 1,
) -> None:
    """Trains the planner on the songs. It starts from the packaged planner."""
    start = None if from_scratch else start_planner(work)
    stage.be_idle(threads)
    with stage.Session(hours) as session:
        train_planner(work, start_folder(checkpoint, work), session, start)


@app.command()
def export(
    output: Annotated[Path, typer.Argument(help="The folder in which each variant gets a folder.")],
    *,
    work: Work = stage.WORK_FOLDER,
    checkpoint: Checkpoint = None,
) -> None:
    """Saves a pipeline of each trained variant, and plays ten seconds with it as a check. Saves the planner, if it is trained."""
    trained = [variant for variant in VARIANTS if is_trained(work, variant)]
    plans = is_planner_trained(work)
    if not trained and not plans:
        raise typer.BadParameter(
            f"work is {str(work)!r}, which has no trained variant or planner: train `transformer`, `align` or `planner` first"
        )
    if plans:
        typer.echo(f"{save_planner(work, output)}: saved")
    start = start_folder(checkpoint, work) if trained else work
    for variant in trained:
        folder = save_variant(work, output, start, variant)
        play(folder)
        typer.echo(f"{folder}: saved, and plays")


@app.command()
def evaluate(
    *,
    url: Annotated[
        str | None, typer.Option(help="A running Sophia; without it, the command starts one for this time.")
    ] = None,
    source: Annotated[str, typer.Option(help="The model of a service started here.")] = "embedded",
    songs: Annotated[int, typer.Option(min=2, max=HELD_OUT, help="How many of the held-out captions.")] = HELD_OUT,
    codes: Annotated[
        bool, typer.Option("--codes", help="Compare songs without planned codes with songs on them instead.")
    ] = False,
    planner: Annotated[str, typer.Option(help="The planner of a service started here, for --codes.")] = "embedded",
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Asks a service for songs of held-out captions, and shows how often they are as asked for."""
    facts = dataset.held_out_clips()[:songs]
    service = nullcontext(url) if url else own_service(source, planner if codes else "none")
    with service as address, httpx.Client(base_url=address) as client:
        try:
            evaluation = compare_songs(client, facts) if codes else evaluate_songs(client, facts)
        except RuntimeError as error:
            typer.echo(error, err=True)
            raise typer.Exit(1) from error
    typer.echo(json.dumps(evaluation.fields()) if as_json else evaluation.table())


@app.command()
def timing(
    *,
    url: Annotated[
        str | None, typer.Option(help="A running Sophia; without it, the command starts one for this time.")
    ] = None,
    source: Annotated[str, typer.Option(help="The model of a service started here.")] = "embedded",
    clips: Annotated[int, typer.Option(min=1, help="How many of the held-out clips with a voice.")] = 25,
) -> None:
    """Asks a service when the words of held-out clips are sung, and shows, as JSON, how well it knows."""
    sung = [facts for facts in dataset.held_out_clips() if facts.voice]
    with nullcontext(url) if url else own_service(source, "none") as address, httpx.Client(base_url=address) as client:
        try:
            figures = measure_timing(client, sung[:clips])
        except RuntimeError as error:
            typer.echo(error, err=True)
            raise typer.Exit(1) from error
    typer.echo(json.dumps(figures.fields()))


if __name__ == "__main__":
    app()
