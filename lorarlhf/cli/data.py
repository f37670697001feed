"""`lorarlhf data`: look at preference data, convert, mix and split it, and see how far its annotators agree."""

from __future__ import annotations

import math
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lorarlhf.cli.options import MOST_SEED, SOURCE, finite
from lorarlhf.data.endings import WRITTEN, listed
from lorarlhf.errors import UserError
from lorarlhf.recipe.load import parse_source, weighed
from lorarlhf.recipe.sections import Column, DataConfig

if TYPE_CHECKING:
    from lorarlhf.data.duplicates import Repeats
    from lorarlhf.data.inspect import Measure, Report
    from lorarlhf.data.rows import Example
    from lorarlhf.intervals import Estimate
    from lorarlhf.preferences.agreement import Agreement, Annotator, Share
    from lorarlhf.preferences.duels import Duel
    from lorarlhf.preferences.pairs import Pair

data_app = typer.Typer(help="Look at preference data, convert, mix, split and judge it.", no_args_is_help=True)

Source = Annotated[str, typer.Argument(help=SOURCE, show_default=False)]
SplitName = Annotated[str, typer.Option(help="Which split to read, of a source that has several.")]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="NAME=COLUMN", help="What a column means, as chosen=better; may be repeated."),
]
Ties = Annotated[Literal["drop", "keep"], typer.Option(help="Whether pairs that neither response won are written.")]
OnBadRow = Annotated[Literal["error", "skip"], typer.Option(help="What to do about a row that cannot be used.")]

DEFAULTS = DataConfig()
NEW_FILE = f"A new {listed(WRITTEN)} file."
MUCH_SMOOTHING = 0.2  # above it, accuracy in the demo's world falls: docs/agreement.md
CHARACTERS_SHOWN = 160  # characters of a prompt or response
REOPENED = "\n  the page of `lorarlhf collect` shows and reopens them: key m"
BEFORE = 40  # characters of what two texts have in common, before they part


@data_app.command()
def inspect(
    source: Source,
    split: SplitName = DEFAULTS.train_split,
    test: Annotated[
        str | None,
        typer.Option(help="Test data, to look for shared prompts.", show_default="split test, if the source has it"),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Base model whose tokens to count.", show_default="characters are counted")
    ] = None,
    max_length: Annotated[int, typer.Option(min=1, help="The recipe's data.max_length.")] = DEFAULTS.max_length,
    column: Columns = None,
) -> None:
    """Say which format the data has and show what is in it, and what is wrong with it."""
    from lorarlhf.cli.quiet import quiet_libraries

    quiet_libraries()
    from lorarlhf.data.inspect import characters, held_out, inspect_source

    if model:
        from lorarlhf.stages.inspect import tokens_of
    measure: Measure = tokens_of(model) if model else characters
    data, tested = parse_source(source), parse_source(test) if test else None
    report = inspect_source(data, split, _columns(column), measure, max_length, held_out(data, split, tested))
    _print_report(str(data), report, "tokens" if model else "characters", max_length)


@data_app.command()
def convert(
    source: Source,
    dest: Annotated[Path, typer.Argument(help=NEW_FILE, show_default=False)],
    split: SplitName = DEFAULTS.train_split,
    ties: Ties = "drop",
    on_bad_row: OnBadRow = "error",
    column: Columns = None,
) -> None:
    """Write comparisons in TRL's conversational preference format."""
    from lorarlhf.cli.quiet import quiet_libraries

    quiet_libraries()
    from lorarlhf.data.convert import convert_pairs

    config = DataConfig(train_split=split, ties=ties, on_bad_row=on_bad_row, columns=_columns(column))
    count, skipped = convert_pairs(parse_source(source), config, dest)
    typer.echo(f"Wrote {count:,} pairs to {dest}{_left_out(skipped)}")


@data_app.command("split")
def split_(
    source: Source,
    train: Annotated[Path, typer.Argument(help=NEW_FILE, show_default=False)],
    test: Annotated[Path, typer.Argument(help="Another.", show_default=False)],
    test_size: Annotated[
        float, typer.Option(min=0, max=1, callback=finite, help="The share of prompts for testing.")
    ] = DEFAULTS.test_size,
    split: SplitName = DEFAULTS.train_split,
    ties: Ties = "drop",
    on_bad_row: OnBadRow = "error",
    column: Columns = None,
) -> None:
    """Write train and test parts with no prompt in both."""
    from lorarlhf.cli.quiet import quiet_libraries

    quiet_libraries()
    from lorarlhf.data.convert import split_pairs

    config = DataConfig(
        train_split=split, test_size=test_size, ties=ties, on_bad_row=on_bad_row, columns=_columns(column)
    )
    to_train, to_test, skipped = split_pairs(parse_source(source), config, train, test)
    typer.echo(f"Wrote {to_train:,} pairs to {train} and {to_test:,} to {test}{_left_out(skipped)}")


@data_app.command()
def mix(
    dest: Annotated[Path, typer.Argument(help=NEW_FILE, show_default=False)],
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE[:WEIGHT]...",
            help=f"{SOURCE} Weights 3 and 1 take three rows of one for each of the other, as many as there are.",
            show_default=False,
        ),
    ],
    split: SplitName = DEFAULTS.train_split,
    ties: Ties = "drop",
    on_bad_row: OnBadRow = "error",
    column: Columns = None,
) -> None:
    """Write comparisons of several sources to one file, in the format of `convert`."""
    from lorarlhf.cli.quiet import quiet_libraries

    quiet_libraries()
    from lorarlhf.data.convert import mix_pairs

    config = DataConfig(train_split=split, ties=ties, on_bad_row=on_bad_row, columns=_columns(column))
    counts = mix_pairs(weighed(sources), config, dest)
    typer.echo(f"Wrote {sum(counts.values()):,} pairs to {dest}")
    typer.echo("\n".join(f"  {count:,} of {source}" for source, count in counts.items()))


@data_app.command()
def dedup(
    source: Source,
    against: Annotated[
        str | None, typer.Option(help="Test data, whose prompts must not be in the source.", show_default=False)
    ] = None,
    threshold: Annotated[
        float, typer.Option(min=0.5, max=1, help="How much two texts must have in common, in runs of 5 characters.")
    ] = 0.8,
    split: SplitName = DEFAULTS.train_split,
    column: Columns = None,
) -> None:
    """Say what comes again nearly word for word, and which prompts the test data have, too. Nothing is written."""
    from lorarlhf.cli.quiet import quiet_libraries

    quiet_libraries()
    from lorarlhf.data.duplicates import find_duplicates
    from lorarlhf.data.inspect import held_out

    data, tested = parse_source(source), parse_source(against) if against else None
    found = find_duplicates(data, split, _columns(column), threshold, held_out(data, split, tested))
    _print_repeats(f"{found.kind} repeat an earlier one", found.rows)
    if found.in_test:
        _print_repeats("different prompts are in the test data, too", found.in_test)


@data_app.command()
def agreement(
    files: Annotated[
        list[str],
        typer.Argument(
            help="Files of `lorarlhf collect`, a platform's export, or tables with columns annotator1, annotator2, ...",
            show_default=False,
        ),
    ],
    pairs: Annotated[
        Path | None,
        typer.Option(help="The pairs that were labelled: for texts, lengths, and which of two policies won."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap intervals.", min=0, max=MOST_SEED)] = 0,
) -> None:
    """Say how far annotators agree with each other and with themselves, what noise that points to, and who won."""
    from lorarlhf.cli.quiet import quiet_libraries

    quiet_libraries()
    from lorarlhf.preferences.agreement import measure_agreement
    from lorarlhf.preferences.duels import count_duels
    from lorarlhf.preferences.pairs import read_pairs
    from lorarlhf.preferences.votes import read_votes

    labelled = read_pairs(pairs) if pairs else []
    votes = read_votes(files, labelled)
    _print_agreement(measure_agreement(votes, seed), {pair.id: pair for pair in labelled})
    for duel in count_duels(votes):
        _print_duel(duel)


def _columns(texts: list[str] | None) -> dict[Column, str]:
    from difflib import get_close_matches
    from typing import get_args

    columns: dict[Column, str] = {}
    for text in texts or []:
        name, _, column = text.partition("=")
        if name not in get_args(Column) or not column:
            near = get_close_matches(name, get_args(Column), n=1)
            raise UserError(
                f"--column {text}: write NAME=COLUMN with a name out of {', '.join(get_args(Column))}"
                + (f"; did you mean {near[0]}?" if near and near[0] != name else "")
            )
        columns[name] = column  # type: ignore[index]
    return columns


def _print_repeats(what: str, repeats: Repeats) -> None:
    typer.echo(f"{repeats.repeated:,} of {repeats.texts:,} {what}")
    for match in repeats.examples:
        texts = (" ".join(text.split()) for text in (match.text, match.earlier))
        first, second = _from_where_they_part(*texts)
        typer.echo(f"  {match.similarity:4.0%}  {_shortened(first)}\n        {_shortened(second)}")


def _from_where_they_part(*texts: str) -> tuple[str, ...]:
    """Two long texts that begin alike, from a little before the place where they differ."""
    same = len(list(takewhile(lambda characters: len(set(characters)) == 1, zip(*texts, strict=False))))
    start = same - BEFORE if max(map(len, texts)) > CHARACTERS_SHOWN else 0
    return tuple(f"…{text[start:]}" if start > 0 else text for text in texts)


def _left_out(skipped: dict[str, int]) -> str:
    return "".join(f"\n  left out: {reason} ({count:,})" for reason, count in skipped.items())


def _print_report(source: str, report: Report, unit: str, max_length: int) -> None:
    lines = [
        ("", f"{source}: {report.kind}"),
        ("format", f"{report.format}, as {report.why}"),
        ("rows", f"{report.rows:,}, which hold {report.pairs:,} {report.kind}"),
        ("ties", f"{report.ties:,}"),
        ("duplicates", f"{report.duplicates:,}"),
        ("prompts", f"{report.prompts:,} different" + _shared(report)),
    ]
    lines += [("left out", f"{reason}: {count:,}, first at {where}") for reason, (count, where) in report.bad.items()]
    lines += [
        (
            f"{name} length",
            f"median {length.median:,.0f}, 95% up to {length.p95:,.0f}, longest {length.longest:,} {unit}",
        )
        for name, length in report.lengths.items()
    ]
    if unit == "tokens":
        lines.append(
            ("too long", f"{report.too_long:.1%} have a side over {max_length:,} tokens, and would be dropped")
        )
    if report.longer_wins is not None:
        lines.append(("longer wins", f"{report.longer_wins:.1%} of decided pairs of different lengths"))
    typer.echo("\n".join(f"  {name:16} {text}" if name else text for name, text in lines))
    for number, example in enumerate(report.examples, 1):
        typer.echo(f"\n  [{number}]" + "".join(f"\n  {name:10} {text}" for name, text in _parts(example)))


def _shared(report: Report) -> str:
    if report.shared is None:
        return ""
    return f", {report.shared:,} of them in the test data too" if report.shared else ", none of them in the test data"


def _parts(example: Example) -> list[tuple[str, str]]:
    from lorarlhf.data.inspect import sides
    from lorarlhf.data.rows import completion_text, prompt_text

    prompt, completions = sides(example)
    parts = [("prompt", prompt_text(prompt)), *((name, completion_text(text)) for name, text in completions.items())]
    return [(name, _shortened(text)) for name, text in parts]


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= CHARACTERS_SHOWN else f"{line[: CHARACTERS_SHOWN - 1]}…"


def _print_agreement(result: Agreement, pairs: dict[str, Pair]) -> None:
    typer.echo(
        f"annotators: {len(result.annotators)}; pairs: {result.pairs:,}, "
        f"{result.shared:,} of them judged by two or more\n"
    )
    named = [
        ("raw agreement", result.raw),
        ("Cohen's kappa", result.cohen),
        ("Fleiss' kappa", result.fleiss),
        ("Krippendorff's alpha", result.alpha),
    ]
    for name, estimate in named:
        if estimate is not None:
            typer.echo(f"  {name:22} {_estimate(estimate)}")
    heads = ("annotator", "labels", "ties", "with majority", "with oneself", "chose left", "chose longer", "seconds")
    typer.echo("\n" + _table([heads, *map(_person, result.annotators)]))
    if result.disputed:
        rows = [(pair, *(str(votes[answer]) for answer in ("a", "b", "tie"))) for pair, votes in result.disputed]
        typer.echo("\nmost disputed\n" + _table([("pair", "a", "b", "tie"), *rows]))
        typer.echo("".join(_texts(pairs[pair]) for pair, _ in result.disputed if pair in pairs) + REOPENED)
    typer.echo("\n" + _noise(result))


def _texts(pair: Pair) -> str:
    from lorarlhf.data.rows import completion_text, prompt_text

    responses = (" ".join(completion_text(side).split()) for side in (pair.response_a, pair.response_b))
    texts = (" ".join(prompt_text(pair.prompt).split()), *_from_where_they_part(*responses))
    shown = zip(("prompt", "a", "b"), map(_shortened, texts), strict=True)
    return f"\n  {pair.id}" + "".join(f"\n    {name:7} {text}" for name, text in shown) + "\n"


def _person(person: Annotator) -> tuple[str, ...]:
    shares = (person.with_majority, person.self_consistency, person.left, person.longer)
    seconds = "-" if person.seconds is None else f"{person.seconds:.1f}"
    return (person.name, f"{person.votes:,}", f"{person.ties:,}", *map(_share, shares), seconds)


def _noise(result: Agreement) -> str:
    from lorarlhf.preferences.agreement import suggested_smoothing

    if result.noise is None:
        return "label noise: unknown, as no pair was decided twice, by two annotators or by one when it came back"
    lines = [
        f"label noise: {_estimate(result.noise)} of decided labels flipped, if all err alike and at random",
        "  from pairs that two annotators have decided"
        if result.noise_from == "annotators"
        else "  from pairs that came back to the same annotator; what one person gets wrong both times does not show",
    ]
    smoothing = suggested_smoothing(result.noise.value)
    if smoothing is None:
        return "\n".join([*lines, "  that is next to chance: say more clearly what better means, and label again"])
    lines.append(f"  for single labels    --set reward.label_smoothing={smoothing}")
    if result.majority_noise is not None:
        smoothed = suggested_smoothing(result.majority_noise)
        lines.append(f"  for majority votes   --set reward.label_smoothing={smoothed}")
    if smoothing > MUCH_SMOOTHING:
        lines.append("  so much smoothing slows learning; rather let more people label the pairs, and take majorities")
    return "\n".join(lines)


def _print_duel(duel: Duel) -> None:
    from lorarlhf.intervals import Estimate

    won, (first, second) = duel.won, duel.policies
    lost = Estimate(1 - won.value, 1 - won.high, 1 - won.low)
    typer.echo(f"\nblind comparison: {duel.pairs:,} pairs, {duel.ties:,} of them ties, half a win each")
    typer.echo(_table([(first, _estimate(won)), (second, _estimate(lost))]))


def _estimate(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return "undefined on these labels"
    return f"{estimate.value:.3f}  (95%: {estimate.low:.3f} to {estimate.high:.3f})"


def _share(share: Share) -> str:
    return f"{share.value:.1%} of {share.of:,}" if share.of else "-"


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
