"""The table of stages."""

from typing import get_args

import pytest

from lorarlhf.recipe.sections import DataConfig, Recipe, Role, Stage, title_of
from lorarlhf.recipe.stages import LAST_FIRST, POLICY_STAGES, STAGES


def test_every_stage_is_in_the_table_and_its_keys_are_in_the_recipe():
    assert tuple(STAGES) == get_args(Stage)
    for name, info in STAGES.items():
        assert info.name == name
        assert name in Recipe.model_fields
        assert info.role in get_args(Role)
        assert {*info.data_keys, f"{info.data_key}_test"} <= set(DataConfig.model_fields)
        assert {info.starts_from, info.needs} <= {*STAGES, None}


def test_policies_come_first_and_the_latest_of_them():
    assert POLICY_STAGES == ("ppo", "sft")
    assert LAST_FIRST == ("ppo", "sft", "reward")


@pytest.mark.parametrize(
    ("data", "source", "sources"),
    [
        ({"prompts": "a", "preferences": "b"}, "a", {"prompts": "a"}),
        ({"prompts": "a", "prompts_test": "c"}, "a", {"prompts": "a", "prompts_test": "c"}),
        ({"preferences": "b", "sft": "d"}, "b", {"preferences": "b"}),
        ({"preferences": "b", "prompts_test": "c"}, "b", {"prompts_test": "c", "preferences": "b"}),
        ({"sft": "d"}, None, {}),
    ],
)
def test_ppo_takes_the_prompts_of_comparisons_if_it_has_none(data, source, sources):
    assert STAGES["ppo"].source(DataConfig(**data)) == source
    assert {key: title_of(found) for key, found in STAGES["ppo"].sources(DataConfig(**data)).items()} == sources
