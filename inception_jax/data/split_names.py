"""The names of splits: the spellings in use, and which of them is the training split."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

SPELLINGS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
# A folder with one of these names is a split of its own name. Names are compared without regard to case.
OWN_NAMES = ("train", "val", "validation", "test")
KIND = {spelling: kind for kind, spellings in SPELLINGS.items() for spelling in spellings}
_MEANT = [spelling for spelling in KIND if len(spelling) > 3]  # a name near to "val" or "dev" is often another word
_LONG = [spelling for spelling in KIND if len(spelling) > 8]  # with another letter, a shorter one is often another word


def spellings(names: Collection[str]) -> dict[str, str]:
    """{another name of a split: its name}, where that is clear: `val` is `Validation` where there is only one."""
    found: dict[str, str] = {}
    for kind, known in SPELLINGS.items():
        of_kind = [name for name in names if KIND.get(name.lower()) == kind]
        if len(of_kind) == 1:
            found |= {spelling: of_kind[0] for spelling in known if spelling not in names}
    return found


def kind_of(name: str) -> str:
    """The split that a folder's name may mean, such as "test" for "Tset" and "test_set"; "" for none."""
    words = re.split(r"[\W_\d]+", name.lower())
    kinds = {KIND[word] for word in words if word in KIND}
    if not kinds:
        near = [known for known in _MEANT if _is_slip(name.lower(), known)]
        kinds = {KIND[known] for known in near or difflib.get_close_matches(name.lower(), _LONG, n=1, cutoff=0.85)}
    return kinds.pop() if len(kinds) == 1 else ""


def _is_slip(name: str, known: str) -> bool:
    """Whether a name is another one with its letters in another order, one letter more or one less; the first is right.

    Another letter is no slip here: "tent" and "trail" are words of their own.
    """
    shorter, longer = sorted((name, known), key=len)
    if len(longer) - len(shorter) > 1 or name[:1] != known[:1]:
        return False
    if len(longer) == len(shorter):
        return sorted(longer) == sorted(shorter)
    return any(longer[:place] + longer[place + 1 :] == shorter for place in range(len(longer)))


def mentioned(texts: Collection[str], names: Collection[str]) -> set[str]:
    """The splits among `names` that texts such as "train[:90%]+test" name; empty where a text names another, or all."""
    known = {**{name: name for name in names}, **spellings(names)}
    found = [re.match(r"\s*(\w*)", part) for text in texts for part in text.split("+")]
    chosen = {known.get(match[1], "") for match in found if match}
    return set() if "" in chosen else chosen


def training(names: Collection[str]) -> str | None:
    """The split that "train" names; None where there is none."""
    return "train" if "train" in names else spellings(names).get("train")


def ordered(names: Collection[str]) -> list[str]:
    """The names in alphabetical order, the training split first."""
    first = training(names)
    return sorted(names, key=lambda name: (name != first, name))
