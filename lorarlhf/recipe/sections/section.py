"""What all sections are made of. Pure data: nothing in this folder imports torch or reads a file.

The text under a key is its description: `lorarlhf recipes explain`, docs/recipe*.md and recipes/schema.json take it
from here. It says what the key does, in which unit, and when to change it.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _names_a_function(text: str) -> str:
    if not re.fullmatch(r"[\w.]+:\w+", text):
        raise ValueError(f"expected package.module:function, got {text!r}")
    return text


def _names_a_package(text: str) -> str:
    if not text.isidentifier():
        raise ValueError(f"expected a package's name as it is imported, such as math_verify, got {text!r}")
    return text


FunctionName = Annotated[str, AfterValidator(_names_a_function)]
PackageName = Annotated[str, AfterValidator(_names_a_package)]


class Section(BaseModel):
    """Strict: an unknown key, a boolean where a number belongs, NaN or infinity is an error."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, frozen=True, use_attribute_docstrings=True
    )
