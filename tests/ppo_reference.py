"""The mathematics of PPO for language models, written a second time: slow, in float64, one response after another.

Nothing here is shared with the package: no tensors, no masks, no padding. A response is a list of its real tokens.
Every formula is written as its source prints it, even where that costs a loop more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

Row = list[float]


def ragged(table: Sequence[Sequence], lengths: Sequence[int]) -> list[list]:
    """The real tokens of each row of a padded table."""
    return [list(row)[:length] for row, length in zip(table, lengths, strict=True)]


def padded(rows: Sequence[Sequence], width: int, fill: float = 0.0) -> list[list]:
    """The opposite of `ragged`."""
    return [list(row) + [fill] * (width - len(row)) for row in rows]


def clip(x: float, low: float, high: float) -> float:
    if x < low:
        return low
    if x > high:
        return high
    return x


# Advantages


def temporal_differences(rewards: Row, values: Row, gamma: float) -> Row:
    """Schulman et al. 2016, section 3: delta_t = r_t + gamma V(s_t+1) - V(s_t). The state after the last token is 0."""
    deltas = []
    for t in range(len(rewards)):
        next_value = values[t + 1] if t + 1 < len(values) else 0.0
        deltas.append(rewards[t] + gamma * next_value - values[t])
    return deltas


def advantages(rewards: Row, values: Row, gamma: float, lam: float) -> Row:
    """Schulman et al. 2016, equation 16, as the sum it is: A_t = sum over l of (gamma lam)^l delta_t+l."""
    deltas = temporal_differences(rewards, values, gamma)
    return [
        math.fsum((gamma * lam) ** (later - t) * deltas[later] for later in range(t, len(deltas)))
        for t in range(len(deltas))
    ]


def rewards_to_go(rewards: Row, gamma: float) -> Row:
    """What is still to come, discounted: sum over l of gamma^l r_t+l."""
    return [math.fsum(gamma ** (u - t) * rewards[u] for u in range(t, len(rewards))) for t in range(len(rewards))]


def whiten(rows: list[Row], shift_mean: bool = True) -> list[Row]:
    """Subtract the mean and divide by the standard deviation of all tokens of all rows (divisor: their number)."""
    tokens = [x for row in rows for x in row]
    if not tokens:
        return [[] for _ in rows]
    mean = math.fsum(tokens) / len(tokens)
    variance = math.fsum((x - mean) ** 2 for x in tokens) / len(tokens)
    kept = 0.0 if shift_mean else mean
    return [[(x - mean) / math.sqrt(variance + 1e-8) + kept for x in row] for row in rows]


def token_rewards(score: float, kl: Row, kl_coef: float) -> Row:
    """Ziegler et al. 2019, section 2: each token pays for its KL; the score of the response lands on its last token."""
    rewards = []
    for t in range(len(kl)):
        rewards.append(-kl_coef * kl[t])
        if t == len(kl) - 1:
            rewards[t] += score
    return rewards


def leave_one_out(group: Row) -> Row:
    """Ahmadian et al. 2024, equation 8: R_i - 1 / (k - 1) sum over j != i of R_j."""
    k = len(group)
    return [group[i] - math.fsum(group[j] for j in range(k) if j != i) / (k - 1) for i in range(k)]


def group_relative(group: Row, deviation: float | None) -> Row:
    """Shao et al. 2024, section 4.1: (r_i - mean(r)) / std(r); no division where the deviation is None."""
    mean = math.fsum(group) / len(group)
    return [(r - mean) / (1.0 if deviation is None else deviation + 1e-4) for r in group]


def sample_deviation(values: Row) -> float:
    """Standard deviation with n - 1."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (len(values) - 1))


# Divergence from the reference


def kl_estimate(logprob: float, ref_logprob: float, estimator: str) -> float:
    """Schulman 2020, "Approximating KL divergence": r = p_ref / p_policy, for a token drawn from the policy."""
    r = math.exp(ref_logprob) / math.exp(logprob)
    if estimator == "k1":
        return -math.log(r)
    if estimator == "k3":
        return (r - 1) - math.log(r)
    raise ValueError(estimator)


def exact_kl(p: Row, q: Row) -> float:
    """KL(p || q) of two categorical distributions."""
    return math.fsum(p_i * math.log(p_i / q_i) for p_i, q_i in zip(p, q, strict=True) if p_i > 0)


def adaptive_kl(kl_coef: float, target: float, horizon: float, steps: Sequence[tuple[float, int]]) -> float:
    """Ziegler et al. 2019, section 2.2. `steps` holds (KL a response, responses seen) in order."""
    for kl, responses in steps:
        error = clip((kl - target) / target, -0.2, 0.2)
        kl_coef = kl_coef * (1 + error * responses / horizon)
    return kl_coef


# Losses of one token


def policy_loss(logprob: float, old_logprob: float, advantage: float, cliprange: float) -> tuple[float, bool]:
    """Schulman et al. 2017, equation 7, negated: -min(r A, clip(r, 1 - c, 1 + c) A), and whether the clip was taken."""
    ratio = math.exp(logprob) / math.exp(old_logprob)
    surrogate = ratio * advantage
    clipped_surrogate = clip(ratio, 1 - cliprange, 1 + cliprange) * advantage
    if clipped_surrogate < surrogate:
        return -clipped_surrogate, True
    return -surrogate, False


def policy_loss_slope(logprob: float, old_logprob: float, advantage: float, cliprange: float) -> float:
    """d loss / d logprob: dr/dlogprob = r, and a constant where the clip was taken."""
    _, clipped = policy_loss(logprob, old_logprob, advantage, cliprange)
    return 0.0 if clipped else -advantage * math.exp(logprob) / math.exp(old_logprob)


def value_loss(value: float, old_value: float, target: float, cliprange_value: float) -> tuple[float, bool]:
    """Half the worse of the squared errors with and without moving at most `cliprange_value` from the old value."""
    error = (value - target) ** 2
    moved = clip(value, old_value - cliprange_value, old_value + cliprange_value)
    clipped_error = (moved - target) ** 2
    if clipped_error > error:
        return 0.5 * clipped_error, True
    return 0.5 * error, False


def value_loss_slope(value: float, old_value: float, target: float, cliprange_value: float) -> float:
    """d loss / d value."""
    _, clipped = value_loss(value, old_value, target, cliprange_value)
    return 0.0 if clipped else value - target


# Log-probabilities of one token


def distribution(logits: Row, temperature: float) -> Row:
    """softmax(logits / temperature)."""
    highest = max(logits)
    weights = [math.exp((x - highest) / temperature) for x in logits]
    total = math.fsum(weights)
    return [w / total for w in weights]


def logprob(logits: Row, target: int, temperature: float) -> float:
    """log softmax(logits / temperature) at the target."""
    highest = max(logits)
    total = math.fsum(math.exp((x - highest) / temperature) for x in logits)
    return (logits[target] - highest) / temperature - math.log(total)


def entropy(logits: Row, temperature: float) -> float:
    """-sum p log p of that distribution, in nats."""
    return -math.fsum(
        p * logprob(logits, token, temperature) for token, p in enumerate(distribution(logits, temperature))
    )


# Where the tokens of a response lie


class TokenPositions(NamedTuple):
    length: int  # response tokens, the stop token among them
    finished: bool  # a stop token was sampled within the limit
    columns: list[int]  # where they lie in the row: prompt (padded on the left) and response (padded on the right)
    predicted_from: list[int]  # the columns whose hidden state gives the distribution that each was drawn from


def token_positions(prompt_length: int, response_ids: Sequence[int], stop_ids: Sequence[int]) -> TokenPositions:
    """A response ends with its first stop token, which belongs to it, or at the limit.

    What comes after the first stop token is padding, whatever its id: the pad token has no part in this.
    `prompt_length` is the width of the prompts with their padding, the same for each row of a batch.
    """
    length, finished = 0, False
    for token in response_ids:
        length += 1
        if token in stop_ids:
            finished = True
            break
    columns = [prompt_length + t for t in range(length)]
    return TokenPositions(length, finished, columns, [column - 1 for column in columns])
