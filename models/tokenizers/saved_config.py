"""What the settings of all models have in common: how ``config.json`` holds them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from typing_extensions import Self

from fastvq.models.errors import UserError

OTHER_KEYS = ("format", "kind", "training")


@dataclass(frozen=True)
class SavedConfig:
    """Settings of a model, to be subclassed by dataclasses of numbers, strings and tuples."""

    kind: ClassVar[str]
    """Name of the model on the command line and in files."""

    @classmethod
    def format(cls) -> str:
        """What ``config.json`` calls its own format."""
        return f"fastvq-{cls.kind}/1"

    def to_dict(self) -> dict[str, Any]:
        """What ``config.json`` holds about the model."""
        return {"format": self.format(), "kind": self.kind, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "config.json") -> Self:
        """The inverse of :meth:`to_dict`; a key that is absent keeps its default.

        Raises:
            UserError: another kind or format, an unknown key, a wrong value.
        """
        kind, written_as = values.get("kind", cls.kind), values.get("format", cls.format())
        if kind != cls.kind:
            raise UserError(
                f"{source} is of the kind {kind!r}, expected {cls.kind!r}: load it with the class of its kind, "
                "which fastvq.models.kinds.load_tokenizer finds"
            )
        if written_as != cls.format():
            raise UserError(
                f"{source} has the format {written_as!r}, and this version of fastvq reads {cls.format()!r}: "
                "use the version of fastvq that wrote it"
            )
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known - set(OTHER_KEYS))
        if unknown:
            raise UserError(
                f"{source} has keys that a {cls.kind} does not know: {', '.join(unknown)}; "
                f"pass config={cls.__name__}(...) to from_pretrained to replace the file"
            )
        return cls(**{name: values[name] for name in values if name in known})
