"""Whether callers need an API key, decided by the configuration and the address that Sophia listens on."""

import ipaddress

from serve_app.config import AppArgs
from serve_app.errors import AuthNotConfigured
from serve_app.store import Store


def keys_are_needed(args: AppArgs, http_host: str) -> bool:
    """Whether every caller needs an API key, even if no key exists.

    The stored keys do not matter here: revoking the last key or losing the database must not open the service to everyone. If
    this returns False and `auth.mode` is `auto`, callers need a key as soon as one exists.
    """
    if args.auth.mode == "auto":
        return not _is_loopback(http_host)
    return args.auth.mode == "keys"


def require_a_key(args: AppArgs, store: Store, http_host: str) -> None:
    """Raise AuthNotConfigured if callers need a key and none exists. `sophia doctor` calls this."""
    if not keys_are_needed(args, http_host):
        return
    store.migrate()
    if not store.keys.names():
        raise AuthNotConfigured(
            f"Sophia listens on {http_host}, where every caller needs an API key, and none exists. Create one with "
            "'sophia keys create NAME', listen on 127.0.0.1 (http_options: host), or let everybody use Sophia "
            "(args: auth: {mode: none})."
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
