"""Losses and gradients of a minibatch, and how it is split."""

import ppo_reference as reference
import pytest
import torch
from demo_runs import equal, weights
from loops import randomise, rows_of

from lorarlhf.errors import UserError
from lorarlhf.generation import sample as sample_module
from lorarlhf.recipe.sections import PPOConfig
from lorarlhf.rl.process_group import Share
from lorarlhf.rl.score import response_scorer
from lorarlhf.rl.update import minibatches, rows_here


@pytest.fixture
def off_policy(loop):
    """A loop whose policy and critic have moved away from the experience they made: ratios are not 1."""

    def make(*sets):
        made = loop("ppo.cliprange=0.02", "ppo.cliprange_value=0.02", "ppo.response_length=24", *sets)
        experience = made.experience()
        torch.manual_seed(2)
        randomise(made.backbone, 0.02, "policy", *(["critic"] if made.algorithm.has_critic else []))
        return made, experience

    return make


def per_token(loop, experience, *tables):
    """Rows of the tables without padding, zipped token by token over the whole experience."""
    lengths = experience.sequences.response_lengths.tolist()
    ragged = [reference.ragged(table.tolist(), lengths) for table in tables]
    return [tuple(token) for rows in zip(*ragged, strict=True) for token in zip(*rows, strict=True)]


def test_losses_against_the_slow_computation(off_policy):
    loop, experience = off_policy("ppo.vf_coef=0.7", "ppo.entropy_coef=0.3")
    means, _ = loop.gradients(experience)
    config = loop.config
    with torch.no_grad():
        now, entropy = loop.backbone.logprobs("policy", experience.sequences, config.temperature)
        values = loop.backbone.values(experience.sequences)
    tokens = per_token(
        loop,
        experience,
        *(now, experience.logprobs, experience.advantages),
        *(values, experience.values, experience.returns, entropy),
    )
    policy = [reference.policy_loss(p, old, a, config.cliprange) for p, old, a, *_ in tokens]
    value = [reference.value_loss(v, old, r, config.cliprange_value) for *_, v, old, r, _ in tokens]
    n = len(tokens)
    policy_mean, value_mean = sum(x for x, _ in policy) / n, sum(x for x, _ in value) / n
    expected = policy_mean + 0.7 * value_mean - 0.3 * sum(token[-1] for token in tokens) / n
    clipped, value_clipped = sum(c for _, c in policy), sum(c for _, c in value)
    assert clipped > 0
    assert value_clipped > 0
    assert means["loss"] == pytest.approx(expected, rel=1e-4)
    assert means["policy_loss"] == pytest.approx(policy_mean, rel=1e-4, abs=1e-6)
    assert means["value_loss"] == pytest.approx(value_mean, rel=1e-4)
    assert means["clip_fraction"] == pytest.approx(clipped / n)
    assert means["value_clip_fraction"] == pytest.approx(value_clipped / n)


@pytest.mark.parametrize("estimator", ["gae", "rloo", "grpo"])
def test_the_kl_in_the_loss_against_the_slow_computation(off_policy, estimator):
    loop, experience = off_policy(f"ppo.advantage_estimator={estimator}", "ppo.kl_in=loss", "ppo.kl_coef=0.4")
    means, _ = loop.gradients(experience)
    with torch.no_grad():
        now, _ = loop.backbone.logprobs("policy", experience.sequences, loop.config.temperature)
    tokens = per_token(loop, experience, now, experience.logprobs, experience.advantages, experience.ref_logprobs)
    kl = sum(reference.kl_estimate(p, q, "k3") for p, _, _, q in tokens) / len(tokens)
    policy = sum(reference.policy_loss(p, old, a, loop.config.cliprange)[0] for p, old, a, _ in tokens) / len(tokens)
    assert kl > 1e-5
    assert means["kl_loss"] == pytest.approx(kl, rel=1e-3)
    expected = policy + 0.4 * kl + (loop.config.vf_coef * means["value_loss"] if estimator == "gae" else 0)
    assert means["loss"] == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("estimator", ["gae", "rloo", "grpo"])
def test_micro_batches_of_any_size_give_the_same_gradients(off_policy, monkeypatch, estimator):
    loop, experience = off_policy(
        f"ppo.advantage_estimator={estimator}", "ppo.entropy_coef=0.1", "ppo.micro_batch_tokens=100000"
    )
    whole_means, whole = loop.gradients(experience)
    assert experience.sequences.response_lengths.unique().numel() > 1, "responses of one length would prove nothing"
    calls = []
    term = loop.algorithm.policy_term
    monkeypatch.setattr(loop.algorithm, "policy_term", lambda *args: calls.append(None) or term(*args))
    for budget in (1, 60, 100):
        loop.parts.update_budget.tokens = budget
        calls.clear()
        means, split = loop.gradients(experience)
        assert len(calls) == len(list(experience.sequences.micro_batches(budget))) > 1
        assert means["loss"] == pytest.approx(whole_means["loss"], rel=1e-5, abs=1e-7)
        assert_same_gradients(split, whole)


def test_padding_is_of_the_passes_that_are_made(off_policy, monkeypatch):
    loop, experience = off_policy("ppo.micro_batch_tokens=100")
    made = []

    def spy(role, sequences, *args, real=loop.backbone.logprobs, **kwargs):
        made.append(sequences)
        return real(role, sequences, *args, **kwargs)

    monkeypatch.setattr(loop.backbone, "logprobs", spy)
    loop.gradients(experience)
    assert len(made) > 1
    needed = sum(len(ids) for batch in made for ids in batch.lists())
    assert loop.padding == pytest.approx(1 - needed / sum(batch.tokens.numel() for batch in made))
    assert 0 < loop.padding < 1 - needed / experience.sequences.tokens.numel(), "rows of similar length go together"


def assert_same_gradients(actual, expected):
    assert set(actual) == set(expected)
    for role in expected:
        for a, b in zip(actual[role], expected[role], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


def test_running_out_of_memory_halves_the_budget_and_changes_nothing_else(off_policy, caplog):
    loop, experience = off_policy("ppo.entropy_coef=0.1", "ppo.micro_batch_tokens=100000")
    whole_means, whole = loop.gradients(experience)
    real = loop.backbone.values
    allowed, seen = experience.sequences.tokens.numel() // 2, []

    def values(sequences, *args):  # the critic's pass comes after the policy has left gradients behind
        seen.append(sequences.tokens.numel())
        if seen[-1] > allowed:
            raise torch.OutOfMemoryError
        return real(sequences, *args)

    loop.backbone.values = values
    means, split = loop.gradients(experience)
    assert seen[0] > allowed >= max(seen[1:])
    assert loop.parts.update_budget.tokens == allowed
    assert caplog.text.count("update: out of memory") == 1
    assert means["loss"] == pytest.approx(whole_means["loss"], rel=1e-5)
    assert_same_gradients(split, whole)


def test_a_rollout_that_ran_out_of_memory_is_sampled_anew_and_the_same(loop, monkeypatch):
    made = loop()
    _, expected = made.sample()
    decode, calls = sample_module._decode, []

    def short_of_memory(backbone, role, some, *args):
        calls.append(len(some))
        if len(some) == 8:
            decode(backbone, role, some, *args)
            raise torch.OutOfMemoryError
        return decode(backbone, role, some, *args)

    monkeypatch.setattr(sample_module, "_decode", short_of_memory)
    _, sampled = made.sample()
    assert calls[0] == 8
    assert sum(calls[1:]) == 8
    assert torch.equal(sampled.sequences.tokens, expected.sequences.tokens)


def test_a_step_that_runs_out_of_memory_half_way_ends_in_one_line(loop):
    """It cannot be tried again: some of the weights are new by then."""
    made = loop()

    def step(*_):
        raise torch.AcceleratorError("CUDA error: out of memory")

    made.learner.optimizer.step = step
    with pytest.raises(UserError, match=r"^optimiser step: out of memory; .*Checkpoints stand: go on with --resume$"):
        made.train()


def test_the_gap_that_is_logged_is_the_largest_of_all_processes(loop, monkeypatch):
    """The first process, whose row it is, may have nothing of the first minibatch."""
    made = loop("ppo.iterations=1")
    processes = made.learner.processes
    alone = processes.gather
    monkeypatch.setattr(
        processes, "gather", lambda rows: [*alone(rows), *([0.5] if isinstance(rows[0], float) else [])]
    )
    made.train()
    assert rows_of(made)[0]["rollout_gap"] == 0.5


# The trunk that reward model and critic share


@pytest.mark.parametrize("reference_is", ["base", "adapter"])
def test_a_shared_trunk_changes_nothing(loop, monkeypatch, reference_is):
    """The same experience and the same gradients as when every role computes all layers."""
    sets = ["lora.reward.top_layers=0.5", "lora.critic.top_layers=0.5", "model.compute_dtype=float32"]
    results = []
    for shared in (True, False):
        torch.manual_seed(0)  # for the heads
        made = loop(*sets)
        if reference_is == "base":
            made.backbone.adapters.detach("reference")
        passes = made.parts.passes
        made.change(reward=response_scorer(passes, 1.0, []))
        if not shared:
            passes.reference = lambda sequences, p=passes: (p.logprobs("reference", sequences)[0], None)
        experience = made.experience()
        assert (experience.trunk is not None) == shared
        results.append((experience, made.gradients(experience), made))
    (ours, (means, grads), shared_loop), (plain, (plain_means, plain_grads), _) = results
    backbone = shared_loop.backbone
    assert ours.trunk.layer == backbone.first_layer("critic") == len(backbone.layers) // 2
    assert means["loss"] == pytest.approx(plain_means["loss"], rel=1e-5)
    for name in ("logprobs", "values", "advantages", "returns"):
        torch.testing.assert_close(getattr(ours, name), getattr(plain, name), rtol=1e-4, atol=1e-5)
    assert_same_gradients(grads, plain_grads)


@pytest.mark.parametrize("estimator", ["gae", "grpo"])
def test_only_what_learns_gets_gradients(off_policy, estimator):
    loop, experience = off_policy(f"ppo.advantage_estimator={estimator}")
    loop.gradients(experience)
    roles = ("policy", "critic") if estimator == "gae" else ("policy",)
    trained = {id(p) for role in roles for p in loop.backbone.role_parameters(role)}
    for name, parameter in loop.backbone.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in trained) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.abs().sum() > 0, name


def test_entropy_bonus(off_policy):
    """It lowers the loss by the mean entropy, pushes the policy only, and pushes it towards more entropy."""
    loop, experience = off_policy()
    means, without = loop.gradients(experience)
    loop.configure(entropy_coef=0.5)
    means_with, with_bonus = loop.gradients(experience)

    def mean_entropy():
        with torch.no_grad():
            _, entropy = loop.backbone.logprobs("policy", experience.sequences, loop.config.temperature)
        return entropy[experience.mask].mean().item()

    assert means["loss"] - means_with["loss"] == pytest.approx(0.5 * mean_entropy(), rel=1e-4)
    assert equal(without["critic"], with_bonus["critic"])
    before = mean_entropy()
    steps = zip(loop.backbone.role_parameters("policy"), with_bonus["policy"], without["policy"], strict=True)
    for p, a, b in steps:
        p.data -= 0.05 * (a - b)  # a step short enough for the gradient to hold
    assert mean_entropy() > before


# Policy and critic side by side


def test_the_weight_of_the_critics_loss_does_not_touch_the_policy(loop):
    """They share no weights and are clipped apart: with a joint norm a large `vf_coef` would throttle the policy."""
    after = {}
    for vf_coef in (0.1, 10.0):
        made = loop("ppo.iterations=1", f"ppo.vf_coef={vf_coef}", "ppo.max_grad_norm=0.01", "ppo.num_mini_batches=1")
        made.train()
        (row,) = rows_of(made)
        assert row["grad_norm"] > 0.01 < row["critic_grad_norm"], "both are clipped"
        after[vf_coef] = {role: weights(made.backbone, role) for role in ("policy", "critic")}
    assert equal(after[0.1]["policy"], after[10.0]["policy"])
    for a, b in zip(after[0.1]["critic"], after[10.0]["critic"], strict=True):  # Adam knows no scale
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_the_critic_has_a_rate_of_its_own(loop):
    moved = {}
    for rate in ("null", "1e-5"):
        made = loop("ppo.iterations=1", f"ppo.critic_learning_rate={rate}")
        before = {role: [p.clone() for p in made.backbone.role_parameters(role)] for role in ("policy", "critic")}
        made.train()
        moved[rate] = {
            role: max((p - q).abs().max().item() for p, q in zip(made.backbone.role_parameters(role), old, strict=True))
            for role, old in before.items()
        }
    assert moved["null"]["policy"] == moved["1e-5"]["policy"] == pytest.approx(2e-3, rel=0.1)  # two steps of Adam
    assert moved["null"]["critic"] == pytest.approx(2e-3, rel=0.1)
    assert moved["1e-5"]["critic"] == pytest.approx(2e-5, rel=0.1)


# Which rows a step takes


def test_each_epoch_sees_every_row_once_in_its_own_order():
    config = PPOConfig(batch_size=8, num_ppo_epochs=2, num_mini_batches=4)
    steps = list(minibatches(config, seed=3))
    assert [len(rows) for rows in steps] == [2] * 8
    epochs = [[row for rows in steps[i : i + 4] for row in rows] for i in (0, 4)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert list(minibatches(config, seed=4)) != steps == list(minibatches(config, seed=3))


def test_processes_share_out_the_rows_of_a_step():
    device = torch.device("cpu")
    for processes in (1, 2, 3):
        shares = [Share(i, processes).of(12, group=4) for i in range(processes)]
        for chosen in minibatches(PPOConfig(batch_size=12, num_mini_batches=3, num_ppo_epochs=1), seed=0):
            ours = [share.start + row for share in shares for row in rows_here(chosen, share, device).tolist()]
            assert sorted(ours) == sorted(chosen)


def test_responses_to_a_prompt_share_a_step():
    config = PPOConfig(advantage_estimator="rloo", num_generations=4, batch_size=16, num_mini_batches=2)
    for rows in minibatches(config, seed=1):
        assert all(rows[at : at + 4] == list(range(rows[at], rows[at] + 4)) for at in range(0, 8, 4))
        assert all(row % 4 == 0 for row in rows[::4])
