"""`sophia keys`: create, list and revoke API keys, and show the secret that signs a key's webhooks."""

import sys
from typing import Annotated, Final

import typer

from serve_app.errors import ConfigurationError, NotFound
from serve_app.ops.cli.context import configuration, open_store, utc
from serve_app.plurals import counted

app = typer.Typer(help="Create, list and revoke API keys.")

_UNFINISHED: Final = ("queued", "running")
_MOST_COUNTED: Final = 1000
"""The most unfinished jobs of a revoked key that are counted."""

_KeyName = Annotated[str, typer.Argument(metavar="NAME", help="The key's name.")]


@app.command()
def create(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The key's name. Sophia lists and counts jobs under this name.")
    ],
    outranks: Annotated[
        bool,
        typer.Option(
            "--outranks",
            help="Compare the priorities of this key's jobs with the jobs of all keys. Without this option, a priority orders "
            "only the key's own jobs, and beside other keys each of them counts as priority 5.",
        ),
    ] = False,
) -> None:
    """Create an API key and print it.

    Sophia keeps only a hash of the key, so it cannot be shown again.
    """
    with open_store(configuration(context)) as store:
        print(store.keys.create(name, outranks))
    print(f"Save the key of {name!r} now: it is not shown again.", file=sys.stderr)


@app.command("list")
def list_keys(context: typer.Context) -> None:
    """List the API keys: name, time of creation, and whether the key outranks others."""
    with open_store(configuration(context)) as store:
        outranking = store.keys.outranking()
        names = store.keys.names()
        if not names:
            print("There are no API keys. 'sophia keys create NAME' makes one.", file=sys.stderr)
        for name, created_at in names:
            print(f"{name}\t{utc(created_at)}" + "\toutranks others" * (name in outranking))


@app.command("webhook-secret")
def webhook_secret(context: typer.Context, name: _KeyName) -> None:
    """Print the secret that signs the webhooks of one API key."""
    from serve_app.background.webhook_sender import shown_secret, signing_keys

    args = configuration(context)
    if not args.webhook_keys:
        raise ConfigurationError("webhook_secret is not set, so webhooks are off. Set SOPHIA_WEBHOOK_SECRET.")
    with open_store(args) as store:
        if name not in dict(store.keys.names()):
            raise NotFound(f"There is no API key named {name!r}. 'sophia keys list' lists the names.")
    print(shown_secret(signing_keys(args.webhook_keys, name)[0]))


@app.command()
def revoke(context: typer.Context, name: _KeyName) -> None:
    """Delete an API key and its voices.

    The running service stops accepting it within seconds. Its unfinished jobs still run; its inputs and songs stay until they
    expire. A new key of the same name has them again.
    """
    args = configuration(context)
    with open_store(args) as store:
        voices = store.keys.revoke(name)
        unfinished = len(store.jobs.page(owner=name, states=_UNFINISHED, limit=_MOST_COUNTED))
        is_open = not store.keys.names() and args.auth.mode == "auto"
    if voices:
        print(f"Deleted {counted(voices, 'voice')} of {name}.", file=sys.stderr)
    if unfinished:
        at_least = "at least " if unfinished == _MOST_COUNTED else ""
        print(
            f"{name} has {at_least}{counted(unfinished, 'unfinished job')}, which will still run. A new key named {name} can fetch "
            "or cancel such jobs.",
            file=sys.stderr,
        )
    if is_open:
        print(
            "That was the last key. While there is none, a service on a loopback address asks for no key. Set auth.mode to 'keys' "
            "to make it always ask.",
            file=sys.stderr,
        )
