"""What the summarizer says to a chat model, and how strictly it reads the answer. No model code here.

The instruction stands in the first user turn, because some chat templates refuse a system message; the
examples are earlier turns of the chat, which small models follow far better than examples inside one text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from dnd_llama.domains import DOMAINS

Message = dict[str, str]
"""{"role": "user" or "assistant", "content": text}, as chat templates expect it."""

MAX_WORDS = 5

DATE = "26 Jul 2024"
"""Some chat templates print today's date into the prompt; a result must not depend on the day."""

CONCEPT_PATTERN = r"[A-Za-z0-9]{1,24}(-[A-Za-z0-9]{1,24})?( [A-Za-z0-9]{1,24}(-[A-Za-z0-9]{1,24})?){0,4}"
"""Regular expression of an answer with one concept, for servers that can hold a model to one."""

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
_CHOOSE = "That is a list. Choose the one concept that covers most captions: 1 to 5 words, no comma."


class BadAnswer(Exception):
    """The model's answer is not what was asked for. Never leaves the summarizers."""


class ListAnswer(BadAnswer):
    """Several concepts where one was asked for."""


def simplify_messages(caption: str) -> list[Message]:
    turns = [(f"Caption: {shot}", answer) for shot, answer in _SIMPLIFY_SHOTS]
    return _chat(_SIMPLIFY, turns, f"Caption: {_one_line(caption)}")


def concept_messages(captions: Sequence[str], domain: str = "general") -> list[Message]:
    """`domain` is a name in `dnd_llama.domains`, or "general"."""
    question, shots = DOMAINS.get(domain, (_CONCEPT, _CONCEPT_SHOTS))
    turns = [(_listing(shot), answer) for shot, answer in shots]
    return _chat(question, turns, _listing(captions))


def choose_messages(asked: Sequence[Message], answer: str) -> list[Message]:
    """The list that the model gave, fed back to it."""
    return [*asked, {"role": "assistant", "content": answer}, {"role": "user", "content": _CHOOSE}]


def _chat(instruction: str, turns: Sequence[tuple[str, str]], question: str) -> list[Message]:
    messages: list[Message] = []
    for asked, answer in turns:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    messages.append({"role": "user", "content": question})
    messages[0]["content"] = f"{instruction}\n\n{messages[0]['content']}"
    return messages


def _listing(captions: Sequence[str]) -> str:
    return "\n".join(("Captions:", *(f"- {_one_line(caption)}" for caption in captions)))


def _one_line(text: str) -> str:
    return " ".join(text.split())


# --- answers -----------------------------------------------------------------------------------------

_WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*")
_QUOTES = {'"': '"', "'": "'", "`": "`", "\u201c": "\u201d", "\u2018": "\u2019", "«": "»"}
_SENTENCE = re.compile(
    r"\b(?:i|im|we|you|it|they|this|that|these|there|is|are|was|were|am|be|been|has|have|had|do|does|did|can|cannot|cant"
    r"|could|would|should|will|not|sorry|please|sure|here|captions?|because)\b"
)
"""Words of sentences and refusals; noun phrases that name something visible do without them."""
_NOTHING = re.compile(r"(?:none|nothing|n a|na|null|various|miscellaneous|mixed|other)|(?:no|any|unknown|unclear)\b.*")


def parse_concept(answer: str) -> str:
    """One concept of 1-5 words of letters, digits and hyphens, in lower case without a leading article.

    Wrapping quotes and a final full stop are forgiven. Raises ListAnswer for a list of several, BadAnswer
    for anything else: several lines, a sentence, a refusal, other characters.
    """
    text = unicodedata.normalize("NFKC", answer).strip()
    if len(text) > 1 and _QUOTES.get(text[0]) == text[-1]:
        text = text[1:-1].strip()
    text = text.removesuffix(".").lower()
    if len(text.splitlines()) != 1:
        raise BadAnswer("not one line")
    if re.search(r"[,;/|]", text):
        raise ListAnswer("a list")
    words = text.split()
    while len(words) > 1 and words[0] in ("a", "an", "the"):  # "a the dog", too
        words = words[1:]
    if not 1 <= len(words) <= MAX_WORDS:
        raise BadAnswer(f"not 1-{MAX_WORDS} words")
    if len(text) > 80 or not all(_WORD.fullmatch(word) for word in words):
        raise BadAnswer("not plain words")
    concept = " ".join(words)
    if not re.search(r"[^\W\d_]", concept) or _NOTHING.fullmatch(concept) or _SENTENCE.search(concept):
        raise BadAnswer("a sentence or a refusal")
    return concept


def parse_simplified(answer: str, caption: str) -> str:
    """The simplified caption, on one line in lower case. Raises BadAnswer where it cannot be one: empty,
    several lines, longer than the caption it was made from, or with a word whose beginning the caption lacks."""
    text = answer.strip().removesuffix(".").lower()
    if len(text.splitlines()) != 1 or not _WORD.search(text):
        raise BadAnswer("not one line of words")
    if len(text) > len(caption.strip()) + 8:
        raise BadAnswer("longer than the caption")
    told = _WORD.findall(caption.lower())
    if not all(
        any(word[: max(3, len(word) - 2)] == other[: max(3, len(word) - 2)] for other in told)
        for word in _WORD.findall(text)
    ):
        raise BadAnswer("it adds to the caption")
    return _one_line(text)
