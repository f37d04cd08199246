"""A unit as a card in a notebook: label, score, alternatives, and exemplars with their captions.

Everything that came from a model or a file name is escaped, and images are small and inline: a card needs neither
the network nor the run folder to be seen again.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dnd.api import Label
from dnd.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

_SIDE = 96
"""Pixels of a card's pictures, at most."""
_PICTURES = 10
_UNITS = 200
"""Rows of a run's table in a notebook."""
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
    activation: float


def unit_html(label: Label, figures: Sequence[Figure]) -> str:
    """One unit's label with its exemplars, strongest first."""
    title = f"<b>{escape(label.label or label.status)}</b>"
    if label.status == "labelled":
        title += f" <span>score {label.labels[0][1]:.2f}</span>"
    lines = [f'<div style="opacity:.7">{escape(str(label.unit))}</div>', f"<div>{title}</div>"]
    others = [f"{escape(concept)} {score:.2f}" for concept, score in label.labels[label.status == "labelled" :]]
    if others:
        word = "also" if label.status == "labelled" else "considered"
        lines.append(f'<div style="font-size:90%">{word}: {" · ".join(others)}</div>')
    if label.reason:
        lines.append(f'<div style="font-size:90%">{escape(label.reason)}</div>')
    lines += [_figure(one) for one in figures[:_PICTURES]]
    return f'<div style="{_CARD}">{"".join(lines)}</div>'


def _figure(figure: Figure) -> str:
    where = figure.source + (" (part)" if figure.is_crop else "")
    words = escape(figure.caption or where)
    try:
        picture = f'<img src="{_inline(figure.open())}" alt="{words}" style="{_IMAGE}">'
    except UsageError:
        picture = '<div style="height:64px;border:1px dashed #8888">the image is gone</div>'
    title = escape(f"{where}, activation {figure.activation:.4g}")
    return f'<figure style="{_FIGURE}" title="{title}">{picture}<figcaption>{words}</figcaption></figure>'


def labels_html(labels: Sequence[Label]) -> str:
    """A run's labels as a table, the first ones where there are many."""
    cells = [
        (str(label.unit), *_shown(label), ", ".join(concept for concept, _ in label.labels[1:]))
        for label in labels[:_UNITS]
    ]
    left = 'style="text-align:left;padding-right:1em"'
    rows = "".join("<tr>" + "".join(f"<td {left}>{escape(cell)}</td>" for cell in row) + "</tr>" for row in cells)
    head = "".join(f"<th {left}>{name}</th>" for name in ("unit", "label", "score", "also"))
    rest = len(labels) - len(cells)
    more = f"<div>and {rest} more</div>" if rest > 0 else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{more}"


def read_pandas(file: Path) -> Any:
    """A label table as a pandas.DataFrame: a label that reads "null" or "nan" stays a word."""
    try:
        import pandas
    except ImportError as error:
        raise UsageError("to_pandas needs pandas", "pip install 'dnd-describe[pandas]'") from error
    texts = ["layer", "status", "label", "label_2", "label_3", "reason"]
    return pandas.read_csv(
        file,
        dtype=dict.fromkeys(texts, str),
        keep_default_na=False,
        na_values={name: [""] for name in ("label", "label_2", "label_3", "reason", "score", "score_2", "score_3")},
    )


def _shown(label: Label) -> Sequence[str]:
    if not label.labels:
        return (f"({label.status})", "")
    return (label.labels[0][0], f"{label.labels[0][1]:.2f}")


def _inline(image: Image) -> str:
    """A small copy as a data URI."""
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
