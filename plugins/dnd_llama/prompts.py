"""What the summarizer says to a chat model. No model code here.

The instruction stands in the first user turn, because some chat templates refuse a system message; the
examples are earlier turns of the chat, which small models follow far better than examples inside one text.
"""

from __future__ import annotations

from collections.abc import Sequence

from dnd.api import JudgedConcept
from dnd_llama.domains import DOMAINS

Message = dict[str, str]
"""{"role": "user" or "assistant", "content": text}, as chat templates expect it."""

_TESTED = 6
"""Names tested before that the model is told at most."""
TEMPLATE: dict[str, object] = {"date_string": "26 Jul 2024", "enable_thinking": False}
"""What every chat template is given. Some print today's date into the prompt: a result must not depend on the day.
Some let the model think aloud first, which costs hundreds of tokens for a name of a few words."""

_SIMPLIFY = (
    "Rewrite each image caption as the plain things it shows, separated by commas. "
    "Leave out filler and every unnecessary detail."
)
_SIMPLIFY_SHOTS = (
    (
        "there is a very cute brown dog that is lying down on the grass next to an old wooden fence",
        "brown dog, grass, wooden fence",
    ),
    ("a close up of a cup of coffee sitting on top of a table", "coffee cup, table"),
)
_CONCEPT = (
    "Name what a group of image captions has in common: one coherent, concise concept of 1 to 5 words "
    "that covers most of the captions, not necessarily all. Answer with the concept only."
)
_CONCEPT_SHOTS = (
    (
        ("brown dog, grass", "puppy, ball", "two dogs, leash", "woman, small dog, sofa", "city street, cars"),
        "dog",
    ),
    (
        ("mountain peak, snow", "cup of coffee", "snowy forest", "skier, snowy mountain", "hikers, snowy mountains"),
        "snowy mountain",
    ),
)
_BREADTHS = (
    "Below are captions of photographs that have something in common: an object, a part, a material, a pattern, a "
    "colour, a scene, an action or a style. Find what most of the captions share, not necessarily all, and name it "
    "three times, with 1 to 5 words each. Plain: the usual name for it. Narrow: a more specific name that still fits "
    "most of the captions. Broad: the kind of thing that it is. Answer with these three lines only."
)
_BREADTHS_SHOTS = (
    (
        (
            "a steam train crossing a stone bridge",
            "people waiting on a platform next to a blue train",
            "a toy train on a wooden track",
            "a plate with a slice of cheesecake",
            "the inside of a subway car",
        ),
        ("train", "passenger train", "rail transport"),
    ),
    (
        (
            "an old door with peeling brown boards",
            "a bowl carved from olive wood",
            "a log cabin in a forest",
            "a woman sanding a table top",
            "a fence made of planks",
        ),
        ("wood", "brown wooden boards", "natural material"),
    ),
    (
        (
            "a cat curled up on a pillow",
            "a man with closed eyes on a bus seat",
            "a baby asleep in her father's arms",
            "a lion lying in the shade",
            "a bus stop at night",
        ),
        ("sleeping", "sleeping indoors", "resting"),
    ),
)
"""Captions, and the plain, the narrow and the broad name."""
_CHOOSE = "That is a list. Choose the one concept that covers most captions: 1 to 5 words, no comma."


def simplify_messages(caption: str) -> list[Message]:
    turns = [(f"Caption: {shot}", answer) for shot, answer in _SIMPLIFY_SHOTS]
    return _chat(_SIMPLIFY, turns, f"Caption: {_one_line(caption)}")


def breadth_messages(captions: Sequence[str], tested: Sequence[JudgedConcept] = ()) -> list[Message]:
    """Asks for three names: see `dnd_llama.answers.parse_names`. The last turn has what was tested before."""
    turns = [(_listing(shot), "Plain: {}\nNarrow: {}\nBroad: {}".format(*names)) for shot, names in _BREADTHS_SHOTS]
    return _chat(_BREADTHS, turns, _feedback(tested) + _listing(captions))


def concept_messages(captions: Sequence[str], domain: str = "general") -> list[Message]:
    """Asks for one name. `domain` is a name in `dnd_llama.domains`, or "general"."""
    question, shots = DOMAINS.get(domain, (_CONCEPT, _CONCEPT_SHOTS))
    turns = [(_listing(shot), answer) for shot, answer in shots]
    return _chat(question, turns, _listing(captions))


def choose_messages(asked: Sequence[Message], answer: str) -> list[Message]:
    """The list that the model gave, fed back to it."""
    return [*asked, {"role": "assistant", "content": answer}, {"role": "user", "content": _CHOOSE}]


def again_messages(asked: Sequence[Message], answer: str, wrong: str) -> list[Message]:
    """An answer that could not be read, fed back with what was wrong with it."""
    words = f"That cannot be used: {wrong}. Answer with one concept only: 1 to 5 words that name something visible."
    return [*asked, {"role": "assistant", "content": answer or "-"}, {"role": "user", "content": words}]


def _chat(instruction: str, turns: Sequence[tuple[str, str]], question: str) -> list[Message]:
    messages: list[Message] = []
    for asked, answer in turns:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    messages.append({"role": "user", "content": question})
    messages[0]["content"] = f"{instruction}\n\n{messages[0]['content']}"
    return messages


def _feedback(tested: Sequence[JudgedConcept]) -> str:
    """Which names were tried, and how far the network's unit answers to them."""
    if not tested:
        return ""
    lines = [
        f"- {_one_line(one.concept)}: its images activate the unit more than random ones in {one.auc:.0%} of pairs; "
        f"it is seen on {one.seen:.0%} of what activates the unit most"
        for one in tested[:_TESTED]
    ]
    told = "\n".join(lines)
    return f"Names tested so far:\n{told}\nThe best of them leave these captions out. Name what they share instead.\n\n"


def _listing(captions: Sequence[str]) -> str:
    return "\n".join(("Captions:", *(f"- {_one_line(caption)}" for caption in captions)))


def _one_line(text: str) -> str:
    return " ".join(text.split())
