"""Finding, extending, overriding and validating recipes, and what is said about the faulty ones."""

import re
import textwrap

import pytest

from lorarlhf.errors import UserError
from lorarlhf.recipe import shipped
from lorarlhf.recipe.load import Option, dump_recipe, load_recipe
from lorarlhf.recipe.shipped import find_recipe, list_recipes, resolve_path, shipped_folder

NAMES = [
    "demo",
    "gemma-3-1b-6gb",
    "gemma-3-4b-12gb",
    "llama-3.1-8b-16gb",
    "llama-3.2-1b-6gb",
    "llama-3.2-3b-8gb",
    "mistral-7b-16gb",
    "mistral-7b-8gb",
    "phi-4-mini-12gb",
    "pythia-1b-tldr-8gb",
    "qwen2.5-0.5b-4gb",
    "qwen2.5-1.5b-6gb",
    "qwen2.5-7b-12gb",
    "qwen3-0.6b-4gb",
    "qwen3-1.7b-8gb",
    "qwen3-1.7b-gsm8k-8gb",
    "qwen3-1.7b-t4",
    "qwen3-14b-24gb",
    "qwen3-4b-8gb",
    "qwen3-8b-24gb",
    "qwen3-8b-32gb",
    "smollm2-135m-cpu",
    "smollm3-3b-8gb",
]
RULE = "qwen3-1.7b-gsm8k-8gb"  # the recipe whose reward is a rule


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes recipes into an empty current directory, so that messages hold short paths."""
    monkeypatch.chdir(tmp_path)

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return name

    return write


def messages(*args, **kwargs):
    with pytest.raises(UserError) as caught:
        load_recipe(*args, **kwargs)
    return str(caught.value).split("\n")


# What ships


def test_shipped_names():
    assert [info.name for info in list_recipes()] == NAMES


def test_the_page_of_recipes_has_them_all():
    page = (shipped_folder("recipes").parent / "docs" / "recipes.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `([\w.-]+)` \| [^|]+ \| [^|]+ \| ([^|]+) \|$", page, re.MULTILINE))
    assert sorted(told) == NAMES
    for name in NAMES:
        head = find_recipe(name).read_text(encoding="utf-8")
        if planned := re.search(r"^# Planned for .*: sft ([\d.]+), reward ([\d.]+),", head, re.MULTILINE):
            assert told[name] == f"{planned[1]}, {planned[2]}", name


@pytest.mark.parametrize("name", NAMES)
def test_shipped_recipe_loads_and_round_trips(name, write):
    recipe = load_recipe(name)
    assert bool(recipe.data.preferences) == (name != RULE)
    assert recipe.data.prompts
    assert recipe.export.license
    assert load_recipe(write("copy.yaml", dump_recipe(recipe))) == recipe


@pytest.mark.parametrize("info", list_recipes(), ids=lambda info: info.name)
def test_shipped_recipe_is_documented(info):
    lines = info.path.read_text(encoding="utf-8").splitlines()
    assert info.summary.endswith(".")
    assert lines[1] == "#"
    assert lines[2].startswith("# ")
    assert max(map(len, lines)) <= 120
    assert info.name == "demo" or any(line.startswith("# What to expect: ") for line in lines)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_models_that_may_think_do_not(name):
    recipe = load_recipe(name)
    thinks = "Qwen3" in recipe.model.name or "SmolLM3" in recipe.model.name
    values = {"enable_thinking": False} if thinks else {}
    assert recipe.data.chat_template_kwargs == values


@pytest.mark.parametrize("name", NAMES)
def test_shipped_sizes_are_consistent(name):
    recipe = load_recipe(name)
    sequence = recipe.data.max_prompt_length + recipe.ppo.response_length
    assert sequence <= recipe.data.max_length  # a reward model judges no longer texts than it has seen
    on_gpu = not name.endswith("-cpu") and name != "demo"
    if on_gpu:
        assert recipe.ppo.micro_batch_tokens == "auto"
        assert recipe.ppo.num_ppo_epochs * recipe.ppo.num_mini_batches <= 4
        assert recipe.ppo.early_stop_kl
    else:
        assert sequence <= recipe.ppo.micro_batch_tokens
    optims = {recipe.sft.optim, recipe.reward.optim, recipe.ppo.optim}
    assert optims == {"paged_adamw_8bit" if on_gpu else "adamw_torch"}


def test_the_rule_in_a_header_does_what_it_says():
    """The function that a user copies, run on answers as GSM8K writes them."""
    recipe = load_recipe(RULE)
    text = find_recipe(RULE).read_text(encoding="utf-8")
    code = textwrap.dedent("\n".join(re.findall(r"^#(     .*|)$", text.partition("\nextends")[0], re.MULTILINE)))
    namespace: dict = {}
    exec(code[code.index("import re") :], namespace)
    (spec,) = recipe.ppo.reward_functions
    assert recipe.ppo.reward_model_weight == 0
    exact = namespace[str(spec).partition(":")[2]]
    responses = ["So 1,234 in all.", "It is 12.", "12 - 15 = -3", "no number", "12, not 13"]
    references = ["1000 + 234\n#### 1234", "... #### 12", "#### -3", "#### 3", "#### 12"]
    assert exact([""] * 5, responses, references) == [1.0, 1.0, 1.0, 0.0, 0.0]


def test_in_the_wheel_what_ships_lies_inside_the_package(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "lorarlhf"
    monkeypatch.setattr(shipped, "PACKAGE", package)
    with pytest.raises(FileNotFoundError, match="install it again"):
        shipped_folder("data")
    (tmp_path / "site-packages" / "data").mkdir(parents=True)
    assert shipped_folder("data") == tmp_path / "site-packages" / "data"
    (package / "shipped" / "data").mkdir(parents=True)
    assert shipped_folder("data") == package / "shipped" / "data"


def test_resolve_path(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path / "lorarlhf")
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "data" / "demo").mkdir(parents=True)
    (tmp_path / "secret").touch()
    assert resolve_path("shipped:demo") == str(tmp_path / "data" / "demo")
    assert resolve_path("Qwen/Qwen3-4B") == "Qwen/Qwen3-4B"
    assert resolve_path("./a.jsonl") == "./a.jsonl"
    assert resolve_path("~/a.jsonl") == "/home/me/a.jsonl"
    for value in ("shipped:nothing", "shipped:../secret"):
        with pytest.raises(UserError, match="nothing of that name ships"):
            resolve_path(value)


# Finding


def test_find_recipe(write):
    path = write("own/a.yaml", "model: {name: m}\n")
    assert str(find_recipe(path)) == path
    assert find_recipe("demo").name == "demo.yaml"
    assert find_recipe("base/training").is_file()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dmo", "dmo: no recipe of that name; did you mean demo?"),
        ("Qwen3-4B", "did you mean qwen3-4b-8gb"),
        ("zzzzz", "`lorarlhf recipes list` shows the names"),
        ("missing.yaml", "missing.yaml: no such recipe file"),
        ("../recipes/demo", "no recipe of that name"),
    ],
)
def test_unknown_recipe(name, message, write):
    with pytest.raises(UserError) as caught:
        find_recipe(name)
    assert message in str(caught.value)


# Precedence


def test_precedence(write):
    write("base.yaml", "model: {name: base, revision: r1}\nppo: {kl_coef: 1, vf_coef: 1, gamma: 0.1, lam: 0.1}\n")
    write("a.yaml", "extends: base.yaml\nmodel: {name: a}\nppo: {vf_coef: 2, gamma: 0.2, lam: 0.2}\n")
    named = {"ppo.gamma": Option("--gamma", 0.3), "ppo.lam": Option("--lam", 0.3)}
    recipe = load_recipe("a.yaml", named, ["ppo.lam=4e-1"])
    ppo = recipe.ppo
    assert (ppo.cliprange, ppo.kl_coef, ppo.vf_coef, ppo.gamma, ppo.lam) == (0.2, 1.0, 2.0, 0.3, 0.4)
    assert (recipe.model.name, recipe.model.revision) == ("a", "r1")


def test_extends_is_relative_to_the_file_and_may_name_a_shipped_recipe(write):
    write("lib/one.yaml", "extends: two.yaml\nseed: 1\n")
    write("lib/two.yaml", "extends: demo\nseed: 2\nlora: {r: 3}\n")
    recipe = load_recipe(write("three.yaml", "extends: lib/one.yaml\n"))
    assert (recipe.seed, recipe.lora.r) == (1, 3)
    assert recipe.model == load_recipe("demo").model


def test_extends_null(write):
    assert load_recipe(write("a.yaml", "extends: null\nmodel: {name: m}\n")).model.name == "m"


def test_lists_are_replaced_and_mappings_merged(write):
    write("base.yaml", "model: {name: m}\nlora: {target_modules: [q, k], critic: {r: 2}}\n")
    write("a.yaml", "extends: base.yaml\nlora: {target_modules: [v], critic: {alpha: 3}}\n")
    lora = load_recipe("a.yaml").lora
    assert lora.target_modules == ["v"]
    assert (lora.critic.r, lora.critic.alpha) == (2, 3.0)


def test_set_reads_yaml(write):
    write("a.yaml", "model: {name: m, revision: main}\n")
    sets = [
        "ppo.reward_functions=[a:b]",
        "model.revision=",
        "lora.critic={r: 4}",
        "ppo . kl_coef= 1e1",
        "data.sft=a=b",
    ]
    recipe = load_recipe("a.yaml", None, sets)
    assert recipe.ppo.reward_functions == ["a:b"]
    assert recipe.model.revision is None
    assert (recipe.lora.critic.r, recipe.ppo.kl_coef) == (4, 10.0)
    assert recipe.data.sft == "a=b"


def test_set_of_a_chat_templates_variable(write):
    write("a.yaml", "model: {name: m}\ndata: {chat_template_kwargs: {date_string: today, enable_thinking: true}}\n")
    data = load_recipe("a.yaml", None, ["data.chat_template_kwargs.enable_thinking=false"]).data
    assert data.chat_template_kwargs == {"date_string": "today", "enable_thinking": False}
    assert messages("a.yaml", None, ["data.chat_template_kwargs.messages=[]"]) == [
        "--set data.chat_template_kwargs.messages=[]: a chat template takes no messages from a recipe; "
        "name one of its own variables"
    ]
    write("b.yaml", "model: {name: m}\ndata:\n  chat_template_kwargs:\n    a-b: 1\n")
    assert messages("b.yaml") == [
        "b.yaml:4: data.chat_template_kwargs.a-b: a chat template takes no a-b from a recipe; "
        "name one of its own variables"
    ]


def test_null_of_an_option_resets_a_key(write):
    write("a.yaml", "model: {name: m}\ndata: {prompts_test: x}\n")
    assert load_recipe("a.yaml", {"data.prompts_test": Option("--dataset", None)}).data.prompts_test is None


def test_paths_stay_as_written(write):
    recipe = load_recipe(write("sub/a.yaml", "model: {name: ./m}\ndata: {sft: sft.jsonl, prompts: shipped:demo/x}\n"))
    assert (recipe.model.name, recipe.data.sft, recipe.data.prompts) == ("./m", "sft.jsonl", "shipped:demo/x")


# Faults


FAULTY = """\
model:
  name: 123
  quantization: nf5
lora:
  r: 1e1
  policy: {rr: 3}
reward:
  kl_coef: 0.1
  learning_rate: "1e-5"
  objective: yes
  learning_rate: 3
ppo:
  kl_coef: true
  temperature: .nan
  reward_functions: [foo, {weight: 2}, {function: 3}, 5]
  epochs: 4
  iterations: 10_000
  gamma: 2
  vf_coef: -1
  optim: null
sft:
learning_rate: 1
zzz: !!python/name:x y
"""


def test_every_fault_is_told_at_once_in_order_with_its_line(write):
    assert messages(write("a.yaml", FAULTY)) == [
        "a.yaml:2: model.name: expected text, got 123; put it in quotes",
        "a.yaml:3: model.quantization: expected 'nf4', 'int8' or 'none', got 'nf5'",
        "a.yaml:5: lora.r: expected a whole number, got 10.0; write 10",
        "a.yaml:6: lora.policy.rr: unknown key; did you mean r?",
        "a.yaml:8: reward.kl_coef: unknown key; there is ppo.kl_coef",
        "a.yaml:11: reward.learning_rate: given twice, on lines 9 and 11; remove one of them",
        "a.yaml:10: reward.objective: expected 'bradley_terry' or 'regression', got 'yes'",
        "a.yaml:13: ppo.kl_coef: expected a number, got true",
        "a.yaml:14: ppo.temperature: expected a finite number, got .nan; "
        "NaN, infinity and numbers beyond 1.7e308 are refused",
        "a.yaml:15: ppo.reward_functions[0]: expected package.module:function, got 'foo'",
        "a.yaml:15: ppo.reward_functions[1].function: required but missing; add it",
        "a.yaml:15: ppo.reward_functions[2].function: expected text, got 3; put it in quotes",
        "a.yaml:15: ppo.reward_functions[3]: expected text or a mapping of keys, got 5; put it in quotes",
        "a.yaml:16: ppo.epochs: unknown key; did you mean num_ppo_epochs?",
        "a.yaml:17: ppo.iterations: expected a whole number, got '10_000'; remove the underscores",
        "a.yaml:18: ppo.gamma: expected at most 1.0, got 2",
        "a.yaml:19: ppo.vf_coef: expected at least 0.0, got -1",
        "a.yaml:20: ppo.optim: expected text, got null",
        "a.yaml:21: sft: expected a mapping of keys, got null; give it keys or remove the line",
        "a.yaml:22: learning_rate: unknown key; there is sft.learning_rate and reward.learning_rate "
        "and ppo.learning_rate",
        "a.yaml:23: zzz: the tag !!python/name:x is not allowed, only plain data; remove it",
    ]


def test_quoted_number(write):
    assert messages(write("a.yaml", "model: {name: m}\nppo: {kl_coef: '1e-5'}\n")) == [
        "a.yaml:2: ppo.kl_coef: expected a number, got '1e-5'; remove the quotes"
    ]


def test_faults_of_all_files_and_options(write):
    write("base.yaml", "model: {name: m}\nlora:\n  r: 0\nsft: {max_steps: x}\n")
    write("a.yaml", "extends: base.yaml\n\nlora:\n  alpha: 0\n")
    sets = ["nonsense", "a..b=1", "ppo.kl_coeff=1", "ppo.gamma=2", "ppo.lam=[", "extends=demo", "lora.critic={r: no}"]
    assert sorted(messages("a.yaml", {"sft.max_steps": Option("--max-steps", -5)}, sets)) == sorted(
        [
            "base.yaml:3: lora.r: expected at least 1, got 0",
            "a.yaml:4: lora.alpha: expected at least 1, got 0",
            "--max-steps: sft.max_steps: expected at least -1, got -5",
            "--set nonsense: not of the form key=value; write for example --set ppo.kl_coef=0.1",
            "--set a..b=1: not of the form key=value; write for example --set ppo.kl_coef=0.1",
            "--set ppo.kl_coeff=1: unknown key; did you mean kl_coef?",
            "--set ppo.gamma=2: expected at most 1.0, got 2",
            "--set ppo.lam=[: not valid YAML: expected the node content, but found '<stream end>' (column 2); "
            "check indentation and quotes",
            "--set extends=demo: only a file can extend; choose the recipe with --recipe",
            "--set lora.critic={r: no}: lora.critic.r: expected a whole number, got 'no'",
        ]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\n", "a.yaml: model.name: required but missing; add it"),
        ("seed: 1\nmodel: {revision: x}\n", "a.yaml:2: model.name: required but missing; add it"),
    ],
)
def test_missing_key_names_the_file(write, text, message):
    assert messages(write("a.yaml", text)) == [message]


def test_a_rule_between_keys_names_the_last_who_wrote_one(write):
    write("a.yaml", "model: {name: m}\nppo:\n  kl_coef: 0.1\n  batch_size: 10\n")
    rule = "ppo: batch_size 10 must be a multiple of num_mini_batches"
    assert messages("a.yaml") == [f"a.yaml:4: {rule} 4"]
    assert messages("a.yaml", None, ["ppo.num_mini_batches=3"]) == [f"--set ppo.num_mini_batches=3: {rule} 3"]


def test_mapping_over_a_value_and_back(write):
    write("a.yaml", "model: {name: m}\nseed: 1\n")
    assert sorted(messages("a.yaml", None, ["seed.x=1", "sft.optim.x=1", "lora=3"])) == [
        "--set lora=3: expected a mapping of keys, got 3",
        "--set seed.x=1: seed: expected a whole number, got a mapping",
        "--set sft.optim.x=1: sft.optim: expected text, got a mapping",
    ]


def test_circle_prints_the_chain(write):
    write("a.yaml", "extends: b.yaml\n")
    write("b.yaml", "\nextends: c.yaml\n")
    write("c.yaml", "extends: ./a.yaml\n")
    assert messages("a.yaml") == [
        "c.yaml:1: extends: recipes extend each other in a circle: a.yaml -> b.yaml -> c.yaml -> a.yaml; "
        "remove one `extends`"
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("dmo", "a.yaml:2: extends: dmo: no recipe of that name; did you mean demo?"),
        ("x.yaml", "a.yaml:2: extends: x.yaml: no such recipe file"),
        ("3", "a.yaml:2: extends: expected a recipe's name or path, got 3"),
        ("''", "a.yaml:2: extends: expected a recipe's name or path, got ''"),
    ],
)
def test_extends_of_nothing(write, value, message):
    (only,) = messages(write("a.yaml", f"seed: 1\nextends: {value}\n"))
    assert only.startswith(message)


def test_dump_keeps_text_that_looks_like_a_number(write):
    recipe = load_recipe(write("a.yaml", "model: {name: '1e-5', revision: 'no'}\nppo: {learning_rate: 1e-5}\n"))
    assert load_recipe(write("b.yaml", dump_recipe(recipe))) == recipe
