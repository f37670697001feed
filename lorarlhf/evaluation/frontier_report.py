"""What a person sees of a frontier: a table, and a sentence on where the run is over-optimised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorarlhf.display import readable


def frontier_lines(frontier: Mapping[str, Any]) -> list[str]:
    """Lines of at most 80 columns, but for names that are longer, and the sentences at the end."""
    judge, rows = frontier["judge"], frontier["checkpoints"]
    lines = [f"ppo from {frontier['reference']} on {frontier['prompts']:,} prompts of {frontier['data']}"]
    if judge:
        lines.append(f"judged by {judge}")
    heads = ["", "KL", "reward", *(["judge's reward", "wins by judge"] if judge else ["wins by reward"])]
    lines.append(_line(heads))
    for row in rows:
        who = f"checkpoint {row['iteration']}" if row["iteration"] else "start"
        won = row.get("judge_win_rate" if judge else "win_rate")
        cells = [_with_error(row, key) for key in ("kl", "reward", *(["judge_reward"] if judge else []))]
        lines.append(_line([who, *cells, "" if won is None else f"{won:.1%}"]))
    for row in frontier["best_of"]:
        cells = [_with_error(row, key) for key in ("reward", *(["judge_reward"] if judge else []))]
        lines.append(_line([f"best of {row['n']}", f"at most {readable(row['kl_bound'])}", *cells]))
    lines += [f"passed over: {line}" for line in frontier["passed_over"]]
    if (limit := frontier["save_total_limit"]) is not None:
        lines.append(f"ppo.save_total_limit {limit} keeps the last checkpoints alone; train with null to see all")
    return [*lines, verdict(frontier)]


def verdict(frontier: Mapping[str, Any]) -> str:
    """The sentence that says whether, and from where on, the run is over-optimised.

    Raises:
        KeyError, TypeError, ValueError: it is not as `measure_frontier` makes it.
    """
    turn = frontier["over_optimisation"]
    if turn is None:
        return (
            "over-optimised or not: the run's own reward cannot say; give a reward model it was not trained against "
            "with --judge"
        )
    kl = {row["iteration"]: row["kl"] for row in frontier["checkpoints"]}
    before, after = turn["compared"]
    judged, reward = _change(turn, "judge_change"), _change(turn, "reward_change")
    if turn["outcome"] == "over_optimised":
        return (
            f"over-optimised from checkpoint {after} on (KL {kl[after]:.1f}): judge's reward {judged}, run's own "
            f"{reward}, against {_who(before)} (KL {kl[before]:.1f}), which the judge likes best"
        )
    if turn["outcome"] == "judge_falls":
        return (
            f"worse, but not by over-optimisation: judge's reward {judged} from {_who(before)}, which it likes best, "
            f"to checkpoint {after}; the run's own does not surely rise with it, {reward}"
        )
    if turn["outcome"] == "unclear":
        return (
            f"no over-optimisation is shown: the judge likes {_who(before)} best, but to checkpoint {after} the change "
            f"of {judged} may be chance; more prompts would tell"
        )
    if turn["outcome"] != "not_seen":
        raise ValueError(f"over_optimisation.outcome: {turn['outcome']!r} is none")
    return (
        f"no over-optimisation is seen: the judge likes the last, checkpoint {after}, best; judge's reward {judged}, "
        f"run's own {reward} since the start"
    )


def _who(iteration: int) -> str:
    return f"checkpoint {iteration}" if iteration else "the start"


def _change(turn: Mapping[str, Any], key: str) -> str:
    low, high = turn[f"{key}_interval"]
    return f"{turn[key]:+.3f} (95%: {low:+.3f} to {high:+.3f})"


def _with_error(row: Mapping[str, Any], key: str) -> str:
    """Student's interval is symmetric."""
    value, half = row[key], row[f"{key}_interval"][1] - row[key]
    return f"{value:.2f} +-{half:.2f}" if abs(value) >= 100 else f"{readable(value)} +-{readable(half)}"


def _line(cells: list[str]) -> str:
    name, *numbers = cells
    return (f" {name:15}" + "".join(f"{number:>16}" for number in numbers)).rstrip()
