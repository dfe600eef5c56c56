"""`sophia cost`: device time and money by model, API key and worker."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer

from serve_app.ops.cli.context import configuration, open_store, whole_number

if TYPE_CHECKING:
    from serve_app.config import AppArgs
    from serve_app.store.costs import Account, DeviceUse, OwnerUse

_ACCOUNT_HEAD: Final = ("", "device [h]", "cost")
_OWNER_HEAD: Final = ("API key", "songs", "audio [min]", "device [h]", "without a song [h]", "share of the cost")
_WORKER_HEAD: Final = ("worker", "node", "loading [h]", "idle [h]", "generating [h]", "cost")


def report(
    context: typer.Context,
    hours: Annotated[
        int,
        typer.Option(
            metavar="HOURS",
            parser=whole_number(1, 87_600),
            help="How many hours to sum up, from 1 to 87600, including the current one.",
        ),
    ] = 24,
) -> None:
    """Show device time and money by model, API key and worker."""
    args = configuration(context)
    with open_store(args) as store:
        accounts = store.costs.accounts(hours)
        owners = store.costs.owners(hours)
        workers = store.costs.workers(hours)
    if not accounts:
        print(f"No worker ran in the last {hours} hours.")
        return
    for model, account in accounts.items():
        print(f"{model}, last {hours} hours\n")
        print(_columns([_ACCOUNT_HEAD, *_account_rows(account)]) + "\n")
        print(
            _columns([_OWNER_HEAD, *_owner_rows([owner for owner in owners if owner.model == model], account)]) + "\n"
        )
        print(_columns([_WORKER_HEAD, *_worker_rows(model, workers)]) + "\n")
    for note in _notes(hours, accounts.values(), args):
        print(note)


def _account_rows(account: "Account") -> list[tuple[str, ...]]:
    """Device time and cost of one model, by use."""
    use = account.use
    no_song_cost = account.no_song_cost
    no_song_s = max(0.0, use.generating_s - account.song_s)
    per_song = "" if account.per_song is None else _money(account.per_song)
    return [
        ("songs", _h(use.generating_s - no_song_s), _money(use.generating_cost - no_song_cost)),
        ("attempts without a song", _h(no_song_s), _money(no_song_cost)),
        ("loading", _h(use.loading_s), _money(use.loading_cost)),
        ("idle", _h(use.idle_s), _money(use.idle_cost)),
        ("all", _h(use.total_s), _money(use.cost)),
        ("a song, all included", "", per_song),
    ]


def _owner_rows(owners: Sequence["OwnerUse"], account: "Account") -> list[tuple[str, ...]]:
    """A row for each API key. Its share of the whole cost is its share of the device time of all attempts.

    Loading and idling are thus shared among the keys in the same proportion.
    """
    total_s = sum(owner.gpu_s + owner.wasted_s for owner in owners)
    cost_per_s = account.use.cost / total_s if total_s else 0.0
    return [
        (
            owner.owner or "(no key)",
            str(owner.songs),
            f"{owner.audio_s / 60:.1f}",
            _h(owner.gpu_s),
            _h(owner.wasted_s),
            _money((owner.gpu_s + owner.wasted_s) * cost_per_s),
        )
        for owner in owners
    ]


def _worker_rows(model: str, workers: Mapping[tuple[str, ...], "DeviceUse"]) -> list[tuple[str, ...]]:
    """A row for each worker of the model. `workers` maps (model, node, worker) to device time."""
    return [
        (worker, node, _h(use.loading_s), _h(use.idle_s), _h(use.generating_s), _money(use.cost))
        for (name, node, worker), use in workers.items()
        if name == model
    ]


def _notes(hours: int, accounts: Iterable["Account"], args: "AppArgs") -> Iterator[str]:
    """What the figures leave out: hours that are no longer stored, and prices that are not set."""
    kept_hours = args.retention.rows_s / 3600
    if hours > kept_hours:
        yield f"Device time is stored for {kept_hours:g} hours (retention.rows_s). Older hours are not included."
    if not any(account.use.cost for account in accounts):
        yield "No price is set, so every cost is 0. Set models.NAME.price_per_hour."


def _h(seconds: float) -> str:
    return f"{seconds / 3600:.3f}"


def _money(amount: float) -> str:
    return f"{amount:.4f}"


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """The rows as a table whose columns are as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
