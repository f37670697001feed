"""Two policies answer, and one of the answers is better: preferences that are gathered while chatting."""

import json

import pytest
from chats import HELLO, ask
from demo_runs import read_jsonl
from rich.console import Console

from lorarlhf.backbone.adapters import BASE
from lorarlhf.cli import chat as chat_cli
from lorarlhf.data.rows import prompt_text
from lorarlhf.errors import UserError
from lorarlhf.preferences.pairs import append_pair, make_pair, read_pairs
from lorarlhf.stages import chat as chat_stage
from lorarlhf.stages.chat import open_chat
from lorarlhf.stages.sample import of_model


@pytest.mark.parametrize(("key", "better"), [("a", True), ("B", True), ("t", False), ("hello", False)])
def test_a_comparison_becomes_a_preference(piped, chat_run, at_once, tmp_path, key, better):
    out, prefs = tmp_path / "gathered", tmp_path / "prefs.jsonl"
    code, said, err = piped(f"{HELLO}\n/compare\n{key}\n", "chat", "--run", chat_run.path, "--seed", 5, "--out", out)
    assert code == 0, err
    sides = dict(line.split(": ", 1) for line in said.splitlines()[1:])
    if key == "hello":
        assert "nothing is written" in err
        assert (out / "labels.jsonl").read_text() == ""
        return
    (pair,) = read_pairs(out / "pairs.jsonl")
    assert pair.source == f"{chat_run.stage('sft')} / {chat_run.stage('ppo')}"
    assert {pair.response_a[0]["content"], pair.response_b[0]["content"]} == set(sides.values())
    code, _, err = piped("", "collect", "export", out / "labels.jsonl", "--pairs", out / "pairs.jsonl", "--out", prefs)
    assert code == (0 if better else 2), err
    if better:
        (row,) = read_jsonl(prefs)
        assert row["chosen"][0]["content"] == sides[key.lower()]
        assert row["prompt"] == [{"role": "user", "content": HELLO}]


def test_a_label_says_whose_answer_won_wherever_it_stood(chat):
    lefts = set()
    for number in range(8):
        ask(chat, f"{HELLO} {number}")
        task = chat.compare()
        assert chat.policies(task) == tuple(chat.sampler.names[:: 1 if task.left == "a" else -1])
        better = chat.record(task, "right", 2.0)
        assert better == chat.policies(task)[1]
        assert chat.history[-1]["content"] == task.right_response[0]["content"]
        label = read_jsonl(chat.labels_path)[-1]
        assert (label["choice"], label["left"]) == ("b" if task.left == "a" else "a", task.left)
        lefts.add(task.left)
    assert lefts == {"a", "b"}, "sides are shuffled"
    assert len(read_pairs(chat.pairs_path)) == 8


def test_of_a_tie_the_answer_before_stays(chat):
    first = ask(chat)
    assert chat.record(chat.compare(), "tie", 1.0) is None
    assert chat.history[-1]["content"] == first


def test_an_adapter_on_a_model_is_compared_with_the_model(chat_run, tmp_path):
    model = chat_run.read_recipe().model
    chat = open_chat(of_model(model, [BASE, str(chat_run.stage("sft"))]), tmp_path, response_length=12)
    ask(chat)
    task = chat.compare()
    assert task.pair.source == f"base / {chat_run.stage('sft')}"
    with pytest.raises(UserError, match="/best: there is no reward model"):
        chat.best(2)
    chat.close()


def test_two_answers_that_are_the_same_make_no_pair(chat, monkeypatch):
    ask(chat)
    monkeypatch.setattr(chat_stage, "scored_responses", lambda *args: [[("Yes.", 0.0)]])
    with pytest.raises(UserError, match=r"/compare: both answer 'Yes\.'"):
        chat.compare()
    answers = iter(["Yes.", " "])
    monkeypatch.setattr(chat_stage, "scored_responses", lambda *args: [[(next(answers), 0.0)]])
    with pytest.raises(UserError, match="/compare: one says nothing"):
        chat.compare()


def test_files_that_cannot_be_added_to_are_refused_before_anything_is_sampled(chat, monkeypatch):
    ask(chat)
    monkeypatch.setattr(chat_stage, "scored_responses", lambda *args: pytest.fail("sampled"))
    chat.labels.mkdir()
    chat.pairs_path.write_text('{"text": "something else"}\n')
    with pytest.raises(UserError, match=r"pairs\.jsonl"):
        chat.compare()
    chat.pairs_path.unlink()
    chat.labels_path.write_text('{"text": "something else"}\n')
    with pytest.raises(UserError, match=r"labels\.jsonl:1: not a label"):
        chat.compare()


def test_a_full_disk_is_one_line(chat, monkeypatch):
    ask(chat)
    task = chat.compare()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(chat_stage, "append_pair", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device; the answer is not kept"):
        chat.record(task, "left", 1.0)
    assert read_jsonl(chat.labels_path) == []


def test_a_pair_is_added_behind_a_line_without_an_end(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "p", "response_a": "a", "response_b": "b"}))
    conversation = [{"role": "user", "content": "é"}]
    answers = [[{"role": "assistant", "content": text}] for text in "cd"]
    pairs = [make_pair(conversation, *answers, "base / x"), make_pair(conversation, *answers, "base / y")]
    for pair in pairs:
        append_pair(path, pair)
    assert read_pairs(path)[1:] == pairs, "the same answers of other policies are another pair"


def test_sides_stand_beside_each_other_and_do_not_say_whose_they_are(monkeypatch, chat, capsys):
    ask(chat)
    task = chat.compare()
    monkeypatch.setattr("rich.console.Console", lambda: Console(width=100))
    chat_cli._print_sides(task, interactive=True)
    shown = capsys.readouterr().out
    assert "sft" not in shown + prompt_text(task.pair.prompt)
    row = next(line for line in shown.splitlines() if task.left_response[0]["content"].split()[0] in line)
    assert row.index(task.left_response[0]["content"].split()[0]) < len(row) / 2
