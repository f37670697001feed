"""Both engines on the same weights and responses: equal where both mean the same, and how far apart where not.

`both_engines.py` says how the numbers are taken; docs/parity.md lists every difference with its reason.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from demo_runs import read_jsonl, save_random_adapter, small_recipe, small_sets
from safetensors.torch import load_file

from lorarlhf.run import Run

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("both_engines.py")
EXPERIENCE = ("scores", "logprobs", "ref_logprobs", "kl", "values", "advantages", "returns", "whitened")
UPDATE = ("policy_loss", "value_loss", "grad_policy", "grad_critic", "after_policy", "after_critic", "steps")
# Whoever opens a connection or looks up a name is written down and stopped.
NO_NETWORK = """
import os, socket, traceback

def refuse(*args, **kwargs):
    with open(os.environ["NETWORK_LOG"], "a") as file:
        traceback.print_stack(file=file)
    raise OSError("no network in tests")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""


@pytest.fixture(scope="session")
def computed(trl_environment, tmp_path_factory):
    """`computed(case)`: mask, finished, and what `ours` and `trl` made of it, `(mask, finished, ours, trl)`."""
    folder = tmp_path_factory.mktemp("both")
    done = subprocess.run(
        [sys.executable, SCRIPT, folder], env=trl_environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]

    def case(name):
        saved = load_file(folder / f"{name}.safetensors")
        ours, trl = (
            {key.removeprefix(engine): value for key, value in saved.items() if key.startswith(engine)}
            for engine in ("ours.", "trl.")
        )
        return saved["mask"], saved["finished"], ours, trl

    return case


def gap(a, b):
    assert a.shape == b.shape
    return (a.float() - b.float()).abs().max().item()


# Where both mean the same


@pytest.mark.parametrize(
    "case", ["same", "nf4", "temperature", "k3", "whiten_rewards", "checkpointing", "steps", "micro_batches"]
)
def test_both_engines_agree(computed, case):
    mask, finished, ours, trl = computed(case)
    assert mask.all()
    assert not finished.any()
    if case == "micro_batches":  # a loss each, of as many tokens each
        trl |= {name: trl[name].mean(0, keepdim=True) for name in ("policy_loss", "value_loss")}
    for name in (*EXPERIENCE, *UPDATE):
        assert gap(ours[name], trl[name]) < 1e-5, name
    # Nothing here is equal for being zero.
    assert ours["kl"].abs().max() > 1e-4
    assert all(ours[f"grad_{role}"].abs().max() > 5e-3 for role in ("policy", "critic"))
    assert ours["value_loss"].min() > 0.1
    assert ours["steps"] == (4 if case == "steps" else 1)
    if case == "steps":
        assert ours["policy_loss"].abs().max() > 0.01


def test_the_first_step_of_adam_agrees(computed):
    """Where a gradient is nothing but rounding, Adam divides it by itself: there the signs are a matter of chance."""
    _, _, ours, trl = computed("adamw")
    for role in ("policy", "critic"):
        grad = ours[f"grad_{role}"].abs()
        real = grad > 1e-6
        assert real.float().mean() > 0.5
        after = f"after_{role}"
        assert gap(ours[after][real], trl[after][real]) < 1e-5
        assert gap(ours[after], trl[after]) <= 2e-3, "at most a step of the learning rate each way"


def test_what_comes_before_the_reward_agrees_for_responses_that_end(computed):
    mask, finished, ours, trl = computed("ends")
    assert finished.any()
    assert not finished.all()
    assert gap(ours["scores"], trl["scores"]) < 1e-5, "with the penalty for those that were cut"
    for name in ("logprobs", "ref_logprobs", "kl", "values"):
        assert gap(ours[name][mask], trl[name][mask]) < 1e-5, name
    cut = ~finished
    for name in ("advantages", "returns"):
        assert gap(ours[name][cut], trl[name][cut]) < 1e-5, name


# Where they differ


def test_trl_puts_the_score_one_position_after_the_end(computed):
    """As if something were done there: the last token gets less of the score, and some of the value of the end."""
    mask, finished, ours, trl = computed("ends")
    last = mask & (mask.cumsum(1) == mask.sum(1, keepdim=True))
    ends = last & finished.unsqueeze(1)
    after = torch.roll(ends, 1, dims=1)
    assert trl["values"][after].abs().min() > 0.1, "the value of the finished text is used"
    assert (ours["values"][~mask] == 0).all()
    assert gap(ours["advantages"][ends], trl["advantages"][ends]) > 0.1
    gamma, lam = 0.98, 0.9
    end_value = trl["values"][after]
    expected = ours["advantages"][ends] + gamma * (1 - lam) * end_value - (1 - gamma * lam) * ours["scores"][finished]
    assert gap(expected, trl["advantages"][ends]) < 1e-5
    assert gap(ours["value_loss"], trl["value_loss"]) > 0.01, "the extra position is learned, too"


def test_without_discounting_the_extra_position_only_changes_the_critic(computed):
    mask, _, ours, trl = computed("ends_undiscounted")
    assert gap(ours["advantages"][mask], trl["advantages"][mask]) < 1e-5
    assert gap(ours["after_policy"], trl["after_policy"]) < 1e-5
    assert gap(ours["grad_critic"], trl["grad_critic"]) > 0.01


def test_trl_whitens_with_the_unbiased_variance(computed):
    mask, _, ours, trl = computed("bessel")
    n = mask.sum().item()
    factor = ((n - 1) / n) ** 0.5
    assert gap(ours["whitened"], trl["whitened"]) > 0.01
    assert gap(ours["whitened"] * factor, trl["whitened"]) < 1e-5
    assert gap(ours["grad_policy"] * factor, trl["grad_policy"]) < 1e-5
    assert gap(ours["after_critic"], trl["after_critic"]) < 1e-5


def test_trl_averages_micro_batches_of_different_length_alike(computed):
    """Ours splits into micro-batches without a difference (tests/ppo/test_trainer.py)."""
    _, _, _, whole = computed("ends")
    _, _, _, split = computed("micro_batches_end")
    assert gap(whole["whitened"], split["whitened"]) == 0
    assert gap(whole["value_loss"][0], split["value_loss"].mean()) > 1e-3
    assert gap(whole["grad_policy"], split["grad_policy"]) > 1e-4


@pytest.mark.parametrize(("case", "steps"), [("steps", 4), ("accumulated", 1), ("accumulated_last_batch", 2)])
def test_trl_steps_by_accumulation_and_not_by_minibatch(computed, case, steps):
    """Two minibatches are two steps in ours. In TRL accumulation decides, but for the last batch of the prompts."""
    _, _, ours, trl = computed(case)
    assert ours["steps"] == (4 if case == "steps" else 2)
    assert trl["steps"] == steps


def test_trl_takes_a_sampled_pad_token_for_padding(computed):
    mask, _, ours, trl = computed("pad_in_response")
    assert mask.all()
    assert abs(ours["scores"][0] - trl["scores"][0]) > 0.1
    assert gap(ours["scores"][1:], trl["scores"][1:]) < 1e-5
    assert (trl["kl"][0, 2:] == 0).all(), "what follows is not penalised"
    assert (ours["kl"][0, 2:] != 0).all()


def test_trl_reduces_over_the_vocabulary_in_bfloat16(computed):
    """The policy has not moved: every ratio should be 1, and every KL one of the adapters."""
    _, _, ours, trl = computed("bfloat16")
    assert ours["approx_kl"][0] == 0
    assert (trl["first_ratio"] - 1).abs().max() > 1e-3
    assert gap(ours["ref_logprobs"], trl["ref_logprobs"]) > 1e-3
    assert gap(computed("same")[3]["first_ratio"], torch.ones(8, 6)) < 1e-5


# The command


@pytest.fixture
def ppo(trl_environment, tmp_path):
    """`ppo(*args)`: the command with TRL 1.12, online as far as it knows; and its run, with a reward adapter."""
    recipe = small_recipe(tmp_path)
    run = Run(tmp_path / "run")
    save_random_adapter(recipe, run, "reward")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NO_NETWORK)
    log = tmp_path / "network.log"
    hidden = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "CI")
    environment = {key: value for key, value in trl_environment.items() if key not in hidden}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "site"), environment["PYTHONPATH"]])

    def call(*args):
        command = [Path(sys.executable).with_name("lorarlhf"), "ppo", "--recipe", "demo", "--output-dir", run.path]
        sets = [*small_sets(tmp_path / "data"), "ppo.eval_every=1"]
        command += [part for text in sets for part in ("--set", text)]
        done = subprocess.run(
            [*command, "--engine", "trl", *args],
            env=environment | {"NETWORK_LOG": str(log), "COLUMNS": "200"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert not log.exists(), log.read_text()
        return done.returncode, done.stdout, done.stderr

    return call, run


def test_a_run_of_trl_and_what_it_leaves_behind(ppo):
    call, run = ppo
    code, out, err = call("--set", "ppo.max_grad_norm=1e6", "--set", "ppo.missing_eos_penalty=1.0")
    assert code == 0, err
    assert f"ppo: adapter in {run.stage('ppo')}" in out
    summary = json.loads((run.stage("ppo") / "summary.json").read_text())
    assert (summary["engine"], summary["iterations"], summary["reference"]) == ("trl", 2, "base")
    rows = read_jsonl(run.stage("ppo") / "metrics.jsonl")
    assert [(row["iteration"], "eval_reward" in row) for row in rows] == [
        *[(0, True), (1, False), (1, True), (2, False), (2, True)]
    ]
    assert rows[1]["kl"] == pytest.approx(0, abs=1e-4), "the policy starts as its reference"
    assert rows[1]["policy_loss"] != rows[3]["policy_loss"]
    assert abs(rows[4]["eval_kl"]) > 0, "the policy has moved"
    assert summary["before"]["eval_reward"] == rows[0]["eval_reward"]
    assert len(read_jsonl(run.stage("ppo") / "samples.jsonl")) == 3 * 4
    final, best = (load_file(path / "adapter_model.safetensors") for path in (run.stage("ppo"), run.path / "ppo/best"))
    assert all(torch.equal(final[name], best[name]) for name in best)
    assert not list(run.stage("ppo").glob("checkpoint-*"))
    assert not (run.stage("ppo") / "README.md").exists()


def test_trl_refuses_what_it_cannot_do(ppo):
    call, run = ppo
    code, out, err = call("--set", "ppo.entropy_coef=0.1")
    assert (code, out) == (2, "")
    assert err == (
        "Error: --engine trl: TRL's PPO has no max_grad_norm, entropy_coef; "
        "switch off with --set ppo.max_grad_norm=1000000.0 --set ppo.entropy_coef=0.0\n"
    )
    assert not run.stage("ppo").exists()
