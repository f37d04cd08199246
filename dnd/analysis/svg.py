"""A drawing as SVG text: shapes and words at places in pixels. ElementTree escapes whatever is written."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable

from dnd.text import plain


class Drawing:
    def __init__(self, title: str, *, width: float, height: float) -> None:
        size = {"viewBox": f"0 0 {width:.0f} {height:.0f}", "width": f"{width:.0f}", "height": f"{height:.0f}"}
        look = {"role": "img", "font-family": "sans-serif", "font-size": "12"}
        self._root = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", **size, **look})
        ET.SubElement(self._root, "title").text = plain(title)
        self._add("rect", "", width="100%", height="100%", fill="#ffffff")

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        anchor: str = "start",
        size: int = 12,
        colour: str = "#222222",
        turn: int = 0,
    ) -> None:
        """`turn` are degrees, clockwise."""
        found = self._add("text", "", x=x, y=y, text_anchor=anchor, font_size=str(size), fill=colour)
        if turn:
            found.set("transform", f"rotate({turn} {x:.1f} {y:.1f})")
        found.text = plain(words)

    def bar(self, x: float, y: float, width: float, height: float, colour: str, title: str) -> None:
        """A filled rectangle; `title` is what a pointer over it shows."""
        self._add("rect", title, x=x, y=y, width=width, height=height, fill=colour)

    def dot(self, x: float, y: float, colour: str, title: str) -> None:
        self._add("circle", title, cx=x, cy=y, r=5, fill=colour)

    def line(self, points: Iterable[tuple[float, float]], colour: str, *, dashed: bool = False) -> None:
        """Through all points."""
        found = self._add(
            "polyline", "", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), fill="none", stroke=colour
        )
        if dashed:
            found.set("stroke-dasharray", "4 4")

    def _add(self, tag: str, title: str, **attributes: float | str) -> ET.Element:
        named = {key.replace("_", "-"): value for key, value in attributes.items()}
        found = ET.SubElement(
            self._root, tag, {key: value if isinstance(value, str) else f"{value:.1f}" for key, value in named.items()}
        )
        if title:
            ET.SubElement(found, "title").text = plain(title)
        return found

    def svg(self) -> str:
        return ET.tostring(self._root, encoding="unicode") + "\n"
