"""What a database driver's error means, without the addresses, users and passwords that its text may hold."""

from typing import Final

_CAUSES: Final = (
    ("refused", "it refuses connections"),
    ("resolve", "its host name cannot be resolved"),
    ("name or service not known", "its host name cannot be resolved"),
    ("authentication failed", "it rejects the user or the password"),
    ("no password supplied", "it requires a password"),
    ("too many clients", "it has no free connection"),
    ("connection slots", "it has no free connection"),
    ("queuepool limit", "this process has no free connection"),
    ("database is locked", "another process holds its lock"),
    ("readonly", "it is read-only"),
    ("read-only", "it is read-only"),
    ("full", "its disk is full"),
    ("no space", "its disk is full"),
    ("unable to open database file", "its file cannot be opened"),
    (
        "unsupported startup parameter",
        "PgBouncer rejects the `options` in database_url; set them for the role or the database instead",
    ),
    ("no such table", "its tables are not created yet"),
    ('relation "', "its tables are not created yet"),
    ("does not exist", "the database, role or table does not exist"),
    ("timeout", "it did not answer in time"),
    ("timed out", "it did not answer in time"),
    ("closed the connection", "it closed the connection"),
    ("shutting down", "it is shutting down"),
    ("starting up", "it is starting up"),
)
"""A part of the driver's text, and the cause that it means. The first match counts."""


def public_cause(error: Exception) -> str:
    """The cause of a driver's error as a clause about the database that anyone may read."""
    text = driver_text(error).lower()
    return next((cause for part, cause in _CAUSES if part in text), "the process's log has the cause")


def driver_text(error: Exception) -> str:
    """The driver's own text, without what SQLAlchemy adds. It may hold addresses and passwords."""
    return str(getattr(error, "orig", None) or error).strip()
