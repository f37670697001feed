"""`lorarlhf init`: as a user would type it, and what answers come to."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from demo_runs import DEMO
from pages import run
from published_models import PUBLISHED

from lorarlhf.errors import UserError
from lorarlhf.recipe.load import load_recipe
from lorarlhf.recipe.stages import trained_by
from lorarlhf.stages.interview import (
    GIB,
    BaseModel,
    Data,
    read_card,
    read_model,
    suggested_model,
)
from lorarlhf.stages.tailor import Answers, _settings, tailored

MODEL = "shipped:demo/model"


def rows_of(name, most):
    return "".join((DEMO / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:most])


def typed(command, folder, answers=""):
    """A command line in a folder, as a shell would run it."""
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-m", *shlex.split(command)]
    return subprocess.run(words, cwd=folder, input=answers, env=environment, capture_output=True, text=True)


def test_from_answers_to_a_run_that_would_start(tmp_path, monkeypatch, capsys):
    """A newcomer with a file: a wrong answer is asked for again, the recipe is valid, and the next command works."""
    (tmp_path / "mine.jsonl").write_text(rows_of("preferences", 300), encoding="utf-8")
    answered = typed("lorarlhf init", tmp_path, f"cpu\n{MODEL}\nmien.jsonl\nmine.jsonl\n\n\n")
    assert answered.returncode == 0, answered.stderr
    assert "mien.jsonl: no such file" in answered.stdout
    assert "  comparisons: conversations, with or without a prompt, as chosen is a list" in answered.stdout
    *_, run_it, chat = answered.stdout.splitlines()
    assert (run_it, chat) == ("  lorarlhf run --recipe mine.yaml", "  lorarlhf chat --run runs/mine")
    monkeypatch.chdir(tmp_path)
    assert load_recipe("mine.yaml").model.name == MODEL
    assert run(monkeypatch, [*shlex.split(run_it)[1:], "--dry-run"]) == 0, capsys.readouterr().err
    dry = capsys.readouterr().out
    assert "would train  reward on at most 1,600 examples of mine.jsonl" in dry
    assert re.search(r"^ppo: .* GiB, fits in", dry, re.MULTILINE)


@pytest.fixture
def init(tmp_path, monkeypatch, capsys):
    """`init(*options)`: exit status, stdout and stderr, in a folder with files of each kind of data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    monkeypatch.delitem(sys.modules, "taste_of_init", raising=False)  # that of another test, in another folder
    Path("pairs.jsonl").write_text(rows_of("preferences", 300), encoding="utf-8")
    Path("prompts.jsonl").write_text(rows_of("prompts", 300), encoding="utf-8")
    Path("few.jsonl").write_text(rows_of("preferences", 10), encoding="utf-8")
    Path("shown.jsonl").write_text(rows_of("sft", 300), encoding="utf-8")
    rated = [{"prompt": f"Question {i}?", "response": f"Answer {i}.", "score": i % 5} for i in range(100)]
    Path("rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rated), encoding="utf-8")
    Path("taste_of_init.py").write_text("def short(prompts, responses):\n    return [-len(r) for r in responses]\n")

    def call(*options):
        status = run(monkeypatch, ["init", *options])
        return status or 0, *capsys.readouterr()

    return call


ANSWERS = ("--yes", "--card", "cpu", "--model", MODEL)


def test_options_answer_and_yes_asks_nothing(init):
    status, said, _ = init("sub/my own.yaml", *ANSWERS, "--data", "pairs.jsonl", "--time", "0.5")
    assert status == 0
    assert "Card" not in said
    recipe = load_recipe("sub/my own.yaml")
    assert (recipe.ppo.iterations, recipe.data.max_examples) == (10, 800)
    assert (Path("sub") / "lorarlhf.schema.json").is_file()
    run_it, chat = said.splitlines()[-2:]
    assert run_it == "  lorarlhf run --recipe 'sub/my own.yaml'"
    assert chat == "  lorarlhf chat --run 'runs/my own'"


@pytest.mark.parametrize(
    ("data", "taste", "stages", "sources"),
    [
        ("pairs.jsonl", None, ["reward", "ppo"], {"sft", "preferences", "prompts"}),
        ("pairs.jsonl", "taste_of_init:short", ["ppo"], {"sft", "preferences", "prompts"}),
        ("prompts.jsonl", "taste_of_init:short", ["ppo"], {"prompts"}),
        ("shown.jsonl", "taste_of_init:short", ["sft", "ppo"], {"sft", "prompts"}),
        ("rated.jsonl", None, ["reward", "ppo"], {"sft", "preferences", "prompts"}),
    ],
)
def test_stages_follow_from_data_and_taste(init, data, taste, stages, sources):
    status, _, error = init(*ANSWERS, "--data", data, *(["--taste", taste] if taste else []))
    assert status == 0, error
    recipe = load_recipe("mine.yaml")
    assert trained_by(recipe) == stages
    keys = ("sft", "preferences", "prompts")
    assert {key for key in keys if getattr(recipe.data, key) == data} == sources
    assert {key for key in keys if getattr(recipe.data, key)} == sources  # nothing of what is extended
    assert recipe.reward.objective == ("regression" if data == "rated.jsonl" else "bradley_terry")
    assert recipe.ppo.reward_functions == ([taste] if taste else [])
    assert recipe.ppo.reward_model_weight == (0.0 if taste else 1.0)


def test_a_function_of_an_installed_package_is_required(init):
    status, _, error = init(*ANSWERS, "--data", "prompts.jsonl", "--taste", "demo_runs:letter_e")
    assert status == 0, error
    recipe = load_recipe("mine.yaml")
    assert (recipe.requires, recipe.ppo.reward_functions) == (["demo_runs"], ["demo_runs:letter_e"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--card", "huge"), "card: expected its memory in GB, as 8, or cpu, got 'huge'"),
        (("--model", "nowhere"), "cannot load 'nowhere'"),
        (("--data", "pears.jsonl"), "pears.jsonl: no such file; did you mean pairs.jsonl"),
        (("--data", "few.jsonl"), "data: few.jsonl has 10 different prompts; 20 are the least"),
        (("--data", "prompts.jsonl", "--taste", "comparisons"), "taste: prompts.jsonl holds prompts, which compare"),
        (("--data", "prompts.jsonl"), "no answer to 'Taste: comparisons, or a reward function as module:function'"),
        (("--taste", "taste_of_init:long"), "cannot import 'taste_of_init:long'"),
        (("--time", "nan"), "time: expected hours, as 8 or 0.5, got 'nan'"),
    ],
)
def test_an_option_at_fault_ends_it(init, options, message):
    """Later options of a kind win, so that the good answers before them do not count."""
    status, _, error = init(*ANSWERS, "--data", "pairs.jsonl", *options)
    assert status == 2
    assert message in error
    assert not Path("mine.yaml").exists()


def test_answers_that_end_too_soon(init, monkeypatch):
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115
    status, _, error = init("--card", "cpu")
    assert status == 2
    assert "no answer to 'Model: folder or Hub id'; `lorarlhf init --help` has an option for each" in error


def test_it_never_overwrites_and_says_so_before_it_asks(init):
    Path("mine.yaml").write_text("precious")
    status, said, error = init()
    assert (status, said) == (2, "")
    assert "mine.yaml: exists already and is not overwritten" in error
    assert Path("mine.yaml").read_text() == "precious"


def test_a_folder_without_weights(tmp_path):
    for file in DEMO.joinpath("model").glob("*.json*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_bytes((DEMO / "model" / "chat_template.jinja").read_bytes())
    with pytest.raises(UserError, match=r"has no \*.safetensors"):
        read_model(str(tmp_path))


# What fits


@pytest.mark.parametrize("answer", ["8", "8 GB", "8gib", "8.0"])
def test_a_card_keeps_room_for_the_desktop(answer):
    assert (read_card(answer).target, read_card(answer).capacity) == ("cuda", int(7.5 * GIB))


@pytest.mark.parametrize(
    ("card", "model"),
    [
        ("cpu", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("2", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("8", "Qwen/Qwen3-4B-Instruct-2507"),
        ("10", "Qwen/Qwen3-4B-Instruct-2507"),
    ],
)
def test_a_model_for_the_card_is_suggested(card, model):
    assert suggested_model(read_card(card)) == model


def answers(name, card, data=None, function=None, hours=8.0, chats=True):
    model = BaseModel(name, PUBLISHED[name], 7_000_000_000, chats, thinks=False, licence=None)
    shared = Data("ultrafeedback", "comparisons", "base/ultrafeedback")
    return Answers(read_card(card), model, data or shared, function, hours)


@pytest.mark.parametrize(
    ("name", "card", "quantization", "rows", "estimator"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "6", "none", 4, "gae"),
        pytest.param("Qwen/Qwen2.5-7B-Instruct", "12", "nf4", 4, "gae", marks=pytest.mark.slow),
    ],
)
def test_what_is_written_fits(name, card, quantization, rows, estimator, tmp_path):
    given = answers(name, card)
    made = tailored(given)
    assert made.recipe.model.quantization == quantization
    assert made.recipe.reward.per_device_train_batch_size == rows
    assert made.recipe.reward.per_device_train_batch_size * made.recipe.reward.gradient_accumulation_steps == 16
    assert made.recipe.ppo.advantage_estimator == estimator
    assert all(plan.peak.total <= given.card.capacity for plan in made.plans)
    path = tmp_path / "mine.yaml"
    path.write_text(made.text, encoding="utf-8")
    assert load_recipe(str(path)) == made.recipe  # what was planned is what is written


def test_a_model_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"does not fit on a card of 4 GB, of which 3.5 GiB are free, even in 4 bits"):
        tailored(answers("Qwen/Qwen2.5-7B-Instruct", "4"))


def test_time_goes_into_iterations_and_examples():
    name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    night, hours = (_settings(answers(name, "8", hours=hours)) for hours in (8.0, 2.0))
    keys = ("ppo.iterations", "data.max_examples", "ppo.learning_rate")
    assert [night[key][0] for key in keys] == [200, 32_000, 5e-5]  # of 7 billion parameters, as `answers` has it
    assert [hours[key][0] for key in keys] == [50, 8000, 1e-4]


def test_a_time_that_is_too_short_is_said_to_be():
    name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    few, enough = (_settings(answers(name, "8", hours=hours))["ppo.iterations"] for hours in (0.1, 0.4))
    assert few == (10, "the fewest that lead anywhere: more than 0.1 h")
    assert enough == (10, "0.4 h, by a rule of thumb")
    text = tailored(answers(name, "8", hours=0.1)).text
    assert "but that 10 iterations are the least" in text.replace("\n# ", " ")


@pytest.mark.parametrize(("card", "hours"), [("8", 8), ("8", 0.1), ("8", 1), ("cpu", 1), ("cpu", 0.05)])
def test_little_time_is_not_spent_on_evaluations(card, hours):
    made = _settings(answers("HuggingFaceTB/SmolLM2-135M-Instruct", card, hours=hours))
    iterations, every, prompts, tested = (
        made[key][0] for key in ("ppo.iterations", "ppo.eval_every", "ppo.eval_prompts", "data.eval_examples")
    )
    batch = {"8": 64, "cpu": 32}[card]
    looks = len({0, iterations, *range(every, iterations, every)})
    assert 3 * looks * prompts <= iterations * batch
    assert 2 <= looks - 1 <= 11
    assert prompts >= 16
    assert 50 <= tested <= {"8": 1000, "cpu": 500}[card]
    assert (tested == 50) == (hours < 0.5)


def test_a_licence_that_nobody_knows_is_not_called_the_base_models():
    name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    given = answers(name, "8")
    licensed = replace(given, model=replace(given.model, licence="mit"))
    assert _settings(given)["export.license"] == (
        None,
        "not known here: put in that of the base model before you publish",
    )
    assert _settings(licensed)["export.license"] == ("mit", "that of the base model, which the model card names")


def test_a_base_model_learns_to_answer_first():
    name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert _settings(answers(name, "8", chats=False))["stages"][0][:3] == ["sft", "reward", "ppo"]
    assert _settings(answers(name, "8", chats=True))["stages"][0][:2] == ["reward", "ppo"]
