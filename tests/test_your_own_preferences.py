"""The page on one's own preferences, typed from top to bottom: sample, label, check, train; the gold score rises."""

import json
import re
import signal
from collections import Counter
from pathlib import Path
from statistics import mean

import pytest
from demo_runs import read_jsonl
from labelling_page import label
from pages import commands, opens_the_labelling_page, own_commands, run

from lorarlhf.demo.world import gold_score, is_fluent
from lorarlhf.preferences.labels import read_labels

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "your-own-preferences.md").read_text(encoding="utf-8")
NOISE = 0.1
# Who gives how many answers to which file. Of 315, about 15 are repeats.
ANNOTATORS = {"labels.jsonl": [("ann", 315, NOISE), ("bob", 100, NOISE)], "verdict.jsonl": [("ann", 60, 0.0)]}


@pytest.mark.slow
def test_from_ones_own_labels_to_a_better_policy(monkeypatch, tmp_path, capsys, run_collect):
    monkeypatch.chdir(tmp_path)
    printed = {}
    for arguments in own_commands(PAGE):
        if opens_the_labelling_page(arguments):
            running = run_collect(*arguments[1:])
            for seed, (annotator, count, noise) in enumerate(ANNOTATORS[arguments[-1]]):
                label(running.link, annotator, count, noise, seed)
            running.stop(signal.SIGINT)
        else:
            assert run(monkeypatch, arguments) == 0, (arguments, capsys.readouterr().err)
        printed[" ".join(arguments[:3])] = capsys.readouterr().out
    check_agreement(printed["data agreement labels.jsonl"])
    check_export(tmp_path, printed["collect export labels.jsonl"])
    reward = json.loads((tmp_path / "runs/own/reward/summary.json").read_text())
    assert reward["train_examples"] + reward["eval_examples"] == len(read_jsonl(tmp_path / "prefs.jsonl"))
    assert reward["eval_accuracy"] > 0.6  # 0.79 to 0.91 in four draws
    check_duel(read_jsonl(tmp_path / "duel.jsonl"))
    check_verdict(read_labels(tmp_path / "verdict.jsonl"), printed["data agreement verdict.jsonl"])


def check_agreement(printed):
    """With 10% flips two labels agree 82% of the time; the limits are three standard errors away or more."""
    noise = float(re.search(r"label noise: ([\d.]+)", printed).group(1))
    assert 0.02 < noise < 0.22
    people = {line.split()[0]: line for line in printed.splitlines() if line.strip().startswith(("ann ", "bob "))}
    shares = {name: [float(share) for share in re.findall(r"([\d.]+)% of", line)] for name, line in people.items()}
    with_majority, with_oneself, left, longer = shares["ann"]
    assert with_majority > 65
    assert with_oneself > 50
    assert 38 < left < 62
    assert 35 < longer < 65


def check_export(folder, printed):
    rows = read_jsonl(folder / "prefs.jsonl")
    assert printed.startswith(f"export: {len(rows)} rows in prefs.jsonl; left out: ")
    assert {name for row in rows for name in row["annotators"]} == {"ann", "bob"}
    right = [
        gold_score(row["prompt"][0]["content"], row["chosen"][0]["content"])
        > gold_score(row["prompt"][0]["content"], row["rejected"][0]["content"])
        for row in rows
    ]
    assert 0.83 < mean(right) < 0.97


def check_verdict(labels, printed):
    """The tuned policy (b) wins, and the report counts as we do."""
    first = Counter(given.choice for given in labels if not given.repeat)
    assert first["b"] > first["a"]
    share = (first["b"] + 0.5 * first["tie"]) / first.total()
    assert f"blind comparison: {first.total()} pairs, {first['tie']} of them ties" in printed
    print(printed)
    assert float(re.search(r"runs/own/ppo +([\d.]+) ", printed).group(1)) == pytest.approx(share, abs=6e-4)


def check_duel(pairs):
    """Held-out prompts, answered by the base (a) and by the tuned policy (b)."""
    assert len(pairs) > 100
    responses = {
        side: [(row["prompt"][0]["content"], row[side][0]["content"]) for row in pairs]
        for side in pairs[0]
        if side.startswith("response")
    }
    base, tuned = (mean(gold_score(*given) for given in responses[side]) for side in ("response_a", "response_b"))
    print(f"gold score {base:.2f} -> {tuned:.2f}")
    assert tuned > base + 0.6  # +1.7 to +2.4 in four draws of pairs, labels and seeds
    assert mean(is_fluent(text) for _, text in responses["response_b"]) > 0.85


def test_the_other_command_and_the_links():
    others = [command for command in commands(PAGE) if not command.startswith("lorarlhf ")]
    assert others == ["pip install 'lorarlhf[collect]'"]
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
