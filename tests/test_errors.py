"""How exceptions of other libraries are quoted."""

import pytest

from lorarlhf.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError("no such model\n\nTraceback, advice, a link"), "no such model"),
        (ValueError("\n  wrong\nmore"), "wrong"),
        (RuntimeError(), "RuntimeError"),
        (KeyError("a"), "'a'"),
    ],
)
def test_first_line(error, line):
    assert first_line(error) == line
