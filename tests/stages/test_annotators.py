"""A reward model beside several annotators, by hand and against scikit-learn; and what data makes of their votes."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from sklearn.metrics import cohen_kappa_score

from lorarlhf.backbone.load import load_tokenizer
from lorarlhf.data.held_out import HeldOut, held_out_preferences
from lorarlhf.data.tokenize import Tokenized
from lorarlhf.data.tokenizer import prepare_tokenizer
from lorarlhf.intervals import wilson
from lorarlhf.recipe.sections import DataConfig, ModelConfig
from lorarlhf.stages.annotators import annotator_figures, annotator_lines

SCORES = {10: 2.0, 20: 1.0, 30: 0.0, 40: 0.0}  # by the one token of a response


def score(rows):
    return torch.tensor([SCORES[ids[0]] for ids in rows])


def table(pairs):
    columns = {"chosen_ids": [[a] for a, _ in pairs], "rejected_ids": [[b] for _, b in pairs]}
    return Dataset.from_dict(columns | {"row": list(range(len(pairs)))})


def measured(pairs, votes, ties=(), tie_votes=()):
    held_out = HeldOut(
        Tokenized(table(pairs), len(pairs), 0),
        votes=[tuple(said.items()) for said in votes],
        ties=table(ties) if ties else None,
        tie_votes=[tuple(said.items()) for said in tie_votes],
    )
    rows = held_out.examples.dataset
    scores = [score(rows[column]) for column in ("chosen_ids", "rejected_ids")]
    return annotator_figures(held_out, scores, score)


def test_votes_by_hand():
    found = measured(
        [(10, 20), (30, 10), (20, 40), (30, 40)],
        [
            {"ann": 1, "bob": 1, "cat": -1},  # the model says 1
            {"ann": 1, "bob": 0, "cat": 1},  # -1
            {"ann": 1, "bob": 1},  # 1
            {"ann": 1, "bob": -1, "cat": 1},  # level
        ],
        [(20, 10)],  # -1
        [{"ann": 1, "bob": -1, "cat": 0}],
    )["annotators"]
    assert (found["pairs"], found["shared"]) == (5, 5)
    ann, bob, cat = (found["with_each"][name] for name in ("ann", "bob", "cat"))
    assert (ann["pairs"], ann["ties"], ann["agreement"]) == (5, 0, (1 + 0 + 1 + 0.5 + 0) / 5)
    assert (bob["pairs"], bob["ties"], bob["agreement"]) == (4, 1, (1 + 1 + 0.5 + 1) / 4)
    assert (cat["pairs"], cat["ties"], cat["agreement"]) == (3, 1, (0 + 0 + 0.5) / 3)
    interval = wilson(0.5, 5)
    assert ann["interval"] == pytest.approx([interval.low, interval.high])
    # Others who decided too: bob and not cat; cat; bob; cat and not bob; not bob.
    assert ann["others"] == pytest.approx((1 + 1 + 1 + 1) / 7)
    # More than half: yes, yes, yes, yes; the last pair has none.
    assert found["with_majority"]["pairs"] == 4
    assert found["with_majority"]["agreement"] == (1 + 0 + 1 + 0.5) / 4
    two = {tuple(part["annotators"]): part for part in found["each_two"]}
    assert (two["ann", "bob"]["pairs"], two["ann", "bob"]["agreement"]) == (5, 2 / 5)
    assert (two["ann", "cat"]["pairs"], two["ann", "cat"]["agreement"]) == (4, 2 / 4)


def test_one_row_an_annotator():
    """As `collect export` writes them: rows of one pair belong together, whichever side each chose."""
    found = measured([(10, 20), (20, 10), (10, 30), (10, 20)], [{"ann": 1}, {"bob": 1}, {"ann": 1}, {"bob": 1}])
    found = found["annotators"]
    assert (found["pairs"], found["shared"]) == (2, 1)
    assert found["with_each"]["ann"]["agreement"] == 1.0
    assert (found["with_each"]["bob"]["pairs"], found["with_each"]["bob"]["agreement"]) == (1, 0.0), "the first answer"
    assert found["between"]["raw"]["value"] == 0.0
    assert found["with_majority"] is None
    assert found["each_two"] == []  # of two, `between` has it all


def test_annotators_who_share_no_pair():
    found = measured([(10, 20), (10, 30)], [{"ann": 1}, {"bob": 1}])["annotators"]
    assert found["shared"] == 0
    assert found["between"] == {"raw": None, "cohen": None, "fleiss": None, "alpha": None}
    assert found["with_each"]["ann"]["others"] is None


@pytest.mark.parametrize("votes", [[{}, {}], [{"ann": 1}, {"ann": 1}]])
def test_nothing_is_told_of_fewer_than_two(votes):
    assert measured([(10, 20), (10, 30)], votes) == {}
    assert annotator_lines({}) == []


def test_kappa_does_not_hang_on_which_response_was_chosen():
    """If a were what was chosen, nearly all votes would be for a, and chance agreement near 1."""
    generator = torch.Generator().manual_seed(0)
    pairs, votes, first, second = [], [], [], []
    for _ in range(60):
        ann, bob = (1 if draw < 0.5 else -1 for draw in torch.rand(2, generator=generator).tolist())
        bob = ann if len(pairs) % 3 else bob
        pairs.append((10, 20) if ann == 1 else (20, 10))
        votes.append({"ann": 1, "bob": ann * bob})
        first.append(ann)
        second.append(bob)
    found = measured(pairs, votes)["annotators"]
    assert found["between"]["cohen"]["value"] == pytest.approx(cohen_kappa_score(first, second))
    assert found["between"]["fleiss"] is None


def test_lines():
    found = measured([(10, 20), (10, 30)], [{"ann": 1, "bob": 1, "cat": -1}, {"ann": 1, "bob": -1, "cat": 0}])
    lines = dict(annotator_lines(found))
    assert lines["with ann"] == "100.0%  (95%: 34.2% to 100.0%) on 2 pairs; other annotators 33.3%"
    assert lines["with cat"] == "0.0%  (95%: 0.0% to 79.3%) on 1 pairs, 1 ties left out; other annotators 0.0%"
    assert lines["with the majority"].endswith("on 1 pairs")
    assert lines["between annotators"].startswith("raw agreement 0.167 (95%: ")
    assert lines["two by two"].startswith("bob, cat: 0.0%  (95%: 0.0% to 65.8%) on 2 pairs, Cohen's kappa ")


PANDA = [
    {"instruction": f"Say {n}", "input": "", "response1": "one", "response2": "two", "annotator1": a, "annotator2": b}
    for n, (a, b) in enumerate([(1, 1), (2, 2), (1, 0), (0, 0), (2, 1), (2, 2)])
]


@pytest.fixture
def tokenizer():
    made = load_tokenizer(ModelConfig(name="shipped:demo/model"))
    prepare_tokenizer(made, len(made), DataConfig())
    return made


def test_votes_are_for_what_was_chosen_and_ties_are_kept_aside(tmp_path, tokenizer):
    path = tmp_path / "panda.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PANDA))
    config = DataConfig(preferences_test=str(path))
    held_out = held_out_preferences(config, tokenizer)
    assert held_out.votes == [(("annotator1", 1), ("annotator2", 1))] * 3
    assert held_out.tie_votes == [
        (("annotator1", 1), ("annotator2", 0)),
        (("annotator1", 0), ("annotator2", 0)),
        (("annotator1", -1), ("annotator2", 1)),
    ]
    assert len(held_out.ties) == 3
    assert held_out.groups == {}
    # With a limit the ties are those of the same part: all of them have a rank, and are under the highest or not.
    parts = [config.model_copy(update={"eval_examples": limit}) for limit in (1, 2, 3)]
    numbers = [len(held_out_preferences(part, tokenizer).tie_votes) for part in parts]
    assert numbers == sorted(numbers)
    assert numbers[0] < 3


REAL = Path(__file__).parents[2].parent / "shared" / "data" / "pandalm" / "testset-v1.json"


@pytest.mark.skipif(not REAL.is_file(), reason="needs the real files in ../shared/data")
def test_pandalm(tokenizer):
    rows = [
        row
        for row in json.loads(REAL.read_text())
        if all(isinstance(row[key], str) and row[key].strip() for key in ("instruction", "response1", "response2"))
    ]
    config = DataConfig(preferences_test=str(REAL), on_bad_row="skip", max_length=10_000)
    held_out = held_out_preferences(config, tokenizer)
    scores = [torch.zeros(len(held_out.votes))] * 2
    found = annotator_figures(held_out, scores, lambda sequences: torch.zeros(len(sequences)))["annotators"]
    assert found["pairs"] == len(rows)
    kappa = cohen_kappa_score([row["annotator1"] for row in rows], [row["annotator2"] for row in rows])
    assert found["each_two"][0]["kappa"] == pytest.approx(kappa, abs=0.01)  # sides have another order here
