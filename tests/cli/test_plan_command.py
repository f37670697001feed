"""`lorarlhf plan` and the plan that dry runs show."""

import re

import pytest


def test_it_shows_every_stage_and_that_it_fits(command):
    code, out, err = command("plan", "--recipe", "demo", "--gpu-memory", "8")
    assert (code, err) == (0, "")
    for stage in ("reward", "ppo"):
        assert re.search(rf"^{stage}: \d\.\d\d GiB, fits in 8\.0 GiB", out, re.MULTILINE)
    for word in ("backbone", "adapters", "optimizer", "kv cache", "activations", "rollout", "in all"):
        assert word in out
    assert "micro-batches of 8192 tokens" in out


def test_what_does_not_fit_is_a_users_error_with_keys_to_change(command):
    code, out, err = command("plan", "--recipe", "demo", "--gpu-memory", "0.6", "--set", "stages=[sft,reward,ppo]")
    assert code == 2
    assert err == "Error: demo does not fit in 0.60 GiB: sft, reward\n"
    assert re.search(r"^reward: 0\.6\d GiB, does not fit in 0\.60 GiB$", out, re.MULTILINE)
    assert re.search(r"  --set reward\.per_device_train_batch_size=1: 0\.\d\d GiB, which fits", out)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--recipe", "dmo"], "did you mean demo?"),
        (["--recipe", "demo", "--gpu-memory", "0"], "Invalid value"),
        (["--recipe", "demo", "--model", "shipped:nothing"], "nothing of that name ships"),
        (["--recipe", "demo", "--model", "."], "cannot load '.'"),
        (["--recipe", "demo", "--set", "lora.target_modules=[nowhere]"], "nowhere"),
        (["--recipe", "demo", "--set", "ppo.micro_batch_tokens=many"], "ppo.micro_batch_tokens"),
    ],
)
def test_bad_input(command, args, message):
    code, _, err = command("plan", *args)
    assert code == 2
    assert message in err


def test_an_automatic_budget_is_the_largest_that_fits(command):
    code, out, _ = command("plan", "--recipe", "demo", "--gpu-memory", "8", "--set", "ppo.micro_batch_tokens=auto")
    assert code == 0
    assert re.search(r"micro-batches of (\d+) tokens \(largest that fits: \1\)", out)


def test_a_dry_run_shows_its_stage_alone(command):
    code, out, _ = command("reward", "--recipe", "demo", "--dry-run")
    assert code == 0
    assert "reward: " in out
    assert "sft: " not in out.split("would write")[1]


def test_the_stages_of_the_recipe_are_planned(command):
    code, out, _ = command("plan", "--recipe", "demo", "--gpu-memory", "8", "--set", "stages=[sft,evaluate]")
    assert code == 0
    assert re.findall(r"^(\w+): \d", out, re.MULTILINE) == ["sft"]


def test_a_config_is_enough(command, tmp_path):
    from transformers import LlamaConfig

    LlamaConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, vocab_size=100
    ).save_pretrained(tmp_path / "model")
    code, out, _ = command("plan", "--recipe", "demo", "--model", tmp_path / "model")
    assert code == 0
    assert "ppo: " in out
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["config.json"]
