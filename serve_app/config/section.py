"""The base of every section of the configuration."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section that rejects unknown settings. Its errors do not repeat values, because a misplaced value may be a password."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)
