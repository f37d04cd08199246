"""How an answer of a language model is read: generously in form, strictly in kind.

Models wrap a concept in quotes, Markdown, numbering, "Concept: ..." or a thinking block; all of that is taken off.
What is left must name something: true sentences, refusals and "nothing in common" are no concepts.
"""

from __future__ import annotations

import re
import unicodedata

MAX_WORDS = 5
MAX_LETTERS = 80
MAX_NAMES = 3

_NAME = r"[^\s,;|/]{1,24}( [^\s,;|/]{1,24}){0,9}[,;]?"
CONCEPT_PATTERN = rf"{_NAME}\n?"
"""Regular expression for servers that can hold a model to one: every concept that `parse_concept` reads, with room for
more words than it allows. A tighter bound would not shorten an answer but glue its words together. A model that would
go on with a list or another line may begin to, and ends there: held back from that, it makes up a word instead."""
NAMES_PATTERN = "\n".join(f"{breadth}: {_NAME}" for breadth in ("Plain", "Narrow", "Broad")) + r"\n?"
"""The same for `parse_names`."""


class BadAnswer(Exception):
    """The model's answer is not what was asked for. Never leaves the summarizers."""


class ListAnswer(BadAnswer):
    """Several concepts where one was asked for."""


_THINKING = re.compile(r"[<\[◁](think|thinking|reasoning)[>\]▷].*?[<\[◁]/\1[>\]▷]", re.DOTALL | re.IGNORECASE)
_OPEN_THINKING = re.compile(
    r"[<\[◁](?:think|thinking|reasoning)[>\]▷].*|.*[<\[◁]/(?:think|thinking|reasoning)[>\]▷]"
    r"|.*<\|channel\|>final<\|message\|>",
    re.DOTALL | re.IGNORECASE,
)
_TAG = re.compile(r"<\|[\w ]+\|>|</?[A-Za-z][\w-]*>|\[/?[A-Z]{2,8}\]|</?s>")
"""Markup, and what models put around turns."""
_TEX = re.compile(r"\\(?:boxed|text|textbf)\{([^{}]*)\}")
_KEYED = re.compile(
    r"[{\[(]?\s*[\"']?(?:concept|answer|label|name)[\"']?\s*[:=]\s*[\"']([^\"]*?)[\"']\s*,?\s*[}\])]?", re.I
)
"""{"concept": "dog"}, alone on a line."""
_EAGER = re.compile(r"(?:sure|certainly|of course|okay|ok|yes|absolutely|great)(?: thing)?[!,.:]+\s*(?=\w|\W*\w)", re.I)
_SAID = re.compile(r".*\b(?:concept|theme|answer|label|name|subject)s?\b[^:]*?\b(?:is|would be)\b:?\s+", re.IGNORECASE)
"""All before the name in "I think that the concept of these captions is dog"."""
_AFTER = re.compile(
    r"(?<=\w{3})[.!]\s+(?:let me|i|this|these|they|all|note|please|if|feel|because|the captions|each|it)\b.*",
    re.IGNORECASE,
)
"""What follows a name: "Dog. Let me know if you need more."."""
_ASIDE = re.compile(r"(?<=\w)\s*\([^()]*\)$")
"""What is added to a name: "dog (Canis lupus)"."""
_BULLET = re.compile(r"^(?:(?:[-*+•‣◦·▪\u2013\u2014\u2192]|[-=]>|\(?(?:\d{1,2}|[a-d])[.):]|[#>]+)\s+|#(?=\w))")
_NAMED = re.compile(
    r"(?:(?:the|my|a|one|common|shared|main|single|final|best|overall)\s+)*"
    r"(?:concept|answer|label|name|category|theme|subject|object|output|result|response|description)s?"
    r"(?:\s+(?:of|for|in|that|shared|common|covering|covers|by|to|this|these|the|most|all|group|set|captions?|images?))*"
    r"\s*(?::|=|\s[-\u2013\u2014\u2192]|\bis\b|\bwould be\b)\s*",
    re.IGNORECASE,
)
_NAMED_IN_CHINESE = re.compile(r"(?:答案|概念|标签|標籤|名称|名稱|答え|コンセプト)\s*(?::|是|は)\s*")
_WRAPPED = {'"': '"', "'": "'", "`": "`", "*": "*", "_": "_", "~": "~", "\u201c": "\u201d", "\u2018": "\u2019"}
_WRAPPED |= {"«": "»", "「": "」", "『": "』", "《": "》", "(": ")", "[": "]", "<": ">", "{": "}", "$": "$"}
_WRAPPED |= {"\u201e": "\u201c"}
_ENDS = ".,;:!?…。、"
_INSIDE = frozenset("-'\u2019.&+%$€£#@")
"""What may stand in a word beside letters, their marks and digits: bird's, st., i-beam, a&b, c++."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SUBJECTS = _words("i i'd we you it they this that these those there here he she all most each every both")
_SUBJECTS |= _words("images pictures photos photographs captions descriptions")
_SHORT = _words("i'm it's that's there's here's they're we're he's she's what's")
_VERBS = _words(
    "is are was were am be been has have had can could would should will do does did cannot can't don't isn't aren't"
    " show shows depict depicts appear appears seem seems see think believe need contain contains feature features"
    " include includes share shares represent represents describe describes"
)
_COPULAS = _words("is are was were am isn't aren't wasn't weren't cannot can't couldn't has have because")
_OPENERS = _words("sorry please sure certainly okay unable unfortunately not cannot can't as")
_VAGUE = _words("none nothing na n/a n.a null any unknown unclear various miscellaneous mixed other unspecified")
_SHARED = "concept concepts theme themes subject pattern answer element elements thing things category object objects"
_NO_SHARED = re.compile(
    rf"(?:no|without|lack of)\s+(?:(?:single|one|clear|common|shared|coherent|specific|obvious|real|discernible)\s+)*"
    rf"(?:{'|'.join(_SHARED.split())}|commonality|connection|idea|match)\b.*"
    r"|no (?:clear|common|shared|coherent|discernible|obvious)\b.*"
    r"|nothing\b.*|not? applicable|n a|unknown\b.*|unclear\b.*"
    r"|(?:various|mixed|miscellaneous|random|different|diverse|unrelated|several|multiple|many)"
    r" (?:things|items|images|pictures|photos|concepts|scenes|captions|subjects|objects|topics)"
)
_BREADTH = re.compile(r"\W*(?:plain|narrow|broad)\b\W*?[:=\u2013\u2014-]\W*", re.IGNORECASE)
_META = frozenset({"caption", "captions"})


def parse_concept(answer: str) -> str:
    """One concept of 1-5 words, in lower case without a leading article: "trash can", "bird's nest", "st. bernard".

    Raises ListAnswer for a list of several, BadAnswer where nothing is named: a sentence, a refusal, no words.
    """
    lines = [line for line in _lines(answer) if line]
    if not lines:
        raise BadAnswer("nothing is said")
    if len(lines) > 1 and all(_BULLET.match(line) for line in lines):
        raise ListAnswer("a list")
    read: list[str] = []
    wrong: BadAnswer | None = None
    for line in reversed(lines):
        try:
            read.append(_concept(line))
        except BadAnswer as error:
            wrong = wrong or error
    if wrong and not read:
        raise wrong
    if len(set(read)) > 2:
        raise ListAnswer("a list")
    return read[0]


def parse_names(answer: str) -> list[str]:
    """The names in an answer of up to three, one a line or between commas, each as `parse_concept` reads it; in their
    order, without those that cannot be read. Raises BadAnswer where there is none."""
    parts = [line for line in _lines(answer) if line]
    parts = [_BREADTH.sub("", line, count=1) for line in parts if _BREADTH.match(line)] or parts
    if len(parts) == 1:
        parts = re.split(r"[,;|/]", _bare(parts[0]))
    names: list[str] = []
    wrong = BadAnswer("nothing is said")
    for part in parts:
        try:
            names.append(_concept(part))
        except BadAnswer as error:
            wrong = error
    if not names:
        raise wrong
    return names[:MAX_NAMES]


def _lines(answer: str) -> list[str]:
    """What the model said in the end, without thinking, code fences and what cannot be seen."""
    text = _OPEN_THINKING.sub("", _THINKING.sub("", unicodedata.normalize("NFKC", answer)))
    text = _TAG.sub("", _TEX.sub(r"\1", text))
    seen = "".join(letter for letter in text if letter in "\u200c\u200d\n" or _is_seen(letter))
    lines = [" ".join(line.split()).strip("\u200c\u200d ") for line in seen.splitlines()]
    return [line for line in lines if not line.startswith("```") and re.search(r"\w", line)]


def _is_seen(letter: str) -> bool:
    """Whether a letter belongs to a text: no emoji, no mark of a format, nothing that controls a screen but space."""
    if unicodedata.category(letter) in ("Cf", "Cc"):
        return letter.isspace()
    return unicodedata.category(letter) != "So" and not "\ufe00" <= letter <= "\ufe0f"


def _concept(line: str) -> str:
    text = _ASIDE.sub("", _bare(line))
    if re.search(r"[,;|/]", text):
        raise ListAnswer("a list")
    words = text.lower().split()
    while len(words) > 1 and words[0] in ("a", "an", "the"):  # "a the dog", too
        words = words[1:]
    concept = unicodedata.normalize("NFKC", " ".join(words))
    if not 1 <= len(words) <= MAX_WORDS:
        raise BadAnswer(f"not 1 to {MAX_WORDS} words")
    if len(concept) > MAX_LETTERS or not all(map(_is_word, words)):
        raise BadAnswer("not plain words")
    if not any(unicodedata.category(letter)[0] == "L" for letter in concept):
        raise BadAnswer("not a name")
    if _is_sentence(words) or _names_nothing(concept):
        raise BadAnswer("a sentence or a refusal")
    return concept


def _bare(line: str) -> str:
    """A line without numbering, "Concept:", Markdown, quotes and a final stop, in whatever order they stand."""
    while True:
        text = line.replace("**", "").replace("__", "")
        text = keyed[1] if (keyed := _KEYED.fullmatch(text)) else text
        text = _AFTER.sub("", _EAGER.sub("", text, count=1) if _EAGER.match(text) else text)
        text = _BULLET.sub("", text, count=1)  # at its start, as `match`
        text = text.rstrip(_ENDS + " ") if not _ends_in_abbreviation(text) else text
        named = _NAMED.match(text) or _NAMED_IN_CHINESE.match(text) or _SAID.match(text)
        if text and named and named.end() < len(text):
            text = text[named.end() :]
        elif ": " in text:  # "Here is the concept: dog"
            text = text.rpartition(": ")[2]
        if len(text) > 1 and _WRAPPED.get(text[0]) == text[-1]:
            text = text[1:-1]
        text = text.strip()
        if text == line:
            return text
        line = text


def _ends_in_abbreviation(text: str) -> bool:
    """Whether the last stop belongs to its word: "u.s."."""
    return bool(re.fullmatch(r".*\b(?:\w\.){2,}", text))


def _is_word(word: str) -> bool:
    if word == "&":
        return True
    kinds = {letter: unicodedata.category(letter)[0] for letter in word}
    known = all(kind in "LMN" or letter in _INSIDE or letter in "\u200c\u200d" for letter, kind in kinds.items())
    return known and any(kind in "LN" for kind in kinds.values())


def _is_sentence(words: list[str]) -> bool:
    """Whether something is asserted rather than named."""
    plain = [word.replace("\u2019", "'") for word in words]
    if plain[0] in _OPENERS or plain[0] in _SHORT or (len(plain) == 1 and plain[0] in _SUBJECTS):
        return True
    if plain[0] in _SUBJECTS and any(word in _VERBS for word in plain[1:]):
        return True
    if any(word in _META for word in plain):
        return True
    return any(word in _COPULAS for word in plain[1:])


def _names_nothing(concept: str) -> bool:
    return concept in _VAGUE or bool(_NO_SHARED.fullmatch(concept))


_WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*")


def parse_simplified(answer: str, caption: str) -> str:
    """The simplified caption, on one line in lower case. Raises BadAnswer where it cannot be one: empty,
    several lines, longer than the caption it was made from, or with a word whose beginning the caption lacks."""
    text = answer.strip().removesuffix(".").lower()
    if len(text.splitlines()) != 1 or not _WORD.search(text):
        raise BadAnswer("not one line of words")
    if len(text) > len(caption.strip()) + 8:
        raise BadAnswer("longer than the caption")
    known = _WORD.findall(caption.lower())
    if not all(
        any(word[: max(3, len(word) - 2)] == other[: max(3, len(word) - 2)] for other in known)
        for word in _WORD.findall(text)
    ):
        raise BadAnswer("it adds to the caption")
    return " ".join(text.split())
