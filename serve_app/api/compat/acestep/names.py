"""The name of this family in the table of families."""

from typing import Final

FAMILY_NAME: Final = "acestep"
