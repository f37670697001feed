"""The public data sets of which a row holds several pairs, or a pair several rows, with values written here."""

import pytest
from turns import BAD, GOOD, HI, bot, user

from lorarlhf.data.formats import CHOICES, DEMONSTRATIONS, PREFERENCES, PROMPTS, SCORED, recognise
from lorarlhf.data.formats.trees import gathered
from lorarlhf.data.rows import BadRow, Choice, Demonstration, Preference, Scored

NECTAR = {
    "prompt": "\n\nHuman: Hi\n\nAssistant: ",
    "answers": [
        {"answer": "What?", "model": "m", "rank": 2.0},
        {"answer": "Hello!", "model": "n", "rank": 1.0},
        {"answer": "Hm.", "model": "o", "rank": 2.0},
    ],
    "turns": 1,
    "num_responses": 3,
    "source": ["lmsys-chat-1m"],
    "good_natured": True,
}
RANKED = [
    Preference(HI, GOOD, BAD),
    Preference(HI, BAD, [bot("Hm.")], tie=True),
    Preference(HI, GOOD, [bot("Hm.")]),
]

ULTRAFEEDBACK = {
    "source": "evol_instruct",
    "instruction": "Hi",
    "models": ["m", "n", "o"],
    "completions": [
        {"model": "m", "response": "What?", "overall_score": 4.0, "critique": "c", "annotations": {}},
        {"model": "n", "response": "Hello!", "overall_score": 8.5, "critique": "c", "annotations": {}},
        {"model": "o", "response": "Hm.", "overall_score": 4.0, "critique": "c", "annotations": {}},
    ],
    "correct_answers": ["None"],
    "incorrect_answers": ["None"],
}

FINE_GRAINED = {
    "question": "Who?",
    "passages": [["Ann", "Ann is.", "She was."], ["Bob", "Bob is."]],
    "gold": "Ann.",
    "prediction 1": "A",
    "prediction 2": "B",
    "prediction 3": "C",
    "prediction 4": "D",
    "feedback": {"errors": []},
    "preference": [1, 2, 0, 2, 2, 1],
}


REWARD_BENCH_2 = {
    "id": "tied:3",
    "prompt": "Hi",
    "chosen": ["Hello!", "Hey!"],
    "rejected": ["What?", "Hm."],
    "num_correct": 2,
    "num_incorrect": 2,
    "total_completions": 4,
    "models": ["m"],
    "subset": "Ties",
    "additional_metadata": None,
}


def message(key, parent, role, text, rank=None, **more):
    row = {"message_id": key, "parent_id": parent, "role": role, "text": text, "rank": rank, "lang": "en"}
    return row | {"message_tree_id": "t", "tree_state": "ready_for_export", "deleted": False} | more


MESSAGES = [
    message("1", None, "prompter", "Hi"),
    message("2", "1", "assistant", "What?", 1),
    message("3", "1", "assistant", "Hello!", 0),
    message("4", "3", "prompter", "A joke?", 0),
    message("5", "4", "assistant", "Knock knock.", 0),
    message("6", "4", "assistant", "No.", 2),
    message("7", "4", "assistant", "Ha.", 1),
    message("8", "4", "assistant", "Spam", 3, deleted=True),
    message("9", "4", "assistant", "New", None),
    message("10", "3", "prompter", "Bye", 1),
]
ASKED = [*HI, *GOOD, user("A joke?")]
TREE_PAIRS = [
    Preference(HI, GOOD, BAD),
    Preference(ASKED, [bot("Knock knock.")], [bot("No.")]),
    Preference(ASKED, [bot("Knock knock.")], [bot("Ha.")]),
    Preference(ASKED, [bot("Ha.")], [bot("No.")]),
]


def test_ranked_answers():
    form = recognise(NECTAR, PREFERENCES)
    assert form.name == "Nectar: ranked answers"
    assert list(form.convert(NECTAR)) == RANKED
    # The best answer once, not once for each that it beats; the prompt once too.
    assert list(recognise(NECTAR, DEMONSTRATIONS).convert(NECTAR)) == [Demonstration(HI, GOOD)]
    assert list(recognise(NECTAR, PROMPTS).convert(NECTAR)) == [HI]


def test_scored_completions():
    form = recognise(ULTRAFEEDBACK, PREFERENCES)
    assert form.name == "UltraFeedback: scored completions"
    assert list(form.convert(ULTRAFEEDBACK)) == [
        Preference(HI, GOOD, BAD, 4.5),
        Preference(HI, BAD, [bot("Hm.")], 0.0, tie=True),
        Preference(HI, GOOD, [bot("Hm.")], 4.5),
    ]
    scored = recognise(ULTRAFEEDBACK, SCORED).convert(ULTRAFEEDBACK)
    assert list(scored) == [Scored(HI, BAD, 4.0), Scored(HI, GOOD, 8.5), Scored(HI, [bot("Hm.")], 4.0)]


def test_fine_grained_comparisons():
    pairs = list(recognise(FINE_GRAINED, PREFERENCES).convert(FINE_GRAINED))
    assert [(pair.chosen[0]["content"], pair.rejected[0]["content"], pair.tie) for pair in pairs] == [
        ("A", "B", False),
        ("C", "A", False),
        ("A", "D", True),
        ("C", "B", False),
        ("D", "B", False),
        ("C", "D", False),
    ]
    assert {pair.prompt[0]["content"] for pair in pairs} == {"Ann\nAnn is. She was.\n\nBob\nBob is.\n\nWho?"}


def test_right_and_wrong_answers():
    form = recognise(REWARD_BENCH_2, PREFERENCES)
    assert form.name == "RewardBench 2: right and wrong answers"
    hey, hm = [bot("Hey!")], [bot("Hm.")]
    assert list(form.convert(REWARD_BENCH_2)) == [
        *(Preference(HI, GOOD, BAD), Preference(HI, GOOD, hm)),
        *(Preference(HI, hey, BAD), Preference(HI, hey, hm)),
    ]
    assert list(recognise(REWARD_BENCH_2, DEMONSTRATIONS).convert(REWARD_BENCH_2)) == [
        Demonstration(HI, GOOD),
        Demonstration(HI, hey),
    ]
    assert list(recognise(REWARD_BENCH_2, PROMPTS).convert(REWARD_BENCH_2)) == [HI]
    [choice] = recognise(REWARD_BENCH_2, CHOICES).convert(REWARD_BENCH_2)
    assert choice == Choice(HI, (GOOD, hey), (BAD, hm), "Ties", "tied:3")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"num_correct": 1}, "num_correct is not how many chosen hold"),
        ({"id": "3"}, "id is not ref:NUMBER or tied:NUMBER, in the subset Ties"),
        ({"rejected": ["What?", ""]}, "rejected has an entry that is empty or not text"),
    ],
)
def test_choices_of_no_use(fault, reason):
    row = REWARD_BENCH_2 | fault
    with pytest.raises(BadRow, match=reason):
        list(recognise(row, CHOICES).convert(row))


def test_an_unusable_pair_of_a_list_leaves_the_others():
    doubled = {**NECTAR["answers"][1], "rank": 3.0}
    same, *others = recognise(NECTAR, PREFERENCES).convert(
        NECTAR | {"answers": [NECTAR["answers"][1], doubled, NECTAR["answers"][0]]}
    )
    assert isinstance(same, BadRow)
    assert str(same) == "chosen and rejected are identical"
    assert others == [Preference(HI, GOOD, BAD), Preference(HI, BAD, GOOD)]


@pytest.mark.parametrize("others", [[], [("x:11", BadRow("no")), ("x:12", {"prompt": "a"})]])
def test_messages_of_a_tree_become_its_pairs(others):
    placed = [(f"x:{number}", row) for number, row in enumerate(MESSAGES, 1)]
    again = [
        (f"y:{number}", row | {"message_tree_id": "u", "message_id": f"u{row['message_id']}"})
        for number, row in enumerate(MESSAGES[:1], 20)
    ]
    (location, tree), *rest = gathered([*placed, *others, *again])
    assert location == "x:1"
    form = recognise(tree, PREFERENCES)
    assert form.name == "OpenAssistant: trees of ranked messages"
    assert list(form.convert(tree)) == TREE_PAIRS
    assert list(recognise(tree, DEMONSTRATIONS).convert(tree)) == [
        Demonstration(HI, GOOD),
        Demonstration(ASKED, [bot("Knock knock.")]),
    ]
    assert rest[:-1] == others
    assert list(form.convert(rest[-1][1])) == []  # a tree without two ranked replies is no bad row


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (MESSAGES[1:], "the message answered is not beside it: rows of one tree must follow each other"),
        ([*MESSAGES[:2], MESSAGES[6]], "the message answered is not beside it"),
        ([MESSAGES[0], MESSAGES[0] | {"message_id": "0"}], "a tree without a first message, or with several"),
    ],
)
def test_scattered_trees_are_bad_rows(rows, reason):
    [(_, bad)] = gathered([("x", row) for row in rows])
    assert isinstance(bad, BadRow)
    assert str(bad).startswith(reason)


@pytest.mark.parametrize(
    ("good", "bad", "reason"),
    [
        (NECTAR, {"answers": NECTAR["answers"][:1]}, "answers holds fewer than two"),
        (NECTAR, {"answers": [{"answer": "a", "rank": None}, {"answer": "b", "rank": 1}]}, "rank is missing"),
        (NECTAR, {"prompt": "Hi"}, "prompt does not begin with Human: or Assistant:"),
        (ULTRAFEEDBACK, {"completions": []}, "completions is empty"),
        (ULTRAFEEDBACK, {"completions": ["a"]}, "completions is a list, not a list of objects"),
        (FINE_GRAINED, {"preference": [1, 2]}, "preference does not hold six verdicts"),
        (FINE_GRAINED, {"prediction 3": None}, "prediction 3 is missing"),
    ],
)
def test_bad_lists(good, bad, reason):
    form = recognise(good, PREFERENCES)
    with pytest.raises(BadRow) as raised:
        list(form.convert(good | bad))
    assert str(raised.value) == reason
