"""`sophia`: what an operator does beside HTTP. It reads the same configuration as the service and speaks to the same database."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import yaml

from serve_app import __version__
from serve_app.background.webhook_sender import shown_secret, signing_keys
from serve_app.config import AppArgs, ModelArgs
from serve_app.errors import ConfigurationError, NotFound, SophiaError
from serve_app.jobs import Status
from serve_app.settings import load_args
from serve_app.store import Store
from serve_app.store.costs import Account, DeviceUse, OwnerUse


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it worked, 1 when Sophia says no, 2 when the words are off."""
    given = _parser().parse_args(words)
    try:
        result: int = given.run(given, load_args(given.config))
    except SophiaError as error:
        print(f"sophia: {error.message} [{error.code}]", file=sys.stderr)
        return 1
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sophia", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    default = Path("serve_config.yaml")
    parser.add_argument(
        "--config",
        type=Path,
        default=default if default.exists() else None,
        help="the Serve config that the service runs with (default: serve_config.yaml in this folder, if there is one)",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_keys(commands)
    _add_jobs(commands)
    _add_weights(commands)
    _add_doctor(commands)
    _add_cost(commands)
    reset = commands.add_parser("reset", help="close a model's crash breaker: forget its failed loads and try again")
    reset.add_argument("model", help="the model's name in the configuration")
    reset.set_defaults(run=_reset)
    _add_pause(commands)
    _add_artifacts(commands)
    return parser


def _add_pause(commands: Any) -> None:
    pause = commands.add_parser("pause", help="stop a model's spending at once: no worker is wanted, jobs are kept")
    pause.add_argument("model", help="the model's name in the configuration")
    pause.add_argument("--reason", default="no reason was given", help="what those who wait are told")
    pause.set_defaults(run=_pause)
    resume = commands.add_parser("resume", help="end a model's pause")
    resume.add_argument("model", help="the model's name in the configuration")
    resume.set_defaults(run=_resume)


def _add_artifacts(commands: Any) -> None:
    actions = commands.add_parser("artifacts", help="say whose the audio store is, and clear it").add_subparsers(
        required=True, metavar="ACTION"
    )
    adopt = actions.add_parser(
        "adopt", help="mark the audio store as this database's own, so that the janitor deletes there"
    )
    adopt.set_defaults(run=_adopt_artifacts)
    sweep = actions.add_parser("sweep", help="count the files that belong to no job, and remove them if you say so")
    sweep.add_argument("--confirm", action="store_true", help="remove them, however many they are")
    sweep.set_defaults(run=_sweep_artifacts)
    expire = actions.add_parser(
        "expire", help="count the songs and jobs whose time is over, and remove them if you say so"
    )
    expire.add_argument("--confirm", action="store_true", help="remove them now, however many they are")
    expire.set_defaults(run=_expire_artifacts)


def _add_keys(commands: Any) -> None:
    keys = commands.add_parser("keys", help="make, list and revoke API keys").add_subparsers(
        required=True, metavar="ACTION"
    )
    create = keys.add_parser("create", help="make a key and print it, this once")
    create.add_argument("name", help="whose key it is; jobs are listed and counted under it")
    create.add_argument(
        "--outranks",
        action="store_true",
        help="let the priorities of its jobs count among the jobs of all keys, which are otherwise all taken to be 5",
    )
    create.set_defaults(run=_create_key)
    keys.add_parser("list", help="list the keys' names").set_defaults(run=_list_keys)
    secret = keys.add_parser("webhook-secret", help="print what a key's webhooks are signed with")
    secret.add_argument("name")
    secret.set_defaults(run=_show_webhook_secret)
    revoke = keys.add_parser("revoke", help="make a key useless within seconds")
    revoke.add_argument("name")
    revoke.set_defaults(run=_revoke_key)


def _add_jobs(commands: Any) -> None:
    jobs = commands.add_parser("jobs", help="list jobs, newest first")
    states = [state.value for state in Status]
    jobs.add_argument(
        "--state", action="append", default=[], choices=states, help="only jobs in this state; may be repeated"
    )
    jobs.add_argument("--limit", type=int, default=20, help="how many (default: 20)")
    jobs.set_defaults(run=_list_jobs)


def _add_weights(commands: Any) -> None:
    actions = commands.add_parser("weights", help="fetch and check checkpoints").add_subparsers(
        required=True, metavar="ACTION"
    )
    pull = actions.add_parser(
        "pull", help="fetch a model's checkpoint into this node's cache, where all its workers find it"
    )
    verify = actions.add_parser("verify", help="read every file of a cached checkpoint and compare its hash")
    for action, run in ((pull, _pull_weights), (verify, _verify_weights)):
        action.add_argument("model", help="the model's name in the configuration")
        action.set_defaults(run=run)


def _add_doctor(commands: Any) -> None:
    doctor = commands.add_parser("doctor", help="find what would stop a deploy; exit status 1 when anything would")
    doctor.add_argument("--load", action="store_true", help="also load every model and play on it")
    doctor.set_defaults(run=_doctor)


def _add_cost(commands: Any) -> None:
    cost = commands.add_parser("cost", help="tell what device time and money went into, by model, API key and worker")
    cost.add_argument(
        "--hours", type=_hours, default=24, help="over so many hours, the one under way included (default: 24)"
    )
    cost.set_defaults(run=_cost)


def _hours(word: str) -> int:
    if not word.isdecimal() or not 1 <= int(word) <= 87_600:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 87600, got {word!r}")
    return int(word)


def _create_key(given: argparse.Namespace, args: AppArgs) -> int:
    print(_store(args).keys.create(given.name, given.outranks))
    print(f"This is the only time that the key of {given.name!r} is shown.", file=sys.stderr)
    return 0


def _list_keys(_: argparse.Namespace, args: AppArgs) -> int:
    keys = _store(args).keys
    outranking = keys.outranking()
    for name, created_at in keys.names():
        print(f"{name}\t{_shown(created_at)}" + "\toutranks others" * (name in outranking))
    return 0


def _show_webhook_secret(given: argparse.Namespace, args: AppArgs) -> int:
    if not args.webhook_keys:
        raise ConfigurationError("There is no webhook_secret: set SOPHIA_WEBHOOK_SECRET")
    if given.name not in dict(_store(args).keys.names()):
        raise NotFound(f"There is no key named {given.name!r}")
    print(shown_secret(signing_keys(args.webhook_keys, given.name)[0]))
    return 0


def _revoke_key(given: argparse.Namespace, args: AppArgs) -> int:
    _store(args).keys.revoke(given.name)
    return 0


def _list_jobs(given: argparse.Namespace, args: AppArgs) -> int:
    for job in _store(args).jobs.page(states=given.state, limit=given.limit):
        reason = f"\t{job.error.code}" if job.error else ""
        print(f"{job.id}\t{job.status}\t{_shown(job.created_at)}\t{job.model}\t{job.request.prompt[:40]!r}{reason}")
    return 0


def _cost(given: argparse.Namespace, args: AppArgs) -> int:
    costs = _store(args).costs
    accounts = costs.accounts(given.hours)
    if not accounts:
        print(f"No worker ran in the last {given.hours} hours.")
        return 0
    workers = costs.workers(given.hours)
    owners = costs.owners(given.hours)
    for model, account in accounts.items():
        print(f"{model}, last {given.hours} hours\n")
        print(_columns(_account_rows(account)))
        ours = [owner for owner in owners if owner.model == model]
        print("\n" + _columns([_OWNER_HEAD, *(_owner_row(owner, ours, account) for owner in ours)]))
        theirs = [(node, worker, use) for (name, node, worker), use in workers.items() if name == model]
        print("\n" + _columns([_WORKER_HEAD, *(_worker_row(*row) for row in theirs)]) + "\n")
    if given.hours * 3600 > args.retention.rows_s:
        print(
            f"Accounts are kept for retention.rows_s, {args.retention.rows_s / 3600:g} hours: what was before is not in it."
        )
    if not any(account.use.cost for account in accounts.values()):
        print("No price is set, so nothing costs anything: set models.NAME.price_per_hour.")
    return 0


_OWNER_HEAD: Final = ("API key", "songs", "audio [min]", "device [h]", "without a song [h]", "share of the cost")
_WORKER_HEAD: Final = ("worker", "node", "loading [h]", "idle [h]", "generating [h]", "cost")


def _account_rows(account: Account) -> list[tuple[str, ...]]:
    use = account.use
    no_song_cost = account.no_song_cost
    no_song_s = max(0.0, use.generating_s - account.song_s)
    per_song = "" if account.per_song is None else _money(account.per_song)
    return [
        ("", "device [h]", "cost"),
        ("songs", _h(use.generating_s - no_song_s), _money(use.generating_cost - no_song_cost)),
        ("attempts without a song", _h(no_song_s), _money(no_song_cost)),
        ("loading", _h(use.loading_s), _money(use.loading_cost)),
        ("idle", _h(use.idle_s), _money(use.idle_cost)),
        ("all", _h(use.total_s), _money(use.cost)),
        ("a song, all included", "", per_song),
    ]


def _owner_row(owner: OwnerUse, all_owners: Sequence[OwnerUse], account: Account) -> tuple[str, ...]:
    """An owner's share of the whole cost is its share of the attempts' device time: loading and idling are for all."""
    total_s = sum(one.gpu_s + one.wasted_s for one in all_owners)
    share = (owner.gpu_s + owner.wasted_s) / total_s * account.use.cost if total_s else 0.0
    name = owner.owner or "(no key)"
    return name, str(owner.songs), f"{owner.audio_s / 60:.1f}", _h(owner.gpu_s), _h(owner.wasted_s), _money(share)


def _worker_row(node: str, worker: str, use: DeviceUse) -> tuple[str, ...]:
    return worker, node, _h(use.loading_s), _h(use.idle_s), _h(use.generating_s), _money(use.cost)


def _h(seconds: float) -> str:
    return f"{seconds / 3600:.3f}"


def _money(amount: float) -> str:
    return f"{amount:.4f}"


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _pause(given: argparse.Namespace, args: AppArgs) -> int:
    _need_model(given.model, args)
    _store(args).pauses.pause(given.model, given.reason)
    print(
        f"{given.model} is paused: songs in hand are finished, no other is begun, and its workers end. Jobs are kept, and their "
        f"deadlines run on. 'sophia resume {given.model}' ends the pause."
    )
    return 0


def _resume(given: argparse.Namespace, args: AppArgs) -> int:
    _need_model(given.model, args)
    was_paused = _store(args).pauses.resume(given.model)
    print(f"{given.model} is no longer paused" if was_paused else f"{given.model} was not paused")
    return 0


def _need_model(name: str, args: AppArgs) -> None:
    if name not in args.models:
        raise NotFound(f"There is no model {name!r}; there are {', '.join(args.models)}")


def _reset(given: argparse.Namespace, args: AppArgs) -> int:
    _need_model(given.model, args)
    print(
        f"{_store(args).load_attempts.reset(given.model)} failed loads of {given.model} are forgotten; workers try again"
    )
    return 0


def _adopt_artifacts(_: argparse.Namespace, args: AppArgs) -> int:
    from serve_app.artifacts import Artifacts
    from serve_app.background import custody

    with closing(_store(args)) as store:
        custody.adopt(store, Artifacts(args.resolved_artifacts_url))
    print("The audio store is marked as this database's own; the janitor deletes there from its next round on.")
    return 0


def _sweep_artifacts(given: argparse.Namespace, args: AppArgs) -> int:
    from serve_app.artifacts import Artifacts
    from serve_app.background import janitor

    artifacts = Artifacts(args.resolved_artifacts_url)
    with closing(_store(args)) as store:
        if given.confirm:
            removed = janitor.sweep_confirmed(store, artifacts, args.retention)
            print(f"{removed} files that belonged to no job are removed")
            return 0
        files, _, orphans = janitor.count_files(store, artifacts, args.retention)
    print(f"{orphans} of {files} files belong to no job; 'sophia artifacts sweep --confirm' removes them")
    return 0


def _expire_artifacts(given: argparse.Namespace, args: AppArgs) -> int:
    from serve_app.artifacts import Artifacts
    from serve_app.background import janitor

    with closing(_store(args)) as store:
        songs, rows = janitor.count_expired(store, args.retention)
        if given.confirm:
            janitor.expire_confirmed(store, Artifacts(args.resolved_artifacts_url), args.retention)
            print(f"{songs} songs and {rows} jobs whose time was over are removed")
            return 0
    print(f"The time of {songs} songs and {rows} jobs is over; 'sophia artifacts expire --confirm' removes them now")
    return 0


def _store(args: AppArgs) -> Store:
    store = Store(args.resolved_database_url, args.database)
    store.migrate()
    return store


def _shown(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _pull_weights(given: argparse.Namespace, args: AppArgs) -> int:
    from serve_app import weights

    model = _model(given.model, args)
    folder = weights.resolve(given.model, model, args.data_dir / "weights", _show_progress)
    facts = weights.verify(folder, model)
    print(f"{folder}: {facts.variant}, {facts.bytes / 1e9:.2f} GB")
    return 0


def _verify_weights(given: argparse.Namespace, args: AppArgs) -> int:
    from serve_app import weights

    folder = weights.resolve(
        given.model, _model(given.model, args), args.data_dir / "weights", _show_progress, online=False
    )
    print(f"{folder}: {weights.check_hashes(folder, _show_progress) / 1e9:.2f} GB are as the manifest says")
    return 0


def _model(name: str, args: AppArgs) -> ModelArgs:
    from serve_app.weights import auto

    if name not in args.models:
        raise ConfigurationError(f"there is no model {name!r}; there are {', '.join(sorted(args.models))}")
    if args.models[name].source != "auto":
        return args.models[name]
    model, why = auto.settled(name, args.models[name], auto.hardware_from_outside)
    print(why, file=sys.stderr)
    return model


def _show_progress(phase: str, fraction: float | None, words: str) -> None:
    print(words, file=sys.stderr)


def _doctor(given: argparse.Namespace, args: AppArgs) -> int:
    from serve_app.ops import doctor

    return doctor.run(args, _http_host(given.config), given.load)


def _http_host(config: Path | None) -> str | None:
    """Where a Serve config says that Serve listens; Serve's own default is loopback."""
    if config is None:
        return None
    options = yaml.safe_load(config.read_text()).get("http_options") or {}
    return str(options.get("host", "127.0.0.1"))
