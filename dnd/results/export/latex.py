r"""Labels as a LaTeX table that compiles whatever the labels contain.

pdfLaTeX stops at a character that its fonts do not have, and at control characters. So what lies beyond T1's own
letters goes through `\dndsign{SIGN}{U+CODE}`: the sign where the engine knows it (LuaLaTeX, XeLaTeX, or a package
that declares it), else its code.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

_SIGNS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    **{sign: f"{{{sign}}}" for sign in "[*"},  # at the start of a row they would be an argument of the \\ before it
}
_T1 = frozenset(map(chr, range(0xA1, 0x17F))) - frozenset("\u00adĦħĸĿŀŉŦŧ") | frozenset(
    "\u2013\u2014\u2018\u2019\u201a\u201c\u201d\u201e\u2026\u20ac"
)
"""Signs that pdfLaTeX has with the encoding T1."""
_JOINERS = "\u200c\u200d"
_LIGATURES = re.compile(r"(?<=[-,'])(?=[-,'])")
"""Where T1 would make one sign of two: --, ,, and ''."""
_WIDE = 24
"""Characters from which a column breaks its lines."""
_WORD, _PIECE = 18, 12
"""A word of more characters than the first may break at every multiple of the second."""
_SHARES = ("0.2", "0.26", "", "0.32", "0.1")
"""Of the line, for a column that is wide; the scores never are."""
_DEFINITION = (
    r"\providecommand{\dndsign}[2]"
    r"{\ifdefined\Umathchar#1\else\ifcsname u8:\detokenize{#1}\endcsname#1\else{\scriptsize#2}\fi\fi}"
)


def latex(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A `longtable` of unit, label, score, other labels, and perhaps the verdict."""
    columns = "".join(map(_column, _SHARES, zip(head, *rows, strict=True)))
    lines = [" & ".join(escape_latex(cell) for cell in row) + r" \\" for row in (head, *rows)]
    begin = [_DEFINITION, rf"\begin{{longtable}}{{{columns}}}", r"\toprule", lines[0], r"\midrule", r"\endhead"]
    return "\n".join([*begin, *lines[1:], r"\bottomrule", r"\end{longtable}"]) + "\n"


def _column(share: str, cells: Sequence[str]) -> str:
    if not share:
        return "r"
    wide = max(map(len, cells)) > _WIDE
    return rf">{{\raggedright\arraybackslash}}p{{{share}\linewidth}}" if wide else "l"


def escape_latex(text: str) -> str:
    """Text that TeX takes for nothing else, on one line."""
    words = unicodedata.normalize("NFC", text).split()
    return " ".join(r"\allowbreak{}".join(map(_escaped, _pieces(word))) for word in words)


def _pieces(word: str) -> Iterable[str]:
    size = len(word) if len(word) <= _WORD else _PIECE
    return (word[start : start + size] for start in range(0, len(word), size))


def _escaped(piece: str) -> str:
    return "{}".join("".join(map(_sign, part)) for part in _LIGATURES.split(piece))


def _sign(sign: str) -> str:
    if sign in _SIGNS:
        return _SIGNS[sign]
    if (sign.isascii() and sign.isprintable()) or sign in _T1:
        return sign
    code = f"U+{ord(sign):04X}"
    hidden = unicodedata.category(sign).startswith("C") and sign not in _JOINERS
    return code if hidden else rf"\dndsign{{{sign}}}{{{code}}}"
