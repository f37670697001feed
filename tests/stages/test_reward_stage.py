"""The reward stage: what it trains on, the losses it takes, what it leaves behind, and going on after a stop."""

import json
import math

import pytest
import torch
from demo_runs import DEMO, read_jsonl, small_recipe, weights, write_jsonl

from lorarlhf.backbone.load import load_backbone
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.errors import UserError
from lorarlhf.evaluation.reward_model import score_tokens
from lorarlhf.run import Run
from lorarlhf.stages.reward import train_reward
from lorarlhf.training.reward import RewardModelTrainer


def pairs_with_margins(path):
    rows = [json.loads(line) for line in (DEMO / "preferences.jsonl").read_text().splitlines()[:24]]
    return write_jsonl(path, [row | {"margin": 0.25 * (i % 5)} for i, row in enumerate(rows)])


def rated(path):
    rows = [json.loads(line) for line in (DEMO / "preferences.jsonl").read_text().splitlines()[:12]]
    scored = [
        (row["prompt"], row[side], score) for row in rows for side, score in (("chosen", 2.5), ("rejected", -1.0))
    ]
    return write_jsonl(path, [dict(zip(("prompt", "completion", "score"), row, strict=True)) for row in scored])


@pytest.fixture
def train(tmp_path, monkeypatch):
    """`train(*sets)`: the summary of a small reward stage, its backbone, its rows, and the batches it saw."""

    def make(*sets, name="run", resume=False):
        recipe, run = small_recipe(tmp_path, *sets), Run(tmp_path / name)
        backbone = load_backbone(recipe.model)
        batches = []

        def spy(trainer, model, inputs, *args, real=RewardModelTrainer.compute_loss, **kwargs):
            batches.append({key: value.clone() for key, value in inputs.items()})
            return real(trainer, model, inputs, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(RewardModelTrainer, "compute_loss", spy)
            summary = train_reward(recipe, run, resume, backbone)
        return summary, backbone, read_jsonl(run.stage("reward") / "metrics.jsonl"), batches

    return make


def test_logged_padding_is_of_the_passes_that_are_made(train, monkeypatch):
    made = []

    def spy(backbone, sequences, *args, real=SharedBackbone.scores, **kwargs):
        if torch.is_grad_enabled():
            made.append(sequences)
        return real(backbone, sequences, *args, **kwargs)

    monkeypatch.setattr(SharedBackbone, "scores", spy)
    _, _, rows, _ = train("reward.max_steps=2", "reward.logging_steps=2")
    computed = sum(batch.computed_tokens for batch in made)
    assert rows[0]["padding"] == pytest.approx(sum(batch.padding_tokens for batch in made) / computed)
    assert 0 < rows[0]["padding"] < 1


def sequences_of(batch):
    return [ids[: mask.sum()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]


def scores_at_the_start(tmp_path, batch):
    """As the fresh reward adapter (B is 0) and the head drawn after the seed give them."""
    recipe = small_recipe(tmp_path)
    backbone = load_backbone(recipe.model)
    torch.manual_seed(recipe.seed)
    backbone.attach("reward", recipe.lora.for_role("reward"))
    backbone.reward_head.reset_parameters()
    return score_tokens(backbone, sequences_of(batch)).tolist()


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


def mean(numbers):
    numbers = list(numbers)
    return math.fsum(numbers) / len(numbers)


@pytest.mark.parametrize(
    ("sets", "loss"),
    [
        ([], lambda c, r, m: -log_sigmoid(c - r)),
        (["reward.use_margin=true"], lambda c, r, m: -log_sigmoid(c - r - m)),
        (
            ["reward.label_smoothing=0.2"],
            lambda c, r, m: -0.8 * log_sigmoid(c - r) - 0.2 * log_sigmoid(r - c),
        ),
        (["reward.center_rewards_coefficient=0.3"], lambda c, r, m: -log_sigmoid(c - r) + 0.3 * (c + r) ** 2),
    ],
    ids=["bradley_terry", "margin", "label_smoothing", "centring"],
)
def test_the_first_loss_of_each_pairwise_objective(train, tmp_path, sets, loss):
    _, _, rows, batches = train(f"data.preferences={pairs_with_margins(tmp_path / 'margins.jsonl')}", *sets)
    assert [row["step"] for row in rows] == [1, 2, 3]
    scores = scores_at_the_start(tmp_path, batches[0])
    chosen, rejected = scores[:4], scores[4:]
    margins = batches[0]["margin"].tolist() if "margin" in batches[0] else [0.0] * 4
    if "reward.use_margin=true" in sets:
        assert any(margins)
    assert rows[0]["loss"] == pytest.approx(mean(map(loss, chosen, rejected, margins)), rel=1e-4)
    assert rows[0]["accuracy"] == mean(c > r for c, r in zip(chosen, rejected, strict=True))
    assert rows[0]["margin"] == pytest.approx(mean(chosen) - mean(rejected), abs=1e-5)


def test_the_first_loss_of_regression(train, tmp_path):
    path = rated(tmp_path / "rated.jsonl")
    summary, _, rows, batches = train(
        f"data.preferences={path}", "data.preferences_test=null", "data.test_size=0.5", "reward.objective=regression"
    )
    targets = batches[0]["score"].tolist()
    assert set(targets) == {2.5, -1.0}
    squares = [(s - t) ** 2 for s, t in zip(scores_at_the_start(tmp_path, batches[0]), targets, strict=True)]
    assert rows[0]["loss"] == pytest.approx(mean(squares), rel=1e-4)
    assert summary["objective"] == "regression"
    assert {"eval_loss", "eval_correlation"} <= set(summary)
    assert "accuracy" not in rows[0]


def test_the_trainer_sees_prompt_response_eos(train):
    _, backbone, _, batches = train()
    tokenizer = backbone.tokenizer

    def ids(row, side):
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        text = prompt + row[side][0]["content"] + tokenizer.eos_token
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    rows = [json.loads(line) for line in (DEMO / "preferences.jsonl").read_text().splitlines()[:40]]
    expected = {(tuple(ids(row, "chosen")), tuple(ids(row, "rejected"))) for row in rows}
    for batch in batches:
        sequences = [tuple(ids) for ids in sequences_of(batch)]
        assert set(zip(sequences[:4], sequences[4:], strict=True)) <= expected
        assert batch["input_ids"][batch["attention_mask"] == 0].eq(tokenizer.pad_token_id).all()
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_only_the_reward_role_changes_and_in_float32(train, tmp_path, quantization):
    recipe = small_recipe(tmp_path, f"model.quantization={quantization}")
    backbone = load_backbone(recipe.model)
    before = {name: x.clone() for name, x in backbone.state_dict().items()}
    torch.manual_seed(recipe.seed)
    backbone.attach("reward", recipe.lora.for_role("reward"))
    fresh = weights(backbone, "reward")
    _, trained, _, _ = train(f"model.quantization={quantization}")
    after = trained.state_dict()
    for name, x in before.items():
        if not name.startswith("heads."):
            now = after[name] if name in after else after[name.replace(".weight", ".base_layer.weight")]
            assert torch.equal(now, x), name
    for parameter, start in zip(trained.role_parameters("reward"), fresh, strict=True):
        assert parameter.dtype == torch.float32
        assert not torch.equal(parameter, start)
    assert not any(parameter.requires_grad for parameter in trained.parameters())


def test_what_the_stage_leaves_behind(train, tmp_path):
    summary, backbone, _, _ = train()
    run = Run(tmp_path / "run")
    assert run.read_summary("reward") == summary
    assert set(summary) == {
        *("objective", "eval_accuracy", "eval_accuracy_interval", "eval_margin", "eval_loss"),
        *("eval_calibration_error", "longer_wins_accuracy", "bag_of_words_accuracy", "reliability", "margins"),
        *("train_examples", "eval_examples", "train_rows", "eval_rows", "dropped_too_long"),
        *("steps", "seconds", "peak_memory_gb"),
    }
    assert (summary["train_examples"], summary["eval_examples"], summary["steps"]) == (40, 12, 3)
    fresh = load_backbone(small_recipe(tmp_path).model)
    fresh.load_role("reward", run.stage("reward"))
    rows = [[1, 40, 41, 2], [1, 50, 51, 52, 53]]
    assert torch.equal(score_tokens(fresh, rows), score_tokens(backbone, rows))
    assert (run.stage("reward") / "tokenizer.json").is_file()


def test_long_pairs_are_counted(train):
    summary, _, _, _ = train("data.max_length=30")
    assert 0 < summary["dropped_too_long"] == 52 - summary["train_examples"] - summary["eval_examples"]


def test_nothing_held_out(train):
    summary, _, _, _ = train("data.preferences_test=null", "data.test_size=0")
    assert summary["eval_examples"] == 0
    assert "eval_accuracy" not in summary


def test_accumulated_gradients_are_those_of_one_batch(train):
    """Same pairs in two halves: the same loss and the same gradient."""
    one = train("reward.per_device_train_batch_size=8", "reward.max_steps=2", name="one")[2]
    two = train("reward.gradient_accumulation_steps=2", "reward.max_steps=2", name="two")[2]
    for a, b in zip(one, two, strict=True):
        for key in ("loss", "grad_norm", "accuracy", "margin"):
            assert b[key] == pytest.approx(a[key], rel=1e-3, abs=1e-4), key


@pytest.mark.parametrize("objective", ["bradley_terry", "regression"])
def test_passes_add_up_to_the_whole_batch(train, tmp_path, monkeypatch, objective):
    """Each goes backward by itself: loss, gradient and what is logged are those of all rows at once."""
    of_pairs = objective == "bradley_terry"
    path = (pairs_with_margins if of_pairs else rated)(tmp_path / "rows.jsonl")
    sets = (f"data.preferences={path}", "data.preferences_test=null", "data.test_size=0.2")
    sets += (f"reward.objective={objective}", f"reward.use_margin={of_pairs}", "reward.max_steps=2")
    runs = []
    for tokens in (10**6, 40):
        monkeypatch.setattr("lorarlhf.training.reward.tokens_a_pass", lambda _, tokens=tokens: tokens)
        _, backbone, rows, seen = train(*sets, name=str(tokens))
        runs.append((weights(backbone, "reward"), rows, len(seen)))
    (whole, expected, two), (parts, logged, more) = runs
    assert two == 2 < more
    for row, other in zip(logged, expected, strict=True):
        for key in {"loss", "grad_norm", "accuracy", "margin", "mean_reward"} & set(other):
            assert row[key] == pytest.approx(other[key], rel=1e-3, abs=1e-5), key
    for parameter, other in zip(parts, whole, strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-3, atol=5e-5)  # Adam makes small differences large


def test_gradient_checkpointing_changes_nothing_but_memory(train):
    _, without, rows, _ = train(name="without")
    _, with_, rows_with, _ = train("reward.gradient_checkpointing=true", name="with")
    assert not without.causal_lm.is_gradient_checkpointing
    assert with_.causal_lm.is_gradient_checkpointing
    for a, b in zip(rows, rows_with, strict=True):
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-4)


def test_a_margin_that_is_not_there(tmp_path):
    run = Run(tmp_path / "run")
    with pytest.raises(UserError, match=r"reward\.use_margin: not every row of data\.preferences has a margin"):
        train_reward(small_recipe(tmp_path, "reward.use_margin=true"), run)
    assert not run.stage("reward").exists()
