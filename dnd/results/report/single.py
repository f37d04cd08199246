"""A report as one file that can be mailed: its scripts, data and images inside index.html."""

from __future__ import annotations

import base64
import hashlib
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from dnd.errors import UsageError
from dnd.results.report.build import MARK, Report, build_report
from dnd.results.run import RunFolder
from dnd.store.files import write_atomic

_POLICY = re.compile(r'(?<=http-equiv="Content-Security-Policy" content=")[^"]*(?=")')


def build_single(runs: Sequence[RunFolder], out: Path | None = None, *, progress: Callable[[int], None]) -> Report:
    """Like `build_report`, in the file `out` (`report.html` in the first run's folder)."""
    out = out or runs[0].folder / "report.html"
    if out.exists() and not (out.is_file() and MARK.encode() in out.open("rb").read(1000)):
        raise UsageError(f"{out} exists and is not a report", "Choose another file with --out.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        report = build_report(runs, Path(folder) / "report", progress=progress)
        write_atomic(out, (piece.encode() for piece in single_page(report.page.parent)))
    return replace(report, page=out)


def single_page(folder: Path) -> Iterator[str]:
    """The text of one page for a report's folder, piece by piece. Its policy names the digest of each script and of
    the style; evidence and images are blocks of text that nothing runs."""
    page = (folder / "index.html").read_text("utf-8")
    style = (folder / "report.css").read_text("utf-8")
    scripts = {name: (folder / name).read_text("utf-8") for name in re.findall(r'<script defer src="([^"]+)">', page)}
    head, body = _POLICY.sub(policy(style, scripts.values()), page).split("</head>")
    head = re.sub(r'<(script defer src|link rel="stylesheet")[^\n]*\n', "", head)
    yield f"{head}<style>{style}</style>\n</head>"
    before, after = body.split("</body>")
    yield before
    for file in sorted((folder / "units").iterdir()):
        yield _block(f"units/{file.name}", file.read_text("ascii"))
    for file in sorted((folder / "images").iterdir()):
        if not file.stem.endswith("-large"):  # the small ones do: a mail is no place for hundreds of megabytes
            yield _block(f"images/{file.name}", base64.b64encode(file.read_bytes()).decode())
    yield from (f"<script>{text}</script>\n" for text in scripts.values())
    yield f"</body>{after}"


def policy(style: str, scripts: Iterable[str]) -> str:
    """The content security policy of a page with these, which names the digest of each."""
    allowed = " ".join(map(_digest, scripts))
    return (
        f"default-src 'none'; script-src {allowed}; style-src {_digest(style)}; img-src data:; base-uri 'none';"
        " form-action 'none'; require-trusted-types-for 'script'; trusted-types dnd"
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _block(name: str, text: str) -> str:
    return f'<script type="text/plain" id="{name}">{text}</script>\n'
