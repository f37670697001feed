"""What tests of the trainer share."""

import torch
from demo_runs import read_jsonl

from lorarlhf.data.examples import load_prompts
from lorarlhf.data.tokenize import tokenize_prompts


def length_score(rollout, batch, trunk=None):
    return -rollout.sequences.response_lengths.float() / 4


def prompts(recipe, tokenizer, split):
    return tokenize_prompts(load_prompts(recipe.data, split).rows, tokenizer, recipe.data.max_prompt_length)[0]


@torch.no_grad()
def randomise(backbone, scale, *roles):
    for role in roles:
        for parameter in backbone.role_parameters(role):
            parameter.add_(scale * torch.randn_like(parameter))


def rows_of(trainer):
    return read_jsonl(trainer.folder / "metrics.jsonl")


def gradients(trainer, experience):
    """Loss and gradients of one training step, with no optimiser behind it."""
    trainer.backbone.zero_grad()
    loss = trainer.training_step(trainer.backbone, {"experience": experience, "last": False})
    grads = {
        role: [p.grad.clone() for p in trainer.backbone.role_parameters(role) if p.grad is not None]
        for role in ("policy", "critic")
    }
    return loss.item(), grads
