"""What the question for a concept says where the images are of one domain: it names the domain's class beside it."""

from __future__ import annotations

from typing import Literal, NamedTuple

Name = Literal["general", "land cover"]
"""The setting `domain`."""


class Domain(NamedTuple):
    question: str
    shots: tuple[tuple[tuple[str, ...], str], ...]
    """Captions and the answer to them."""


DOMAINS: dict[str, Domain] = {
    "land cover": Domain(
        "These are captions of pictures that a satellite took of land. Name what the group has in common: its "
        "land-cover class, such as water, forest, cropland, grassland, bare ground, road or buildings, and beside it "
        "what the captions show of it, as one coherent, concise concept of 1 to 5 words that covers most of the "
        "captions, not necessarily all. Answer with the concept only.",
        (
            (
                ("green field, straight rows", "brown field, furrows", "farm track, field", "ploughed rows", "roofs"),
                "cropland with straight rows",
            ),
            (
                ("lake, trees", "blue and green pattern", "dark water, shore", "boats, harbour", "river, sand bank"),
                "water along a shore",
            ),
        ),
    ),
}
