"""The model card: its metadata, the code that it shows, what it tells of the run, and what it leaves out."""

import ast
import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from lorarlhf.backbone.load import load_backbone
from lorarlhf.data.tokenize import encode_prompt
from lorarlhf.evaluation.reward_model import RewardModel
from lorarlhf.publishing.card import is_hub_id, model_card, without_folders
from lorarlhf.publishing.snippets import BEGINNING, QUESTION, RESPONSE
from lorarlhf.recipe.load import load_recipe
from lorarlhf.recipe.sections import Recipe
from lorarlhf.recipe.shipped import shipped_folder
from lorarlhf.recipe.stages import STAGES
from lorarlhf.run import Run
from lorarlhf.stages.export import export_run

TOKENIZER = AutoTokenizer.from_pretrained(shipped_folder("data") / "demo" / "model")
SUMMARY = {"eval_accuracy": 0.81254321, "steps": 20, "best": {"eval_reward": 1.5, "iteration": 8}, "before": None}


def recipe(**sections) -> Recipe:
    base = {"model": {"name": "acme/base-1b"}, "data": {"preferences": "acme/pairs", "prompts": "acme/prompts"}}
    return Recipe.model_validate({**base, **sections})


def card(stage="ppo", merged=torch.bfloat16, summary=SUMMARY, evaluation=(), compared="", **sections) -> str:
    return model_card(recipe(**sections), stage, TOKENIZER, merged, summary, evaluation, compared)


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


def test_the_data_behind_the_reward_model_and_the_start_are_named():
    data = {"sft": "acme/shown", "preferences": "acme/pairs", "prompts": "acme/prompts"}
    behind = {"sft": recipe(data=data).data, "reward": recipe(data=data | {"preferences": "acme/other"}).data}
    text = model_card(recipe(data=data), "ppo", TOKENIZER, None, {}, behind=behind)
    assert section(text, "Data").strip().splitlines() == [
        "- `data.prompts`: `acme/prompts`",
        "- `data.sft` (fine-tuning): `acme/shown`",
        "- `data.preferences` (reward model): `acme/other`",
    ]
    assert metadata(text)["datasets"] == ["acme/other", "acme/prompts", "acme/shown"]


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
        ("../../home/me/base", "base"),
        ("./me/base", "base"),
        ("file:///home/me/base", "base"),
        (f"see {Path.home()}/notes", "see ~/notes"),
        ("acme/base-1b", "acme/base-1b"),
        ("shipped:demo/model", "shipped:demo/model"),
    ],
)
def test_published_names_hold_no_folder_of_this_computer(value, expected):
    assert without_folders(value) == expected


def outside_code(text):
    """A card without its header, its blocks and its spans of code, as CommonMark reads them."""
    body = text.split("---\n", 2)[2]
    body = re.sub(r"^(`{3,})\w*\n.*?^ {0,3}\1`*$", "", body, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"(?<![`\\])(`+)(?!`).*?(?<!`)\1(?!`)", "", body)


def code_of(text):
    return re.search(r"^(`{3,})python\n(.*?)^\1$", text, re.DOTALL | re.MULTILINE)[2]


INJECTION = "x`\n```\n# Owned\n[link](http://evil) | <script>alert(1)</script>\n~~~\n"


@pytest.mark.parametrize("merged", [torch.bfloat16, None])
@pytest.mark.parametrize("stage", STAGES)
def test_what_a_card_quotes_stays_a_quotation(stage, merged):
    kind = STAGES[stage].data_key
    text = card(
        stage,
        merged,
        {"steps": 3, INJECTION: 1.0, "said": INJECTION, "best": {INJECTION: 1.0}},
        [("", INJECTION), ("kl", INJECTION)],
        model={"name": f'acme/base"); evil("{INJECTION}', "revision": f'1"); evil("{INJECTION}'},
        data={kind: INJECTION, "chat_template_kwargs": {"name": INJECTION}, "columns": {"prompt": INJECTION}},
        export={"license": INJECTION},
    )
    rest = outside_code(text)
    assert len(re.findall(r"^# ", rest, re.MULTILINE)) == 1, "no heading but the card's own"
    assert "<script" not in rest
    assert not re.search(r"(?<!\\)\]\(|(?<!\\)`|^~~~", rest, re.MULTILINE), rest
    assert all(line.count("|") - line.count("\\|") in (0, 3) for line in rest.splitlines()), "tables keep their columns"
    assert metadata(text)["license"] == INJECTION
    calls = [node.func for node in ast.walk(ast.parse(code_of(text))) if isinstance(node, ast.Call)]
    assert not any(getattr(call, "id", "") == "evil" for call in calls)


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
    rows = section(card(), "Training").strip().splitlines()
    assert rows[2:] == [
        "| held-out accuracy | 0.8125 |",
        "| steps | 20 |",
        "| policy that was kept: held-out reward | 1.5 |",
        "| policy that was kept: iteration | 8 |",
    ]
    assert "## Training" not in card(summary={})


def test_an_interval_stands_beside_its_figure():
    summary = {"eval_accuracy": 0.75, "eval_accuracy_interval": [0.5, 0.9], "eval_kl": 1.5, "peak_memory_gb": 2.0}
    assert section(card(summary=summary), "Training").strip().splitlines()[2:] == [
        "| held-out accuracy | 0.75 (95%: 0.5 to 0.9) |",
        "| held-out KL to the reference, nats a response | 1.5 |",
        "| peak memory, GB | 2 |",
    ]


def test_the_evaluation_stands_in_it_if_there_is_one():
    lines = [("", "ppo against sft on 8 prompts of x"), ("wins by reward", "75.0%  (95%: 40.0% to 93.0%)")]
    text = section(card(evaluation=lines), "Evaluation")
    assert "Ppo against sft on 8 prompts of x, of the run's own model." in text
    assert "| wins by reward | 75.0%  (95%: 40.0% to 93.0%) |" in text
    assert "## Evaluation" not in card()


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


def test_the_card_says_which_base_was_merged_how_near_that_is_and_with_which_versions():
    assert all("onto the 4-bit NF4 base model dequantised, which is what it was trained on" in card(s) for s in STAGES)
    assert "onto the base model as it was published, which is not quite" in card(export={"base": "original"})
    assert "onto the base model it was trained on" in card(model={"name": "acme/base-1b", "quantization": "none"})
    assert "Loaded back and laid beside the run's own model: KL 0.1" in card(
        compared="beside the run's own model: KL 0.1"
    )
    versions = section(card(), "Versions")
    assert all(f"{name} " in versions for name in ("lorarlhf", "torch", "transformers", "peft", "trl"))
    assert torch.__version__ in versions


def test_the_card_names_the_algorithm():
    rloo = card(ppo={"advantage_estimator": "rloo"})
    assert "trained with RLOO against a reward model" in rloo
    assert "rloo" in metadata(rloo)["tags"]
    assert "trained with PPO against a reward model" in card()


# The code, run


def run_code(text: str, folder) -> tuple[dict[str, Any], str]:
    """Names and output of the code that a card shows, with the export's folder put in."""
    source = code(section(text, "Use"), "python").replace("PATH_OR_REPO", str(folder))
    source = source.replace("shipped:demo/model", str(shipped_folder("data") / "demo" / "model"))
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(source, "card", "exec"), names)
    return names, printed.getvalue()


@pytest.fixture
def make_export(make_run, tmp_path, monkeypatch):
    """`make_export(stage, sets, merge)`: a run, the folder of its export, and the card."""
    # Some CPUs would compute in bfloat16 in the code that a card shows, 1% off what the run computes in float32.
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)

    def make(stage, sets=(), merge=True) -> tuple[Run, Any, str]:
        run = make_run([stage], ["model.compute_dtype=float32", "ppo.response_length=6", *sets])
        export_run(run, tmp_path / "out", stage, merge, "float32" if merge else None)
        return run, tmp_path / "out", (tmp_path / "out" / "README.md").read_text()

    return make


@pytest.fixture
def sets_of(tmp_path):
    """`sets_of(form)`: keys of a recipe whose prompts are of that form."""
    rows = tmp_path / "texts.jsonl"
    rows.write_text('{"prompt": "Where is", "chosen": "my parcel", "rejected": "it"}\n' * 3)

    def sets(form) -> list[str]:
        keys = ("prompts", "preferences")
        texts = [f"data.{key}={rows}" for key in keys] + [f"data.{key}_test=null" for key in keys]
        return [] if form == "conversations" else ["data.wrap_text=never", "data.test_size=0", *texts]

    return sets


@pytest.mark.parametrize("form", ["conversations", "text"])
@pytest.mark.parametrize("merge", [True, False])
def test_the_code_of_a_policy_responds_to_the_prompt_as_training_wrote_it(make_export, sets_of, form, merge):
    run, folder, text = make_export("ppo", sets_of(form), merge)
    names, printed = run_code(text, folder)
    tokenizer = load_backbone(run.read_recipe().model).tokenizer
    asked = BEGINNING if form == "text" else [{"role": "user", "content": QUESTION}]
    ids = names["inputs"]["input_ids"][0].tolist()
    assert ids == encode_prompt(tokenizer, asked)
    assert ids.count(tokenizer.bos_token_id) == (form == "conversations")
    response = names["output"][0, len(ids) :].tolist()
    assert 1 <= len(response) <= 6
    assert printed.strip() == tokenizer.decode(response, skip_special_tokens=True).strip()


@pytest.mark.parametrize("form", ["conversations", "text"])
@pytest.mark.parametrize("merge", [True, False])
def test_the_code_of_a_reward_model_gives_the_score_that_training_saw(make_export, sets_of, form, merge):
    run, folder, text = make_export("reward", sets_of(form), merge)
    names, printed = run_code(text, folder)
    judge = RewardModel.from_run(run)
    asked = BEGINNING if form == "text" else [{"role": "user", "content": QUESTION}]
    [expected] = judge.score([asked], [RESPONSE])
    assert float(printed) == pytest.approx(expected, abs=1e-3)
    assert names["score"](asked, "No.") == pytest.approx(judge.score([asked], ["No."])[0], abs=1e-3)


@pytest.mark.parametrize("stage", ["ppo", "reward"])
def test_a_tokenizer_that_sets_bos_itself_does_not_double_it(make_export, stage):
    run, folder, text = make_export(stage)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bos = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    tokenizer.save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder)("a")["input_ids"][0] == bos[1]
    names, printed = run_code(text, folder)
    if stage == "ppo":
        assert names["inputs"]["input_ids"][0].tolist().count(bos[1]) == 1
    else:
        expected = RewardModel.from_run(run).score([[{"role": "user", "content": QUESTION}]], [RESPONSE])
        assert float(printed) == pytest.approx(expected[0], abs=1e-3)


def test_the_code_stops_where_turns_of_the_template_end(make_export, tmp_path):
    """A tokenizer whose turns do not end with eos, as Gemma's."""
    _, folder, _ = make_export("reward")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = tokenizer.chat_template.replace("eos_token }}", "'<|system|>' }}")
    policy = model_card(recipe(), "ppo", tokenizer, None, {})
    assert "convert_tokens_to_ids(['<|system|>', '" in policy
    assert "convert_tokens_to_ids('<|system|>')" in model_card(recipe(), "reward", tokenizer, None, {})
