"""Who is calling, and whether they may see what belongs to others."""

from typing import Annotated, Final

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from serve_app.api.context import Context, ContextDep
from serve_app.api.origins import check_origin
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
        request.state.owner = await _identify(request, context)
    owner: str = request.state.owner
    return owner


async def identify_request(request: Request, context: Context) -> str:
    """`identify_caller` for code that runs before FastAPI has resolved the route's dependencies."""
    return await identify_caller(request, context, None)


async def _identify(request: Request, context: Context) -> str:
    try:
        owner = await _authenticate(request, context)
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


async def _is_operator(context: ContextDep, owner: Owner) -> bool:
    """Whether the caller may see what belongs to others.

    True if callers need no key, for the only key, and for the keys in `auth.operators`.
    """
    if owner == "" or owner in context.args.auth.operators:
        return True
    return set(await context.keys.digests()) == {owner}


IsOperator = Annotated[bool, Depends(_is_operator)]
