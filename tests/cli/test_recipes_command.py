"""`lorarlhf recipes list | show | copy | explain | validate | schema`."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lorarlhf.cli.recipes import recipes_app
from lorarlhf.errors import UserError
from lorarlhf.recipe.keys import all_keys
from lorarlhf.recipe.load import load_recipe
from lorarlhf.recipe.schema import recipe_schema
from lorarlhf.recipe.sections import PPOConfig, Recipe
from lorarlhf.recipe.shipped import find_recipe, list_recipes, shipped_folder
from lorarlhf.recipe.yaml import parse_yaml


def run(*args, ok=True):
    result = CliRunner().invoke(recipes_app, [str(arg) for arg in args])
    assert (result.exit_code == 0) == ok, result.output
    return result


def refusal(*args):
    error = run(*args, ok=False).exception
    assert isinstance(error, UserError)
    return str(error)


def test_list_is_a_line_each_when_piped():
    lines = run("list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [info.name for info in list_recipes()]
    (line,) = [line for line in lines if line.startswith("pythia")]
    assert line.split("  ")[0] == "pythia-1b-tldr-8gb"
    for said in ("8 GB", "sft, reward, ppo", "apache-2.0", "EleutherAI/pythia-1b-deduped on trl-lib/tldr-preference"):
        assert f"  {said}" in line
    assert "time:" not in line  # its header knows none


def test_list_says_what_headers_know_of_time_and_result():
    demo, *_, smollm = [line for line in run("list").stdout.splitlines() if "CPU" in line]
    assert "  time: minutes on two CPU cores.  expect: by the rule" in demo
    assert demo.endswith("at a KL of 3.5 nats.")  # a header's lines made one
    header = find_recipe("smollm2-135m-cpu").read_text(encoding="utf-8")
    (first_line,) = re.findall(r"^# Time: (.+)$", header, re.MULTILINE)
    assert f"  time: {first_line}" in smollm
    assert smollm.endswith("docs/results.md.")


def test_list_fits_80_columns_of_a_terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    lines = [re.sub(r"\x1b\[\d*m", "", line) for line in run("list").stdout.splitlines()]
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == [info.name for info in list_recipes()]
    assert "  meta-llama/Llama-3.2-1B-Instruct on Skywork/Skywork-Reward-Preference-80K-v0.2" in lines


def test_show_prints_the_file():
    info = list_recipes()[0]
    assert run("show", info.name).stdout == info.path.read_text(encoding="utf-8")


def test_show_highlights_on_a_terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    output = run("show", "demo").stdout
    assert "\x1b[" in output
    assert "shipped:demo/model" in output


def test_show_unknown():
    assert "did you mean demo?" in refusal("show", "dmo")


@pytest.mark.parametrize("full", [(), ("--full",)], ids=["", "full"])
@pytest.mark.parametrize("name", [info.name for info in list_recipes()])
def test_copy_loads_like_the_original(name, full, tmp_path):
    path = tmp_path / "new" / "mine.yaml"
    assert str(path) in run("copy", name, path, *full).stdout
    assert load_recipe(str(path), trust=True) == load_recipe(name)  # it lies in no project


def test_a_full_copy_hides_nothing(tmp_path):
    run("copy", "qwen3-4b-8gb", tmp_path / "mine.yaml", "--full")
    text = (tmp_path / "mine.yaml").read_text(encoding="utf-8")
    assert text.startswith("# Qwen3 4B on UltraFeedback")  # the header is kept
    document = parse_yaml(text)
    assert "extends" not in document.data
    missing = {key.path for key in all_keys()} - set(document.lines)
    written = {
        path[:-1] for path in document.lines
    }  # mappings and lists; what is text, null or an empty list has no keys
    assert not {path for path in missing if path[:-1] in written}
    assert "  # Price of leaving the reference" in text
    assert max(map(len, text.partition("\nstages:")[2].splitlines())) <= 100


def test_ones_own_recipe_is_copied_in_full(tmp_path):
    (tmp_path / "sub").mkdir()
    run("copy", "demo", tmp_path / "sub" / "base.yaml")
    own = tmp_path / "sub" / "own.yaml"
    own.write_text("extends: ./base.yaml\nseed: 7\n")
    run("copy", own, tmp_path / "full.yaml", "--full")
    assert load_recipe(str(tmp_path / "full.yaml")) == load_recipe(str(own))


def test_a_recipe_from_elsewhere_is_copied_in_full_as_no_code_of_it_is_run(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("extends: demo\nppo:\n  reward_functions: [theirs:score]\n")
    with pytest.raises(UserError, match="give --trust"):  # which `copy` does not have
        load_recipe(str(own))
    run("copy", own, tmp_path / "full.yaml", "--full")
    assert load_recipe(str(tmp_path / "full.yaml"), trust=True) == load_recipe(str(own), trust=True)


@pytest.mark.parametrize("name", ["demo", "base/training"])
def test_a_copys_line_for_editors_names_the_schema_beside_it(name, tmp_path):
    run("copy", name, tmp_path / "mine.yaml")
    (schema,) = re.findall(
        r"^# yaml-language-server: \$schema=(\S+)$", (tmp_path / "mine.yaml").read_text(), re.MULTILINE
    )
    assert json.loads((tmp_path / schema).read_text(encoding="utf-8")) == recipe_schema()


def test_copy_never_overwrites(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("precious")
    assert refusal("copy", "demo", path) == f"{path}: exists already and is not overwritten; choose another name"
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("demo", "mine", "must end in .yaml; write for example {tmp}/mine.yaml"),
        ("demo", ".", "must end in .yaml; write for example {tmp}/demo.yaml"),
        ("demo", "file/mine.yaml", "{tmp}/file: exists already"),
        ("own.yaml", "mine.yaml", "own.yaml: `copy` is for recipes that ship"),
        ("dmo", "mine.yaml", "did you mean demo?"),
    ],
)
def test_copy_refuses(source, target, message, tmp_path):
    (tmp_path / "file").touch()
    assert message.format(tmp=tmp_path) in refusal("copy", source, tmp_path / target)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_explain_a_key():
    lines = run("explain", "ppo.kl_coef").stdout.splitlines()
    assert lines[0] == "ppo.kl_coef: number, at least 0; default 0.05"
    assert lines[1].startswith("Price of leaving the reference")
    assert len(lines) == 2


def test_explain_says_what_set_a_key_in_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text("model: {name: m}\n\nppo:\n  kl_coef: 0.1\n  gamma: 0.9\n")
    Path("own.yaml").write_text("extends: base.yaml\nppo:\n  kl_coef: 0.2\n  stop_when: {kl: 3}\n")

    def said(key, *options):
        return run("explain", key, "--recipe", "own.yaml", *options).stdout.splitlines()

    assert said("ppo.kl_coef")[2:] == ["in own.yaml: 0.2  own.yaml:3"]
    assert said("ppo.kl_coef", "--set", "ppo.kl_coef=0.3")[2:] == ["in own.yaml: 0.3  --set ppo.kl_coef=0.3"]
    assert said("ppo.gamma")[2:] == ["in own.yaml: 0.9  base.yaml:5"]
    assert said("ppo.stop_when.kl")[2:] == ["in own.yaml: 3.0  own.yaml:4"]
    assert said("ppo.lam")[2:] == ["in own.yaml: 0.95  (default)"]
    section = [line.split(maxsplit=1) for line in said("ppo")[2:]]
    assert [name for name, _ in section] == list(PPOConfig.model_fields)
    assert ["stop_when", "{kl: 3.0, held_out_worse: null}  own.yaml:4"] in section
    assert ["whiten_rewards", "false  (default)"] in section


def test_explain_a_section_lists_its_keys():
    assert [line.split()[0] for line in run("explain").stdout.splitlines()] == list(Recipe.model_fields)
    _, about, *keys = run("explain", "lora.critic").stdout.splitlines()
    assert about == "What the critic's adapter does differently."
    assert [line.split()[0] for line in keys] == ["r", "alpha", "target_modules", "top_layers"]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("demo", "demo: a recipe, and no key of one; `lorarlhf recipes show demo` prints it"),
        ("mine.yaml", "`lorarlhf recipes show mine.yaml` prints it"),
        ("ppo.kl_coeff", "ppo.kl_coeff: no key of a recipe; did you mean kl_coef?"),
        ("kl_coef", "there is ppo.kl_coef"),
        ("pppo.kl_coef", "there is ppo.kl_coef"),
        ("pop", "did you mean ppo?"),
        ("model.zzzz", "known keys: name, revision"),
    ],
)
def test_explain_a_misspelt_key(key, message):
    assert message in refusal("explain", key)


def test_validate_all_that_ship():
    assert run("validate").stdout.splitlines() == [f"{info.name}: valid" for info in list_recipes()]


def test_validate_says_every_fault_of_every_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("extends: b.yaml\nmodel: {name: m}\nppo: {gama: 1}\n")
    Path("b.yaml").write_text("model: {name: m}\nlora:\n  r: 0\n")
    result = run("validate", "a.yaml", "demo", "b.yaml", "c.yaml", ok=False)
    assert result.stdout == "demo: valid\n"
    assert str(result.exception).splitlines() == [  # the fault of b.yaml once, though a.yaml has it too
        "b.yaml:3: lora.r: expected at least 1, got 0",
        "a.yaml:3: ppo.gama: unknown key; did you mean gamma?",
        "c.yaml: no such recipe file; check the path",
    ]


def test_schema_is_that_of_the_shipped_recipes():
    schema = json.loads(run("schema").stdout)
    assert {"extends", "stages", "model", "ppo"} <= set(schema["properties"])
    assert schema["additionalProperties"] is False
    assert "required" not in schema  # what extends another may leave out the model
    for info in list_recipes():
        assert re.findall(r"^# yaml-language-server: \$schema=(\S+)$", info.path.read_text(), re.MULTILINE) == [
            "schema.json"
        ]
    assert json.loads((info.path.parent / "schema.json").read_text(encoding="utf-8")) == schema


def test_base_recipes_find_the_schema():
    for path in (shipped_folder("recipes") / "base").glob("*.yaml"):
        (schema,) = re.findall(r"^# yaml-language-server: \$schema=(\S+)$", path.read_text(), re.MULTILINE)
        assert (path.parent / schema).resolve() == shipped_folder("recipes") / "schema.json"
