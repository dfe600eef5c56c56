"""`sophia jobs`: list the newest jobs."""

from typing import Annotated

import typer

from serve_app.ops.cli.context import configuration, open_store, utc, whole_number


def list_jobs(
    context: typer.Context,
    state: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STATE",
            help="Only jobs in this state: queued, running, succeeded, failed, cancelled or expired. Repeat the option for "
            "several states.",
        ),
    ] = None,
    limit: Annotated[
        int,
        typer.Option(metavar="COUNT", parser=whole_number(1, 10_000), help="The most jobs to list, from 1 to 10000."),
    ] = 20,
) -> None:
    """List jobs, newest first.

    A line holds the id, state, time of submission, model, start of the prompt, and the error code if there is one.
    """
    states = _known_states(state or [])
    with open_store(configuration(context)) as store:
        for job in store.jobs.page(states=states, limit=limit):
            reason = f"\t{job.error.code}" if job.error else ""
            print(f"{job.id}\t{job.status}\t{utc(job.created_at)}\t{job.model}\t{job.request.prompt[:40]!r}{reason}")


def _known_states(names: list[str]) -> list[str]:
    """The names, all of which are states of a job. Raises BadParameter for any other."""
    from serve_app.jobs import Status

    known = [status.value for status in Status]
    for name in names:
        if name not in known:
            raise typer.BadParameter(
                f"{name!r} is not a state; the states are {', '.join(known)}", param_hint="--state"
            )
    return names
