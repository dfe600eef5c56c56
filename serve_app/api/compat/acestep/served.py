"""Which model a call means."""

from typing import Any

from serve_app.api.context import Context
from serve_app.api.field_errors import shortened, wrong_field
from serve_app.plurals import alternatives


def served_model(context: Context, given: tuple[str, Any] | None) -> str:
    """The name of the model that a client names, or of the default one. Raises InvalidRequest, which lists the served ones."""
    name, value = given or ("model", context.args.default_model)
    if not isinstance(value, str) or value not in context.args.models:
        raise wrong_field(name, shortened(value), f"must be a served model: {alternatives(context.args.models)}")
    return value
