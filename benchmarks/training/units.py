"""Simulated units for the language model: the captions of a unit's exemplars, and what it should be called.

No pixels: captions come from the facts of scenes, cropped and garbled as a real captioner would.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dnd_microworld import world

Pair = tuple[str, str]
KINDS = ("colour", "texture", "shape", "colour+shape", "colour+texture")
_CHANCE_ERROR = 0.15
"""Share of off-topic captions that a candidate's likelihood allows for."""


class View(NamedTuple):
    """What a caption tells: (colour, shape) of each thing, and (colour, texture) of the background if seen."""

    things: tuple[Pair, ...]
    ground: Pair | None

    def caption(self) -> str:
        words = " and ".join(f"{'an' if colour == 'orange' else 'a'} {colour} {shape}" for colour, shape in self.things)
        if self.ground is None:
            return words
        behind = world.background_phrase(*self.ground)
        return f"{words} on {behind}" if words else behind

    def simplified(self) -> str:
        phrases = [f"{colour} {shape}" for colour, shape in self.things]
        if self.ground is not None:
            colour, texture = self.ground
            phrases.append(f"{colour} background" + ("" if texture == "plain" else f" with {texture}"))
        return ", ".join(phrases)

    def concepts(self) -> set[str]:
        """As `world.concepts`, of what the caption tells."""
        found: set[str] = set()
        for colour, other in (*self.things, *([self.ground] if self.ground else [])):
            found |= {colour} if other == "plain" else {colour, other, f"{colour} {other}"}
        return found

    def held_out(self) -> bool:
        return not world.HELD_OUT_OBJECTS.isdisjoint(self.things) or self.ground in world.HELD_OUT_BACKGROUNDS


def kind_of(concept: str) -> str:
    colour, _, rest = concept.partition(" ")
    if colour not in world.COLOURS:
        return "shape" if concept in world.SHAPES else "texture"
    return "colour" if not rest else "colour+shape" if rest in world.SHAPES else "colour+texture"


def parents(concept: str) -> set[str]:
    """The single concepts that a conjunction is made of."""
    return set(concept.split(" ", 1)) if "+" in kind_of(concept) else set()


def is_held_out(concept: str) -> bool:
    pair = (concept.partition(" ")[0], concept.partition(" ")[2])
    return pair in world.HELD_OUT_OBJECTS or pair in world.HELD_OUT_BACKGROUNDS


@dataclass(frozen=True)
class SimulatedUnit:
    views: tuple[View, ...]
    truths: tuple[str, ...]
    """Two for a union, none for noise."""


class Simulator:
    """Draws units from the scenes of one split."""

    def __init__(self, split: str, count: int) -> None:
        scenes = world.draw_scenes(split, 0, count)
        self.views = [View(tuple((t.colour, t.shape) for t in s.things), (s.colour, s.texture)) for s in scenes]
        self.training = split == "train"
        self.showing: dict[str, list[int]] = defaultdict(list)
        for index, view in enumerate(self.views):
            for concept in sorted(view.concepts()):
                self.showing[concept].append(index)
        self.base = {concept: len(found) / count for concept, found in self.showing.items()}
        self.by_kind: dict[str, list[str]] = defaultdict(list)
        for concept in sorted(self.showing):
            self.by_kind[kind_of(concept)].append(concept)

    # --- captions ---

    def view(self, rng: random.Random, concept: str | None, *, noise: float, lean: str | None = None) -> View:
        """One exemplar that shows `concept`: whole or cropped, with the caption's errors. `lean` is a trait
        that it shows as well, if any scene does."""
        found = self.showing[concept] if concept else range(len(self.views))
        view = self.views[rng.choice(found)]
        for _ in range(20 if lean else 0):
            if lean in view.concepts():
                break
            view = self.views[rng.choice(found)]
        if rng.random() < 0.45:
            for _ in range(4):
                things = tuple(thing for thing in view.things if rng.random() < 0.6)
                part = View(things, view.ground if rng.random() < 0.8 or not things else None)
                if concept is None or concept in part.concepts():
                    view = part
                    break
        for _ in range(4):
            heard = self._garble(rng, view, noise)
            if not (self.training and heard.held_out()):
                return heard
        return view

    def _garble(self, rng: random.Random, view: View, noise: float) -> View:
        def mistake(word: str, words: Sequence[str], rate: float) -> str:
            return rng.choice(words) if rng.random() < rate else word

        colours = tuple(world.COLOURS)
        things = [
            (mistake(colour, colours, noise * 0.6), mistake(shape, world.SHAPES, noise * 1.5))
            for colour, shape in view.things
            if len(view.things) == 1 or rng.random() > noise * 0.3
        ]
        ground = view.ground
        if ground is not None:
            ground = (mistake(ground[0], colours, noise * 0.6), mistake(ground[1], world.TEXTURES, noise * 0.8))
        return View(tuple(things), ground) if things or ground else view

    # --- units ---

    def concept(self, rng: random.Random) -> str:
        return rng.choice(self.by_kind[rng.choice(KINDS)])

    def single(
        self,
        rng: random.Random,
        concept: str,
        *,
        n: int = 10,
        off_topic: int = 0,
        noise: float = 0.0,
        lean: float = 0.0,
    ) -> SimulatedUnit:
        """`lean`: the share of exemplars that also show one accidental trait, as strongest exemplars often do."""
        trait = None
        if lean:
            others = self.views[rng.choice(self.showing[concept])].concepts() - {concept} - parents(concept)
            trait = rng.choice(sorted(others)) if others else None
        views = [
            self.view(rng, concept, noise=noise, lean=trait if rng.random() < lean else None)
            for _ in range(n - off_topic)
        ]
        views += [self.view(rng, None, noise=noise) for _ in range(off_topic)]
        rng.shuffle(views)
        return SimulatedUnit(tuple(views), (concept,))

    def union(
        self, rng: random.Random, *, n: int = 10, off_topic: int = 0, noise: float = 0.0, smaller: float = 0.3
    ) -> SimulatedUnit:
        """Two concepts without a word in common, the rarer one in at least the share `smaller` of the exemplars."""
        first = second = self.concept(rng)
        while set(first.split()) & set(second.split()):
            second = self.concept(rng)
        on_topic = n - off_topic
        share = rng.randint(math.ceil(smaller * n), on_topic - math.ceil(smaller * n))
        views = [self.view(rng, first if i < share else second, noise=noise) for i in range(on_topic)]
        views += [self.view(rng, None, noise=noise) for _ in range(off_topic)]
        rng.shuffle(views)
        return SimulatedUnit(tuple(views), (first, second))

    def any(self, rng: random.Random, n: int) -> SimulatedUnit:
        """A unit with n exemplars to train on."""
        noise = rng.choice((0.0, 0.03, 0.06, 0.1))
        draw = rng.random()
        if draw < 0.06:
            return SimulatedUnit(tuple(self.view(rng, None, noise=noise) for _ in range(n)), ())
        if draw < 0.28:
            return self.union(rng, n=n, off_topic=rng.choice((0, 0, 1)) if n > 6 else 0, noise=noise)
        off_topic = min(rng.choice((0, 0, 0, 1, 1, 2, 2, 3)), n // 3)
        lean = rng.uniform(0.3, 0.7) if rng.random() < 0.4 else 0.0
        return self.single(rng, self.concept(rng), n=n, off_topic=off_topic, noise=noise, lean=lean)

    # --- what to answer ---

    def answers(self, unit: SimulatedUnit) -> dict[str, float]:
        """How often each concept should be answered at the product's temperature: mostly the truth, sometimes
        a broader name, sometimes another one that the captions support."""
        n = len(unit.views)
        cover = Counter(concept for view in unit.views for concept in view.concepts())
        chance = {
            c: k * math.log(1 / self.base[c]) + (n - k) * math.log(_CHANCE_ERROR)
            for c, k in cover.items()
            if c in self.base and k >= 0.25 * n and c not in unit.truths
        }
        ranked = sorted(chance, key=lambda c: (-chance[c], c))
        if not unit.truths:
            weights = (0.4, 0.25, 0.15, 0.1, 0.1)
            return _normalised(dict(zip(ranked or sorted(cover), weights, strict=False)))
        shares = {truth: 0.66 / len(unit.truths) for truth in unit.truths}
        broader = sorted(set().union(*(parents(truth) for truth in unit.truths)))
        for concept in broader:
            shares[concept] = 0.18 / len(broader)
        others = [concept for concept in ranked if concept not in broader][:2]
        for concept in others:
            shares[concept] = 0.16 / len(others)
        return _normalised(shares)


def _normalised(shares: Mapping[str, float]) -> dict[str, float]:
    total = sum(shares.values())
    return {concept: share / total for concept, share in shares.items()}


def next_words(shares: Mapping[str, float], said: Sequence[str], temperature: float) -> dict[str, float]:
    """The distribution of the next word after `said` ("" where the answer ends) that, sampled at
    `temperature`, gives the answers by their shares."""
    found: dict[str, float] = defaultdict(float)
    for concept, share in shares.items():
        words = concept.split()
        if words[: len(said)] == list(said):
            found[words[len(said)] if len(words) > len(said) else ""] += share
    return _normalised({word: share**temperature for word, share in found.items()})
