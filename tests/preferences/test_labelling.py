"""What is asked next: no pair twice of one person, save some repeats with sides swapped."""

from collections import Counter
from time import monotonic

import pytest

from lorarlhf.preferences.labelling import OPEN_FOR, REPEATED_AFTER, AlreadyLabelled, Answer, annotator_name
from lorarlhf.preferences.pairs import Pair


def answer_to(task, choice="left", **more):
    return Answer(task=task.id, pair_id=task.pair.id, choice=choice, seconds=1.0, **more)


def label_all(labelling, who, give, choice="a"):
    tasks = []
    while labelling.next_task(who):
        tasks.append(give(labelling, who, choice))
    return tasks


@pytest.mark.parametrize(("count", "repeats"), [(1, 0), (20, 0), (25, 1), (100, 5), (250, 12)])
def test_each_pair_once_and_one_in_twenty_again_later_and_swapped(count, repeats, start_labelling, give):
    labelling = start_labelling(count)
    tasks = label_all(labelling, "ann", give)
    first = {task.pair.id: i for i, task in enumerate(tasks) if not task.repeat}
    again = {task.pair.id: i for i, task in enumerate(tasks) if task.repeat}
    assert list(first) == [f"p{i}" for i in range(count)]
    assert len(again) == repeats
    for pair, i in again.items():
        assert i - first[pair] > REPEATED_AFTER
        assert tasks[i].left != tasks[first[pair]].left
    progress = labelling.progress("ann")
    assert progress.done == progress.total == count + repeats
    assert (progress.repeats, progress.consistent) == (repeats, repeats)


def test_sides_are_balanced_and_differ_between_people_and_seeds(start_labelling, give):
    def sides(who, seed):
        return [task.left for task in label_all(start_labelling(120, seed), who, give) if not task.repeat]

    ann = sides("ann", 0)
    assert 40 < Counter(ann)["a"] < 80
    assert 40 < sum(a != b for a, b in zip(ann, sides("bob", 0), strict=True)) < 80
    assert 40 < sum(a != b for a, b in zip(ann, sides("eve", 1), strict=True)) < 80


def test_labels_say_what_was_meant(start_labelling):
    labelling = start_labelling(40)
    for i in range(40):
        task = labelling.next_task("ann")
        labelling.record("ann", answer_to(task, "left" if i % 2 else "right", strength=2, comment=" why \n"))
        *_, label = labelling.file.labels
        shown = {"a": task.pair.response_a, "b": task.pair.response_b}
        assert shown[label.choice] == (task.left_response if i % 2 else task.right_response)
        assert (label.left, label.strength, label.comment, label.seed) == (task.left, 2, "why", 0)
        assert label.time.endswith("+00:00")


@pytest.mark.parametrize("choice", ["tie", "both_bad", "skip"])
def test_strength_belongs_to_a_preference_only(choice, start_labelling):
    labelling = start_labelling(2)
    labelling.record("ann", answer_to(labelling.next_task("ann"), choice, strength=3))
    [label] = labelling.file.labels
    assert (label.choice, label.strength) == (choice, None)


def test_a_restart_changes_nothing(start_labelling, give):
    labelling = start_labelling(60)
    for i in range(70):
        task = labelling.next_task("ann")
        if task is None:
            break
        give(labelling, "ann", "b")
        before = labelling.next_task("ann"), labelling.progress("ann")
        if i % 7 == 0:
            labelling = start_labelling(60)
            assert (labelling.next_task("ann"), labelling.progress("ann")) == before
    assert labelling.progress("ann").done == 63


def test_an_answered_task_is_closed(start_labelling):
    labelling = start_labelling(3)
    task = labelling.next_task("ann")
    labelling.record("ann", answer_to(task))
    with pytest.raises(AlreadyLabelled):
        labelling.record("ann", answer_to(task))
    labelling.record("bob", answer_to(labelling.next_task("bob")))
    assert len(labelling.file.labels) == 2


def test_an_answer_to_other_texts_or_sides_does_not_count(start_labelling):
    task = start_labelling([Pair("p", "Q?", "a", "b")]).next_task("ann")
    for changed in (Pair("p", "Q?", "a", "B"), Pair("p", "R?", "a", "b"), Pair("q", "Q?", "a", "b")):
        with pytest.raises(AlreadyLabelled):
            start_labelling([changed]).record("ann", answer_to(task))
    other_side = next(
        seed for seed in range(20) if start_labelling([task.pair], seed).next_task("ann").left != task.left
    )
    with pytest.raises(AlreadyLabelled):
        start_labelling([task.pair], other_side).record("ann", answer_to(task))


def test_with_overlap_people_in_turn_each_see_every_pair(start_labelling, give):
    labelling = start_labelling(30, overlap=1.0)
    for _ in range(15):
        for who in ("ann", "bob"):
            give(labelling, who, "a")
    assert labelling.progress("ann").done == labelling.progress("bob").done == 15
    assert {task.pair.id for task in label_all(labelling, "eve", give)} == set(labelling.pairs)
    assert labelling.progress("ann").done == 15


def test_people_at_once_share_the_pairs(start_labelling, give):
    labelling = start_labelling(90, overlap=0.0)
    working = ["ann", "bob", "eve"]
    given = {who: [] for who in working}
    while working:
        shown = [labelling.next_task(who) for who in working]  # all have one open before the first of them answers
        fresh = [task.pair.id for task in shown if task and not task.repeat]
        assert len(fresh) == len(set(fresh))
        working = [who for who, task in zip(working, shown, strict=True) if task]
        for who in working:
            given[who].append(give(labelling, who, "a"))
    once = Counter(task.pair.id for tasks in given.values() for task in tasks if not task.repeat)
    assert (set(once), set(once.values())) == (set(labelling.pairs), {1})
    assert all(len(tasks) > 25 for tasks in given.values())
    for who, tasks in given.items():
        progress = labelling.progress(who)
        assert progress.done == progress.total == len(tasks)
        assert progress.elsewhere == 0


def test_the_overlap_is_asked_of_everybody_and_no_more(start_labelling, give):
    labelling = start_labelling(100, overlap=0.3)
    assert len([task for task in label_all(labelling, "ann", give) if not task.repeat]) == 100
    shared = {task.pair.id for task in label_all(labelling, "bob", give)}
    assert len(shared) == 30
    assert {task.pair.id for task in label_all(start_labelling(100, overlap=0.3), "eve", give)} == shared


def test_what_somebody_leaves_open_comes_free(start_labelling, give, monkeypatch):
    labelling = start_labelling(1, overlap=0.0)
    left_open = labelling.next_task("ann")
    assert labelling.next_task("bob") is None
    assert (labelling.progress("bob").total, labelling.progress("bob").elsewhere) == (0, 1)
    later = monotonic() + OPEN_FOR
    monkeypatch.setattr("lorarlhf.preferences.labelling.monotonic", lambda: later)
    assert labelling.next_task("bob").pair == left_open.pair
    give(labelling, "bob", "b")
    labelling.record("ann", answer_to(left_open))  # what somebody has answered is kept, however late
    assert len(labelling.file.labels) == 2


def test_what_others_skip_is_left_to_the_next(start_labelling, give):
    labelling = start_labelling(2, overlap=0.0)
    give(labelling, "ann", "skip")
    assert labelling.next_task("bob").pair.id == "p0"


def test_disputes_are_listed_the_most_divided_first_and_opened_again(start_labelling):
    labelling = start_labelling(30, overlap=1.0)

    def say(who, **choices):
        for pair, choice in choices.items():
            labelling.reopen(who, pair)
            task = labelling.next_task(who)
            side = choice if choice == "tie" else "left" if choice == task.left else "right"
            labelling.record(who, answer_to(task, side, comment=who))

    say("ann", p5="a", p6="a", p7="a")
    say("bob", p5="tie", p6="b", p7="a")
    assert [(given.task.pair.id, dict(given.votes)) for given in labelling.disputed("eve")] == [
        ("p6", {"a": 1, "b": 1}),
        ("p5", {"a": 1, "tie": 1}),
    ]
    assert labelling.progress("ann").disputed == 2
    before = labelling.next_task("ann")
    assert labelling.reopen("ann", "p6").comment == "ann"
    assert labelling.next_task("ann").pair.id == "p6"
    assert labelling.disputed("ann")[0].task.pair.id == "p5"
    assert labelling.reopen("eve", "p5") is None
    assert labelling.next_task("eve").pair.id == "p5"
    say("ann", p6="b")
    assert labelling.next_task("ann") == before
    with pytest.raises(KeyError):
        labelling.reopen("ann", "none")


def test_undo_asks_the_pair_again_step_by_step(start_labelling, give):
    labelling = start_labelling(45)
    tasks = label_all(labelling, "ann", give)
    assert any(task.repeat for task in tasks)
    for task in reversed(tasks):
        assert labelling.undo("ann").pair_id == task.pair.id
        assert labelling.next_task("ann") == task
    assert labelling.undo("ann") is None
    assert not labelling.progress("ann").can_undo


def test_skipped_pairs_do_not_come_back(start_labelling, give):
    labelling = start_labelling(100)
    assert not any(task.repeat for task in label_all(labelling, "ann", give, "skip"))
    progress = labelling.progress("ann")
    assert (progress.done, progress.total, progress.repeats) == (100, 100, 0)


def test_self_agreement_is_about_responses_not_sides(start_labelling):
    labelling = start_labelling(100)
    while task := labelling.next_task("ann"):
        labelling.record("ann", answer_to(task, "left"))
    assert labelling.progress("ann").repeats == 5
    assert labelling.progress("ann").consistent == 0


def test_pace_is_of_recent_labels(start_labelling, give):
    labelling = start_labelling(200)
    assert labelling.progress("ann").seconds is None
    for seconds in [100.0] * 30 + [4.0] * 60:
        give(labelling, "ann", "a", seconds=seconds)
    assert labelling.progress("ann").seconds == 4


def test_labels_of_other_pairs_are_kept_and_counted_apart(start_labelling, give):
    give(start_labelling([Pair("other", "Q?", "a", "b")]), "bob", "a")
    labelling = start_labelling(3)
    assert labelling.unknown_labels() == 1
    assert labelling.progress("bob").done == 0
    assert labelling.progress("bob").total == 3


@pytest.mark.parametrize(("text", "name"), [(" Ann  B. ", "Ann B."), ("Zoë", "Zoë"), ("李", "李")])
def test_names(text, name):
    assert annotator_name(text) == name


@pytest.mark.parametrize("text", ["", "  ", "x" * 65, "a\0b", "a\u202eb"])
def test_no_names(text):
    with pytest.raises(ValueError, match="1 to 64"):
        annotator_name(text)


def test_undo_leaves_labels_of_other_pairs(start_labelling, give):
    other = [Pair("other", "Why?", "First.", "Second.")]
    label_all(start_labelling(other), "ann", give)
    labelling = start_labelling(2)
    assert not labelling.progress("ann").can_undo
    assert labelling.undo("ann") is None
    give(labelling, "ann", "a")
    assert labelling.undo("ann").pair_id == "p0"
    assert labelling.undo("ann") is None
    assert labelling.unknown_labels() == 1
