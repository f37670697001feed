"""What comes nearly word for word again in a source, and which of its prompts are in the test data, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lorarlhf.data.inspect import sides, table_of
from lorarlhf.data.progress import with_progress
from lorarlhf.data.reading import Reader
from lorarlhf.data.rows import Example, completion_text, prompt_text, turns
from lorarlhf.data.sources import iter_rows, split_of
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import Column, Source

if TYPE_CHECKING:
    from datasketch import MinHash

SHINGLE = 5  # characters
SURE = 0.9  # a hash that is to find texts at a higher threshold misses some, and has no form at 1
EXAMPLES = 3
Parts = tuple[str, ...]  # a prompt, or a prompt and its responses


@dataclass(frozen=True)
class Match:
    """A text, one that was there before, and the share of their shingles that both have (Jaccard)."""

    text: str
    earlier: str
    similarity: float


@dataclass
class Repeats:
    """How many texts there are, how many of them are nearly the same as an earlier one, and the least alike of these.

    These say whether the threshold is right.
    """

    texts: int = 0
    repeated: int = 0
    examples: list[Match] = field(default_factory=list)

    def count(self, match: Match | None) -> None:
        """One more text, and what it repeats."""
        self.texts += 1
        if match:
            self.repeated += 1
            self.examples = sorted([*self.examples, match], key=lambda match: match.similarity)[:EXAMPLES]


@dataclass(frozen=True)
class Duplicates:
    """Of a source: its rows that repeat another, prompt and responses; and its different prompts that the test has."""

    kind: str
    rows: Repeats
    in_test: Repeats | None


class NearTexts:
    """Finds what is nearly the same by locality-sensitive hashing of shingles (MinHash: Broder 1997), then looks.

    A row is compared in its parts: two responses to one long prompt are not the same. Texts are kept, and some
    kilobytes for each. Raises UserError where datasketch is not installed.
    """

    def __init__(self, threshold: float) -> None:
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError:
            raise UserError(
                "data dedup: near-duplicates need datasketch; install it with: pip install 'lorarlhf[dedup]'"
            ) from None
        self.threshold = threshold
        self.make: Callable[[], MinHash] = MinHash
        self.index = MinHashLSH(min(threshold, SURE))
        self.kept: list[Parts] = []

    def look_up(self, parts: Parts, add: bool) -> Match | None:
        """What is most like it of all that was added, if it is near enough; else it is added, if that is asked for."""
        hashed = self.make()
        hashed.update_batch(shingles("\n".join(parts)))
        matches = [
            Match(_text(parts), _text(other), similarity(parts, other))
            for other in (self.kept[number] for number in self.index.query(hashed))
        ]
        best = max(matches, key=lambda match: match.similarity, default=None)
        if best and best.similarity >= self.threshold:
            return best
        if add:
            self.index.insert(len(self.kept), hashed)
            self.kept.append(parts)
        return None


def find_duplicates(
    source: Source | str,
    split: str,
    columns: Mapping[Column, str],
    threshold: float,
    test: tuple[Source | str, str] | None = None,
) -> Duplicates:
    """Read a source, and the test data if there are any, to their ends. Bad rows are passed over.

    Args:
        split: read where the source names none by itself.
        columns: as in `data.columns`.
        threshold: the share of shingles that two texts must have in common.
        test: source and split of rows whose prompts must not be in this one.
    """
    index, rows, split = NearTexts(threshold), Repeats(), split_of(source, split)
    prompts: dict[Parts, None] = {}
    for example in _read(source, split, columns):
        prompts.setdefault(_prompt(example))
        rows.count(index.look_up((*_prompt(example), *map(completion_text, sides(example)[1].values())), add=True))
    kind = table_of(source, split, columns).kind
    if test is None:
        return Duplicates(kind, rows, None)
    tested, in_test = NearTexts(threshold), Repeats()
    for example in _read(*test, columns):
        tested.look_up(_prompt(example), add=True)
    for prompt in with_progress(prompts, f"{source}: compared", total=len(prompts)):
        in_test.count(tested.look_up(prompt, add=False))
    return Duplicates(kind, rows, in_test)


def similarity(first: Parts, second: Parts) -> float:
    """The share of shingles that both have of all that either has, of the parts that are least alike."""
    pairs = ((shingles(a), shingles(b)) for a, b in zip(first, second, strict=True))
    return min(len(a & b) / len(a | b) for a, b in pairs)


def shingles(text: str) -> set[bytes]:
    """All runs of a few characters, in small letters; a text that is shorter than one is its own."""
    text = " ".join(text.lower().split())
    return {text[i : i + SHINGLE].encode("utf-8", "surrogatepass") for i in range(max(1, len(text) - SHINGLE + 1))}


def _read(source: Source | str, split: str, columns: Mapping[Column, str]) -> Iterator[Example]:
    reader: Reader[Any] = Reader(table_of(source, split, columns), "skip", columns)
    return reader.read(with_progress(iter_rows(source, split), f"{source}: read"))


def _prompt(example: Example) -> Parts:
    """A single turn of the user's is what it says: one file may have it as text, and the test data as a turn."""
    prompt = turns(sides(example)[0], "user")
    return (prompt[0]["content"] if len(prompt) == 1 and prompt[0]["role"] == "user" else prompt_text(prompt),)


def _text(parts: Parts) -> str:
    return " | ".join(parts)
