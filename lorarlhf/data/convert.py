"""Write comparisons in one canonical form: TRL's conversational preference format, a JSON line a pair."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

from lorarlhf.data.endings import WRITTEN, check_ending
from lorarlhf.data.examples import in_test_part, stream_preferences
from lorarlhf.data.formats import PREFERENCES
from lorarlhf.data.reading import Reader
from lorarlhf.data.rows import NO_COLUMNS, Preference, in_turns, turns
from lorarlhf.data.sources import is_path, iter_rows, split_of
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import DataConfig, Source


def convert_pairs(source: Source | str, config: DataConfig, path: Path) -> tuple[int, dict[str, int]]:
    """Write the pairs of a source to a new file; return how many, and how many were left out for which reason.

    Args:
        config: says which split to read, what columns mean, and what to do about bad rows and ties.
        path: ends as one that `endings.WRITTEN` names. Raises UserError if there is such a file already.
    """
    counts, skipped = _write(source, config, [path], lambda pair: 0)
    return counts[0], skipped


def split_pairs(source: Source | str, config: DataConfig, train: Path, test: Path) -> tuple[int, int, dict[str, int]]:
    """Write the pairs of a source to two new files, no prompt to both; return how many, and how many were left out.

    The share `config.test_size` of prompts goes to `test`, picked by a hash of the prompt as it is written.
    """

    def part(pair: Preference) -> int:
        return int(in_test_part(turns(pair.prompt, "user"), config.test_size))

    (to_train, to_test), skipped = _write(source, config, [train, test], part)
    return to_train, to_test, skipped


def mix_pairs(sources: list[Source], config: DataConfig, path: Path) -> dict[str, int]:
    """Write the pairs of several sources to one new file, as a recipe that names them trains on; how many of each.

    Args:
        config: what columns mean, and what to do about bad rows and ties.
    """
    stream = stream_preferences(config.model_copy(update={"preferences": sources, "test_size": 0.0}), "train")
    counts = {str(source): 0 for source in sources}
    with _new_file(path) as file:
        for (pair, _), source in stream.with_sources(NO_COLUMNS):
            file.write(_line(pair, source))
            counts[str(source)] += 1
    return counts


def canonical(pair: Preference, source: str) -> dict[str, Any]:
    """A pair as a row. Plain text becomes a message of the user's and one of the assistant's."""
    pair = in_turns(pair)
    row: dict[str, Any] = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
    if pair.margin is not None:
        row["margin"] = pair.margin
    if pair.tie:
        row["tie"] = True
    if pair.annotators:
        row["annotators"] = list(pair.annotators)
    return row | {"source": source}


def _write(
    source: Source | str, config: DataConfig, paths: list[Path], part: Callable[[Preference], int]
) -> tuple[list[int], dict[str, int]]:
    """Stream the pairs of a source to the file that `part` picks; none of the files is left behind after an error."""
    if isinstance(source, Source) and (source.max_examples or source.weight):
        raise UserError(
            f"{source}: max_examples and weight take a part of it, and all of it is written here; leave them out, or "
            "use `lorarlhf data mix`"
        )
    reader = Reader(PREFERENCES, config.on_bad_row, config.columns)
    counts: Counter[int] = Counter()
    ties = 0
    with ExitStack() as stack:
        files = [stack.enter_context(_new_file(path)) for path in paths]
        for pair in reader.read(iter_rows(source, split_of(source, config.train_split))):
            if pair.tie and config.ties == "drop":
                ties += 1
                continue
            number = part(pair)
            files[number].write(_line(pair, source))
            counts[number] += 1
        if not counts:
            raise UserError(f"{source}: no usable row in it, so nothing is written")
    return [counts[i] for i in range(len(paths))], dict(reader.skipped) | ({"tie": ties} if ties else {})


def _line(pair: Preference, source: Source | str) -> str:
    name = source.source if isinstance(source, Source) else source
    return json.dumps(canonical(pair, Path(name).name if is_path(name) else str(source)), ensure_ascii=False) + "\n"


@contextmanager
def _new_file(path: Path) -> Iterator[TextIO]:
    """A file that was not there before, gone again if writing it fails."""
    check_ending(path, WRITTEN)
    opener: Callable[..., TextIO] = gzip.open if path.suffix == ".gz" else open
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = opener(path, "xt", encoding="utf-8", errors="surrogatepass")
    except FileExistsError as error:
        raise UserError(f"{error.filename}: exists already and is not overwritten; choose another name") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; choose another place") from error
    try:
        with file:
            yield file
    except BaseException:
        path.unlink()
        raise
