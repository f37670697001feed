"""How far the policy is from the reference: estimators per token, and the coefficient's controller."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

KLEstimator = Literal["k1", "k3"]


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator) -> Tensor:
    """Estimate KL(policy, reference) at each token from samples of the policy.

    k1 = log p - log q, and k3 = q/p - 1 - log(q/p), which has less variance and is never negative
    (Schulman 2020, "Approximating KL divergence"). Both are unbiased.

    Args:
        logprobs, ref_logprobs: of the sampled tokens, of the same shape.
    """
    log_ratio = ref_logprobs - logprobs
    return -log_ratio if estimator == "k1" else log_ratio.exp() - 1 - log_ratio


class AdaptiveKL:
    """Proportional controller of the KL coefficient (Ziegler et al. 2019, section 2.2).

    Args:
        kl_coef: the coefficient to start from.
        target: the KL to hold, in nats a response.
        horizon: responses over which an error of 20% is corrected.
    """

    def __init__(self, kl_coef: float, target: float, horizon: int) -> None:
        self.value = kl_coef
        self.target = target
        self.horizon = horizon

    def update(self, mean_kl_per_response: float, n_responses: int) -> None:
        """Raise the coefficient when the KL is above the target, lower it when below."""
        error = min(max(mean_kl_per_response / self.target - 1, -0.2), 0.2)
        self.value *= 1 + error * n_responses / self.horizon
