"""The body of every error answer."""

from pydantic import BaseModel, Field


class Problem(BaseModel):
    """An error as RFC 9457 problem details (application/problem+json)."""

    type: str = Field(description="Always about:blank; use `code` to tell errors apart.", examples=["about:blank"])
    title: str = Field(description="The kind of error.", examples=["The request is invalid"])
    status: int = Field(description="The HTTP status.", examples=[422])
    code: str = Field(description="Stable error code, as listed in docs/FAILURES.md.", examples=["invalid_request"])
    detail: str = Field(
        description="What is wrong with this request and what is allowed.",
        examples=["duration: must be at most 600, got 900"],
    )
    request_id: str = Field(
        description="Quote this id when you report the error; the logs contain it.", examples=["0190d8a47b5e7c3a"]
    )
    errors: list["FieldError"] | None = Field(None, description="One entry per invalid field.")


class FieldError(BaseModel):
    """One invalid field."""

    field: str = Field(description="Path of the field.", examples=["duration"])
    value: str | None = Field(None, description="The given value, truncated.", examples=["900"])
    message: str = Field(description="What is allowed.", examples=["must be at most 600"])
