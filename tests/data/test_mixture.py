"""Several sources read as one: how much of each, what is held out, and the order of rows."""

import json
from array import array
from collections import Counter

import pytest

from lorarlhf.cli.stage import resolve
from lorarlhf.data.examples import (
    check_sources,
    load_preferences,
    load_prompt_rows,
    stream_demonstrations,
    stream_preferences,
)
from lorarlhf.data.mixture import ALL, bound, evenly, place_of, shares
from lorarlhf.data.rows import NO_COLUMNS, completion_text, prompt_text, turns
from lorarlhf.errors import UserError
from lorarlhf.recipe.load import dump_recipe, load_recipe
from lorarlhf.recipe.sections import DataConfig, Source, sources_of, title_of


def pairs(count, name="q"):
    return [{"prompt": f"{name} {i}?", "chosen": "Yes.", "rejected": "No."} for i in range(count)]


@pytest.fixture
def write(tmp_path):
    def write(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def counts(config, split="train"):
    """How many rows of each source, by the first letter of their prompts."""
    return Counter(prompt_text(row.prompt).removeprefix("user: ")[0] for row in stream_preferences(config, split))


def test_how_many_rows_of_each():
    def taken(rows, **keys):
        return shares([Source(source="s", **{key: each[i] for key, each in keys.items()}) for i in (0, 1)], rows)

    assert taken([100, 50], weight=[None, None]) == [100, 50]
    assert taken([100, 50], max_examples=[30, None]) == [30, 50]
    assert taken([100, 50], weight=[1.0, 1.0]) == [50, 50]
    assert taken([100, 50], weight=[3.0, 1.0]) == [100, 33]
    assert taken([100, 50], weight=[1.0, 3.0]) == [17, 50]
    assert taken([100, 50], weight=[2.0, 1.0], max_examples=[10, None]) == [10, 5]


def test_the_rows_before_a_bound():
    places = array("Q", [5, 1, 9, 1, 7])
    assert bound(places, 5) == ALL
    assert [sum(place < bound(places, rows) for place in places) for rows in (4, 3, 2, 1, 0)] == [4, 3, 2, 0, 0]


def test_rows_are_spread_over_the_whole_and_asked_for_one_by_one():
    def endless(name):
        i = 0
        while True:
            yield f"{name}{i}"
            i += 1
            assert i < 40, "read ahead"

    found = evenly([endless("a"), endless("b")], [3.0, 1.0])
    first = [row for _, row in (next(found) for _ in range(20))]
    assert Counter(row[0] for row in first) == {"a": 15, "b": 5}
    assert Counter(row[0] for row in first[:8]) == {"a": 6, "b": 2}
    assert [row for row in first if row[0] == "b"] == [f"b{i}" for i in range(5)]
    assert list(evenly(["ab", "", "xyz"], [1, 1, 1])) == [(0, "a"), (2, "x"), (0, "b"), (2, "y"), (2, "z")]


def test_weights_are_shares_of_what_is_taken(write):
    a, b = write("a.jsonl", pairs(300, "a")), write("b.jsonl", pairs(100, "b"))
    assert counts(DataConfig(preferences=[a, b], test_size=0.0)) == {"a": 300, "b": 100}
    weighed = [Source(source=a, weight=1.0), Source(source=b, weight=2.0)]
    assert counts(DataConfig(preferences=weighed, test_size=0.0)) == {"a": 50, "b": 100}
    limited = [Source(source=a, max_examples=20), b]
    config = DataConfig(preferences=limited, test_size=0.0)
    assert counts(config) == {"a": 20, "b": 100}
    # Not the first of the file, whose rows may be sorted, and the same ones whatever their order.
    taken = {row.prompt for row in load_preferences(config, "train").rows if row.prompt[0] == "a"}
    assert taken != {f"a {i}?" for i in range(20)}
    write("a.jsonl", pairs(300, "a")[::-1])
    assert {row.prompt for row in load_preferences(config, "train").rows if row.prompt[0] == "a"} == taken


def test_no_prompt_is_in_both_parts_of_a_mixture(write):
    """The same questions in two files, in one as text and in the other as conversations."""
    text = pairs(200)
    talk = [
        {
            "prompt": turns(row["prompt"], "user"),
            "chosen": turns(row["chosen"], "assistant"),
            "rejected": turns("Never.", "assistant"),
        }
        for row in text
    ]
    sources = [write("text.jsonl", text), Source(source=write("talk.jsonl", talk), max_examples=150)]
    config = DataConfig(preferences=sources, test_size=0.2)
    parts = {
        split: {prompt_text(turns(row.prompt, "user")) for row in load_preferences(config, split).rows}
        for split in ("train", "test")
    }
    assert not parts["train"] & parts["test"]
    assert len(parts["train"] | parts["test"]) == 200
    assert 25 < len(parts["test"]) < 55
    prompts = {prompt_text(turns(row.prompt, "user")) for row in load_prompt_rows(config, "test", NO_COLUMNS).rows}
    assert prompts == parts["test"], "ppo and reward hold out the same"


def test_a_split_of_one_source_is_no_test_of_several(fake_hub, write):
    """What it holds out may be among the prompts of another source."""
    fake_hub({"train": pairs(100, "h"), "test": pairs(10, "t")})
    alone = DataConfig(preferences="owner/pairs")
    assert counts(alone, "test") == {"t": 10}
    mixed = DataConfig(preferences=["owner/pairs", write("a.jsonl", pairs(100, "a"))], test_size=0.2)
    assert set(counts(mixed, "test")) == {"h", "a"}
    train, test = (load_preferences(mixed, split).rows for split in ("train", "test"))
    assert not {row.prompt for row in train} & {row.prompt for row in test}
    assert len(train) + len(test) == 200


def test_a_source_names_its_split(fake_hub):
    fake_hub({"train": pairs(5, "h"), "test": pairs(4, "t"), "extra": pairs(3, "e")})
    assert counts(DataConfig(preferences=Source(source="owner/pairs", split="extra"))) == {"e": 3}
    # To train on the split that would be the test, and be tested on it, is no test.
    config = DataConfig(preferences=Source(source="owner/pairs", split="test"), test_size=0.5)
    assert counts(config, "train") + counts(config, "test") == {"t": 4}
    named = DataConfig(preferences="owner/pairs", preferences_test=[Source(source="owner/pairs", split="extra")])
    assert (counts(named, "train"), counts(named, "test")) == ({"h": 5}, {"e": 3})


def test_formats_and_bad_rows_are_those_of_each_source(write):
    alpaca = [{"instruction": f"a {i}", "input": "", "output": "Yes."} for i in range(3)]
    files = [write("a.jsonl", alpaca), write("p.jsonl", [*pairs(2, "p"), {"prompt": "x", "chosen": "y"}])]
    config = DataConfig(sft=files, test_size=0.0, on_bad_row="skip")
    read = [completion_text(row.completion) for row in stream_demonstrations(config, "train")]
    assert read == ["Yes."] * 5
    with pytest.raises(UserError, match=r"p\.jsonl:3: "):
        list(stream_demonstrations(config.model_copy(update={"on_bad_row": "error"}), "train"))


@pytest.mark.parametrize("second", ["gone.jsonl", "other.jsonl"])
def test_each_source_is_looked_at_before_anything_is_loaded(write, tmp_path, second):
    first = write("a.jsonl", pairs(3))
    write("other.jsonl", [{"x": 1}])
    with pytest.raises(UserError, match=second):
        check_sources(DataConfig(preferences=[first, str(tmp_path / second)]), ["preferences"])


def test_a_recipe_with_sources_is_written_and_read_again(tmp_path):
    text = "[a.jsonl, {source: owner/b, name: c, max_examples: 5}]"
    recipe = load_recipe("demo", sets=[f"data.preferences={text}"])
    assert title_of(sources_of(recipe.data.preferences)) == "a.jsonl + owner/b (c)"
    (tmp_path / "r.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(str(tmp_path / "r.yaml")) == recipe


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[a, {source: b, weight: 2}]", "a has no weight, and others have; weigh all sources or none"),
        ("[]", "names no source; name one, or take the key out"),
        ("{name: b}", "data.preferences.source: required but missing"),
        ("{source: a, wieght: 2}", "data.preferences.wieght: unknown key; did you mean weight"),
        ("[{source: a, weight: 0}]", "data.preferences[0].weight: expected more than 0.0, got 0"),
        ("5", "expected text or a mapping of keys or a list, got 5"),
    ],
)
def test_a_faulty_source_is_named(value, message):
    with pytest.raises(UserError) as error:
        load_recipe("demo", sets=[f"data.preferences={value}"])
    assert message in str(error.value)


def test_a_source_takes_the_place_of_another_whole():
    first, second = (
        "data.preferences={source: a, name: x, max_examples: 3}",
        "data.preferences={source: b, weight: 2}",
    )
    assert load_recipe("demo", sets=[first, second]).data.preferences == Source(source="b", weight=2.0)
    assert load_recipe("demo", sets=[first, "data.preferences.max_examples=4"]).data.preferences.max_examples == 4
    recipe, _ = resolve("reward", "demo", None, "{source: b, name: y}", None, [], False, False)
    assert (recipe.data.preferences, recipe.data.preferences_test) == (Source(source="b", name="y"), None)
    assert resolve("reward", "demo", None, "b", None, [], False, False)[0].data.preferences == "b"


def test_what_is_for_the_hub_alone_is_refused_of_a_file(write):
    source = Source(source=write("a.jsonl", pairs(3)), name="helpful")
    with pytest.raises(UserError, match=r"a\.jsonl: is no Hub data set, and has no 'helpful'"):
        load_preferences(DataConfig(preferences=source), "train")


def test_place_of_is_the_same_across_versions():
    assert place_of("a") == place_of([{"role": "user", "content": "a"}]) == 15834311280016821132
