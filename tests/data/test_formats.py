"""Each format on small rows written for the test, and each way for a row to be bad."""

import pytest
from turns import bot, system, user

from lorarlhf.data.formats import DEMONSTRATIONS, PREFERENCES, PROMPTS, SCORED, UnknownColumns, recognise
from lorarlhf.data.rows import BadRow, Demonstration, Preference, Scored


def convert(row, table):
    """The one thing that a row holds."""
    [found] = recognise(row, table).convert(row)
    return found


HH = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: A joke?\n\nAssistant:"
ALPACA = {"instruction": "Add.", "input": "1 2", "output": "3", "chosen": "It is 3.", "rejected": "3, fool."}
HELLO = [user("Hi"), bot("Hello!")]
KIND = system("Be kind.")
GREETING = [user("Hi"), bot("Hello!"), user("A joke?")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        pytest.param(
            {"prompt": "The sky is", "chosen": " blue.", "rejected": " green.", "margin": 2},
            Preference("The sky is", " blue.", " green.", 2.0),
            id="text",
        ),
        pytest.param(
            {"prompt": "Hi", "chosen": "Assistant: Hello!", "rejected": "Human: What?"},
            Preference("Hi", "Assistant: Hello!", "Human: What?"),
            id="text, answers that begin with who speaks",
        ),
        pytest.param(
            {"prompt": "Hi", "chosen": "a", "rejected": "b", "score_chosen": "", "score_rejected": "1"},
            Preference("Hi", "a", "b"),
            id="text, a score left empty as in CSV",
        ),
        pytest.param(
            {"chosen": "The sky is blue.", "rejected": "The sky is black.", "margin": None},
            Preference("The sky is", " blue.", " black."),
            id="text, prompt implicit: whole words",
        ),
        pytest.param(
            {"chosen": "It is ab c", "rejected": "It is abd"},
            Preference("It is", " ab c", " abd"),
            id="text, prompt implicit: one side goes on where the other ends a word",
        ),
        pytest.param(
            {"prompt": [user("Hi")], "chosen": [bot("Hello!")], "rejected": [bot("What?")]},
            Preference([user("Hi")], [bot("Hello!")], [bot("What?")]),
            id="conversation",
        ),
        pytest.param(
            {"chosen": [KIND, *GREETING, bot("Ha.")], "rejected": [KIND, *GREETING, bot("No.")]},
            Preference([KIND, *GREETING], [bot("Ha.")], [bot("No.")]),
            id="conversation, prompt implicit",
        ),
        pytest.param(
            {
                "prompt": "Hi",
                "chosen": [user("Hi"), bot("Hello!")],
                "rejected": [user("Hi"), bot("What?")],
                "messages": [],
                "score_chosen": 8.5,
                "score_rejected": 3.0,
            },
            Preference([user("Hi")], [bot("Hello!")], [bot("What?")], 5.5),
            id="conversation, prompt repeated as text, scores",
        ),
        pytest.param(
            {"prompt": "Hi", "chosen": [bot("Hello!")], "rejected": [bot("What?")]},
            Preference([user("Hi")], [bot("Hello!")], [bot("What?")]),
            id="prompt as text before messages",
        ),
        pytest.param(
            {"prompt": [user("Hi")], "chosen": [user("Hi"), bot("Hello!")], "rejected": [user("Hi"), bot("What?")]},
            Preference([user("Hi")], [bot("Hello!")], [bot("What?")]),
            id="conversation, prompt repeated",
        ),
        pytest.param(
            {"prompt": "Hi", "chosen": [KIND, *HELLO], "rejected": [KIND, user("Hi"), bot("What?")]},
            Preference([KIND, user("Hi")], [bot("Hello!")], [bot("What?")]),
            id="conversation, prompt repeated after a system message",
        ),
        pytest.param(
            {"chosen": [*HELLO, user("b"), bot("C")], "rejected": [*HELLO, user("d"), bot("E")]},
            Preference(HELLO[:1], [HELLO[1], user("b"), bot("C")], [HELLO[1], user("d"), bot("E")]),
            id="differing before the last turn: the prompt still ends with the user",
        ),
        pytest.param(
            {"chosen": HH + " Knock knock.", "rejected": HH + " No. "},
            Preference(GREETING, [bot("Knock knock.")], [bot("No.")]),
            id="HH-RLHF",
        ),
        pytest.param(
            {"chosen": HH + " Yes: \n\nAssistant: ha.", "rejected": HH + " No.\n\nHuman: Oh\n\nAssistant: Sorry."},
            Preference(GREETING, [bot("Yes: \n\nAssistant: ha.")], [bot("No."), user("Oh"), bot("Sorry.")]),
            id="HH-RLHF, a response that imitates the format",
        ),
        pytest.param(
            ALPACA,
            Preference([user("Add.\n\n1 2")], [bot("It is 3.")], [bot("3, fool.")]),
            id="Alpaca pairs",
        ),
        pytest.param(
            ALPACA | {"input": " "},
            Preference([user("Add.")], [bot("It is 3.")], [bot("3, fool.")]),
            id="Alpaca pairs without input",
        ),
    ],
)
def test_preferences(row, expected):
    assert convert(row, PREFERENCES) == expected
    assert convert(row, PROMPTS) == expected.prompt
    assert convert(row, DEMONSTRATIONS) == Demonstration(expected.prompt, expected.chosen)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Two and", "completion": " two."}, Demonstration("Two and", " two.")),
        ({"prompt": [user("Hi")], "completion": [bot("Hello!")]}, Demonstration([user("Hi")], [bot("Hello!")])),
        ({"messages": [*GREETING, bot("Ha.")], "prompt": "A joke?"}, Demonstration(GREETING, [bot("Ha.")])),
        ({"instruction": "Add.", "input": "1 2", "output": "3"}, Demonstration([user("Add.\n\n1 2")], [bot("3")])),
    ],
)
def test_demonstrations(row, expected):
    assert convert(row, DEMONSTRATIONS) == expected
    assert convert(row, PROMPTS) == expected.prompt


@pytest.mark.parametrize("prompt", ["Two and", GREETING])
def test_prompts(prompt):
    assert convert({"prompt": prompt, "id": 3}, PROMPTS) == prompt


@pytest.mark.parametrize("column", ["completion", "response"])
@pytest.mark.parametrize(("score", "expected"), [(0.5, 0.5), (3, 3.0), ("-1e-3", -0.001)])
def test_scored(column, score, expected):
    assert convert({"prompt": "a", column: "b", "score": score}, SCORED) == Scored("a", "b", expected)
    row = {"prompt": [user("a")], column: [bot("b")], "score": score}
    assert convert(row, SCORED) == Scored([user("a")], [bot("b")], expected)


def test_only_role_and_content_are_kept():
    row = {"prompt": [user("Hi") | {"name": "Ann"}], "chosen": [bot("a") | {"id": 1}], "rejected": [bot("b")]}
    assert convert(row, PREFERENCES) == Preference([user("Hi")], [bot("a")], [bot("b")])


NO_PROMPT = "chosen and rejected have no prompt in common"
NO_CONTENT = "chosen has a message without role and content as text"
BAD_ROLE = "chosen has a message whose role is not one of system, user, assistant, tool"
ANSWERED = {"messages": [user("a"), bot("b")]}
GRADED = {"prompt": "a", "response": "b", "score": 1}
BEGUN = {"chosen": "a b", "rejected": "a c"}
TEXT = {"prompt": "a", "chosen": "b", "rejected": "c"}
CHAT = {"prompt": [user("a")], "chosen": [bot("b")], "rejected": [bot("c")]}
WHOLE = {"chosen": [user("a"), bot("b")], "rejected": [user("a"), bot("c")]}
TRANSCRIPT = {"chosen": HH + " a", "rejected": HH + " b"}


@pytest.mark.parametrize(
    ("good", "bad", "reason"),
    [
        (TEXT, {"rejected": None}, "rejected is missing"),
        (TEXT, {"chosen": " \n"}, "chosen is empty"),
        (TEXT, {"prompt": ""}, "prompt is empty"),
        (TEXT, {"rejected": 3}, "rejected is a number, not text"),
        (TEXT, {"rejected": ["c"]}, "rejected is a list, not text"),
        (TEXT, {"rejected": "b"}, "chosen and rejected are identical"),
        (TEXT, {"margin": "much"}, "margin is text, not a finite number"),
        (TEXT, {"margin": float("nan")}, "margin is a number, not a finite number"),
        (TEXT, {"margin": True}, "margin is a boolean, not a finite number"),
        (BEGUN, {"chosen": "x", "rejected": "y"}, NO_PROMPT),
        (BEGUN, {"rejected": "a b c"}, "one of chosen and rejected only goes on from the other"),
        (BEGUN, {"rejected": "a b"}, "chosen and rejected are identical"),
        (CHAT, {"chosen": "b"}, "chosen is text, not a list of messages"),
        (CHAT, {"chosen": []}, "chosen is empty"),
        (CHAT, {"chosen": ["b"]}, NO_CONTENT),
        (CHAT, {"chosen": [{"role": "assistant", "content": None}]}, NO_CONTENT),
        (CHAT, {"chosen": [{"role": "gpt", "content": "b"}]}, BAD_ROLE),
        (CHAT, {"chosen": [bot("")]}, "chosen has an empty message"),
        (CHAT, {"chosen": [bot("b"), user("c")]}, "chosen does not end with a turn of the assistant"),
        (CHAT, {"rejected": [bot("b")]}, "chosen and rejected are identical"),
        (CHAT, {"prompt": [bot("a")]}, NO_PROMPT),
        (WHOLE, {"rejected": [user("x"), bot("c")]}, NO_PROMPT),
        (WHOLE, {"rejected": [user("a")]}, "rejected does not end with a turn of the assistant"),
        (TRANSCRIPT, {"chosen": HH}, "chosen has an empty turn"),
        (TRANSCRIPT, {"chosen": "\n\nHuman: Hi"}, "chosen does not end with a turn of the assistant"),
        (TRANSCRIPT, {"chosen": HH + " b"}, "chosen and rejected are identical"),
        (TRANSCRIPT, {"chosen": "Hi"}, "chosen does not begin with Human: or Assistant:"),
        (TRANSCRIPT, {"chosen": "\n\nHuman: Bye\n\nAssistant: a"}, NO_PROMPT),
        (TRANSCRIPT, {"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"}, NO_PROMPT),
        (ALPACA, {"instruction": ""}, "instruction is empty"),
        (ALPACA, {"input": 3}, "input is a number, not text"),
        (ALPACA, {"rejected": "It is 3."}, "chosen and rejected are identical"),
    ],
)
def test_bad_preferences(good, bad, reason):
    form = recognise(good, PREFERENCES)
    with pytest.raises(BadRow) as raised:
        list(form.convert(good | bad))
    assert str(raised.value) == reason


@pytest.mark.parametrize(
    ("formats", "good", "bad", "reason"),
    [
        (SCORED, GRADED, {"score": None}, "score is missing"),
        (SCORED, GRADED, {"score": "high"}, "score is text, not a finite number"),
        (SCORED, GRADED, {"response": ""}, "response is empty"),
        (
            PROMPTS,
            {"prompt": [user("a")]},
            {"prompt": [user("a"), bot("b")]},
            "the prompt's last turn is not the user's",
        ),
        (DEMONSTRATIONS, ANSWERED, {"messages": [user("a")]}, "the last turn is not the assistant's"),
        (DEMONSTRATIONS, ANSWERED, {"messages": [bot("b")]}, "the last turn answers no turn of the user's"),
        (DEMONSTRATIONS, {"prompt": "a", "completion": "b"}, {"completion": None}, "completion is missing"),
    ],
)
def test_other_bad_rows(formats, good, bad, reason):
    form = recognise(good, formats)
    with pytest.raises(BadRow) as raised:
        list(form.convert(good | bad))
    assert str(raised.value) == reason


@pytest.mark.parametrize(
    ("table", "kind", "mapping"),
    [
        (PREFERENCES, "comparisons", "{prompt: ..., chosen: ..., rejected: ...}"),
        (SCORED, "scored completions", "{prompt: ..., completion: ..., score: ...}"),
        (DEMONSTRATIONS, "demonstrations", "{prompt: ..., completion: ...}"),
        (PROMPTS, "prompts", "{prompt: ...}"),
    ],
)
def test_unknown_columns_are_shown_with_a_mapping_to_fill_in(table, kind, mapping):
    with pytest.raises(UnknownColumns) as raised:
        recognise({"query": "a", "answer": "b"}, table)
    assert str(raised.value) == (
        f"columns not recognised as {kind}: found query, answer; say which are which with data.columns: {mapping} "
        "(for `lorarlhf data`: --column prompt=...)"
    )


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": "", "rejected": "\n\n"}, "chosen is empty, rejected is empty"),
        ({"chosen": "a b", "rejected": None}, "chosen is text, rejected is missing"),
        ({"chosen": [bot("a")], "rejected": "a"}, "chosen is a list, rejected is text"),
    ],
)
def test_a_row_that_fits_nothing_does_not_decide_the_format(row, reason):
    with pytest.raises(BadRow, match=reason) as raised:
        recognise(row, PREFERENCES)
    assert not isinstance(raised.value, UnknownColumns)
