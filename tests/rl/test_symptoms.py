"""What is said of a run that goes wrong, and when it is said again."""

import pytest
import torch
from loops import rows_of

from lorarlhf.rl.statistics import first_of_their_kind, repetition
from lorarlhf.rl.symptoms import FALLS, SYMPTOMS, WINDOW, SymptomMonitor, alike, cut_off, fits_training_only

WELL = {"reward": 1.0, "response_length": 40.0, "finished": 0.9, "repetition": 0.02, "distinct": 1.0}


def training(**columns):
    """Rows of iterations 1, 2 ...: what is not told is as it should be."""
    count = len(next(iter(columns.values())))
    return [{**WELL, "iteration": i + 1, **{key: columns[key][i] for key in columns}} for i in range(count)]


def evaluations(*rewards, every=5, finished=0.9):
    return [{"iteration": every * i, "eval_reward": x, "eval_finished": finished} for i, x in enumerate(rewards)]


def spoken(rows):
    """Names of symptoms, with the number of the row that each came with."""
    monitor = SymptomMonitor()
    return [(i, name) for i, row in enumerate(rows) for name in monitor.observe(row)]


def change(first, last):
    """So many iterations of one number and then of another."""
    return [first] * WINDOW + [last] * WINDOW


def test_nothing_is_said_of_a_run_that_goes_well():
    rows = training(reward=[i / 10 for i in range(40)], response_length=[40.0 + i % 7 for i in range(40)])
    assert spoken([*evaluations(0.1), *rows, *evaluations(0.2, 0.5, 0.4, 0.6)]) == []


@pytest.mark.parametrize(
    ("column", "first", "last", "name", "words"),
    [
        ("response_length", 20.0, 41.0, "length_drift", "responses have gone from 20 to 41 tokens"),
        ("response_length", 20.0, 9.0, "length_drift", "responses have gone from 20 to 9 tokens"),
        ("response_length", 20.0, 39.0, None, ""),
        ("repetition", 0.02, 0.3, "repetitive", "responses repeat 30% of what they say"),
        ("repetition", 0.2, 0.3, None, ""),  # so did the model before
        ("repetition", 0.02, 0.1, None, ""),
        ("distinct", 1.0, 0.4, "alike", "only 40% of the responses to a prompt differ"),
        ("distinct", 1.0, 0.6, None, ""),
        ("finished", 0.9, 0.3, "cut_off", "70% of the responses are cut off"),
        ("finished", 0.9, 0.6, None, ""),
    ],
)
def test_each_number_that_goes_too_far(column, first, last, name, words):
    rows = training(**{column: change(first, last)})
    texts = {rule.__name__: text for rule in SYMPTOMS if (text := rule(rows, []))}
    assert set(texts) == ({name} if name else set())
    assert all(text.startswith(words) and "\n" not in text for text in texts.values())
    assert [symptom for _, symptom in spoken(rows)] == list(texts)


def test_one_iteration_alone_says_nothing():
    lengths = [20.0] * 10 + [90.0] + [20.0] * 10
    assert spoken(training(response_length=lengths, repetition=[0.0] * 10 + [0.9] + [0.0] * 10)) == []


@pytest.mark.parametrize("rows", [training(finished=[0.0]), evaluations(1.0, finished=0.0)])
def test_all_cut_off_is_said_at_once_and_names_both_keys(rows):
    (text,) = SymptomMonitor().observe(rows[0]).values()
    assert text.startswith("all responses are cut off")
    assert "ppo.response_length" in text
    assert "ppo.missing_eos_penalty" in text


def test_a_symptom_is_said_once_until_it_clears():
    rows = training(finished=[0.0, 0.1, 0.0, 0.2, 0.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.0])
    assert spoken(rows) == [(0, "cut_off"), (11, "cut_off")]


def test_held_out_reward_falls_while_reward_rises():
    rising, level = ([step * i for i in range(20)] for step in (0.1, 0.0))
    falling = evaluations(3.0, 2.5, 2.4, 2.3)
    text = fits_training_only(training(reward=rising), _from(falling))
    assert text.startswith("reward rises (0.200 to 1.700) while held-out reward falls (3.000 to 2.300)")
    assert fits_training_only(training(reward=level), _from(falling)) is None
    assert fits_training_only(training(reward=rising), _from(falling[:FALLS])) is None, "too few"
    assert fits_training_only(training(reward=rising), _from(evaluations(3.0, 2.5, 2.6, 2.3))) is None


def _from(rows):
    """Evaluations after iterations 5, 10, ... rather than 0, 5, ..."""
    return [{**row, "iteration": row["iteration"] + 5} for row in rows]


def test_rows_of_another_engine_lack_some_numbers():
    rows = [{"iteration": i + 1, "reward": 1.0, "kl": 0.1, "finished": 1.0} for i in range(20)]
    assert spoken(rows) == []
    assert alike(rows, []) is None
    assert cut_off([], []) is None


def test_reading_the_rows_again_goes_on_where_it_was():
    rows = training(distinct=change(1.0, 0.1), finished=change(0.0, 0.0))
    rows[0]["warnings"] = {"cut_off": "as metrics.jsonl has them"}
    whole, resumed = SymptomMonitor(), SymptomMonitor()
    expected = [whole.observe(row) for row in rows]
    for row in rows[:8]:
        resumed.observe(row)
    assert [resumed.observe(row) for row in rows[8:]] == expected[8:]
    assert any(expected)


def test_every_symptom_is_explained_in_the_docs(request):
    page = (request.config.rootpath / "docs" / "ppo.md").read_text(encoding="utf-8")
    assert all(f"`{rule.__name__}`" in page for rule in SYMPTOMS)


# The statistics behind them


def test_repetition_is_the_share_of_runs_of_four_that_came_before():
    assert repetition([1, 2, 3]) == 0
    assert repetition(range(20)) == 0
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)
    assert repetition([7] * 13) == pytest.approx(9 / 10)


def test_of_equal_responses_in_a_group_the_first_counts():
    responses = [[1], [1], [1, 2], [], [1], [], [3], []]
    assert first_of_their_kind(responses, 4) == [True, False, True, True, True, True, True, False]


def test_the_loop_logs_them(loop):
    made = loop("ppo.iterations=1", "ppo.advantage_estimator=rloo", "ppo.num_generations=4")
    _, rollout = made.sample()
    made.train()
    (row,) = rows_of(made)
    sequences = rollout.sequences
    texts = [
        tuple(ids[start : start + length].tolist())
        for ids, start, length in zip(
            sequences.tokens, sequences.prompt_lengths, sequences.response_lengths, strict=True
        )
    ]
    assert row["distinct"] == pytest.approx((len(set(texts[:4])) + len(set(texts[4:]))) / 8)
    assert row["repetition"] == pytest.approx(torch.tensor([repetition(text) for text in texts]).mean().item())
    assert "distinct" not in rows_of(_trained(loop("ppo.iterations=1")))[0]


def _trained(made):
    made.train()
    return made
