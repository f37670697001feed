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


def adapted_kl_coef(kl_coef: float, kl: float, target: float, n_responses: int, horizon: int) -> float:
    """The KL coefficient after a batch: higher when the KL is above the target, lower when below.

    A proportional controller (Ziegler et al. 2019, section 2.2).

    Args:
        kl: measured, in nats a response; target: the one to hold.
        n_responses: of the batch.
        horizon: responses over which an error of 20% is corrected.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * n_responses / horizon)
