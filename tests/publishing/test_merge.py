"""What an export computes, what lies in its folder, and which folders it leaves alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
)

from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.backbone.load import attention, load_backbone
from lorarlhf.errors import UserError
from lorarlhf.publishing.folder import MARKER
from lorarlhf.recipe.shipped import shipped_folder
from lorarlhf.run import Run, of_adapter, write_json
from lorarlhf.stages import export
from lorarlhf.stages.export import export_run

BASE = shipped_folder("data") / "demo" / "model"
ROWS = 24
LENGTHS = torch.arange(ROWS) % 17 + 4
TOKENS = torch.randint(5, 800, (ROWS, 20), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(20) < LENGTHS[:, None]).long()
TOKENS[MASK == 0] = 0  # the demo's pad token


def backbone_scores(run: Run) -> torch.Tensor:
    backbone = load_backbone(run.read_recipe().model)
    backbone.load_role("reward", run.stage("reward"))
    with torch.no_grad():
        return backbone.eval().scores(TokenBatch(TOKENS, LENGTHS, torch.zeros_like(LENGTHS)))


def same_order(scores: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.equal(scores.argsort(), expected.argsort())


# Merged models


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_a_policy_merged_onto_the_original_gives_the_logits_of_base_and_adapter(make_run, tmp_path, stage):
    run = make_run([stage])
    export_run(run, tmp_path / "out", stage, dtype="float32", base="original")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    with torch.no_grad():
        before = base(TOKENS[:4]).logits
        expected = PeftModel.from_pretrained(base, run.stage(stage)).eval()(TOKENS[:4]).logits
        logits = merged(TOKENS[:4]).logits
    assert merged.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert (expected - before).abs().max() > 0.1


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_a_merged_policy_gives_the_logprobs_that_training_saw(make_run, tmp_path, quantization):
    run = make_run(["ppo"], [f"model.quantization={quantization}"])
    compared = export_run(run, tmp_path / "out", "ppo", dtype="float32")
    backbone = load_backbone(run.read_recipe().model)
    backbone.load_role("policy", run.stage("ppo"))
    sequences = TokenBatch(TOKENS, torch.full_like(LENGTHS, 2), LENGTHS - 2)
    with torch.no_grad():
        expected, _ = backbone.eval().logprobs("policy", sequences)
        before, _ = backbone.logprobs("reference", sequences)
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
        logprobs = merged(TOKENS).logits.log_softmax(-1)[:, 1:-1].gather(2, TOKENS[:, 2:, None]).squeeze(2)
    mask = sequences.response_mask
    torch.testing.assert_close(logprobs[:, : mask.shape[1]][mask], expected[mask], rtol=0, atol=1e-3)
    assert (expected - before).abs().max() > 0.1
    assert compared["largest_gap"] < 1e-3
    assert compared["responses"] == 8


def test_the_original_base_makes_another_policy_and_the_figures_say_so(make_run, tmp_path):
    run = make_run(["ppo"])
    near, far = (
        export_run(run, tmp_path / base, "ppo", dtype="float32", base=base) for base in ("dequantized", "original")
    )
    assert near["kl"] < 1e-4 < 0.01 < far["kl"]
    marker = json.loads((tmp_path / "original" / MARKER).read_text())
    assert marker["compared"] == far
    assert run.read_summary("ppo")["export"] == far
    assert f"KL {far['kl']:.2g} nats a response" in (tmp_path / "original" / "README.md").read_text()


def test_the_comparison_of_a_reward_model_counts_what_rounding_swaps(make_run, tmp_path):
    run = make_run(["reward"])
    exact, rounded = (export_run(run, tmp_path / dtype, "reward", dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert (exact["comparisons"], exact["swapped"]) == (64, 0)
    assert exact["mean_gap"] < 1e-4 < rounded["mean_gap"] < 0.1 * rounded["spread"]
    assert exact["spread"] == rounded["spread"]


def test_without_its_data_a_model_is_exported_and_not_compared(make_run, tmp_path, caplog):
    run = make_run(["ppo"], [f"data.prompts={tmp_path}/gone.jsonl", "data.prompts_test=null"])
    assert export_run(run, tmp_path / "out", "ppo") == {}
    assert "not compared with the run's own model" in caplog.text
    assert "gone.jsonl: no such file" in caplog.text
    assert json.loads((tmp_path / "out" / MARKER).read_text())["compared"] is None
    assert "export" not in run.read_summary("ppo")


def test_without_a_prompt_that_is_short_enough_a_model_is_exported_and_not_compared(make_run, tmp_path, caplog):
    """Fine-tuning has a limit of its own, `data.max_length`."""
    run = make_run(["sft"], ["data.max_prompt_length=1"])
    assert export_run(run, tmp_path / "out", "sft") == {}
    assert "not compared with the run's own model" in caplog.text
    assert "every row is longer than data.max_prompt_length 1 tokens" in caplog.text


def test_an_adapter_of_another_base_is_refused(make_run, tmp_path):
    run = make_run(["ppo"])
    other = shutil.copytree(BASE, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rope_theta": 1234.0}))
    recipe = run.read_recipe()
    run.write_recipe(recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": str(other)})}))
    with pytest.raises(UserError, match="trained on shipped:demo/model, which has another config than"):
        export_run(run, tmp_path / "out", "ppo")
    assert not (tmp_path / "out").exists()
    export_run(run, tmp_path / "out", "ppo", merge=False, allow_other_base=True)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_merged_weights_are_the_exact_sum_rounded_once(make_run, tmp_path, dtype):
    run = make_run(["ppo"], ["export.base=original"])
    export_run(run, tmp_path / "out", "ppo", dtype=dtype)
    adapter = load_file(run.stage("ppo") / "adapter_model.safetensors")
    base, merged = (load_file(folder / "model.safetensors") for folder in (BASE, tmp_path / "out"))
    assert base.keys() == merged.keys()
    for name, weight in merged.items():
        exact = base[name].double()
        prefix = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{prefix}.lora_A.weight" in adapter:
            a, b = (adapter[f"{prefix}.lora_{matrix}.weight"].double() for matrix in "AB")
            exact = exact + 16 / 8 * b @ a  # alpha / r of the demo's recipe
        assert weight.dtype == getattr(torch, dtype)
        ulp = {"bfloat16": 2**-8, "float16": 2**-11, "float32": 2**-22}[dtype]
        assert ((weight.double() - exact).abs() <= ulp * 1.001 * exact.abs() + 1e-6).all(), name


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_a_merged_reward_model_gives_the_scores_that_training_saw(make_run, tmp_path, quantization):
    run = make_run(["reward"], [f"model.quantization={quantization}"])
    export_run(run, tmp_path / "out", "reward", dtype="float32")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        logits = model(input_ids=TOKENS, attention_mask=MASK).logits
    expected = backbone_scores(run)
    assert logits.shape == (ROWS, 1)
    torch.testing.assert_close(logits.squeeze(-1), expected, rtol=0, atol=1e-3)
    assert same_order(logits.squeeze(-1), expected)
    assert expected.std() > 0.1


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_a_reward_model_merged_in_bfloat16_moves_scores_by_its_rounding_alone(make_run, tmp_path, compute):
    """A bfloat16 score between 1 and 2 is a multiple of 1/128: 1e-3 and the exact order are out of its reach."""
    run = make_run(["reward"], [f"model.compute_dtype={compute}"])
    export_run(run, tmp_path / "out", "reward", dtype="bfloat16")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        scores = model(input_ids=TOKENS, attention_mask=MASK).logits.squeeze(-1).float()
    expected = backbone_scores(run)
    spread = expected.std()
    assert (scores - expected).abs().max() < 0.1 * spread
    gaps, expected_gaps = (x[:, None] - x[None] for x in (scores, expected))
    assert (gaps[expected_gaps > 0.15 * spread] > 0).all()


def test_the_recipe_of_the_run_says_whether_to_merge_and_in_which_type(make_run, tmp_path):
    run = make_run(["ppo"], ["export.dtype=float16"])
    export_run(run, tmp_path / "out", "ppo")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.float16
    run.write_recipe(
        run.read_recipe().model_copy(update={"export": run.read_recipe().export.model_copy(update={"merge": False})})
    )
    export_run(run, tmp_path / "adapter", "ppo")
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()


def test_the_score_head_is_not_rounded_on_the_way(make_run, tmp_path):
    run = make_run(["reward"], ["model.compute_dtype=bfloat16"])
    export_run(run, tmp_path / "out", "reward", dtype="float32")
    exported = load_file(tmp_path / "out" / "model.safetensors")["score.weight"]
    trained = load_file(run.stage("reward") / "adapter_model.safetensors")["base_model.model.score.weight"]
    assert torch.equal(exported, trained)


# Adapters


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_an_exported_reward_adapter_scores_in_plain_peft_as_in_training_at_bfloat16(make_run, tmp_path, quantization):
    """Trunk in bfloat16 and score head in float32, as the backbone computes: equal to 1e-3, in exactly that order."""
    run = make_run(["reward"], [f"model.quantization={quantization}", "model.compute_dtype=bfloat16"])
    export_run(run, tmp_path / "out", "reward", merge=False)
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    base = AutoModelForSequenceClassification.from_pretrained(
        BASE,
        num_labels=1,
        dtype=torch.bfloat16,
        quantization_config=nf4 if quantization == "nf4" else None,
        attn_implementation=attention(run.read_recipe().model, torch.bfloat16),  # another one rounds otherwise
    )
    base.score.float()
    model: Any = PeftModel.from_pretrained(base, tmp_path / "out").eval().get_base_model()
    for module in base.modules():
        module.support_avx512bf16_for_cpu = False  # another kernel of bitsandbytes, which rounds otherwise
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model(input_ids=TOKENS, attention_mask=MASK).last_hidden_state
        scores = model.score(hidden[torch.arange(ROWS), LENGTHS - 1].float()).squeeze(-1)
    expected = backbone_scores(run)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-3)
    assert same_order(scores, expected)


def test_an_adapter_names_its_base_model_and_loads_in_plain_peft(make_run, tmp_path):
    run = make_run(["ppo"])
    export_run(run, tmp_path / "out", "ppo", merge=False)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "shipped:demo/model"
    models = [
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), folder).eval()
        for folder in (tmp_path / "out", run.stage("ppo"))
    ]
    with torch.no_grad():
        assert torch.equal(*(model(TOKENS[:2]).logits for model in models))
    assert not list((tmp_path / "out").glob("model*.safetensors"))


# What goes along


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize(("stage", "side"), [("ppo", "left"), ("reward", "right")])
def test_tokenizer_and_card_go_along(make_run, tmp_path, stage, side, merged):
    run = make_run([stage])
    export_run(run, tmp_path / "out", stage, merge=merged)
    tokenizer, original = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "out", BASE))
    assert tokenizer.chat_template == original.chat_template
    assert tokenizer.get_vocab() == original.get_vocab()
    assert (tokenizer.pad_token, tokenizer.eos_token) == (original.pad_token, original.eos_token)
    assert tokenizer.padding_side == side
    assert "held-out accuracy | 0.8125" in (tmp_path / "out" / "README.md").read_text()


def test_the_evaluation_of_the_stage_stands_in_the_card_without_folders(make_run, tmp_path):
    run = make_run(["ppo"])
    of_one = {"reward": 1.0, "entropy": 0.5, "response_length": 9.0, "finished": 1.0}
    evaluation = {
        "stage": "ppo",
        "reference": "base",
        "prompts": 40,
        "data": f"{tmp_path}/prompts.jsonl",
        "before": of_one,
        "after": {**of_one, "reward": 2.0, "kl": 3.0},
        "win_rate": 0.75,
        "win_rate_interval": [0.6, 0.86],
    }
    write_json(run.stage("ppo") / "evaluation.json", {**evaluation, **of_adapter(run.stage("ppo"))})
    export_run(run, tmp_path / "out", "ppo", merge=False)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| wins by reward | 75.0%  (95%: 60.0% to 86.0%) |" in card
    assert "Ppo against base on 40 prompts of prompts.jsonl, of the run's own model." in card
    assert str(tmp_path) not in card
    weights = run.stage("ppo") / "adapter_model.safetensors"
    save_file({name: 2 * x for name, x in load_file(weights).items()}, weights)  # a --resume has trained on since
    export_run(run, tmp_path / "later", "ppo", merge=False)
    assert "wins by reward" not in (tmp_path / "later" / "README.md").read_text()


@pytest.fixture
def odd_base(tmp_path) -> Path:
    """The demo's base without pad, with dropout, other ends of a response, and a temperature that cannot be saved."""
    folder = shutil.copytree(BASE, tmp_path / "secret-folder" / "odd-base")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.25, "pad_token_id": None}))
    generation = {"bos_token_id": 1, "eos_token_id": [7, 9], "temperature": 0.5}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template.replace("eos_token }}", "'<|system|>' }}"))
    return folder


def test_the_base_models_own_settings_are_kept(make_run, tmp_path, odd_base):
    run = make_run(["ppo"], [f"model.name={odd_base}"])
    export_run(run, tmp_path / "out", "ppo")
    generation = GenerationConfig.from_pretrained(tmp_path / "out")
    assert generation.eos_token_id == [7, 9, 2, 3], "as the base stopped, eos, and as turns of the template end"
    assert generation.pad_token_id == 0
    assert (generation.temperature, generation.do_sample) == (0.5, True)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.attention_dropout == 0.25


def test_a_reward_model_finds_the_end_of_padded_rows(make_run, tmp_path, odd_base):
    run = make_run(["reward"], [f"model.name={odd_base}"])
    export_run(run, tmp_path / "out", "reward", dtype="float32")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert model.config.pad_token_id == 0
    with torch.no_grad():
        together = model(input_ids=TOKENS[:3], attention_mask=MASK[:3]).logits
        alone = [model(input_ids=TOKENS[row : row + 1, : LENGTHS[row]]).logits for row in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-4)


@pytest.mark.parametrize("stage", ["ppo", "reward"])
@pytest.mark.parametrize("merged", [True, False])
def test_no_folder_of_this_computer_is_published(make_run, tmp_path, odd_base, stage, merged):
    run = make_run([stage], [f"model.name={odd_base}", f"data.preferences={tmp_path}/secret-folder/pairs.jsonl"])
    export_run(run, tmp_path / "out", stage, merge=merged)
    for file in (tmp_path / "out").iterdir():
        assert b"secret-folder" not in file.read_bytes(), file.name
    assert "name: odd-base" in (tmp_path / "out" / "README.md").read_text()


# Folders


def test_an_earlier_export_is_replaced_whole(make_run, tmp_path):
    run = make_run(["ppo", "reward"])
    export_run(run, tmp_path / "out", "ppo")
    export_run(run, tmp_path / "out", "reward", merge=False)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "adapter_model.safetensors" in names
    assert "model.safetensors" not in names
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out"}


@pytest.mark.parametrize("change", ["a file beside", "an edited card", "no export"])
def test_what_an_export_did_not_write_is_never_overwritten(make_run, tmp_path, change):
    run, out = make_run(["ppo"]), tmp_path / "out"
    export_run(run, out, "ppo", merge=False)
    if change == "an edited card":
        (out / "README.md").write_text("mine")
    else:
        (out / "notes.txt").write_text("mine")
    if change == "no export":
        (out / MARKER).unlink()
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UserError, match="nothing is overwritten"):
        export_run(run, out, "ppo", merge=False)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_an_interrupted_export_leaves_things_as_they_were(make_run, tmp_path, monkeypatch):
    run, out = make_run(["ppo"]), tmp_path / "out"

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(export, "model_card", interrupt)
        with pytest.raises(KeyboardInterrupt):
            export_run(run, out, "ppo")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    out.mkdir()
    export_run(run, out, "ppo", merge=False)
    assert (out / "README.md").is_file()


def test_an_export_needs_an_adapter_and_a_folder(make_run, tmp_path):
    run = make_run(["reward"])
    with pytest.raises(UserError, match=r"ppo: no adapter there; run `lorarlhf ppo --recipe "):
        export_run(run, tmp_path / "out", "ppo")
    with pytest.raises(UserError, match="not a run"):
        export_run(Run(tmp_path / "nothing"), tmp_path / "out", "ppo")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="a file of that name exists"):
        export_run(run, tmp_path / "file", "reward")
    with pytest.raises(UserError, match="cannot be written"):
        export_run(run, tmp_path / "file" / "below", "reward")
    assert (tmp_path / "file").read_text() == "mine"
