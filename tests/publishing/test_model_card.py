"""The model card: its metadata, how it says to load the model, and what it leaves out."""

import pytest
import torch
import yaml

from lorarlhf.publishing.card import is_hub_id, model_card, without_folders
from lorarlhf.recipe.load import load_recipe
from lorarlhf.recipe.sections import Recipe

SUMMARY = {"eval_accuracy": 0.81254321, "steps": 20, "best": {"eval_reward": 1.5, "iteration": 8}, "before": None}


def recipe(**sections) -> Recipe:
    base = {"model": {"name": "acme/base-1b"}, "data": {"preferences": "acme/pairs", "prompts": "acme/prompts"}}
    return Recipe.model_validate({**base, **sections})


def card(stage="ppo", merged=torch.bfloat16, summary=SUMMARY, **sections) -> str:
    return model_card(recipe(**sections), stage, summary, merged)


def metadata(text: str) -> dict:
    opening, header, _ = text.split("---\n", 2)
    assert opening == ""
    return yaml.safe_load(header)


def section(text: str, title: str) -> str:
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def code(text: str, language: str) -> str:
    return text.split(f"```{language}\n")[1].split("```")[0]


@pytest.mark.parametrize(
    ("stage", "merged", "expected"),
    [
        ("ppo", torch.bfloat16, {"library_name": "transformers", "pipeline_tag": "text-generation"}),
        ("reward", None, {"library_name": "peft", "pipeline_tag": "text-classification"}),
        ("ppo", None, {"base_model": "acme/base-1b", "base_model_relation": "adapter"}),
        ("sft", torch.bfloat16, {"base_model": "acme/base-1b", "base_model_relation": "finetune"}),
        ("ppo", torch.bfloat16, {"datasets": ["acme/prompts"], "license": "mit"}),
        ("reward", torch.bfloat16, {"datasets": ["acme/pairs"]}),
    ],
)
def test_metadata_for_the_hub(stage, merged, expected):
    header = metadata(card(stage, merged, export={"license": "mit"}))
    assert expected.items() <= header.items()
    assert {"lorarlhf", {"sft": "sft", "reward": "reward-model", "ppo": "ppo"}[stage]} <= set(header["tags"])


def test_what_the_hub_would_refuse_is_left_out(tmp_path):
    text = card(model={"name": str(tmp_path)}, data={"prompts": "shipped:demo/prompts.jsonl"})
    assert not {"base_model", "base_model_relation", "datasets", "license"} & metadata(text).keys()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt2", True),
        ("Qwen/Qwen2.5-0.5B", True),
        ("shipped:demo/model", False),
        ("/srv/models/base", False),
        ("./base", False),
        ("../base", False),
        ("~/base", False),
        ("pairs.jsonl.gz", False),
        ("data/pairs.csv", False),
        ("here/model", False),
        ("C:\\models\\base", False),
    ],
)
def test_hub_ids_are_told_from_paths(name, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "model").mkdir(parents=True)
    assert is_hub_id(name) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/home/me/base", "base"),
        ("~/models/base", "base"),
        ("C:\\Users\\me\\base", "base"),
        ("models/base", "models/base"),
        ("acme/base-1b", "acme/base-1b"),
        ("shipped:demo/model", "shipped:demo/model"),
    ],
)
def test_published_names_hold_no_folder_of_this_computer(value, expected):
    assert without_folders(value) == expected


def test_no_absolute_path_anywhere():
    text = card(
        model={"name": "/home/me/base"},
        data={"prompts": "/home/me/prompts.jsonl", "chat_template": "~/me/chat.jinja"},
        summary={"file": "/home/me/x"},
    )
    assert "/me" not in text
    assert "base-ppo" in text


def test_the_recipe_in_the_card_can_be_run_again(tmp_path):
    text = card(ppo={"kl_coef": 0.125})
    (tmp_path / "again.yaml").write_text(code(text, "yaml"))
    assert load_recipe(str(tmp_path / "again.yaml")) == recipe(ppo={"kl_coef": 0.125})


def test_results_are_a_table_of_what_the_stage_reported():
    rows = section(card(), "Results").strip().splitlines()
    assert rows[2:] == [
        "| eval_accuracy | 0.8125 |",
        "| steps | 20 |",
        "| best.eval_reward | 1.5 |",
        "| best.iteration | 8 |",
    ]
    assert "Results" not in card(summary={})


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
@pytest.mark.parametrize("merged", [torch.float32, None])
@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
def test_the_code_to_load_it_is_for_this_kind(stage, merged, quantization):
    text = card(stage, merged, model={"name": "acme/base-1b", "quantization": quantization})
    source = code(section(text, "Use"), "python")
    compile(source, "card", "exec")
    assert ("AutoModelForSequenceClassification" in source) == (stage == "reward")
    assert ("PeftModel" in source) == (merged is None)
    assert ("BitsAndBytesConfig" in source) == (merged is None and quantization != "none")
    if merged:
        assert len(source.splitlines()) == 3


def test_the_card_says_which_base_was_merged_and_with_which_versions():
    assert "full-precision base model" in card("ppo")
    assert "4-bit NF4 base model dequantised" in card("reward")
    assert "full-precision base model" in card("reward", model={"name": "acme/base-1b", "quantization": "none"})
    versions = section(card(), "Versions")
    assert all(f"{name} " in versions for name in ("lorarlhf", "torch", "transformers", "peft", "trl"))
    assert torch.__version__ in versions


def test_the_card_names_the_algorithm():
    rloo = card(ppo={"advantage_estimator": "rloo"})
    assert "trained with RLOO against a reward model" in rloo
    assert "rloo" in metadata(rloo)["tags"]
    assert "trained with PPO against a reward model" in card()
