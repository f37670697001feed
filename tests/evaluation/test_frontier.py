"""Where a run is over-optimised, on made-up curves; what a person reads of it, and the figure."""

import copy
import sys

import numpy as np
import pytest

from lorarlhf.errors import UserError
from lorarlhf.evaluation.frontier import Checkpoint, checkpoint_figures, figures, find_turn, turn_figures
from lorarlhf.evaluation.frontier_figure import check_figure, draw_frontier
from lorarlhf.evaluation.frontier_report import frontier_lines, verdict
from lorarlhf.intervals import mean

PROMPTS = 100


def curve(means, noise=0.5, seed=0, prompts=PROMPTS):
    """[K, N] rewards of these means, which differ between prompts by far more than between checkpoints."""
    generator = np.random.default_rng(seed)
    of_prompts = 3 * generator.standard_normal(prompts)
    return np.array(means)[:, None] + of_prompts + noise * generator.standard_normal((len(means), prompts))


RISING = [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("reward", "judged", "outcome", "before", "after"),
    [
        (RISING, [0, 1, 2, 1, 0, -1], "over_optimised", 2, 3),
        (RISING, [0, -1, -2, -3, -4, -5], "over_optimised", 0, 1),
        (RISING, [0, 2, 1, 1.8, 1, 0], "over_optimised", 1, 4),  # it had come back at 3
        (RISING, [0, 1, 2, 3, 4, 5], "not_seen", 0, 5),
        (RISING, [0, 2, 0, 1, 1.5, 2.5], "not_seen", 0, 5),  # a dip alone
        ([0, 1, 2, 1, 0, -1], [0, 1, 2, 1, 0, -1], "judge_falls", 2, 5),
        ([0, 1, 2, 3, 1, 0], [0, 1, 2, 1, 0, -1], "over_optimised", 2, 3),  # and then all went
        (RISING, [0, 1, 2, 1.85, 1.9, 1.9], "unclear", 2, 5),
        ([0, 1], [0, 1], "not_seen", 0, 1),
        ([0, 1], [1, 0], "over_optimised", 0, 1),
    ],
)
def test_where_the_judge_turns(reward, judged, outcome, before, after):
    rewards, judge = curve(reward), curve(judged, seed=1)
    turn = find_turn(rewards, judge)
    assert (turn.outcome, turn.before, turn.after) == (outcome, before, after)
    pairs = len(reward) * (len(reward) - 1) // 2
    assert turn.judged == mean(judge[after] - judge[before], of=pairs)
    assert turn.reward == mean(rewards[after] - rewards[before], of=pairs)


def test_the_same_fall_drowned_in_noise_is_not_told():
    judged = [0, 1, 2, 1.9, 1.8, 1.7]
    assert find_turn(curve(RISING), curve(judged, noise=0.1, seed=1)).outcome == "over_optimised"
    assert find_turn(curve(RISING), curve(judged, noise=10, seed=1)).outcome in ("unclear", "not_seen")


def test_prompts_are_compared_with_themselves():
    """Prompts differ by 3, the fall is 0.3: means of different prompts could not show it."""
    judged = curve([0, 1, 0.7], noise=0.3, seed=1)
    assert find_turn(curve([0, 1, 2]), judged).outcome == "over_optimised"
    shuffled = np.stack([np.random.default_rng(k).permutation(row) for k, row in enumerate(judged)])
    assert find_turn(curve([0, 1, 2]), shuffled).outcome != "over_optimised"


def test_a_judge_that_stands_still_is_seldom_called_falling():
    """The best of eleven equal ones is chosen after the fact: with intervals of one pair half of the runs would be."""
    runs = [find_turn(curve(range(11)), curve([0] * 11, seed=1 + seed, prompts=40)) for seed in range(200)]
    assert sum(turn.outcome == "over_optimised" for turn in runs) <= 10


def test_checkpoints_that_are_all_the_same():
    still = np.ones((3, 5))
    assert find_turn(still, still).outcome == "not_seen"


def made_up(reward=RISING, judged=(0, 1, 2, 1, 0, -1)):
    """A `frontier.json`."""
    rewards, judge = curve(reward), None if judged is None else curve(judged, seed=1)
    points = [
        Checkpoint(10 * k, k + np.arange(PROMPTS) / PROMPTS - 0.6, rewards[k], None if judge is None else judge[k])
        for k in range(len(reward))
    ]
    best_of = [{"n": n, "kl_bound": kl, **figures("reward", mean(rewards[1] + kl))} for n, kl in [(2, 0.19), (4, 0.6)]]
    for row in best_of if judge is not None else ():
        row |= figures("judge_reward", mean(judge[1] + row["kl_bound"]))
    return {
        "algorithm": "RLOO",
        "reference": "base",
        "prompts": PROMPTS,
        "data": "prompts.jsonl",
        "judge": None if judge is None else "runs/other",
        "checkpoints": checkpoint_figures(points),
        "passed_over": [],
        "save_total_limit": None,
        "best_of": best_of,
        "over_optimisation": None if judge is None else turn_figures(points, find_turn(rewards, judge)),
    }


def test_the_table_fits_a_terminal():
    frontier = made_up()
    lines = frontier_lines({**frontier, "passed_over": ["checkpoint-7: cut"], "save_total_limit": 2})
    assert all(len(line) <= 80 for line in lines[:-3])
    [row] = [line for line in lines if line.startswith(" checkpoint 20 ")]
    figures_of = frontier["checkpoints"][2]
    assert f"{figures_of['reward']:.3f} +-" in row
    assert row.endswith(f"{figures_of['judge_win_rate']:.1%}")
    assert " best of 4         at most 0.600" in "\n".join(lines)
    assert lines[-3:-1] == [
        "passed over: checkpoint-7: cut",
        "ppo.save_total_limit 2 keeps the last checkpoints alone; train with null to see all",
    ]
    assert "win_rate" not in frontier["checkpoints"][0]
    far = {**frontier["checkpoints"][5], "iteration": 9999, "kl": 912.3456, "kl_interval": [890.0, 934.6912]}
    [row] = [
        line for line in frontier_lines({**frontier, "checkpoints": [far], "over_optimisation": None}) if "9999" in line
    ]
    assert row.startswith(" checkpoint 9999  912.35 +-22.35 ")
    assert len(row) <= 80
    assert "save_total_limit" not in "\n".join(frontier_lines(frontier))


@pytest.mark.parametrize(
    ("reward", "judged", "sentence"),
    [
        (RISING, (0, 1, 2, 1, 0, -1), "over-optimised from checkpoint 30 on (KL 2.9): judge's reward -0."),
        (RISING, (0, -1, -2, -3, -4, -5), "against the start (KL -0.1), which the judge likes best"),
        (RISING, RISING, "no over-optimisation is seen: the judge likes the last, checkpoint 50, best"),
        (RISING, (0, 1, 2, 1.85, 1.9, 1.9), "the judge likes checkpoint 20 best, but to checkpoint 50 the change of"),
        ((0, 1, 2, 1, 0, -1), (0, 1, 2, 1, 0, -1), "worse, but not by over-optimisation: judge's reward -"),
        (RISING, None, "the run's own reward cannot say; give a reward model it was not trained against with --judge"),
    ],
)
def test_the_sentence(reward, judged, sentence):
    assert sentence in verdict(made_up(reward, judged))


def test_the_turn_by_its_iterations():
    turn = made_up()["over_optimisation"]
    assert (turn["outcome"], turn["best"], turn["from"], turn["compared"]) == ("over_optimised", 20, 30, [20, 30])
    assert turn["judge_change_interval"][1] < 0 < turn["reward_change_interval"][0]
    turn = made_up(judged=RISING)["over_optimisation"]
    assert (turn["best"], turn["from"], turn["compared"]) == (50, None, [0, 50])


def test_the_figure(tmp_path):
    pytest.importorskip("matplotlib")
    frontier = made_up()
    before = copy.deepcopy(frontier)
    draw_frontier(frontier, "a $run_1$", tmp_path / "new" / "figure.svg")
    draw_frontier(frontier, "a $run_1$", tmp_path / "again.svg")
    draw_frontier(made_up(judged=None), "run", tmp_path / "alone.png")
    assert frontier == before
    assert (tmp_path / "new" / "figure.svg").read_text().startswith("<?xml")
    assert (tmp_path / "alone.png").read_bytes().startswith(b"\x89PNG")
    assert "matplotlib.pyplot" not in sys.modules  # it would look for a window


def test_panels_lines_and_what_is_past_the_turn():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    from lorarlhf.evaluation import frontier_figure

    frontier = made_up()
    ax = Figure().subplots()
    frontier_figure._draw_panel(ax, frontier, "judge_reward")
    lines = {container.get_label(): container.lines[0].get_xydata() for container in ax.containers}
    assert set(lines) == {"RLOO, by iteration", "over-optimised", "best of 2, 4, KL at most"}
    assert lines["RLOO, by iteration"][:, 1].tolist() == [row["judge_reward"] for row in frontier["checkpoints"]]
    assert lines["RLOO, by iteration"][0, 0] == 0  # its estimate is negative
    assert lines["over-optimised"][0].tolist() == [
        frontier["checkpoints"][3]["kl"],
        frontier["checkpoints"][3]["judge_reward"],
    ]
    assert lines["best of 2, 4, KL at most"][:, 0].tolist() == [0.19, 0.6]
    assert [text.get_text() for text in ax.texts] == ["0", "10", "20", "30", "40", "50"]


def test_a_figure_that_cannot_be_drawn(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"f\.pdf: must end in \.png or \.svg"):
        check_figure(tmp_path / "f.pdf")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        UserError, match=r"^--plot: a figure needs matplotlib\S*; install it with: pip install 'lorarlhf"
    ):
        check_figure(tmp_path / "f.png")
