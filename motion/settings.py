"""What settings may be, said in one way. Pure."""

from __future__ import annotations


def check(right: bool, name: str, expected: str, found: object) -> None:
    """Raises ValueError, with the setting's name, unless right."""
    if not right:
        raise ValueError(f"{name}: expected {expected}, found {found}.")
