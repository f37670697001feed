"""What `import lorarlhf` offers."""

import subprocess
import sys

import pytest
from demo_runs import DEMO, read_jsonl, save_random_adapter, short_is_good, small_recipe, write_jsonl
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import lorarlhf
from lorarlhf import RewardModel, Run, UserError, evaluate, export, train_ppo


@pytest.fixture
def scored_run(tmp_path):
    """A run with a reward model and a policy, both random."""
    recipe, run = small_recipe(tmp_path), Run(tmp_path / "run")
    run.write_recipe(recipe)
    for stage in ("reward", "ppo"):
        save_random_adapter(recipe, run, stage)
        AutoTokenizer.from_pretrained(DEMO / "model").save_pretrained(run.stage(stage))
    return run


def python(*arguments):
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def test_importing_takes_no_time():
    """Time of the processor, which other processes on the machine do not lengthen."""
    script = "import time; start = time.process_time(); import lorarlhf; print(time.process_time() - start)"
    assert min(float(python("-c", script)[0]) for _ in range(3)) < 0.05


def test_nothing_is_imported_before_it_is_asked_for():
    script = (
        "import sys, lorarlhf; print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'pydantic', 'rich'}))"
    )
    assert python("-c", script)[0].strip() == "[]"
    script = "import sys, lorarlhf; lorarlhf.load_recipe('demo'); print('torch' in sys.modules)"
    assert python("-c", script)[0].strip() == "False"


def test_every_name_is_there():
    assert {"load_recipe", "Run", "load_backbone", "evaluate", "export", "RewardModel"} <= set(lorarlhf.__all__)
    assert set(lorarlhf.__all__) <= set(dir(lorarlhf))
    for name in lorarlhf.__all__:
        value = getattr(lorarlhf, name)
        assert callable(value)
        assert value.__doc__
        assert value.__name__ == name
    with pytest.raises(AttributeError, match="module 'lorarlhf' has no attribute 'train'"):
        _ = lorarlhf.train


def test_no_name_is_a_folder_too():
    """A folder that is imported becomes an attribute of the package, in place of what the face has of that name."""
    script = "import pkgutil, lorarlhf; print(sorted({m.name for m in pkgutil.iter_modules(lorarlhf.__path__)}))"
    assert not {f"'{name}'" for name in lorarlhf.__all__} & set(python("-c", script)[0].strip("[]\n").split(", "))


def test_a_run_is_made_from_text_path_or_run(tmp_path):
    assert Run(str(tmp_path)) == Run(tmp_path) == Run(Run(tmp_path))
    assert Run(str(tmp_path)).stage("sft") == tmp_path / "sft"


# Evaluate and export


def test_evaluate_returns_what_the_command_writes(scored_run, capsys):
    evaluation = evaluate(str(scored_run.path), sets=["ppo.response_length=3"])
    assert (evaluation["stage"], evaluation["reference"], evaluation["prompts"]) == ("ppo", "base", 8)
    assert evaluation["after"]["response_length"] <= 3
    assert not (scored_run.stage("ppo") / "evaluation.json").exists()
    test = evaluate(scored_run, "reward", dataset=str(DEMO / "preferences_test.jsonl"))
    assert test["examples"] == len(read_jsonl(DEMO / "preferences_test.jsonl"))
    assert "scored" not in capsys.readouterr().out


def test_evaluate_counts_reward_functions(scored_run):
    plain = evaluate(scored_run)["samples"][0]
    more = evaluate(scored_run, reward_functions=[short_is_good])["samples"][0]
    assert more["after"] == plain["after"]
    assert more["reward_after"] - plain["reward_after"] == pytest.approx(-len(plain["after"]) / 10, abs=1e-5)


def test_export_returns_the_folder(scored_run, tmp_path):
    to = export(scored_run.path, str(tmp_path / "out"), merge=False)
    assert to == tmp_path / "out"
    assert (to / "adapter_config.json").is_file()
    assert "policy" not in {path.name for path in to.iterdir()}


# The reward model


def test_scores_are_those_of_the_exported_model(scored_run, tmp_path):
    rows = read_jsonl(DEMO / "preferences_test.jsonl")[:3]
    prompts = [row["prompt"] for row in rows] + ["just text"]
    responses = [row["chosen"] if isinstance(row["chosen"], str) else row["chosen"][-1]["content"] for row in rows]
    responses.append("an answer")
    scores = RewardModel.from_run(scored_run).score(prompts, responses)
    assert [type(score) for score in scores] == [float] * 4
    assert len(set(scores)) == 4
    folder = export(scored_run, tmp_path / "rm", "reward")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for prompt, response, score in zip(prompts, responses, scores, strict=True):
        asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        text = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text + response + tokenizer.eos_token, add_special_tokens=False, return_tensors="pt")
        assert model(**ids).logits.item() == pytest.approx(score, abs=1e-4)


def test_no_responses_have_no_scores(scored_run):
    assert RewardModel.from_run(str(scored_run.path)).score([], []) == []


def test_faults_of_a_caller_are_one_line(scored_run, tmp_path):
    model = RewardModel.from_run(scored_run)
    faults = {
        "score: give a list of prompts and a list of as many responses": [("a", "b"), (["a"], "b"), (["a"], [])],
        "score: responses[0] is a list, not text": [(["a"], [["b"]])],
        "score: prompts[1]: prompt is an object, not a list of messages": [(["a", {"role": "user"}], ["b", "c"])],
        "score: prompts[0]: prompt has a message without role and content as text": [([[{"role": "user"}]], ["b"])],
    }
    for message, calls in faults.items():
        for prompts, responses in calls:
            with pytest.raises(UserError) as error:
                model.score(prompts, responses)
            assert str(error.value) == message
    nothing = tmp_path / "nothing"
    for call in (RewardModel.from_run, evaluate, lambda run: export(run, tmp_path / "to")):
        with pytest.raises(UserError, match="nothing: not a run, there is no recipe"):
            call(nothing)
    (scored_run.stage("reward") / "adapter_config.json").unlink()
    with pytest.raises(UserError, match="reward: no adapter there; run `lorarlhf reward"):
        RewardModel.from_run(scored_run)


# Functions instead of a reward model


def test_ppo_learns_from_a_function_alone(tmp_path):
    seen = []

    def spy(prompts, responses):
        seen.append((prompts, responses))
        return short_is_good(prompts, responses)

    run = Run(tmp_path / "run")
    recipe = small_recipe(tmp_path, "ppo.advantage_estimator=rloo", "ppo.iterations=1")
    summary = train_ppo(recipe, str(run.path), reward_functions=[spy])
    assert run.has_adapter("ppo")
    before, rollout = seen[:2]  # held-out prompts, then the iteration's
    assert (len(before[0]), len(rollout[0])) == (4, 8)
    assert len(set(rollout[0])) == 2  # of four responses each
    assert summary["reward"] == pytest.approx(sum(short_is_good(*rollout)) / 8, abs=1e-6)


def with_answers(tmp_path):
    """A `--set` for prompts of which every second has another answer."""
    rows = [{"prompt": f"{i} and {i}?", "answer": str(2 * i), "even": i % 2 == 0} for i in range(20)]
    return f"data.prompts={write_jsonl(tmp_path / 'sums.jsonl', rows)}"


def test_functions_get_the_answers_that_belong_to_their_prompts(tmp_path):
    seen = []

    def exact(prompts, responses, answer, even):
        seen.extend(zip(prompts, answer, even, strict=True))
        return [float(wanted in response) for wanted, response in zip(answer, responses, strict=True)]

    sets = [with_answers(tmp_path), "data.prompts_test=null", "ppo.num_generations=2"]
    recipe, run = small_recipe(tmp_path, *sets), Run(tmp_path / "run")
    train_ppo(recipe, run, reward_functions=[exact])
    assert len(set(seen)) > 4
    for prompt, answer, even in seen:
        number = int(prompt.split()[0])
        assert (answer, even) == (str(2 * number), number % 2 == 0)
    seen.clear()
    assert evaluate(run, reward_functions=[exact])["prompts"] == len(seen) // 2


def test_a_missing_column_is_known_before_the_model_loads(tmp_path):
    def rate(prompts, responses, solution):
        return [0.0] * len(responses)

    recipe, run = small_recipe(tmp_path, with_answers(tmp_path), "model.name=no/such/model"), Run(tmp_path / "run")
    run.write_recipe(recipe)
    save_random_adapter(small_recipe(tmp_path), run, "ppo")
    for call in (train_ppo, lambda recipe, run, **options: evaluate(run, "ppo", **options)):
        with pytest.raises(UserError) as error:
            call(recipe, run, reward_functions=[rate])
        assert "no column solution, which ppo.reward_functions ask for; there are " in str(error.value)
        assert "\n" not in str(error.value)
    assert not (run.stage("ppo") / "metrics.jsonl").exists()
