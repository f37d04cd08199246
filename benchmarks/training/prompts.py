"""What the microworld's SDXL is asked for: short phrases that are true of a scene, and their tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from dnd_microworld import world

TEMPLATE = "a picture of {concept}"
"""The default of plugins/dnd_sdxl: the generator is trained on exactly these words."""
LENGTH = 20
"""Tokens of a prompt, with both special ones; longer prompts are cut."""

PLURALS = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in world.SHAPES}
_SINGULAR = ("checkerboard", "grid", *world.SHAPES)


def _article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeio' else 'a'} {phrase}"


def _pick(rng: np.random.Generator, options: dict[str, float]) -> str:
    weights = np.fromiter(options.values(), float)
    return list(options)[int(rng.choice(len(options), p=weights / weights.sum()))]


def _about_background(scene: world.Scene, rng: np.random.Generator) -> str:
    colour, texture = scene.colour, scene.texture
    if texture == "plain":
        return _pick(
            rng,
            {
                colour: 3,
                f"plain {colour}": 1,
                f"{colour} background": 2,
                "plain background": 0.7,
                world.background_phrase(colour, texture): 2,
            },
        )
    return _pick(
        rng,
        {
            colour: 2.5,
            texture: 3.5,
            f"{colour} {texture}": 3.5,
            f"{colour} background": 1,
            f"background with {_article(texture) if texture in _SINGULAR else texture}": 0.5,
            world.background_phrase(colour, texture): 1.5,
            **({"stripes": 0.7} if texture.endswith("stripes") else {}),
        },
    )


def _about_thing(thing: world.Thing, rng: np.random.Generator) -> str:
    pair = f"{thing.colour} {thing.shape}"
    return _pick(rng, {thing.shape: 4, pair: 4, thing.colour: 1.3, PLURALS[thing.shape]: 0.3})


def phrase_about(scene: world.Scene, rng: np.random.Generator, ground: float = 0.4) -> str:
    """A phrase that is true of the scene: a full caption now and then, mostly one concept.

    `ground` is the share of the latter that are about the background although there is a shape.
    """
    full = world.caption(scene)
    assert full is not None
    things = scene.things
    if rng.random() < (0.2, 0.25, 0.45)[len(things)]:
        return full
    if not things or rng.random() < ground:
        phrase = _about_background(scene, rng)
    else:
        thing = things[int(rng.integers(len(things)))]
        phrase = _about_thing(thing, rng)
        kind = rng.random()
        if kind < 0.08:
            behind = world.background_phrase(scene.colour, scene.texture)
            phrase = f"{_article(phrase) if phrase.endswith(thing.shape) else phrase} on {behind}"
        elif kind < 0.14:
            other = things[0] if len(things) == 2 and thing is things[1] else things[-1]
            beside = scene.texture if other is thing and scene.texture != "plain" else other.shape
            phrase = f"{phrase} and {beside}" if beside != phrase else phrase
    if phrase.endswith(_SINGULAR) and not phrase.startswith(("a ", "an ")) and rng.random() < 0.3:
        return _article(phrase)
    return phrase


def wanted(scene: world.Scene, rng: np.random.Generator) -> bool:
    """Whether the generator should learn from the scene: clear pictures of one concept above all.

    Large single shapes, few pairs and bare backgrounds; shapes stand on plain ground more often than in the world.
    """
    if not scene.things:
        return bool(rng.random() < (0.25 if scene.texture == "plain" else 0.4))
    share = 0.3 if len(scene.things) == 2 else 1.0 if scene.things[0].radius > 16 else 0.4
    return bool(rng.random() < share * (1.0 if scene.texture == "plain" else 0.3))


def words() -> list[str]:
    """Every word that a prompt of the microworld is made of, in a fixed order."""
    text = " ".join([TEMPLATE.format(concept="an"), "on and with background plain things pattern shape shapes"])
    every = " ".join([text, *world.COLOURS, *world.TEXTURES, *world.SHAPES, *PLURALS.values(), "striped dotted"])
    return list(dict.fromkeys(every.split()))


def save_tokenizer(folder: Path) -> Any:
    """A CLIPTokenizer with one token for each of `words()`; any other text falls apart into bytes."""
    from tokenizers import Tokenizer, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import CLIPTokenizer

    grown = Tokenizer(BPE(end_of_word_suffix="</w>"))
    grown.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=4096, min_frequency=1, end_of_word_suffix="</w>", show_progress=False)
    grown.train_from_iterator([words()], trainer)
    merges: Any = [tuple(pair) for pair in json.loads(grown.to_str())["model"]["merges"]]
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*bytes_, *(b + "</w>" for b in bytes_), *("".join(m) for m in merges), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: at for at, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH, pad_token="<|endoftext|>")
    assert len(tokenizer) == len(vocabulary), "the tokenizer lost its vocabulary"
    for word in words():
        assert len(tokenizer(word)["input_ids"]) == 3, f"{word!r} is not one token"
    tokenizer.save_pretrained(folder)
    return tokenizer
