"""`lorarlhf chat`: what is typed or piped, what is answered, and the preferences that are gathered on the way."""

import io
import json
import sys

import pytest
from demo_runs import read_jsonl, save_random_adapter, small_recipe
from rich.console import Console

from lorarlhf.backbone.adapters import BASE
from lorarlhf.cli import chat as chat_cli
from lorarlhf.cli.main import main
from lorarlhf.data.chat_templates import PLAIN
from lorarlhf.data.rows import prompt_text
from lorarlhf.errors import UserError
from lorarlhf.manifest import written_whole
from lorarlhf.preferences.labelling import Task
from lorarlhf.preferences.pairs import append_pair, make_pair, read_pairs
from lorarlhf.preferences.sampling import Sampler
from lorarlhf.run import Run
from lorarlhf.stages import chat as chat_stage
from lorarlhf.stages.chat import Best, Chat, Said, before_and_after, open_chat
from lorarlhf.stages.sample import load_respondent, of_model

HELLO = "Hello. Are the muffins any good?"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with all three stages, and a checkpoint of ppo that is the sft adapter."""
    folder = tmp_path_factory.mktemp("chat")
    recipe, run = small_recipe(folder), Run(folder / "run")
    run.write_recipe(recipe)
    for stage in ("sft", "reward", "ppo"):
        save_random_adapter(recipe, run, stage)
    return run


@pytest.fixture(scope="module")
def loaded(run):
    """Backbone and roles of the run, loaded once: nothing here trains them."""
    return load_respondent(before_and_after(run), run.read_recipe().data, run.stage("reward"), False)


@pytest.fixture
def at_once(monkeypatch, loaded):
    """Whoever opens a chat with the run gets what is loaded already."""
    monkeypatch.setattr(chat_stage, "load_respondent", lambda *args: loaded)


@pytest.fixture
def chat(run, tmp_path, at_once):
    """A session with the run's policy."""
    session = open_chat(before_and_after(run), tmp_path / "chat", seed=1)
    yield session
    session.close()


@pytest.fixture
def piped(monkeypatch, capsys):
    """`piped(lines, *arguments)`: exit code, answers and notes."""

    def call(lines: str | bytes, *arguments):
        content = lines if isinstance(lines, bytes) else lines.encode()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
        monkeypatch.setattr(sys, "argv", ["lorarlhf", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0, *capsys.readouterr()

    return call


def ask(session: Chat, text: str = HELLO) -> str:
    pieces: list[str] = []
    said = session.answer(text, pieces.append)
    assert "".join(pieces) == said.text
    return said.text


# Through a pipe


def test_lines_of_a_pipe_are_answered(piped, run, tmp_path):
    lines = f"{HELLO}\n\n/regen\n/best 3\n/nope 1\n/best x\n/help\n"
    code, out, err = piped(lines, "chat", "--run", run.path, "--seed", 1)
    assert code == 0, err
    assert len(out.splitlines()) == 3, "answers alone"
    assert "cut at the limit" in err
    assert "Error: /nope: no such command; there are /regen, /best N, /compare, /system TEXT, /reset, /help\n" in err
    assert "Error: /best x: how many answers" in err
    scores = [float(score) for score in err.split("scores ")[1].splitlines()[0].split(", ")]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 3
    assert not (run.path / "chat").exists(), "nothing was compared"


@pytest.mark.parametrize(("key", "better"), [("a", True), ("B", True), ("t", False), ("hello", False)])
def test_a_comparison_becomes_a_preference(piped, run, at_once, tmp_path, key, better):
    out, prefs = tmp_path / "gathered", tmp_path / "prefs.jsonl"
    code, said, err = piped(f"{HELLO}\n/compare\n{key}\n", "chat", "--run", run.path, "--seed", 5, "--out", out)
    assert code == 0, err
    sides = dict(line.split(": ", 1) for line in said.splitlines()[1:])
    if key == "hello":
        assert "nothing is written" in err
        assert (out / "labels.jsonl").read_text() == ""
        return
    (pair,) = read_pairs(out / "pairs.jsonl")
    assert pair.source == f"{run.stage('sft')} / {run.stage('ppo')}"
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "chat: give either --run or --model"),
        (["--run", "r", "--model", "m"], "chat: give either --run or --model"),
        (["--run", "r", "--adapter", "a"], "--adapter: a run has its own"),
        (["--model", "m", "--checkpoint", "last"], "--checkpoint: says which policy of --run"),
        (["--run", "nowhere"], "nowhere: not a run"),
        (["--model", "shipped:demo/model", "--adapter", "nowhere"], "nowhere"),
    ],
)
def test_what_does_not_go_together(piped, arguments, message):
    code, _, err = piped("", "chat", *arguments)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1


def test_what_is_not_utf_8_is_read_as_far_as_it_goes(piped):
    code, out, err = piped(b"\xff\xfe hello\n", "chat", "--model", "shipped:demo/model", "--response-length", 4)
    assert (code, err.count("Error")) == (0, 0)
    assert out


def test_a_stdout_that_is_not_utf_8_gets_what_it_has(monkeypatch, chat):
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="latin-1"))
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    monkeypatch.setattr(chat, "answer", lambda line, show: show("é→") or Said("é→", "model"))
    chat_cli._talk(chat, "me")
    assert written.getvalue() == b"\xe9?\n"


@pytest.mark.parametrize("number", ["1", "65", "100000000", "9" * 5000])
def test_the_best_of_too_many_or_too_few_is_one_line(number):
    with pytest.raises(UserError, match="Give a number from 2 to 64, as in /best 4") as error:
        chat_cli._number(number)
    assert "\n" not in str(error.value)
    assert (chat_cli._number("64"), chat_cli._number("")) == (64, 4)


# A conversation


def test_the_model_reads_the_whole_conversation(chat, monkeypatch):
    read = []
    sample = type(chat.sampler.responses).sample
    monkeypatch.setattr(
        type(chat.sampler.responses), "sample", lambda self, ids, *rest: read.append(ids[0]) or sample(self, ids, *rest)
    )
    tokenizer = chat.sampler.backbone.tokenizer
    chat.set_system("Be kind.")
    first = ask(chat, "Hello.")
    ask(chat, "And plums?")
    turns = [("system", "Be kind."), ("user", "Hello."), ("assistant", first), ("user", "And plums?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert read[-1] == expected
    chat.regenerate(lambda _: None)
    assert read[-1] == expected, "the answer that is replaced is not read"
    assert [turn["role"] for turn in chat.history] == ["user", "assistant"] * 2
    chat.best(2)
    assert read[-1] == expected
    chat.reset()
    chat.set_system("")
    ask(chat, "Hello.")
    assert read[-1] == tokenizer.apply_chat_template(messages[1:2], add_generation_prompt=True, return_dict=False)


def test_answers_differ_and_a_seed_repeats_them(run, at_once, tmp_path):
    def session() -> list[str]:
        chat = open_chat(before_and_after(run), tmp_path, seed=3)
        return [ask(chat), chat.regenerate(lambda _: None).text, chat.best(2).text]

    first = session()
    assert len(set(first)) == 3
    assert session() == first


def test_the_best_has_the_highest_score_of_the_runs_reward_model(chat, monkeypatch):
    drawn = []
    real = chat_stage.scored_responses
    monkeypatch.setattr(chat_stage, "scored_responses", lambda *args: drawn.append(real(*args)) or drawn[-1])
    ask(chat)
    best = chat.best(5)
    (responses,) = drawn[0]
    assert len(responses) == len(best.scores) == 5
    assert (best.text, max(best.scores)) in responses
    assert chat.history[-1]["content"] == best.text


def test_the_oldest_turns_go_where_the_model_reads_no_more(chat, caplog):
    assert chat._context == 256
    chat._context = 90
    for number in range(5):
        ask(chat, f"{HELLO} {number}")
    assert 2 < len(chat.history) < 10
    assert chat.history[-2]["content"] == f"{HELLO} 4"
    assert "the 2 oldest turns are dropped: the model reads 90 tokens" in caplog.messages
    kept = list(chat.history)
    with pytest.raises(UserError, match=r"a message of .* tokens, and the model reads 90"):
        ask(chat, HELLO * 20)
    assert chat.history == kept[-len(chat.history) :]


@pytest.mark.parametrize("command", ["regenerate", "best", "compare"])
def test_a_message_that_became_too_long_forgets_no_turns(chat, caplog, command):
    chat.history = [{"role": role, "content": HELLO} for role in ("user", "assistant") * 3]
    before = list(chat.history)
    chat.set_system("Be kind. " * 100)
    arguments = {"regenerate": [lambda _: None], "best": [2], "compare": []}[command]
    with pytest.raises(UserError, match=r"a message of .* tokens, and the model reads 256"):
        getattr(chat, command)(*arguments)
    assert chat.history == before
    assert not caplog.messages


def test_an_answer_is_shorter_where_the_last_message_leaves_less_room(chat):
    chat.sampler = Sampler(**{**vars_of(chat.sampler), "response_length": 250})
    ask(chat)
    assert chat._fit("")[1] < 250


def vars_of(sampler: Sampler) -> dict:
    return {name: getattr(sampler, name) for name in Sampler.__dataclass_fields__}


def test_ctrl_c_ends_an_answer_and_keeps_what_there_is(chat, run):
    pieces: list[str] = []

    def show(text: str) -> None:
        pieces.append(text)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    said = chat.answer(HELLO, show)
    assert said.ended_by == "interrupt"
    assert said.text == "".join(pieces)
    assert chat.history[-1] == {"role": "assistant", "content": said.text}
    assert ask(chat, "And plums?")


def test_an_adapter_on_a_model_is_compared_with_the_model(run, tmp_path):
    model = run.read_recipe().model
    chat = open_chat(of_model(model, [BASE, str(run.stage("sft"))]), tmp_path, response_length=12)
    ask(chat)
    task = chat.compare()
    assert task.pair.source == f"base / {run.stage('sft')}"
    with pytest.raises(UserError, match="/best: there is no reward model"):
        chat.best(2)
    chat.close()


def test_the_checkpoint_that_was_asked_for_answers(run):
    with written_whole(run.stage("ppo") / "checkpoint-3") as folder:
        (folder / "policy").mkdir()
    assert before_and_after(run).sources == [str(run.stage("sft")), str(run.stage("ppo"))]
    assert before_and_after(run, "last").sources[1] == str(run.stage("ppo") / "checkpoint-3" / "policy")
    with pytest.raises(UserError, match="--checkpoint 9"):
        before_and_after(run, "9")


@pytest.mark.parametrize("command", ["regenerate", "best", "compare"])
def test_there_must_be_something_to_answer(chat, command):
    arguments = {"regenerate": [lambda _: None], "best": [2], "compare": []}[command]
    with pytest.raises(UserError, match="there is nothing to answer yet; write a message first"):
        getattr(chat, command)(*arguments)


def test_a_model_without_a_template_completes_text(tiny_model, tmp_path, piped):
    code, out, err = piped(
        "once upon a time\n/system be kind\n/compare\n", "chat", "--model", tiny_model("llama"), "--response-length", 8
    )
    assert code == 0
    assert "the model knows no turns: each line is completed as text, on its own" in err
    assert "Error: /system: plain text is completed here" in err
    assert "Error: /compare: needs two policies" in err
    assert out.endswith("\n")


def test_a_tuned_policy_knows_the_plain_turns(run, tiny_model, tmp_path):
    from lorarlhf.backbone.load import load_backbone
    from lorarlhf.recipe.sections import LoraShape, ModelConfig

    model = ModelConfig(name=str(tiny_model("llama")), quantization="none")
    backbone = load_backbone(model)
    backbone.attach("policy", LoraShape(r=4, alpha=8, target_modules="all-linear"))
    backbone.save_role("policy", tmp_path / "tuned")
    chat = open_chat(of_model(model, [BASE, str(tmp_path / "tuned")]), tmp_path, response_length=8)
    assert PLAIN in chat.sampler.backbone.tokenizer.chat_template
    assert chat.in_turns


def test_a_template_without_a_place_for_the_system_says_so(chat, monkeypatch):
    template = "{{ raise_exception('no') if messages[0]['role'] == 'system' else 'x' }}"
    monkeypatch.setattr(chat.sampler.backbone.tokenizer, "chat_template", template)
    with pytest.raises(UserError, match="/system: the chat template takes no system message"):
        chat.set_system("Be kind.")
    assert chat.system is None


# Comparisons that cannot be


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


# At a terminal


def test_one_key_is_enough_and_others_do_nothing(monkeypatch, chat):
    keys = iter("x\x1bQb")
    monkeypatch.setattr(chat_cli.typer, "getchar", lambda: next(keys))
    assert chat_cli._verdict(interactive=True) == "right"


def test_sides_stand_beside_each_other_and_do_not_say_whose_they_are(monkeypatch, chat, capsys):
    ask(chat)
    task = chat.compare()
    monkeypatch.setattr("rich.console.Console", lambda: Console(width=100))
    chat_cli._print_sides(task, interactive=True)
    shown = capsys.readouterr().out
    assert "sft" not in shown + prompt_text(task.pair.prompt)
    row = next(line for line in shown.splitlines() if task.left_response[0]["content"].split()[0] in line)
    assert row.index(task.left_response[0]["content"].split()[0]) < len(row) / 2


HOSTILE = "\x1b]0;owned\x07a\tb\rc\x9b2J\x7f"
HARMLESS = "\ufffd]0;owned\ufffda\tb\ufffdc\ufffd2J\ufffd"


@pytest.mark.parametrize(("terminal", "shown"), [(True, HARMLESS), (False, HOSTILE)])
def test_control_characters_of_the_model_reach_pipes_alone(monkeypatch, chat, capsys, terminal, shown):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setattr(chat, "answer", lambda line, show: show(f"{HOSTILE}\n") or Said(HOSTILE, "model"))
    monkeypatch.setattr(chat, "best", lambda n: Best(HOSTILE, [1.0, 0.0]))
    for line in ("hello", "/best"):
        chat_cli._obey(chat, line, interactive=False)
        assert capsys.readouterr().out.startswith(f"{shown}\n")
    pair = make_pair("p", HOSTILE, "b")
    chat_cli._print_sides(Task("t", pair, False, "a"), interactive=False)
    assert capsys.readouterr().out == f"a: {shown}\nb: b\n"


def test_control_characters_of_the_model_do_not_reach_the_table(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr("rich.console.Console", lambda: Console(width=100, color_system=None))
    chat_cli._print_sides(Task("t", make_pair("p", HOSTILE, "b"), False, "a"), interactive=True)
    assert not chat_cli.CONTROL.search(capsys.readouterr().out)


def test_ctrl_c_at_the_prompt_and_ctrl_d(monkeypatch, chat, capsys):
    lines = iter([KeyboardInterrupt, "/help", EOFError])

    def typed(prompt: str) -> str:
        line = next(lines)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", typed)
    chat_cli._talk(chat, "me")
    assert "stopped; Ctrl-D leaves\n/regen" in capsys.readouterr().err
