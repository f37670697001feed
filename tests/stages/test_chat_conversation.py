"""A conversation with a policy: what it reads, what it answers, and what it forgets."""

import pytest
from chats import HELLO, ask

from lorarlhf.backbone.adapters import BASE
from lorarlhf.data.chat_templates import PLAIN
from lorarlhf.errors import UserError
from lorarlhf.manifest import written_whole
from lorarlhf.preferences.sampling import Sampler
from lorarlhf.stages import chat as chat_stage
from lorarlhf.stages.chat import before_and_after, open_chat
from lorarlhf.stages.sample import of_model


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


def test_answers_differ_and_a_seed_repeats_them(chat_run, at_once, tmp_path):
    def session() -> list[str]:
        chat = open_chat(before_and_after(chat_run), tmp_path, seed=3)
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


def test_ctrl_c_ends_an_answer_and_keeps_what_there_is(chat, chat_run):
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


def test_the_checkpoint_that_was_asked_for_answers(chat_run):
    with written_whole(chat_run.stage("ppo") / "checkpoint-3") as folder:
        (folder / "policy").mkdir()
    assert before_and_after(chat_run).sources == [str(chat_run.stage("sft")), str(chat_run.stage("ppo"))]
    assert before_and_after(chat_run, "last").sources[1] == str(chat_run.stage("ppo") / "checkpoint-3" / "policy")
    with pytest.raises(UserError, match="--checkpoint 9"):
        before_and_after(chat_run, "9")


@pytest.mark.parametrize("command", ["regenerate", "best", "compare"])
def test_there_must_be_something_to_answer(chat, command):
    arguments = {"regenerate": [lambda _: None], "best": [2], "compare": []}[command]
    with pytest.raises(UserError, match="there is nothing to answer yet; write a message first"):
        getattr(chat, command)(*arguments)


def test_a_tuned_policy_knows_the_plain_turns(chat_run, tiny_model, tmp_path):
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
