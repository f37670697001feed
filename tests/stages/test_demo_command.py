"""The demo as a whole: small to see that it holds together, whole (slow) to see that it keeps its promises."""

import json

import pytest
import torch
from demo_runs import small_sets
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorarlhf.errors import UserError
from lorarlhf.stages.demo import run_demo

# Two short iterations improve nothing, and a policy that is no better is not exported; unjudged ones are.
UNJUDGED = "ppo.eval_every=0"
CONTRACT = {
    "seconds": None,
    "reward": {"eval_accuracy"},
    "ppo": {"iterations", "kl", "reward_before", "reward_after"},
    "gold": {"before", "after", "win_rate"},
    "fluent_fraction": None,
}


def check_contract(summary):
    assert set(summary) == set(CONTRACT)
    for key, parts in CONTRACT.items():
        assert parts is None or set(summary[key]) == parts
    assert summary["seconds"] > 0
    for share in (summary["reward"]["eval_accuracy"], summary["gold"]["win_rate"], summary["fluent_fraction"]):
        assert 0 <= share <= 1


def test_a_small_demo_holds_together(tmp_path, capsys):
    summary = run_demo(tmp_path / "run", seed=3, sets=(*small_sets(tmp_path / "data"), UNJUDGED))
    check_contract(summary)
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert summary["ppo"]["iterations"] == 2
    out = capsys.readouterr().out
    assert "\x1b" not in out
    for part in ("Customer", "Before", "After", "gold score", "5/5 export", "lorarlhf chat --run"):
        assert part in out
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert f"all of it on one page: {tmp_path / 'run' / 'report.html'}" in out
    for part in ("finished: 3 steps", "finished: 2 iterations", "reliability", "margins", "time by phase"):
        assert part in page
    for stage in ("reward", "ppo"):
        assert json.loads((tmp_path / "run" / stage / "summary.json").read_text())["seconds"] > 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "export")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "export")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "How much are the apples?"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    torch.manual_seed(0)
    answer = model.generate(ids, max_new_tokens=8, do_sample=True)
    assert answer.shape[1] > ids.shape[1]


def test_a_second_demo_moves_the_first_aside_and_repeats_it(tmp_path):
    sets = (*small_sets(tmp_path / "data"), UNJUDGED)
    first, second = (run_demo(tmp_path / "run", seed=3, sets=sets) for _ in range(2))
    assert {key: first[key] for key in CONTRACT if key != "seconds"} == {
        key: second[key] for key in CONTRACT if key != "seconds"
    }
    assert (tmp_path / "run" / "ppo.1").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_the_demo_keeps_its_promises(tmp_path, seed):
    summary = run_demo(tmp_path / "run", seed)
    check_contract(summary)
    assert summary["reward"]["eval_accuracy"] >= 0.80
    assert summary["gold"]["win_rate"] >= 0.80
    assert summary["fluent_fraction"] >= 0.95
    assert summary["ppo"]["kl"] < 15


def test_a_demo_with_nothing_held_out_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(UserError, match=r"^data\.test_size: the demo is judged by what is held out"):
        run_demo(tmp_path / "run", seed=0, sets=("data.preferences_test=null", "data.test_size=0.0"))
    assert not (tmp_path / "run").exists()
