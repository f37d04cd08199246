"""A unit as a card in a notebook: label, score, alternatives, exemplars with their captions, images of the label; and
a run as a table with thumbnails, in pages.

Everything that came from a model or a file name is escaped, and images are small and inline: a card needs neither
the network nor the run folder to be seen again.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dnd.api import Label, Unit
from dnd.errors import UsageError
from dnd.results.verdict import Verdict

if TYPE_CHECKING:
    from PIL.Image import Image

_SIDE = 96
"""Pixels of a card's pictures, at most."""
_ROW = 32
"""Pixels of a picture in a table."""
_PICTURES = 10
_UNITS, _PAGE = 200, 50
"""Rows of a run's table in a notebook, and of them in one page."""
_CARD = "border:1px solid #8888;border-radius:6px;padding:.6em .8em;margin:.3em 0;max-width:62em;line-height:1.35"
_FIGURE = (
    "display:inline-block;vertical-align:top;width:96px;margin:.4em 10px 0 0;font-size:11px;overflow-wrap:anywhere"
)

_IMAGE = f"display:block;width:{_SIDE}px;height:{_SIDE}px;object-fit:contain"
"""All of one size: a crop may be a few pixels wide."""


class Figure(NamedTuple):
    """An exemplar of a card."""

    open: Callable[[], Image]
    """Raises UsageError where the image is gone."""
    source: str
    is_crop: bool
    caption: str | None
    """Its source in place of one that there is not."""
    activation: float


def unit_html(
    label: Label, figures: Sequence[Figure], synthetic: Sequence[Figure] = (), verdict: Verdict | None = None
) -> str:
    """One unit's label with its exemplars, strongest first, and synthetic images of its first candidate."""
    title = f"<b>{escape(label.label or label.status)}</b>"
    if label.status == "labelled":
        title += f" <span>score {label.labels[0][1]:.2f}</span>"
    lines = [f'<div style="opacity:.7">{escape(str(label.unit))}</div>', f"<div>{title}</div>"]
    others = [f"{escape(concept)} {score:.2f}" for concept, score in label.labels[label.status == "labelled" :]]
    if others:
        word = "also" if label.status == "labelled" else "considered"
        lines.append(f'<div style="font-size:90%">{word}: {" · ".join(others)}</div>')
    if verdict:
        lines.append(f'<div style="font-size:90%">{escape(verdict.text)}</div>')
    if label.reason:
        lines.append(f'<div style="font-size:90%">{escape(label.reason)}</div>')
    lines += [_figure(one) for one in figures[:_PICTURES]]
    if synthetic:
        lines.append(f'<div style="font-size:90%;margin-top:.5em">images of {escape(synthetic[0].source)}</div>')
        lines += [_figure(one) for one in synthetic[:_PICTURES]]
    return f'<div style="{_CARD}">{"".join(lines)}</div>'


def _figure(figure: Figure) -> str:
    where = figure.source + (" (part)" if figure.is_crop else "")
    caption = where if figure.caption is None else figure.caption
    words = f"{escape(caption)}{' · ' if caption else ''}{figure.activation:.2g}"
    try:
        picture = f'<img src="{_inline(figure.open())}" alt="{escape(caption or where)}" style="{_IMAGE}">'
    except UsageError:
        picture = '<div style="height:64px;border:1px dashed #8888">the image is gone</div>'
    title = escape(f"{where}, activation {figure.activation:.4g}")
    return f'<figure style="{_FIGURE}" title="{title}">{picture}<figcaption>{words}</figcaption></figure>'


def labels_html(labels: Sequence[Label], strongest: Callable[[Label], Image], verdicts: Mapping[Unit, Verdict]) -> str:
    """A run's labels as a table with each unit's strongest exemplar, the first ones where there are many; pages after
    the first are folded. `strongest` raises UsageError where there is none."""
    shown = labels[:_UNITS]
    pages = [shown[start : start + _PAGE] for start in range(0, len(shown), _PAGE)]
    blocks = [_table(page, strongest, verdicts) for page in pages[:1]]
    blocks += [
        f"<details><summary>{escape(str(page[0].unit))} to {escape(str(page[-1].unit))}</summary>"
        f"{_table(page, strongest, verdicts)}</details>"
        for page in pages[1:]
    ]
    rest = len(labels) - len(shown)
    return "".join(blocks) + (f"<div>and {rest} more: the report has all</div>" if rest > 0 else "")


def _table(labels: Sequence[Label], strongest: Callable[[Label], Image], verdicts: Mapping[Unit, Verdict]) -> str:
    left = 'style="text-align:left;padding-right:1em"'
    rows = []
    for label in labels:
        try:
            picture = f'<img src="{_inline(strongest(label), _ROW)}" alt="strongest exemplar" style="height:{_ROW}px">'
        except UsageError:
            picture = ""
        cells = [str(label.unit), *_shown(label), ", ".join(concept for concept, _ in label.labels[1:])]
        if verdicts:
            cells.append(verdicts[label.unit].word if label.unit in verdicts else "")
        rows.append(f"<tr><td>{picture}</td>" + "".join(f"<td {left}>{escape(cell)}</td>" for cell in cells) + "</tr>")
    names = ("", "unit", "label", "score", "confidence", "also", *(["verdict"] if verdicts else []))
    heads = "".join(f"<th {left}>{name}</th>" for name in names)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def read_pandas(file: Path) -> Any:
    """A label table as a pandas.DataFrame: a label that reads "null" or "nan" stays a word."""
    try:
        import pandas
    except ImportError as error:
        raise UsageError("to_pandas needs pandas", "pip install 'dnd-describe[pandas]'") from error
    texts = ["layer", "status", "label", "label_2", "label_3", "reason", "meaning", "verdict"]
    return pandas.read_csv(
        file,
        dtype=dict.fromkeys(texts, str),
        keep_default_na=False,
        na_values={name: [""] for name in (*texts[2:], "score", "score_2", "score_3")},
    )


def _shown(label: Label) -> Sequence[str]:
    if not label.labels:
        return (f"({label.status})", "", "")
    sure = f"{label.confidences[0]:.2f}" if label.confidences else ""
    return (label.labels[0][0], f"{label.labels[0][1]:.2f}", sure)


def _inline(image: Image, side: int = _SIDE) -> str:
    """A small copy as a data URI."""
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
