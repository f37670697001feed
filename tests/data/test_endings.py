"""One table says which files are read: reading, help texts, messages and model cards go by it."""

from pathlib import Path

import pytest

from lorarlhf.cli.options import SOURCE
from lorarlhf.data.endings import LINES, READ, WRITTEN, check_ending, file_kind, listed
from lorarlhf.data.sources import READERS, is_path
from lorarlhf.errors import UserError
from lorarlhf.publishing.card import is_hub_id


@pytest.mark.parametrize("ending", READ)
def test_every_ending_is_read_listed_and_no_hub_id(ending):
    assert file_kind(f"owner/rows{ending}") in READERS
    assert f" {ending}" in SOURCE
    assert is_path(f"owner/rows{ending}")
    assert not is_hub_id(f"owner/rows{ending}")


def test_other_endings_are_not():
    assert file_kind("rows.txt") is None
    assert file_kind("rows.jsonl.bak") is None
    assert is_hub_id("owner/rows.txt")


def test_what_is_written_is_named_so():
    check_ending(Path("a/pairs.jsonl.gz"), WRITTEN)
    with pytest.raises(UserError, match=r"^a/pairs\.csv: must end in \.jsonl or \.jsonl\.gz; write for example a/pa"):
        check_ending(Path("a/pairs.csv"), WRITTEN)
    with pytest.raises(UserError, match=r"^pairs\.jsonl\.gz: must end in \.jsonl; "):
        check_ending(Path("pairs.jsonl.gz"), LINES)
    assert listed((".a",)) == ".a"
