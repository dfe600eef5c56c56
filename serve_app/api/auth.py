"""Who is calling, and whether they may see what belongs to others."""

from typing import Annotated

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
_Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


async def identify_caller(request: Request, context: ContextDep, credentials: _Credentials) -> str:
    """The name of the caller's key; empty if callers need no key.

    Raises Unauthorized, WrongHost, CrossSite and TooManyRequests.
    """
    try:
        owner = await _authenticate(request, context, credentials)
    except Unauthorized:
        context.limits.count_refusal(request.client.host if request.client else "")
        raise
    context.limits.count_request(owner)
    return owner


async def _authenticate(request: Request, context: Context, credentials: HTTPAuthorizationCredentials | None) -> str:
    if context.args.auth.mode == "none":
        return ""
    digests = await context.keys.digests()
    if not digests:
        return _anonymous(request, context)
    if credentials is None:
        raise Unauthorized(
            "An API key is required. Send it as 'Authorization: Bearer KEY'; an operator creates one with "
            "'sophia keys create NAME'"
        )
    owner = owner_of(credentials.credentials, digests)
    if owner is None:
        raise Unauthorized("This API key is not valid. An operator creates one with 'sophia keys create NAME'")
    return owner


def _anonymous(request: Request, context: Context) -> str:
    """The owner of a request while no key exists."""
    if context.keys_needed or context.args.auth.mode == "keys":
        raise Unauthorized(
            "An API key is required, and none exists yet. An operator creates one with 'sophia keys create NAME'"
        )
    check_origin(request, context.args.api.allowed_hosts)
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
