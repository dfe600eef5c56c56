"""Who could use Sophia without being meant to: the rule that it does not listen beyond loopback without API keys."""

import ipaddress
import logging

from serve_app.config import AppArgs
from serve_app.errors import AuthNotConfigured, StoreUnavailable
from serve_app.store import Store

logger = logging.getLogger("ray.serve")


def require_keys_beyond_loopback(args: AppArgs, store: Store, http_host: str) -> None:
    """Raise AuthNotConfigured when anybody who reaches `http_host` could use Sophia without being meant to."""
    if args.auth.mode == "none" or (args.auth.mode == "auto" and _is_loopback(http_host)):
        return
    try:
        store.migrate()
        if store.keys.names():
            return
    except StoreUnavailable as error:  # closed until it is back: without the table no key is accepted
        logger.warning("cannot see yet whether there are API keys: %s", error)
        return
    raise AuthNotConfigured(
        f"Sophia listens on {http_host} and there is no API key. Make one with 'sophia keys create NAME', or listen on "
        "127.0.0.1 (http_options: host), or say that everybody may use it (args: auth: {mode: none})."
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
