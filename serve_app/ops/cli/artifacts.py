"""`sophia artifacts`: which database owns the audio store, and what may be removed from it."""

from typing import Annotated

import typer

from serve_app.ops.cli.context import configuration, open_store
from serve_app.plurals import counted

app = typer.Typer(help="Claim the audio store and remove old files from it.")


@app.command()
def adopt(context: typer.Context) -> None:
    """Mark the audio store as this database's own.

    The janitor deletes files only in a store that has the mark of its database.
    """
    from serve_app.artifacts import Artifacts
    from serve_app.background import custody

    args = configuration(context)
    with open_store(args) as store:
        custody.adopt(store, Artifacts(args.resolved_artifacts_url))
    print("The audio store is marked as this database's own. The janitor deletes there from its next round on.")


@app.command()
def sweep(
    context: typer.Context,
    confirm: Annotated[bool, typer.Option("--confirm", help="Remove these files, however many there are.")] = False,
) -> None:
    """Count the files that belong to no job, or remove them.

    Without --confirm nothing is removed.
    """
    from serve_app.artifacts import Artifacts
    from serve_app.background import janitor

    args = configuration(context)
    artifacts = Artifacts(args.resolved_artifacts_url)
    with open_store(args) as store:
        if confirm:
            removed = janitor.sweep_confirmed(store, artifacts, args.retention)
            print(f"Removed {counted(removed, 'file')} that belonged to no job.")
            return
        found = janitor.count_files(store, artifacts, args.retention)
    print(
        f"Files that belong to no job: {found.orphans} of {found.files}. 'sophia artifacts sweep --confirm' removes them."
    )


@app.command()
def expire(
    context: typer.Context,
    confirm: Annotated[bool, typer.Option("--confirm", help="Remove them now, however many there are.")] = False,
) -> None:
    """Count the songs and jobs past their retention, or remove them.

    The settings retention.results_s and retention.rows_s are the limits. Without --confirm nothing is removed.
    """
    from serve_app.artifacts import Artifacts
    from serve_app.background import janitor

    args = configuration(context)
    with open_store(args) as store:
        songs, rows = janitor.count_expired(store, args.retention)
        if confirm:
            janitor.expire_confirmed(store, Artifacts(args.resolved_artifacts_url), args.retention)
            print(f"Removed {counted(songs, 'song')} and {counted(rows, 'job')} whose retention was over.")
            return
    print(
        f"The retention of {counted(songs, 'song')} and {counted(rows, 'job')} is over. "
        "'sophia artifacts expire --confirm' removes them now."
    )
