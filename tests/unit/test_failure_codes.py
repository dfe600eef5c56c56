"""The table of failure codes is complete."""

from tests.support import failure_codes


def test_every_code_of_errors_py_has_a_row_and_advice() -> None:
    """docs/FAILURES.md lists exactly the codes of the error classes, each with advice."""
    assert {row.code for row in failure_codes.rows()} == failure_codes.kinds().keys()
    assert failure_codes.ADVICE.keys() == failure_codes.kinds().keys()
