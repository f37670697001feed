"""Files of rows."""

import json

import pytest


@pytest.fixture
def write(tmp_path):
    """`write(rows, name)`: path of a file with a line for each row; a text is a line as it is."""

    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return str(path)

    return write
