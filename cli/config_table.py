"""What all tables of the configuration's schema have in common, and the types that several use."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from cli.config_values import read_duration

Duration = Annotated[float, BeforeValidator(read_duration), Field(gt=0, le=366 * 86_400, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]


class Table(BaseModel):
    """A table: no setting that is not known, no value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
