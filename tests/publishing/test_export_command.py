"""`lorarlhf export`."""

import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorarlhf.cli.main import main
from lorarlhf.manifest import written_whole
from lorarlhf.publishing import hub


@pytest.fixture
def lorarlhf(monkeypatch, capsys):
    """`lorarlhf(*arguments)`: exit code, stdout and stderr of the command."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["lorarlhf", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        output = capsys.readouterr()
        return exit_.value.code or 0, output.out, output.err

    return run


def test_the_last_stage_is_exported_unless_another_is_named(lorarlhf, make_run, tmp_path):
    run = make_run(["sft", "reward", "ppo"])
    code, out, _ = lorarlhf("export", "--run", run.path, "--to", tmp_path / "out", "--adapter-only")
    assert code == 0
    assert "the ppo stage" in out
    assert "-ppo\n" in (tmp_path / "out" / "README.md").read_text()
    code, out, _ = lorarlhf("export", "--run", run.path, "--to", tmp_path / "rm", "--adapter-only", "--stage", "reward")
    assert code == 0
    assert "the reward stage" in out
    assert "-reward\n" in (tmp_path / "rm" / "README.md").read_text()


def test_it_merges_in_the_type_asked_for_and_uploads(lorarlhf, make_run, tmp_path, monkeypatch):
    pushed = []

    def push(folder, repo_id, private):
        pushed.append((folder, repo_id, private))
        return "https://huggingface.co/me/model"

    monkeypatch.setattr(hub, "push_to_hub", push)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    run, out = make_run(["ppo"]), tmp_path / "out"
    arguments = ["--merge", "--dtype", "float16", "--push-to-hub", "me/model", "--private"]
    code, printed, _ = lorarlhf("export", "--run", run.path, "--to", out, *arguments)
    assert code == 0
    assert '"dtype": "float16"' in (out / "config.json").read_text()
    assert pushed == [(out, "me/model", True)]
    assert "uploaded to https://huggingface.co/me/model" in printed
    listed, sent = printed.index("export: to upload: "), printed.index("export: uploaded to")
    assert "model.safetensors" in printed[listed:sent]
    assert f"`ollama create out -f {out}/Modelfile`, then `ollama run out`" in printed


@pytest.fixture
def with_checkpoint(make_run):
    """A run whose ppo stage has improved nothing, with a checkpoint that has another adapter than what was kept."""
    run = make_run(["ppo"])
    run.write_summary("ppo", {"improved": False, "best": {"eval_reward": 1.5}})
    with written_whole(run.stage("ppo") / "checkpoint-3") as part:
        (part / "policy").mkdir()
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(run.stage("ppo") / name, part / "policy" / name)
        file = part / "policy" / "adapter_model.safetensors"
        save_file({name: x + 1 for name, x in load_file(file).items()}, file)
    return run


def test_a_policy_that_training_has_not_improved_leaves_only_if_asked_for(lorarlhf, with_checkpoint, tmp_path):
    run, out = with_checkpoint, tmp_path / "out"
    call = ["export", "--run", run.path, "--to", out, "--adapter-only"]
    code, _, err = lorarlhf(*call)
    assert code == 2
    assert "the policy kept is the one from before training" in err
    assert "--anyway" in err
    assert not out.exists()
    assert lorarlhf(*call, "--anyway")[0] == 0
    kept = load_file(run.stage("ppo") / "adapter_model.safetensors")
    assert all(torch.equal(x, kept[name]) for name, x in load_file(out / "adapter_model.safetensors").items())


@pytest.mark.parametrize("choice", ["last", "3"])
def test_the_adapter_of_a_checkpoint(lorarlhf, with_checkpoint, tmp_path, choice):
    run, out = with_checkpoint, tmp_path / "out"
    code, _, err = lorarlhf("export", "--run", run.path, "--to", out, "--adapter-only", "--checkpoint", choice)
    assert code == 0, err
    kept = load_file(run.stage("ppo") / "adapter_model.safetensors")
    assert all(torch.equal(x, kept[name] + 1) for name, x in load_file(out / "adapter_model.safetensors").items())
    card = (out / "README.md").read_text()
    assert "checkpoint-3" in card
    assert "1.5" not in card.split("## Recipe")[0], "what was measured of another policy"
    assert (out / "tokenizer.json").is_file()


def test_a_checkpoint_that_is_not_there(lorarlhf, with_checkpoint, tmp_path):
    code, _, err = lorarlhf("export", "--run", with_checkpoint.path, "--to", tmp_path / "out", "--checkpoint", "7")
    assert code == 2
    assert "has no such checkpoint; there is 3, last, best" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage", "ppo"], "no adapter there; run `lorarlhf ppo"),
        (["--private"], "--push-to-hub"),
        (["--push-to-hub", "not a name"], "write it as NAME or OWNER/NAME"),
        (["--llama-cpp", "llama.cpp"], "--gguf q8_0"),
        (["--gguf", "f16", "--llama-cpp", "llama.cpp"], "no form for a reward model's score"),
    ],
)
def test_mistakes_exit_with_2_and_one_line(lorarlhf, make_run, tmp_path, arguments, message):
    run = make_run(["reward"])
    code, _, err = lorarlhf("export", "--run", run.path, "--to", tmp_path / "out", *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()
