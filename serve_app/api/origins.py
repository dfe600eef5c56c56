"""Protection against web pages of other sites while callers need no API key.

A browser on this machine can reach a server on the loopback address for any page that it shows. If a page's host name resolves to
127.0.0.1 (DNS rebinding), its requests carry that name in `Host`; requests of another site's page carry that site in `Origin`.
With API keys neither is a risk, because such a page has no key.
"""

import ipaddress
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from fastapi import Request

from serve_app.config import ApiArgs
from serve_app.errors import CrossSite, WrongHost

_SHOWN: Final = 100  # characters of a header in an error text


def check_origin(request: Request, args: ApiArgs) -> None:
    """Check `Host` and `Origin`. Raises WrongHost and CrossSite."""
    host = request.headers.get("host", "")
    if not _is_allowed(host, args.allowed_hosts):
        raise WrongHost(
            f"Without API keys, Sophia answers only requests to this machine's own names, not to Host: {host[:_SHOWN]}. "
            "Create a key ('sophia keys create NAME'), or add the host to api.allowed_hosts"
        )
    origin = request.headers.get("origin")
    if origin is not None and origin not in args.cors_origins and urlsplit(origin).netloc != host:
        raise CrossSite(
            f"Without API keys, Sophia refuses requests from pages of other sites, such as {origin[:_SHOWN]}. "
            "Create a key ('sophia keys create NAME') and send it, or add the site to api.cors_origins"
        )


def _is_allowed(host: str, allowed_hosts: Sequence[str]) -> bool:
    try:
        name = (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return False
    if name == "localhost" or name.endswith(".localhost") or name in allowed_hosts:
        return True
    return _is_ip_address(name)  # DNS rebinding needs a name


def _is_ip_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def cors_options(origins: Sequence[str]) -> dict[str, Any]:
    """The arguments of Starlette's CORSMiddleware, with which pages of these sites may use every route."""
    return {
        "allow_origins": list(origins),
        "allow_methods": ["GET", "HEAD", "POST", "PUT", "DELETE"],
        "allow_headers": ["*"],
        "expose_headers": [
            "*",
            "Location",
            "Retry-After",
            "X-Request-ID",
            "X-Seed",
            "Content-Location",
            "Content-Range",
            "Mcp-Session-Id",
        ],
    }
