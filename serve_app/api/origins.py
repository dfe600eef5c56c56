"""Which web pages may reach a Sophia that asks nobody for a key.

A browser on the machine reaches what listens on loopback, for whatever page it shows. A page of a name that points to
127.0.0.1 (DNS rebinding) says that name in `Host`; a page of another site says itself in `Origin`. With an API key neither
matters: a page has none.
"""

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from fastapi import Request

from serve_app.errors import CrossSite, WrongHost


def check_page(request: Request, allowed_hosts: Sequence[str]) -> None:
    """Raises WrongHost and CrossSite."""
    host = request.headers.get("host", "")
    if not _is_ours(host, allowed_hosts):
        raise WrongHost(
            f"Without API keys Sophia answers to names of this machine only, not to Host: {host[:100]}. "
            "Make a key ('sophia keys create NAME'), or name the host in api.allowed_hosts"
        )
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != host:
        raise CrossSite(
            f"Without API keys Sophia takes nothing from pages of other sites, such as {origin[:100]}. "
            "Make a key ('sophia keys create NAME') and send it"
        )


def _is_ours(host: str, allowed_hosts: Sequence[str]) -> bool:
    try:
        name = (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return False
    if name == "localhost" or name.endswith(".localhost") or name in allowed_hosts:
        return True
    try:
        ipaddress.ip_address(name)  # a page cannot have an address of its own choice
    except ValueError:
        return False
    return True
