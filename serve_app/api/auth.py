"""Who is calling, and whether they may see what belongs to others."""

import time
from collections.abc import Awaitable
from typing import Annotated, Final, NamedTuple

from fastapi import Depends, Query, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from serve_app.api.context import Context, ContextDep
from serve_app.api.origins import check_origin
from serve_app.api.signed_links import LATEST_EXPIRY, SIGNATURE_LENGTH, owner_of_link
from serve_app.errors import Unauthorized
from serve_app.store.keys import owner_of

_bearer = HTTPBearer(
    auto_error=False,
    description="An API key, created with `sophia keys create NAME`. Required if any key exists or if the operator requires one.",
)
_SCHEMES: Final = ("bearer", "key", "token")
"""The words before a key in Authorization: `Key` is fal's, `Token` that of Replicate's older clients."""

_KEY_HEADER: Final = "xi-api-key"
"""ElevenLabs' header, which has the key alone."""

_Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


async def identify_caller(request: Request, context: ContextDep, _: _Credentials) -> str:
    """The name of the caller's key; empty if callers need no key.

    A request is identified, and counted, once. Raises Unauthorized, WrongHost, CrossSite and TooManyRequests.
    """
    if not hasattr(request.state, "owner"):
        request.state.owner = await _counted(request, context, _authenticate(request, context))
    owner: str = request.state.owner
    return owner


async def identify_request(request: Request, context: Context) -> str:
    """`identify_caller` for code that runs before FastAPI has resolved the route's dependencies."""
    return await identify_caller(request, context, None)


class Visitor(NamedTuple):
    """Who calls a route that signed links open, and until when a link lets them in, in seconds since 1970."""

    owner: str
    until: float | None = None


async def identify_visitor(
    *,
    request: Request,
    context: ContextDep,
    _: _Credentials,
    expires: Annotated[
        int | None,
        Query(ge=0, le=LATEST_EXPIRY, description="Part of a signed link: when it expires, in seconds since 1970."),
    ] = None,
    signature: Annotated[
        str | None,
        Query(
            max_length=SIGNATURE_LENGTH,
            description="Part of a signed link, which opens this address without an API key (GET /v1/jobs/{job_id}/links).",
        ),
    ] = None,
) -> Visitor:
    """The owner of the key in the header or, without one, of the signed link. Raises what `identify_caller` raises."""
    if signature is None or _given_key(request):
        return Visitor(await identify_caller(request, context, None))
    if expires is None:
        raise Unauthorized("This link is incomplete: it has a signature, but not the time at which it expires")
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    return Visitor(await identify_signer(request, context, path, expires, signature), expires)


async def identify_signer(request: Request, context: Context, path: str, expires: int, signature: str) -> str:
    """The owner who has signed a link to `path`. Raises Unauthorized and TooManyRequests."""
    return await _counted(request, context, _link_owner(context, path, expires, signature))


async def _link_owner(context: Context, path: str, expires: int, signature: str) -> str:
    digests = await context.keys.digests()
    owner = owner_of_link(path, expires, signature, digests)
    if owner is None:
        raise Unauthorized("This link is not valid. GET /v1/jobs/{job_id}/links, with the API key, returns new ones")
    if expires <= time.time():
        raise Unauthorized("This link has expired. GET /v1/jobs/{job_id}/links, with the API key, returns new ones")
    return owner


async def _counted(request: Request, context: Context, authentication: Awaitable[str]) -> str:
    """The owner that an authentication finds. Counts the request, or the refusal. Raises TooManyRequests."""
    try:
        owner = await authentication
    except Unauthorized:
        context.limits.count_refusal(request.client.host if request.client else "")
        raise
    context.limits.count_request(owner)
    return owner


async def _authenticate(request: Request, context: Context) -> str:
    if context.args.auth.mode == "none":
        return ""
    digests = await context.keys.digests()
    if not digests:
        return _anonymous(request, context)
    key = _given_key(request)
    if not key:
        raise Unauthorized(
            "An API key is required. Send it as 'Authorization: Bearer KEY'; an operator creates one with "
            "'sophia keys create NAME'"
        )
    owner = owner_of(key, digests)
    if owner is None:
        raise Unauthorized("This API key is not valid. An operator creates one with 'sophia keys create NAME'")
    return owner


def _given_key(request: Request) -> str:
    """The key in the Authorization header, after a scheme or alone, or else in the header of ElevenLabs' clients."""
    given = request.headers.get("authorization", "").strip()
    if not given:
        return request.headers.get(_KEY_HEADER, "").strip()
    scheme, _, rest = given.partition(" ")
    is_known = scheme.lower() in _SCHEMES
    if not rest:
        return "" if is_known else scheme
    return rest.strip() if is_known else ""


def _anonymous(request: Request, context: Context) -> str:
    """The owner of a request while no key exists."""
    if context.keys_needed or context.args.auth.mode == "keys":
        raise Unauthorized(
            "An API key is required, and none exists yet. An operator creates one with 'sophia keys create NAME'"
        )
    check_origin(request, context.args.api)
    return ""


Owner = Annotated[str, Depends(identify_caller)]
VisitorDep = Annotated[Visitor, Depends(identify_visitor)]


async def _is_operator(context: ContextDep, owner: Owner) -> bool:
    """Whether the caller may see what belongs to others.

    True if callers need no key, for the only key, and for the keys in `auth.operators`.
    """
    if owner == "" or owner in context.args.auth.operators:
        return True
    return set(await context.keys.digests()) == {owner}


IsOperator = Annotated[bool, Depends(_is_operator)]
