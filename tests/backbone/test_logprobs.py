import math

import ppo_reference as reference
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from lorarlhf.backbone.logprobs import Softmax, chunked_logprobs

TOKENS, HIDDEN, VOCABULARY = 7, 5, 11


class Head:
    """Scores of a frozen output layer, and a note of how many tokens each call had."""

    def __init__(self, weight: Tensor):
        self.weight = weight
        self.calls: list[int] = []

    def __call__(self, hidden: Tensor) -> Tensor:
        self.calls.append(hidden.shape[0])
        return F.linear(hidden, self.weight)


@pytest.fixture(params=[0, 1])
def case(request) -> tuple[Tensor, Tensor, Head]:
    generator = torch.Generator().manual_seed(request.param)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator)
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    return hidden, targets, Head(torch.randn(VOCABULARY, HIDDEN, generator=generator))


def plain(hidden: Tensor, targets: Tensor, weight: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """All at once in float64, by plain autograd."""
    logprobs = torch.log_softmax(F.linear(hidden, weight).double() / temperature, dim=-1)
    return logprobs[torch.arange(len(targets)), targets], -(logprobs.exp() * logprobs).sum(dim=-1)


def test_logprobs_worked_by_hand():
    # Scores (0, ln 3) are probabilities 1/4 and 3/4; at temperature 1/2 they are 1/10 and 9/10.
    hidden, targets = torch.tensor([[1.0], [1.0]]), torch.tensor([0, 1])
    head = Head(torch.tensor([[0.0], [math.log(3)]]))
    logprobs, entropy, _ = chunked_logprobs(hidden, targets, head, temperature=1.0)
    assert_close(logprobs, torch.tensor([0.25, 0.75]).log())
    assert_close(entropy, torch.full((2,), 0.25 * math.log(4) + 0.75 * math.log(4 / 3)))
    logprobs, entropy, _ = chunked_logprobs(hidden, targets, head, temperature=0.5)
    assert_close(logprobs, torch.tensor([0.1, 0.9]).log())
    assert_close(entropy, torch.full((2,), 0.1 * math.log(10) + 0.9 * math.log(10 / 9)))


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@pytest.mark.parametrize("chunk", [1, 3, TOKENS, 2 * TOKENS])
def test_logprobs_and_entropy_equal_the_reference(case, chunk, temperature):
    hidden, targets, head = case
    logprobs, entropy, _ = chunked_logprobs(hidden, targets, head, temperature=temperature, chunk=chunk)
    scores = F.linear(hidden.double(), head.weight.double()).tolist()
    expected = [reference.logprob(row, t, temperature) for row, t in zip(scores, targets.tolist(), strict=True)]
    assert logprobs.dtype == entropy.dtype == torch.float32
    assert_close(logprobs, torch.tensor(expected), atol=1e-5, rtol=1e-5)
    expected = [reference.entropy(row, temperature) for row in scores]
    assert_close(entropy, torch.tensor(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@pytest.mark.parametrize("chunk", [1, 3, TOKENS, 2 * TOKENS])
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (-0.7, 0.3)], ids=["logprobs", "entropy", "both"])
def test_gradients_equal_those_without_chunks(case, chunk, temperature, weights):
    hidden, targets, head = case
    each = torch.linspace(-1.0, 2.0, TOKENS)  # another weight for each token, so that a mix-up shows
    gradients = []
    for results in (
        lambda x: chunked_logprobs(x, targets, head, temperature=temperature, chunk=chunk),
        lambda x: plain(x, targets, head.weight, temperature),
    ):
        leaf = hidden.clone().requires_grad_()
        logprobs, entropy, *_ = results(leaf)
        (each * (weights[0] * logprobs + weights[1] * entropy)).sum().backward()
        gradients.append(leaf.grad)
    assert gradients[0].abs().max() > 0.01
    assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk", [1, 3, TOKENS, 2 * TOKENS])
def test_no_more_than_a_chunk_of_scores_is_made_or_kept(case, chunk):
    hidden, targets, head = case
    hidden = hidden.clone().requires_grad_()
    kept: list[tuple[int, ...]] = []

    def note(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() != head.weight.data_ptr():
            kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logprobs, entropy, _ = chunked_logprobs(hidden, targets, head, temperature=1.0, chunk=chunk)
    assert not [shape for shape in kept if math.prod(shape) >= VOCABULARY and shape[-1] == VOCABULARY]
    (logprobs.sum() + entropy.sum()).backward()
    assert max(head.calls) <= chunk
    assert sum(head.calls) == TOKENS  # the backward pass makes none


def test_without_entropy_the_logprobs_are_the_same(case):
    hidden, targets, head = case
    leaf = hidden.clone().requires_grad_()
    logprobs, entropy, _ = chunked_logprobs(leaf, targets, head, temperature=0.7, chunk=3, with_entropy=False)
    assert not entropy.requires_grad
    assert not entropy.any()
    logprobs.sum().backward()
    with torch.no_grad():
        assert torch.equal(chunked_logprobs(leaf, targets, head, 0.7, 3, with_entropy=False)[0], logprobs)
        assert torch.equal(chunked_logprobs(leaf, targets, head, 0.7, 3)[0], logprobs)
    expected = hidden.clone().requires_grad_()
    plain(expected, targets, head.weight, 0.7)[0].sum().backward()
    assert_close(leaf.grad, expected.grad, atol=1e-5, rtol=1e-5)


def test_without_gradients_scores_are_made_once(case):
    hidden, targets, head = case
    with torch.no_grad():
        logprobs, entropy, _ = chunked_logprobs(hidden, targets, head, temperature=1.0, chunk=3)
    assert not logprobs.requires_grad
    assert not entropy.requires_grad
    assert sum(head.calls) == TOKENS
    with_gradients, _, _ = chunked_logprobs(hidden.clone().requires_grad_(), targets, head, temperature=1.0, chunk=3)
    assert with_gradients.requires_grad
    assert torch.equal(with_gradients.detach(), logprobs)


def test_bfloat16_scores_are_reduced_in_float32():
    # Whole numbers this small are exact in bfloat16, so all that is left is the error of the reduction.
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randint(-2, 3, (TOKENS, HIDDEN), generator=generator).bfloat16().requires_grad_()
    weight = torch.randint(-1, 2, (VOCABULARY, HIDDEN), generator=generator).bfloat16()
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    logprobs, entropy, _ = chunked_logprobs(hidden, targets, Head(weight), temperature=0.7, chunk=3)
    expected, expected_entropy = plain(hidden, targets, weight, 0.7)
    assert logprobs.dtype == entropy.dtype == torch.float32
    assert_close(logprobs, expected.float(), atol=2e-6, rtol=2e-6)
    assert_close(entropy, expected_entropy.float(), atol=2e-6, rtol=2e-6)
    (gradient,) = torch.autograd.grad(logprobs.sum(), hidden)
    assert gradient.dtype == torch.bfloat16
    (exact,) = torch.autograd.grad(expected.sum(), hidden)
    assert_close(gradient, exact, rtol=2**-6, atol=2**-8 * exact.abs().max().item())


def test_entropy_is_as_exact_under_autocast_where_a_sampler_asks_for_it():
    """It is a product of vectors, which autocast would take in bfloat16 on CPU and CUDA alike."""
    scores = 3 * torch.randn(20, 500, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        entropy = Softmax(scores, 1.0).entropy()
    logprobs = scores.double().log_softmax(-1)
    assert_close(entropy.double(), -(logprobs.exp() * logprobs).sum(-1), rtol=1e-6, atol=1e-6)


def test_temperature_divides_the_scores(case):
    hidden, targets, head = case
    for hot, halved in zip(
        chunked_logprobs(hidden, targets, head, temperature=2.0),
        chunked_logprobs(hidden / 2, targets, head, temperature=1.0),
        strict=True,
    ):
        assert_close(hot, halved)
    _, entropy, _ = chunked_logprobs(hidden, targets, head, temperature=1e4)
    assert_close(entropy, torch.full((TOKENS,), math.log(VOCABULARY)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_probabilities_of_all_tokens_sum_to_one_and_give_the_entropy(case, temperature):
    hidden, _, head = case
    every = torch.arange(VOCABULARY)
    for row in hidden:
        logprobs, entropy, _ = chunked_logprobs(
            row.expand(VOCABULARY, HIDDEN), every, head, temperature=temperature, chunk=4
        )
        assert_close(logprobs.exp().sum().item(), 1.0, atol=1e-5, rtol=0)
        assert_close(entropy, (-(logprobs.exp() * logprobs).sum()).expand(VOCABULARY), atol=1e-5, rtol=1e-5)


def test_large_scores_stay_finite():
    hidden = torch.tensor([[1000.0], [-1000.0]], requires_grad=True)
    logprobs, entropy, _ = chunked_logprobs(
        hidden, torch.tensor([1, 1]), Head(torch.tensor([[0.0], [1.0]])), temperature=0.5
    )
    assert_close(logprobs, torch.tensor([0.0, -2000.0]))
    assert_close(entropy, torch.zeros(2))
    (gradient,) = torch.autograd.grad(logprobs.sum() + entropy.sum(), hidden)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("with_gradients", [True, False])
def test_a_target_is_the_likeliest_where_no_score_is_greater(case, with_gradients):
    hidden, targets, head = case
    scores = F.linear(hidden, head.weight)
    targets = torch.where(torch.arange(TOKENS) % 2 == 0, scores.argmax(-1), scores.argmin(-1))
    leaf = hidden.clone().requires_grad_(with_gradients)
    found = chunked_logprobs(leaf, targets, head, temperature=0.7, chunk=3, with_entropy=False)
    assert found.is_likeliest.tolist() == [k % 2 == 0 for k in range(TOKENS)]
    assert not found.is_likeliest.requires_grad


def test_no_tokens_at_all():
    head = Head(torch.randn(VOCABULARY, HIDDEN))
    hidden = torch.zeros(0, HIDDEN, requires_grad=True)
    logprobs, entropy, _ = chunked_logprobs(hidden, torch.zeros(0, dtype=torch.long), head, temperature=1.0, chunk=3)
    assert logprobs.shape == entropy.shape == (0,)
    assert logprobs.dtype == entropy.dtype == torch.float32
