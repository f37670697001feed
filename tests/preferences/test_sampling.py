"""`lorarlhf sample`: pairs of different responses, resumable, ranked by how close the call is."""

import json
import shutil
import sys
from types import SimpleNamespace

import pytest
from demo_runs import save_random_adapter, small_recipe, write_jsonl

from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.cli.main import main
from lorarlhf.data.tokenize import PromptExample
from lorarlhf.data.tokenized import prompt_examples
from lorarlhf.errors import UserError
from lorarlhf.files import hash_file
from lorarlhf.generation import sample as sample_module
from lorarlhf.manifest import written_whole
from lorarlhf.preferences import sampling
from lorarlhf.preferences.pairs import read_pairs
from lorarlhf.preferences.sampling import finished_rows
from lorarlhf.recipe.load import load_recipe
from lorarlhf.recipe.sections import DataConfig
from lorarlhf.recipe.shipped import shipped_folder
from lorarlhf.run import Run
from lorarlhf.stages.sample import of_run

# What `base` below asks for, as a file of pairs tells it.
OPTIONS = {"n": 2, "temperature": 1.0, "response-length": 24, "seed": 0, "pick": "all", "reward": None}


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    texts = [f"Do you have {item} in stock?" for item in ("plates", "mugs", "carrots")] * 20
    rows = [{"prompt": [{"role": "user", "content": f"{text} {i}"}]} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def adapters(load_tiny, tmp_path, demo_backbone):
    from tiny_models import randomise

    from lorarlhf.recipe.sections import LoraShape

    shape = LoraShape(r=4, alpha=8, target_modules="all-linear")
    for role in ("policy", "reward"):
        demo_backbone.attach(role, shape)
        randomise(demo_backbone, role)
        demo_backbone.save_role(role, tmp_path / role)
    return tmp_path / "policy", tmp_path / "reward"


def run(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["lorarlhf", "sample", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code


def base(prompts, out) -> list:
    return ["--model", "shipped:demo/model", "--prompts", prompts, "--out", out, "--response-length", 24]


def test_pairs_differ_and_can_be_collected(monkeypatch, prompts, tmp_path):
    out = tmp_path / "pairs.jsonl"
    assert run(monkeypatch, *base(prompts, out), "--n", 3) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) > 60  # three responses a prompt make up to three pairs
    assert all(row["response_a"] != row["response_b"] for row in rows)
    assert len({row["prompt"][0]["content"] for row in rows}) == 60
    assert len(read_pairs(out)) == len(rows)


def test_text_prompts_of_a_chat_model_come_back_as_the_turns_they_were_read_as(monkeypatch, tmp_path, demo_backbone):
    plain = write_jsonl(tmp_path / "plain.jsonl", [{"prompt": f"Do you have {item}?"} for item in ("plates", "mugs")])
    out = tmp_path / "pairs.jsonl"
    assert run(monkeypatch, *base(plain, out), "--n", 3) == 0
    pairs = read_pairs(out)
    prompts = [[{"role": "user", "content": f"Do you have {item}?"}] for item in ("plates", "mugs")]
    assert [pair.prompt for pair in pairs if pair.prompt in prompts] == [pair.prompt for pair in pairs]
    assert all(turn["role"] == "assistant" for pair in pairs for turn in (*pair.response_a, *pair.response_b))
    labelled = [{"prompt": pair.prompt, "chosen": pair.response_a, "rejected": pair.response_b} for pair in pairs]
    back, asked = (
        prompt_examples(DataConfig(prompts=str(path), test_size=0.0), demo_backbone.tokenizer, "train")
        for path in (write_jsonl(tmp_path / "labelled.jsonl", labelled), plain)
    )
    assert [example.ids for example in back] == [example.ids for example in asked]


def test_a_model_that_always_says_the_same_makes_no_pairs(monkeypatch, prompts, tmp_path, capsys):
    out = tmp_path / "pairs.jsonl"
    monkeypatch.setattr(
        "lorarlhf.preferences.sampling.response_texts", lambda backbone, rollout: ["Yes."] * len(rollout.sequences)
    )
    assert run(monkeypatch, *base(prompts, out), "--response-length", 1) == 2
    assert "got two different responses that are not empty; raise --n, --temperature" in capsys.readouterr().err
    assert out.read_text() == ""


def test_running_out_of_memory_changes_no_pair(monkeypatch, prompts, tmp_path, adapters):
    _, reward = adapters
    whole, short = tmp_path / "whole.jsonl", tmp_path / "short.jsonl"
    options = ["--pick", "uncertain", "--reward", reward, "--response-length", 8]
    assert run(monkeypatch, *base(prompts, whole), *options) == 0
    decode, scores, failures = sample_module._decode, SharedBackbone.scores, []

    def short_of_memory(real, size):
        def compute(*args):
            if size(*args) > 20:
                failures.append(real)
                raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")
            return real(*args)

        return compute

    monkeypatch.setattr(sample_module, "_decode", short_of_memory(decode, lambda _, role, some, *rest: len(some)))
    monkeypatch.setattr(SharedBackbone, "scores", short_of_memory(scores, lambda _, sequences, *rest: len(sequences)))
    assert run(monkeypatch, *base(prompts, short), *options) == 0
    assert set(failures) == {decode, scores}
    pairs = [[json.loads(line) for line in path.read_text().splitlines()] for path in (whole, short)]
    for one, other in zip(*pairs, strict=True):
        assert one.pop("predicted") == pytest.approx(other.pop("predicted"), abs=1e-4)
        assert one == other


def test_an_interrupted_run_goes_on_as_if_it_had_not_stopped(monkeypatch, prompts, tmp_path):
    whole, torn = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    assert run(monkeypatch, *base(prompts, whole)) == 0
    lines = whole.read_text().splitlines(keepends=True)
    first_batch = [line for line in lines if json.loads(line)["batch"] == 0]
    assert 0 < len(first_batch) < len(lines)
    torn.write_text("".join(first_batch))
    assert run(monkeypatch, *base(prompts, torn)) == 0
    assert torn.read_text() == whole.read_text()


def test_a_batch_cut_short_is_sampled_again(monkeypatch, prompts, tmp_path):
    whole, torn = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    assert run(monkeypatch, *base(prompts, whole)) == 0
    torn.write_text(whole.read_text()[:-300])
    assert run(monkeypatch, *base(prompts, torn)) == 0
    assert torn.read_text() == whole.read_text()


@pytest.mark.parametrize(
    "content",
    [
        "notes",
        "{}\n",
        '{"prompt": "a"}\n',
        '{"batch": 0, "options": {"seed": 1}}\nnotes',
        '{"batch": 0, "options": [1]}\n',
    ],
)
def test_another_file_is_left_alone(tmp_path, content):
    path = tmp_path / "mine.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=r"mine\.jsonl:\d: not a line of `lorarlhf sample`"):
        finished_rows(path, {"seed": 1})
    assert path.read_text() == content


def test_any_text_survives_a_stop(tmp_path):
    path = tmp_path / "pairs.jsonl"
    row = {"prompt": "line\u2028and\x85line", "batch": 0, "options": {"seed": 0}}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert finished_rows(path, {"seed": 0}) == [row]


def test_the_policy_of_a_run_or_of_one_of_its_checkpoints(tmp_path):
    run = Run(tmp_path / "run")
    run.write_recipe(load_recipe("demo"))
    with pytest.raises(UserError, match=r"--checkpoint last: no policy of .* has finished"):
        of_run(run, checkpoint="last")
    assert of_run(run).sources == ["base"]
    run.stage("ppo").mkdir()
    (run.stage("ppo") / "adapter_config.json").touch()
    with written_whole(run.stage("ppo") / "checkpoint-8") as part:
        (part / "policy").mkdir()
    assert of_run(run).sources == [str(run.stage("ppo"))]
    assert of_run(run, checkpoint="8").sources == [str(run.stage("ppo") / "checkpoint-8" / "policy")]
    with pytest.raises(UserError, match=r"--checkpoint 9: .* there is 8, last, best"):
        of_run(run, checkpoint="9")


def test_a_run_gives_its_own_temperature_and_length(monkeypatch, prompts, tmp_path):
    recipe = small_recipe(tmp_path, "ppo.temperature=0.3", "ppo.response_length=7")
    Run(tmp_path / "run").write_recipe(recipe)
    given = []
    monkeypatch.setattr("lorarlhf.stages.sample.write_pairs", lambda sampler, *args: given.append(sampler) or 1)
    arguments = ["--run", tmp_path / "run", "--prompts", prompts, "--out", tmp_path / "new" / "o.jsonl"]
    assert run(monkeypatch, *arguments) == run(monkeypatch, *arguments, "--temperature", 2) == 0
    assert [(sampler.temperature, sampler.response_length) for sampler in given] == [(0.3, 7), (2.0, 7)]


def test_the_policy_of_a_run_samples_by_its_own_recipe(prompts, tmp_path):
    recipe, run = small_recipe(tmp_path, "ppo.response_length=7"), Run(tmp_path / "run")
    run.write_recipe(recipe, "sft")
    run.write_recipe(small_recipe(tmp_path, "ppo.response_length=9"), "reward")
    save_random_adapter(recipe, run, "sft")
    respondent = of_run(run)
    assert respondent.recipe == recipe
    assert respondent.sources == [str(run.stage("sft"))]


def test_an_adapter_of_another_base_is_refused_unless_it_is_allowed(monkeypatch, prompts, adapters, tmp_path, capsys):
    other = shutil.copytree(shipped_folder("data") / "demo" / "model", tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rope_theta": 1234.0}))
    arguments = [*base(prompts, tmp_path / "pairs.jsonl"), "--adapters", adapters[0], "base"]
    arguments[1] = other
    assert run(monkeypatch, *arguments) == 2
    assert "the adapter was trained on shipped:demo/model, which has another config than" in capsys.readouterr().err
    monkeypatch.setattr("lorarlhf.stages.sample.write_pairs", lambda *args: 1)
    assert run(monkeypatch, *arguments, "--allow-other-base") == 0


@pytest.mark.parametrize(
    ("option", "changed"),
    [
        (["--seed", 1], "seed 0 (now 1)"),
        (["--temperature", 0.5, "--n", 3], "n 2 (now 3), temperature 1.0 (now 0.5)"),
        (["--response-length", 25], "response-length 24 (now 25)"),
        (["--adapters", "base", "base"], "adapters base (now base / base)"),
        (["--quantization", "nf4"], "quantization none (now nf4)"),
        (["--model", "other"], "model shipped:demo/model (now other)"),
        (["--prompts", "other.jsonl"], "prompts.jsonl (now other.jsonl)"),
    ],
)
def test_other_options_are_not_mixed_in(monkeypatch, prompts, tmp_path, capsys, option, changed):
    """Nothing is loaded: the model and file named here need not be there."""
    out = tmp_path / "pairs.jsonl"
    monkeypatch.setattr("lorarlhf.preferences.sampling.ResponseSampler", None)
    written = base(prompts, out)
    options = {
        "model": "shipped:demo/model",
        "quantization": "none",
        "adapters": "base",
        "prompts": str(prompts),
        **OPTIONS,
    }
    out.write_text(json.dumps({"prompt": "a", "batch": 0, "options": options}) + "\n")
    before = out.read_text()
    assert run(monkeypatch, *written, *option) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"Error: {out}: was sampled with ")
    assert line.endswith(f"{changed}; give the same options, or another --out")
    assert out.read_text() == before


def test_pairs_without_a_score_cannot_be_ranked(monkeypatch, prompts, adapters, tmp_path, capsys):
    out = tmp_path / "pairs.jsonl"
    assert run(monkeypatch, *base(prompts, out)) == 0
    assert run(monkeypatch, *base(prompts, out), "--pick", "uncertain", "--reward", adapters[1]) == 2
    assert f"sampled with pick all (now uncertain), reward None (now {adapters[1]})" in capsys.readouterr().err


def test_two_policies_meet_and_close_calls_come_first(monkeypatch, prompts, adapters, tmp_path):
    policy, reward = adapters
    out = tmp_path / "pairs.jsonl"
    arguments = ["--adapters", "base", policy, "--n", 1, "--pick", "uncertain", "--reward", reward]
    assert run(monkeypatch, *base(prompts, out), *arguments) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["source"] for row in rows} == {f"base / {policy}"}
    distances = [abs(row["predicted"] - 0.5) for row in rows]
    assert distances == sorted(distances)
    assert distances[-1] > distances[0]


@pytest.mark.parametrize("base_is", [0, 1, None])
def test_no_adapter_takes_the_place_of_another_role(monkeypatch, prompts, adapters, tmp_path, base_is):
    """A second policy is no reference, and the bare base no critic that has yet to be loaded."""
    samplers = []
    monkeypatch.setattr("lorarlhf.stages.sample.write_pairs", lambda sampler, *args: samplers.append(sampler) or 1)
    sources, roles = [adapters[0], adapters[0]], ["policy", "candidate"]
    if base_is is not None:
        sources[base_is] = roles[base_is] = "base"
    assert run(monkeypatch, *base(prompts, tmp_path / "out.jsonl"), "--adapters", *sources) == 0
    [sampler] = samplers
    assert sampler.roles == roles
    assert sampler.backbone.roles == set(roles) - {"base"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompts", "p.jsonl", "--out", "o.jsonl"], "give either --run or --model"),
        (["--run", "r", "--prompts", "p.jsonl", "--out", "o.jsonl", "--quantization", "nf4"], "it goes with --model"),
        (["--model", "m", "--prompts", "p.jsonl", "--out", "o.jsonl", "--checkpoint", "last"], "which policy of --run"),
        (["--model", "m", "--prompts", "p.jsonl", "--out", "o.jsonl", "--n", "1"], "--n must be at least 2"),
        (["--model", "m", "--prompts", "p.jsonl", "--out", "o.txt"], "o.txt: must end in .jsonl"),
    ],
)
def test_what_is_missing_is_named(monkeypatch, capsys, arguments, message):
    assert run(monkeypatch, *arguments) == 2
    assert message in capsys.readouterr().err


def test_the_same_response_of_two_policies_is_no_pair(monkeypatch):
    """Batches are put together otherwise for each, and a score comes out otherwise in its last digits."""
    drawn = [[[("Yes.", 0.5), ("No.", 0.1)]], [[("Yes.", 0.5000001), ("Never.", 0.2)]]]
    monkeypatch.setattr(sampling, "scored_responses", lambda sampler, batch, k, number: drawn[k])
    sampler = SimpleNamespace(roles=("base", "policy"), names=("base", "policy"))
    rows = sampling._pairs(sampler, True, [PromptExample("Well?", [1])], 0)
    assert [(row["response_a"], row["response_b"]) for row in rows] == [
        ("Yes.", "Never."),
        ("No.", "Yes."),
        ("No.", "Never."),
    ]


def test_a_file_of_adapters_that_were_trained_again_is_not_gone_on_with(monkeypatch, prompts, tmp_path, capsys):
    out, adapter = tmp_path / "pairs.jsonl", tmp_path / "policy"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"one")
    monkeypatch.setattr("lorarlhf.stages.sample.load_respondent", lambda *args: pytest.fail("loaded"))
    options = {
        "model": "shipped:demo/model",
        "quantization": "none",
        "adapters": f"{adapter} / base",
        "prompts": str(prompts),
        **OPTIONS,
        "adapter weights": hash_file(adapter / "adapter_model.safetensors")[:12],
    }
    out.write_text(json.dumps({"prompt": "a", "batch": 0, "options": options}) + "\n")
    (adapter / "adapter_model.safetensors").write_bytes(b"another")
    assert run(monkeypatch, *base(prompts, out), "--adapters", adapter, "base") == 2
    assert f"was sampled with adapter weights {options['adapter weights']} (now " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("missing", "message"), [("prompts", "none.jsonl: no such file"), ("adapters", "none: no adapter_config.json")]
)
def test_nothing_is_loaded_for_what_is_not_there(monkeypatch, prompts, tmp_path, capsys, missing, message):
    monkeypatch.setattr("lorarlhf.stages.sample.load_backbone", lambda *args: pytest.fail("loaded"))
    if missing == "prompts":
        arguments = base(tmp_path / "none.jsonl", tmp_path / "pairs.jsonl")
    else:
        arguments = [*base(prompts, tmp_path / "pairs.jsonl"), "--adapters", tmp_path / "none", "base"]
    assert run(monkeypatch, *arguments) == 2
    assert message in capsys.readouterr().err
