"""`sophia pause`, `resume` and `reset`: stop and restart a model."""

from typing import Annotated

import typer

from serve_app.ops.cli.context import ModelName, configuration, open_store, require_model
from serve_app.plurals import counted


def pause(
    context: typer.Context,
    model: ModelName,
    reason: Annotated[
        str, typer.Option(metavar="TEXT", help="The reason, which waiting clients and health show.")
    ] = "no reason was given",
) -> None:
    """Stop a model and its costs, and keep its queue.

    Running songs finish, then the workers stop. Queued jobs stay in the queue.
    """
    args = configuration(context)
    require_model(model, args)
    with open_store(args) as store:
        store.pauses.pause(model, reason)
    print(
        f"{model} is paused. Running songs finish, no other song starts, and the workers stop. Queued jobs stay, and their "
        f"deadlines still apply. 'sophia resume {model}' ends the pause."
    )


def resume(context: typer.Context, model: ModelName) -> None:
    """End a model's pause."""
    args = configuration(context)
    require_model(model, args)
    with open_store(args) as store:
        was_paused = store.pauses.resume(model)
    print(f"{model} is no longer paused." if was_paused else f"{model} was not paused.")


def reset(context: typer.Context, model: ModelName) -> None:
    """Close a model's crash breaker.

    Sophia forgets the model's failed loads, and its workers try to load it again.
    """
    args = configuration(context)
    if model not in args.stages:
        require_model(model, args)
    with open_store(args) as store:
        forgotten = store.load_attempts.reset(model)
    if not forgotten:
        print(f"{model} has no failed loads, so there is nothing to reset.")
        return
    print(f"Forgot {counted(forgotten, 'failed load')} of {model}. Its workers try to load it again.")
