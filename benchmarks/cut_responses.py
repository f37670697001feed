"""Do two reward models agree on responses that were cut off, as rollouts are scored and with an end put to them?

    python benchmarks/cut_responses.py --run runs/rl/rloo-0 --judge runs/rl/judge --prompts test-64.jsonl --n 4

The start answers each prompt n times. Of the run's reward model (the proxy) and the judge's, each reading the tokens as
they were drawn and with the template's end of turn for the last token of what was cut: their correlation within a
prompt, and by how much the judge prefers the response that the proxy likes best to the mean. One JSON object on stdout.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

from lorarlhf.backbone.batch import with_end
from lorarlhf.backbone.load import load_backbone
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.cli.quiet import quiet_libraries
from lorarlhf.data.tokenized import prompt_examples
from lorarlhf.evaluation.policy import respond
from lorarlhf.generation.sample import Rollout
from lorarlhf.intervals import bootstrap
from lorarlhf.rl.score import ScoringPasses
from lorarlhf.run import Run

HOW = ("as drawn", "ended")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--judge", type=Path, required=True, help="a run on the same base")
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--n", type=int, default=4, help="responses to a prompt")
    args = parser.parse_args()
    quiet_libraries()
    run = Run(args.run)
    recipe = run.read_recipe(stage="ppo")
    backbone = load_backbone(recipe.model, recipe.data)
    backbone.attach("policy", recipe.lora.for_role("policy"))
    data = recipe.data.model_copy(update={"prompts_test": args.prompts, "eval_examples": None})
    prompts = prompt_examples(data, backbone.tokenizer, "test")
    drawn = [
        [batch.rollout for batch in respond(backbone, "reference", prompts, recipe.ppo, 1000 + seed)]
        for seed in range(args.n)
    ]
    scores: dict[tuple[str, str], np.ndarray] = {}
    for name, of in (("proxy", run), ("judge", Run(args.judge))):
        backbone.load_role("reward", of.stage("reward"))
        scores |= {(name, how): score(backbone, drawn, how) for how in HOW}
    finished = torch.stack([torch.cat([rollout.finished for rollout in part]) for part in drawn])
    pairs = [(proxy, judge) for proxy in HOW for judge in HOW]
    agreements = {f"proxy {p}, judge {j}": agreement(scores["proxy", p], scores["judge", j]) for p, j in pairs}
    print(
        json.dumps({"responses": finished.numel(), "finished": finished.float().mean().item(), **agreements}, indent=1)
    )


@torch.no_grad()
def score(backbone: SharedBackbone, drawn: list[list[Rollout]], how: str) -> np.ndarray:
    """[n, prompts] of the reward role."""
    passes = ScoringPasses(backbone, 1.0, 4096)
    rows = []
    for part in drawn:
        sequences = [rollout.sequences for rollout in part]
        if how == "ended":
            sequences = [with_end(batch, backbone.end_id) for batch in sequences]
        rows.append(torch.cat([passes.scores(batch) for batch in sequences]))
    return torch.stack(rows).double().numpy()


def agreement(proxy: np.ndarray, judge: np.ndarray) -> dict[str, object]:
    """Of [n, prompts] scores each."""
    within = np.corrcoef((proxy - proxy.mean(0)).ravel(), (judge - judge.mean(0)).ravel())[0, 1]
    best = judge[proxy.argmax(0), np.arange(judge.shape[1])] - judge.mean(0)
    gain = bootstrap(lambda gains: float(gains.mean()), best)
    return {"correlation_within_prompt": within, "judge_gains": gain.value, "interval": [gain.low, gain.high]}


if __name__ == "__main__":
    main()
