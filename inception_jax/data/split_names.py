"""The names of splits: the spellings in use, and which of them is the training split."""

from __future__ import annotations

from collections.abc import Collection

SPELLINGS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
# A folder with one of these names is a split of its own name. Names are compared without regard to case.
OWN_NAMES = ("train", "val", "validation", "test")
KIND = {spelling: kind for kind, spellings in SPELLINGS.items() for spelling in spellings}


def spellings(names: Collection[str]) -> dict[str, str]:
    """{another name of a split: its name}, where that is clear: `val` is `Validation` where there is only one."""
    found: dict[str, str] = {}
    for kind, known in SPELLINGS.items():
        of_kind = [name for name in names if KIND.get(name.lower()) == kind]
        if len(of_kind) == 1:
            found |= {spelling: of_kind[0] for spelling in known if spelling not in names}
    return found


def training(names: Collection[str]) -> str | None:
    """The split that "train" names; None where there is none."""
    return "train" if "train" in names else spellings(names).get("train")


def ordered(names: Collection[str]) -> list[str]:
    """The names in alphabetical order, the training split first."""
    first = training(names)
    return sorted(names, key=lambda name: (name != first, name))
