"""The families of foreign clients that Sophia can serve."""

from collections.abc import Mapping
from typing import Final

from serve_app.api.compat import fal, local_servers, mcp, openai, replicate, runpod
from serve_app.api.compat.acestep import routes as acestep
from serve_app.api.compat.chat import routes as chat
from serve_app.api.compat.elevenlabs import routes as elevenlabs
from serve_app.api.compat.family import Family
from serve_app.config import ApiArgs
from serve_app.errors import ConfigurationError
from serve_app.plurals import alternatives

FAMILIES: Final[dict[str, Family]] = {
    "acestep": acestep.FAMILY,
    "chat": chat.FAMILY,
    "elevenlabs": elevenlabs.FAMILY,
    "fal": fal.FAMILY,
    "local-servers": local_servers.FAMILY,
    "mcp": mcp.FAMILY,
    "openai": openai.FAMILY,
    "replicate": replicate.FAMILY,
    "runpod": runpod.FAMILY,
}
"""Every family by the name that the setting `api.compat` uses."""


def served_families(args: ApiArgs) -> Mapping[str, Family]:
    """The families that `api.compat` names, all without it. Raises ConfigurationError for an unknown name."""
    if args.compat is None:
        return FAMILIES
    unknown = [name for name in args.compat if name not in FAMILIES]
    if unknown:
        raise ConfigurationError(f"api.compat: there is no family {unknown[0]!r}. Use {alternatives(FAMILIES)}")
    return {name: FAMILIES[name] for name in args.compat}
