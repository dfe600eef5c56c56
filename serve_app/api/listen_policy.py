"""Who could use Sophia without being meant to: whether callers need an API key."""

import ipaddress

from serve_app.config import AppArgs
from serve_app.errors import AuthNotConfigured
from serve_app.store import Store


def keys_are_needed(args: AppArgs, http_host: str) -> bool:
    """Whether every caller needs an API key, whatever keys there are.

    Decided by the configuration and the address that Sophia listens on, never by the table of keys: a key that is revoked, or a
    database that is away, must not open a door. Where it is False and `auth.mode` is `auto`, keys are needed as soon as one exists.
    """
    if args.auth.mode == "auto":
        return not _is_loopback(http_host)
    return args.auth.mode == "keys"


def require_a_key(args: AppArgs, store: Store, http_host: str) -> None:
    """Raise AuthNotConfigured when callers need a key and there is none, so that nobody could use Sophia. For `sophia doctor`."""
    if not keys_are_needed(args, http_host):
        return
    store.migrate()
    if not store.keys.names():
        raise AuthNotConfigured(
            f"Sophia listens on {http_host}, where every caller needs an API key, and there is none. Make one with "
            "'sophia keys create NAME', or listen on 127.0.0.1 (http_options: host), or say that everybody may use it "
            "(args: auth: {mode: none})."
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
