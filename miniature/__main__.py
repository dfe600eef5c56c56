"""Makes the miniature, the small ACE-Step that is packaged with Sophia: `python -m miniature --help`."""

from pathlib import Path
from typing import Annotated

import typer

from miniature import dataset, stage
from miniature import vae as autoencoder_training

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def stages() -> None:
    """Each command is a stage. It keeps its state in the work folder, and goes on from there when it is run again."""


@app.command()
def data(
    *,
    work: Annotated[Path, typer.Option(help="The folder of all stages' states.")] = stage.WORK_FOLDER,
    clips: Annotated[int, typer.Option(help="How many clips, with the held-out ones.")] = 8000,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal data.")] = 0,
    processes: Annotated[int, typer.Option(min=1)] = 1,
    hours: Annotated[float, typer.Option(help="The time that this call may take.")] = 1.0,
) -> None:
    """Composes clips of 10.24 s and analyses them to latents."""
    stage.be_idle(1)
    with stage.Session(hours) as session:
        finished = dataset.build(work / "data", clips=clips, seed=seed, processes=processes, session=session)
    typer.echo("finished" if finished else "interrupted: run the command again to go on")


@app.command()
def vae(
    *,
    work: Annotated[Path, typer.Option(help="The folder of all stages' states.")] = stage.WORK_FOLDER,
    hours: Annotated[float, typer.Option(help="The time that this call may take.")] = 0.5,
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Trains the autoencoder's encoder and decoder."""
    stage.be_idle(threads)
    with stage.Session(hours) as session:
        autoencoder_training.train(work, autoencoder_training.Data.of(dataset.load(work / "data")), session)


if __name__ == "__main__":
    app()
