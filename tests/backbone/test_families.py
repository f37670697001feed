"""Every supported family goes through the whole main job: reward model, PPO and export on a tiny random model."""

import json

import pytest
import torch
from tiny_models import FAMILIES, SHAPE, assert_identical, randomise, snapshot
from torch.testing import assert_close
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.backbone.load import load_backbone
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.display import read_rows
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import DataConfig, LoraConfig, ModelConfig, PPOConfig, Recipe, RewardConfig
from lorarlhf.run import Run
from lorarlhf.stages.export import export_run
from lorarlhf.stages.ppo import train_ppo
from lorarlhf.stages.reward import train_reward

PROMPTS = ["how are you?", "what is the time now?", "why", "tell me about the sea and the sky.", "no", "is it so?"]


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    """Two steps of the reward model, one PPO iteration with one update."""
    rows = [{"prompt": p, "chosen": " very well thanks", "rejected": " go away"} for p in PROMPTS]
    data = tmp_path / "preferences.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Recipe(
        model=ModelConfig(name="the test sets it"),
        lora=LoraConfig(r=SHAPE.r, alpha=SHAPE.alpha),
        data=DataConfig(preferences=str(data), preferences_test=str(data)),
        reward=RewardConfig(
            max_steps=2,
            per_device_train_batch_size=3,
            gradient_accumulation_steps=1,
            logging_steps=1,
            learning_rate=1e-2,
        ),
        ppo=PPOConfig(
            iterations=1,
            batch_size=6,
            num_ppo_epochs=1,
            num_mini_batches=1,
            micro_batch_tokens=64,
            response_length=8,
            learning_rate=1e-2,
            eval_every=0,
            save_every=0,
        ),
    )


def base_tensors(backbone: SharedBackbone) -> dict[str, torch.Tensor]:
    state = backbone.causal_lm.state_dict()
    return {key.replace(".base_layer", ""): value.clone() for key, value in state.items() if ".lora_" not in key}


# Beside those with a tiny model of their own: one that scales its logits, hybrids, one that cannot share its trunk, one
# that has images.
OTHERS = ("granite", "lfm2", "qwen3_5_text", "bloom", "gemma3")


@pytest.mark.parametrize(
    ("family", "compute_dtype"), [*((family, "float32") for family in (*FAMILIES, *OTHERS)), ("qwen2", "bfloat16")]
)
def test_reward_ppo_and_export(family, compute_dtype, recipe, tiny_model, tmp_path):
    model = ModelConfig(name=str(tiny_model(family)), compute_dtype=compute_dtype)
    recipe = recipe.model_copy(update={"model": model})
    run = Run(tmp_path / "run")
    backbone = load_backbone(model)
    base = base_tensors(backbone)

    train_reward(recipe, run, backbone=backbone)
    losses = [row["loss"] for row in read_rows(run.stage("reward") / "metrics.jsonl", "step")]
    assert len(losses) == 2
    assert torch.tensor(losses).isfinite().all()
    reward = snapshot(backbone.role_parameters("reward"))
    assert all(tensor.any() for tensor in reward)  # B started at 0

    # An SFT stage that has run: policy and reference start from its adapter, not from the bare base.
    backbone.attach("policy", recipe.lora.for_role("policy"))
    randomise(backbone, "policy")
    backbone.save_role("policy", run.stage("sft"))
    start = snapshot(backbone.role_parameters("policy"))
    train_ppo(recipe, run, backbone=backbone)
    assert_identical(base_tensors(backbone), base)
    assert_identical(snapshot(backbone.role_parameters("reward")), reward)
    assert_identical(snapshot(backbone.role_parameters("reference")), start)
    for role, before in {"policy": start, "critic": reward}.items():
        assert all(
            (now != old).any() for now, old in zip(snapshot(backbone.role_parameters(role)), before, strict=True)
        ), role
    (metrics,) = read_rows(run.stage("ppo") / "metrics.jsonl", "iteration")
    assert all(torch.tensor(float(value)).isfinite() for key, value in metrics.items() if key != "warnings")
    assert abs(metrics["kl"]) < 1e-4
    assert metrics["approx_kl"] < 1e-6
    assert metrics["clip_fraction"] == 0
    assert metrics["rollout_gap"] < {"float32": 1e-3, "bfloat16": 0.1}[compute_dtype]

    # Both are merged onto the base they were trained on.
    limit = {"float32": 1e-3, "bfloat16": 0.3}[compute_dtype]
    compared = export_run(run, tmp_path / "ppo", "ppo", merge=True, dtype="float32")
    assert compared["largest_gap"] < limit
    tokens = torch.randint(4, 30, (2, 11))
    sequences = TokenBatch(tokens, torch.tensor([5, 5]), torch.tensor([6, 6]))
    with torch.no_grad():
        expected = backbone.logits(backbone.hidden_states("policy", sequences)).float()
        logits = AutoModelForCausalLM.from_pretrained(tmp_path / "ppo")(input_ids=tokens).logits
        assert_close(logits, expected, rtol=limit, atol=limit)
        before = backbone.logits(backbone.hidden_states("reference", sequences)).float()
        assert not torch.allclose(before, expected, atol=0.1)
        if type(backbone.causal_lm.config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
            with pytest.raises(UserError, match=r"no sequence classifier for .*; export the adapter alone"):
                export_run(run, tmp_path / "reward", "reward", merge=True, dtype="float32")
            export_run(run, tmp_path / "reward", "reward", merge=False)
            backbone.load_role("reward", tmp_path / "reward")
            return
        export_run(run, tmp_path / "reward", "reward", merge=True, dtype="float32")
        classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
        scores = classifier(input_ids=tokens).logits.squeeze(-1)
        limit = {"float32": 1e-4, "bfloat16": 2e-2}[compute_dtype]
        assert_close(scores, backbone.scores(sequences), rtol=limit, atol=limit)
