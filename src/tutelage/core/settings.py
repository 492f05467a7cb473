"""The parent of all settings: frozen, typed, and closed to names it does not know."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A frozen record of choices. An unknown name is an error, never ignored."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=True,
        # A class variable that starts with `model_` is no clash here: `model` is a word we need.
        protected_namespaces=(),
    )
