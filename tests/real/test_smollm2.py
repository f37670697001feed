"""A real chat model goes the whole way: what random weights cannot show is that it is still one afterwards."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from demo_runs import read_jsonl
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.backbone.load import load_backbone
from lorarlhf.data.tokenize import encode_completion
from lorarlhf.display import read_rows
from lorarlhf.recipe.load import load_recipe
from lorarlhf.recipe.sections import Recipe
from lorarlhf.run import Run
from lorarlhf.stages.evaluate import evaluate
from lorarlhf.stages.export import export
from lorarlhf.stages.ppo import train_ppo
from lorarlhf.stages.reward import train_reward
from lorarlhf.stages.sft import train_sft

pytestmark = pytest.mark.real

QUESTION, ANSWER = "What is the capital of France?", "The capital of France is Paris."
SHORT = (
    "data.test_size=0.2",
    "data.max_length=128",
    "data.max_prompt_length=64",
    *(f"{stage}.max_steps=3" for stage in ("sft", "reward")),
    *(f"{stage}.warmup_steps=0" for stage in ("sft", "reward")),
    *(f"{stage}.logging_steps=1" for stage in ("sft", "reward")),
    *(f"{stage}.per_device_train_batch_size=2" for stage in ("sft", "reward")),
    *(f"{stage}.gradient_accumulation_steps=1" for stage in ("sft", "reward")),
    "ppo.iterations=2",
    "ppo.critic_warmup_iterations=0",
    "ppo.batch_size=4",
    "ppo.response_length=16",
    "ppo.num_ppo_epochs=1",
    "ppo.eval_prompts=2",
    "ppo.eval_every=2",
)


def settings(smollm2: Path, comparisons: Path, *sets: str) -> Recipe:
    """The shipped recipe for this model, three steps long."""
    sources = [f"data.{key}={comparisons}" for key in ("sft", "preferences", "prompts")]
    recipe = load_recipe("smollm2-135m-cpu", sets=[f"model.name={smollm2}", *sources, *SHORT, *sets])
    tests = {f"{key}_test": None for key in ("sft", "preferences", "prompts")}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=tests)})


@pytest.fixture(scope="session")
def supervised(smollm2, comparisons, tmp_path_factory) -> Run:
    """Fine-tuned, with a reward model."""
    run = Run(tmp_path_factory.mktemp("real") / "run")
    recipe = settings(smollm2, comparisons)
    train_sft(recipe, run)
    train_reward(recipe, run)
    return run


@pytest.fixture(scope="session")
def trained(smollm2, comparisons, supervised):
    """`trained(estimator)`: the same run with a policy on top."""
    made: dict[str, Run] = {}

    def train(estimator: str) -> Run:
        if estimator not in made:
            run = made[estimator] = Run(supervised.path.parent / estimator)
            shutil.copytree(supervised.path, run.path)
            sets = (f"ppo.advantage_estimator={estimator}", "ppo.num_generations=" + ("null", "2")[estimator != "gae"])
            train_ppo(settings(smollm2, comparisons, *sets), run)
        return made[estimator]

    return train


@torch.no_grad()
def answer(folder: Path) -> str:
    """As transformers alone has it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    question = [{"role": "user", "content": QUESTION}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**ids, max_new_tokens=16, do_sample=False)
    return tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def assert_finite(rows: list[dict], *expected: str) -> None:
    for row in rows:
        assert all(math.isfinite(value) for value in row.values() if isinstance(value, float)), row
    for key in expected:
        assert any(key in row for row in rows), key


def assert_readable(texts: list[str]) -> None:
    """Words of letters: random weights write signs and pieces of words of many languages."""
    words = [word for text in texts for word in text.split()]
    assert len(words) > 2 * len(texts)
    assert sum(bool(re.fullmatch(r"[\"'(]*[A-Za-z][a-z'-]*[\"').,:;!?]*", word)) for word in words) > 0.7 * len(words)


def test_the_model_is_the_real_one(smollm2):
    assert answer(smollm2) == ANSWER


@pytest.mark.parametrize(("stage", "highest"), [("sft", 5.0), ("reward", 2.0)])  # random weights: 10.8; log 2 is 0.7
def test_supervised_stages(supervised, stage, highest):
    rows = read_rows(supervised.stage(stage) / "metrics.jsonl", "step")
    assert_finite(rows, "loss")
    assert all(0 < row["loss"] < highest for row in rows if "loss" in row)
    assert math.isfinite(supervised.read_summary(stage)["eval_loss"])


@pytest.mark.parametrize("estimator", ["gae", "rloo", "grpo"])
def test_every_estimator(trained, estimator):
    folder = trained(estimator).stage("ppo")
    rows = [row for row in read_rows(folder / "metrics.jsonl", "iteration") if "kl" in row]
    assert_finite(rows, "reward", "rollout_gap")
    assert len(rows) == 2
    assert abs(rows[0]["kl"]) < 1e-3
    assert all(row["rollout_gap"] < 1e-2 for row in rows)
    assert ("value" in rows[0]) == (estimator == "gae")
    assert_readable([row["response"] for row in read_jsonl(folder / "samples.jsonl")])


def test_evaluation(trained):
    run = trained("gae")
    policy = evaluate(run, "ppo")
    assert math.isfinite(policy["after"]["kl"])
    assert 0 <= policy["win_rate"] <= 1
    assert_readable([sample["after"] for sample in policy["samples"]])
    reward = evaluate(run, "reward")
    assert 0 <= reward["eval_accuracy"] <= 1


def test_what_is_exported_is_still_the_model_and_what_was_trained(trained, tmp_path):
    run = trained("gae")
    folder = export(run, tmp_path / "model", "ppo", dtype="float32", anyway=True)  # two iterations prove nothing
    assert answer(folder) == ANSWER
    config = run.read_recipe().model
    backbone = load_backbone(config)
    backbone.load_role("policy", run.adapter("ppo"))
    question = [{"role": "user", "content": QUESTION}]
    prompt, response = encode_completion(backbone.tokenizer, question, ANSWER, backbone.end_id)
    sequences = TokenBatch.from_lists([prompt], [response])
    with torch.no_grad():
        expected, _ = backbone.logprobs("policy", sequences)
        exported = load_backbone(config.model_copy(update={"name": str(folder), "quantization": "none"}))
        actual, _ = exported.logprobs("policy", sequences)
    assert expected.mean() > -1  # a nat a token: it knows the answer
    torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-2)
