"""An attribute that stands for another one for a while: of a module of the model, or of a module of Python."""

from dataclasses import dataclass
from typing import Any


@dataclass
class Replaced:
    """``owner`` has another ``name``; :meth:`remove` brings back what was there. As a context manager, at its end."""

    owner: Any
    name: str
    before: Any  # the owner's own attribute, None if there was none: a method is its class's

    @classmethod
    def put(cls, owner: Any, name: str, value: Any) -> "Replaced":
        replaced = cls(owner, name, vars(owner).get(name))
        vars(owner)[name] = value
        return replaced

    def remove(self) -> None:
        del vars(self.owner)[self.name]
        if self.before is not None:
            vars(self.owner)[self.name] = self.before

    def __enter__(self) -> "Replaced":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()
