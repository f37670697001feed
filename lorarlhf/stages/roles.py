"""The four roles of PPO, RLOO and GRPO: which adapters they are made of, and where each starts from."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from lorarlhf.backbone.base import BASE_FILE
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.errors import UserError, first_line
from lorarlhf.recipe.sections import LoraConfig, ScalarLoraOverride
from lorarlhf.rl.algorithms import Algorithm
from lorarlhf.run import Run
from lorarlhf.stages.beginning import check_not_interrupted


def find_reward_adapter(weight: float, has_functions: bool, run: Run, reward: str | None) -> Path | None:
    """Folder of the reward adapter; None where Python functions alone give the reward.

    Args:
        weight: of the reward model (`ppo.reward_model_weight`).

    Raises:
        UserError: there is no adapter and nothing in its place.
    """
    if weight == 0:
        if not has_functions:
            raise UserError("ppo.reward_model_weight is 0 and ppo.reward_functions is empty: nothing gives a reward")
        return None
    if reward is None:
        if run.has_adapter("reward"):
            return run.stage("reward")
        check_not_interrupted(run, "reward")
        if has_functions:
            return None
        raise UserError(
            f"{run.stage('reward')}: no reward adapter there; run `lorarlhf reward` with this recipe and --output-dir "
            f"{run.path} first, or give one with --reward"
        )
    folder = Path(reward).expanduser()
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(reward, allow_patterns=["adapter_*", BASE_FILE]))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise UserError(
                f"--reward {reward}: neither a folder nor a Hub id that can be read: {first_line(error)}"
            ) from error
    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"--reward {reward}: no adapter_config.json there; give the folder `lorarlhf reward` wrote")
    return folder


def attach_roles(
    backbone: SharedBackbone,
    algorithm: Algorithm,
    lora: LoraConfig,
    sft_folder: Path | None,
    reward_folder: Path | None,
    allow_other_base: bool = False,
) -> None:
    """Policy, reference, reward model and critic, each where it starts from; only policy and critic train.

    The critic begins as a copy of the reward model, unless the recipe gives it a shape of its own; where the algorithm
    has none, there is none.

    Args:
        sft_folder: adapter that the policy starts from, and the reference stays; None for the bare base.
        reward_folder: the reward model's; None where functions alone give the reward.
    """
    if sft_folder is not None:
        backbone.load_role("policy", sft_folder, allow_other_base=allow_other_base)
        backbone.copy_role("policy", "reference")
    else:
        backbone.attach("policy", lora.for_role("policy"))
    if reward_folder is not None:
        backbone.load_role("reward", reward_folder, allow_other_base=allow_other_base)
    if not algorithm.has_critic:
        backbone.train_roles("policy")
        return
    if reward_folder is not None and lora.critic == ScalarLoraOverride():
        backbone.copy_role("reward", "critic")
    else:
        backbone.attach("critic", lora.for_role("critic"))
        backbone.value_head.reset_parameters()  # drawn anew, from the recipe's seed
    backbone.train_roles("policy", "critic")
