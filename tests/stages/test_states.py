"""How far a run is."""

import pytest

from lorarlhf.stages import states


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (("begun", "done", "done"), {"sft": "begun", "reward": "done"}),
        (("done", "new", "done"), {"sft": "done", "reward": "new"}),
        (("done", "done", "begun"), {"sft": "done", "reward": "done", "ppo": "begun"}),
    ],
)
def test_a_policy_is_made_anew_from_what_is_and_a_reward_model_is_not(monkeypatch, found, said):
    by_stage = dict(zip(("sft", "reward", "ppo"), found, strict=True))
    monkeypatch.setattr(states, "_state", lambda recipe, run, stage: by_stage[stage])
    monkeypatch.setattr(states, "other_settings", lambda *args, **kwargs: [])
    assert states.states_of(None, None, ["sft", "reward", "ppo"]) == said
