"""Plans against sums done by hand, and against what shipped recipes promise."""

from __future__ import annotations

import logging

import pytest
from published_models import BILLIONS, PUBLISHED

from lorarlhf.backbone.load import load_backbone, load_model_config
from lorarlhf.errors import UserError
from lorarlhf.planner import fit as fitting
from lorarlhf.planner.fit import GIB, auto_token_budget, check_memory, fit
from lorarlhf.planner.plan import CannotPlanError, Planner
from lorarlhf.planner.shadow import shadow_model
from lorarlhf.recipe.load import load_recipe
from lorarlhf.recipe.sections import LoraConfig, ModelConfig, PPOConfig, Recipe, ScalarLoraOverride
from lorarlhf.recipe.shipped import list_recipes, planned_for

QWEN = PUBLISHED["Qwen/Qwen2.5-7B-Instruct"]
STAGES = ("sft", "reward", "ppo")


SIZES = ("ppo.response_length=192", "ppo.micro_batch_tokens=2048", "ppo.num_mini_batches=4")  # of the sums below


def recipe(*sets, name="qwen2.5-7b-12gb") -> Recipe:
    return load_recipe(name, sets=sets if name == "demo" else (*SIZES, *sets))


def on_all_layers(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"lora": LoraConfig(reward=ScalarLoraOverride(top_layers=1.0))})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A recipe for a tiny model."""
    from tiny_models import make_model

    folder = make_model("llama", tmp_path_factory.mktemp("models") / "llama")
    return load_recipe("demo", sets=[f"model.name={folder}"])


@pytest.fixture(scope="module")
def qwen():
    """A planner of a 7B model on a GPU, which keeps what it has run for the test after."""
    return Planner(recipe(), QWEN, "cuda")


@pytest.fixture(scope="module")
def on_all():
    """The same with reward model and critic on all layers."""
    return Planner(on_all_layers(recipe()), QWEN, "cuda")


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_parameters_are_those_of_the_model_card(name):
    model = shadow_model(ModelConfig(name=name), PUBLISHED[name], "cuda")
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(BILLIONS[name], rel=1e-3)


def test_qwen_7b_by_hand(on_all):
    hidden, kv, wide, layers, vocabulary = 3584, 512, 18944, 28, 152_064
    linear = layers * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * wide)
    nf4 = linear / 2 + linear / 64 + linear / 64 / 256 * 4
    others = 2 * vocabulary * hidden * 2
    adapter = 16 * layers * (2 * (hidden + hidden) + 2 * (hidden + kv) + 3 * (hidden + wide))
    plan = on_all.ppo(token_budget=2048, rollout_rows=32)
    rollout, scoring, update = (phase.parts for phase in plan.phases)
    for phase in (rollout, scoring, update):
        assert phase["backbone"] == pytest.approx(nf4 + others, rel=1e-3)
        assert phase["adapters"] == pytest.approx(4 * 4 * adapter, rel=1e-3)  # float32, four roles
        # Two roles train; two bytes a weight, and for each 256 two float32.
        assert phase["optimizer"] == pytest.approx(2 * adapter * (2 + 8 / 256), rel=1e-2)
        assert phase["context"] == GIB / 2
    assert rollout["kv cache"] == layers * 2 * kv * 2 * 32 * (512 + 192)
    assert update["gradients"] == pytest.approx(2 * 4 * adapter, rel=1e-2)
    # A layer's input for each token of a micro-batch, and more while one layer is computed again.
    rows = 2048 // 704
    assert update["activations"] > layers * rows * 704 * hidden * 2
    assert scoring["activations"] + scoring.get("logits", 0) > 3 * 4 * 100 * vocabulary
    assert plan.allocated == plan.peak.total - GIB // 2


@pytest.mark.parametrize(
    ("sets", "kind", "factor"),
    [
        (["ppo.optim=adamw_torch"], "optimizer", 4),
        (["lora.r=32"], "adapters", 2),
        (["ppo.response_length=896"], "kv cache", 2),
        (["model.quantization=none"], "backbone", 15.23 / 5.55),
        (["ppo.gradient_checkpointing=false"], "activations", 10.8),
    ],
)
def test_a_key_changes_its_part(qwen, sets, kind, factor):
    def part(planner):
        plan = planner.ppo(token_budget=2048, rollout_rows=8)
        return plan.phases[0 if kind == "kv cache" else 2].parts[kind]

    assert part(Planner(recipe(*sets), QWEN, "cuda")) / part(qwen) == pytest.approx(factor, rel=0.1)


def test_adapters_on_the_top_layers_cost_less_and_keep_the_trunk_states(on_all):
    quarter = recipe().model_copy(update={"lora": LoraConfig(reward=ScalarLoraOverride(top_layers=0.25))})
    full, top = (planner.ppo(4096, 8).phases[2].parts for planner in (on_all, Planner(quarter, QWEN, "cuda")))
    assert "trunk states" not in full
    micro, minibatch, batch = 4096 // 704, 16, 64
    assert top["trunk states"] == (batch + minibatch + micro) * 704 * 3584 * 2
    assert top["adapters"] == pytest.approx(full["adapters"] * 2.5 / 4, rel=0.01)


def test_layers_that_are_not_run_are_extrapolated_exactly():
    config = load_model_config(ModelConfig(name="shipped:demo/model"))
    config.num_hidden_layers = 7
    short, whole = (Planner(on_all_layers(recipe(name="demo")), config, "cpu") for _ in range(2))
    whole.__dict__["_shadows"] = [whole._shadow(7)]
    for stage in STAGES:
        plans = [planner.ppo(1000) if stage == "ppo" else planner.supervised(stage) for planner in (short, whole)]
        for one, other in zip(plans[0].phases, plans[1].phases, strict=True):
            assert one.total == pytest.approx(other.total, rel=1e-4), (stage, one.name)


ON_CARDS = [info for info in list_recipes() if load_recipe(info.name).ppo.optim != "adamw_torch"]


@pytest.mark.slow
@pytest.mark.parametrize("info", ON_CARDS, ids=lambda info: info.name)
def test_shipped_recipes_fit_the_card_in_their_name_and_say_how(info):
    shipped = load_recipe(info.name)
    planned = planned_for(info.path)
    assert planned, "a recipe for a card says what `lorarlhf plan` finds"
    free, said, tokens = planned
    card = info.name.rpartition("-")[2]
    assert free == (14.5 if card == "t4" else float(card.removesuffix("gb")) - 0.5)  # a T4 has no desktop
    planner = Planner(shipped, PUBLISHED[shipped.model.name], "cuda")
    assert tokens % planner.sequence_length == 0
    assert set(said) == (set(STAGES) if shipped.data.preferences else {"ppo"})
    for stage, peak in said.items():
        # `auto` would look for the number that the header has, which takes many plans.
        plan = planner.rollout_that_fits(int(free * GIB), tokens) if stage == "ppo" else planner.supervised(stage)
        assert plan.peak.total / GIB == pytest.approx(peak, abs=0.06), (stage, plan.peak)
        assert plan.peak.total <= free * GIB, (stage, plan.peak)
        if stage == "ppo":  # what `auto` leaves free
            assert max(phase.total for phase in plan.phases[1:]) <= 0.9 * free * GIB


@pytest.mark.parametrize("name", ["demo", "smollm2-135m-cpu"])
def test_shipped_recipes_without_a_card_fit_8_gib(name):
    shipped = load_recipe(name)
    planner = Planner(shipped, PUBLISHED.get(shipped.model.name) or load_model_config(shipped.model), "cpu")
    for stage in STAGES:
        plan = fitting._plan(planner, stage, 8 * GIB)
        assert plan.peak.total <= 8 * GIB, (stage, plan.peak)


@pytest.mark.parametrize("generations", [2, 4, 8])
def test_what_would_help_is_a_recipe(generations):
    made = recipe("ppo.advantage_estimator=grpo", f"ppo.num_generations={generations}", "ppo.batch_size=64")
    for key, value in fitting._candidates(made, "ppo", "cpu"):
        recipe("ppo.advantage_estimator=grpo", f"ppo.num_generations={generations}", f"{key}={value}")


def test_what_does_not_fit_names_the_keys_that_help_most_first():
    result = fit(recipe(), QWEN, "sft", "cuda", 7 * GIB)
    assert not result.fits
    assert result.changes == sorted(result.changes, key=lambda change: change.peak)
    assert ("sft.per_device_train_batch_size", 1) in {(change.key, change.value) for change in result.changes}
    best = result.changes[0]
    again = fit(recipe(f"{best.key}={best.value}"), QWEN, "sft", "cuda", 7 * GIB)
    assert again.plan.peak.total == best.peak < result.plan.peak.total


def test_the_largest_budget_is_the_last_that_fits(qwen):
    capacity = 9 * GIB
    tokens = qwen.largest_budget(capacity)
    assert tokens % 704 == 0
    assert 0 < tokens < 64 * 704
    assert max(p.total for p in qwen.ppo(tokens, 1).phases) <= capacity
    assert max(p.total for p in qwen.ppo(tokens + 704, 1).phases) > capacity
    assert qwen.largest_budget(6 * GIB) == 0


def test_an_automatic_budget_leaves_a_tenth_free(qwen, monkeypatch):
    automatic = recipe("ppo.micro_batch_tokens=auto")
    assert recipe().model_copy(update={"ppo": automatic.ppo}) == automatic, "in all else it is the recipe of `qwen`"
    monkeypatch.setattr(fitting, "load_model_config", lambda _: QWEN)
    monkeypatch.setattr(fitting, "this_target", lambda: "cuda")
    monkeypatch.setattr(fitting, "available_memory_bytes", lambda: 10 * GIB)
    planner = Planner(automatic, QWEN, "cuda")
    planner.runs = qwen.runs
    monkeypatch.setattr(
        fitting, "Planner", lambda *given: planner if given == (automatic, QWEN, "cuda", True) else None
    )
    tokens = auto_token_budget(automatic)
    assert tokens == planner.largest_budget(9 * GIB) < planner.largest_budget(10 * GIB)
    assert fitting._plan(planner, "ppo", 10 * GIB).token_budget == tokens  # `lorarlhf plan` says the same


def test_rollouts_that_do_not_fit_are_halved_on_a_gpu_only(qwen):
    plan = fitting._plan(qwen, "ppo", 9 * GIB)
    assert plan.peak.total <= 9 * GIB
    assert plan.rollout_rows == 32
    assert fitting._plan(qwen, "ppo", 12 * GIB).rollout_rows == 64


def test_prompts_do_not_say_how_many_rows_are_decoded_at_a_time(qwen, monkeypatch):
    """They are computed in groups of eight rows of 512 tokens; what grows with the rows is the cache."""
    few, many = (qwen.ppo(2048, rows).phases[0].parts for rows in (16, 64))
    assert many["kv cache"] == 4 * few["kv cache"]
    assert many["activations"] < 1.2 * few["activations"]
    monkeypatch.setattr("lorarlhf.generation.prefill.PREFILL_TOKENS", 10**6)
    at_once = Planner(recipe(), QWEN, "cuda").ppo(2048).phases[0]
    assert at_once.parts["activations"] > 4 * many["activations"]
    assert at_once.total > 12 * GIB


def test_rollouts_of_a_cpu_are_not_halved():
    demo = recipe(name="demo")
    planner = Planner(demo, load_model_config(demo.model), "cpu")
    assert fitting._plan(planner, "ppo", GIB // 4).rollout_rows == 64


def test_a_stage_that_cannot_fit_is_refused_before_the_model_is_loaded(tiny, monkeypatch, tmp_path):
    from lorarlhf.run import Run
    from lorarlhf.stages.ppo import train_ppo
    from lorarlhf.stages.reward import train_reward
    from lorarlhf.stages.sft import train_sft

    monkeypatch.setattr(fitting, "available_memory_bytes", lambda: GIB // 4)
    functions = tiny.model_copy(
        update={"ppo": PPOConfig(reward_model_weight=0.0, reward_functions=["demo_runs:letter_e"], eval_every=0)}
    )
    stages = [("sft", train_sft, tiny), ("reward", train_reward, tiny), ("ppo", train_ppo, functions)]
    for stage, train, given in stages:
        with pytest.raises(UserError, match=rf"{stage}: takes 0\.\d GiB even with one sequence.*0\.2 GiB are free"):
            train(given, Run(tmp_path))


def test_full_batches_that_may_not_fit_are_warned_of(tiny, monkeypatch, caplog):
    planner = Planner(tiny, load_model_config(tiny.model), "cpu")
    least, full = planner.smallest("sft").peak.total, planner.supervised("sft").peak.total
    monkeypatch.setattr(fitting, "available_memory_bytes", lambda: (least + full) // 2)
    with caplog.at_level(logging.WARNING, logger="lorarlhf"):
        check_memory("sft", tiny)
    assert "lower sft.per_device_train_batch_size" in caplog.text
    caplog.clear()
    monkeypatch.setattr(fitting, "available_memory_bytes", lambda: full)
    check_memory("sft", tiny)
    assert caplog.text == ""


def test_a_model_that_cannot_be_planned_is_still_trained(tiny, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("Tensor.item() cannot be called on meta tensors")

    monkeypatch.setattr("lorarlhf.planner.plan._peak", fail)
    with pytest.raises(CannotPlanError, match=r"cannot be planned: Tensor\.item"):
        fit(tiny, load_model_config(tiny.model), "sft", "cpu", GIB)
    with caplog.at_level(logging.WARNING, logger="lorarlhf"):
        check_memory("sft", tiny)
    assert "memory is not checked" in caplog.text


def test_an_automatic_budget_is_a_number_before_the_trainer_sees_it(tiny, monkeypatch):
    automatic = tiny.model_copy(update={"ppo": PPOConfig(micro_batch_tokens="auto")})
    assert auto_token_budget(automatic) == 512
    with pytest.raises(AssertionError):
        _ = automatic.ppo.token_budget
    monkeypatch.setattr(fitting, "this_target", lambda: "cuda")
    monkeypatch.setattr(fitting, "available_memory_bytes", lambda: 40 * GIB)
    assert auto_token_budget(automatic) == 64 * (64 + 128)  # everything at once
    monkeypatch.setattr(fitting, "available_memory_bytes", lambda: GIB // 4)
    assert auto_token_budget(automatic) == 64 + 128  # one sequence: it may still work


def test_planning_leaves_torch_as_it_was(tiny):
    import torch

    attention, state = torch.nn.functional.scaled_dot_product_attention, torch.random.get_rng_state()
    check_memory("ppo", tiny)
    assert torch.nn.functional.scaled_dot_product_attention is attention
    assert torch.equal(torch.random.get_rng_state(), state)
    load_backbone(tiny.model)


@pytest.mark.parametrize("estimator", ["rloo", "grpo"])
def test_without_a_critic_there_is_no_adapter_no_gradient_and_no_optimizer_of_it(on_all, estimator):
    layers, hidden, kv, wide = 28, 3584, 512, 18944
    adapter = 16 * layers * (2 * (hidden + hidden) + 2 * (hidden + kv) + 3 * (hidden + wide))
    with_critic = on_all.ppo(token_budget=2048, rollout_rows=32)
    sets = (f"ppo.advantage_estimator={estimator}",)
    without = Planner(on_all_layers(recipe(*sets)), QWEN, "cuda").ppo(token_budget=2048, rollout_rows=32)
    for phase, other in zip(without.phases, with_critic.phases, strict=True):
        assert phase.parts["adapters"] == pytest.approx(3 * 4 * adapter, rel=1e-3)  # policy, reference, reward
        assert phase.parts["optimizer"] == pytest.approx(other.parts["optimizer"] / 2, rel=1e-3)
        assert phase.total < other.total
    update = without.phases[2].parts
    assert update["gradients"] == pytest.approx(4 * adapter, rel=1e-2)
    assert "trunk states" not in update
