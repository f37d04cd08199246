"""Labels as the folder of a repository of `datasets`: data/*.parquet, and a card that says where they come from."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from dnd.errors import StoreError, UsageError
from dnd.models.weights import Weights
from dnd.results.export.neuronpedia import method_of, model_id
from dnd.results.export.parquet import write_parquet
from dnd.results.export.tables import escape_markdown
from dnd.results.run import RunFolder, as_mapping

_UNITS = 512
"""In one file: some hundred megabytes with images."""
_ROLES = ("captioner", "summarizer", "generator", "scorer")


def write_dataset(run: RunFolder, folder: Path, *, images: bool = True) -> None:
    """Write a new folder, whole or not at all. Raises UsageError where there is one, or where images are gone."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists already, and nothing is written over", "Choose another folder with --out.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as made:
            work = Path(made) / "made"
            (work / "data").mkdir(parents=True)
            records, count = run.records(), -(-len(run) // _UNITS) or 1
            for number in range(count):
                file = work / "data" / f"labels-{number:05d}-of-{count:05d}.parquet"
                write_parquet(run, file, islice(records, _UNITS), images=images)
            (work / "README.md").write_text("".join(card(run, images=images)), "utf-8")
            if folder.exists():
                folder.rmdir()
            shutil.move(work, folder)
    except OSError as error:
        why = error.strerror or error
        raise StoreError(f"cannot write {folder}: {why}", "Free some space or choose another with --out.") from error


def card(run: RunFolder, *, images: bool = True) -> Iterator[str]:
    """README.md: YAML for the hub's viewer, what the labels are of, how they were made, and under what licences."""
    counts = Counter(label.status for label in run.labels)
    size = next((name for limit, name in _SIZES if len(run) < limit), "10K<n<100K")
    yield (
        "---\nconfigs:\n- config_name: default\n  data_files: data/*.parquet\n"
        f"tags:\n- interpretability\n- describe-and-dissect\nsize_categories:\n- {size}\n---\n\n"
    )
    target, layers = escape_markdown(model_id(run)), ", ".join(map(escape_markdown, run.layers))
    yield f"# Labels of the units of {target}\n\n"
    yield (
        f"What {len(run):,} units of {layers} respond to, in words. Made with dnd, which describes the units of vision "
        "networks with models on one's own machines, after [Describe-and-Dissect](https://arxiv.org/abs/2403.13771).\n\n"
    )
    yield "| units | |\n| --- | --- |\n" + "".join(f"| {status} | {n:,} |\n" for status, n in counts.items())
    if run.verdicts:
        words = Counter(verdict.word for verdict in run.verdicts.values())
        yield "".join(f"| {escape_markdown(word)} | {n:,} |\n" for word, n in words.items())
    yield "\n## How they were made\n\n| part | what |\n| --- | --- |\n"
    yield "".join(f"| {part} | {escape_markdown(what)} |\n" for part, what in _parts(run))
    yield (
        "\n`score` ranks a unit's candidates; it is no probability. A label says what drives the unit most on these "
        "images, and can be wrong.\n\n"
    )
    yield _COLUMNS + (_IMAGE_COLUMNS if images else "")
    yield "\n\n## Licences\n\n"
    if licences := "".join(_licences(run)):
        yield "Of the models that took part, as models.lock has them:\n\n"
        yield f"| model | source | licence |\n| --- | --- | --- |\n{licences}"
    else:
        yield "No model of models.lock took part.\n"
    if images:
        yield (
            "\nThe images in `exemplars` are of the probing set, and under its licence; those in `synthetic` were made "
            "by the generator, whose licence may say what they can be used for.\n"
        )
    yield "\nState the licence of the labels themselves here, and as `license:` above, before you publish.\n"


_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"))
_COLUMNS = (
    "## Columns\n\n`layer`, `unit`, `status` (labelled, uninterpretable or failed), `label` and `score` with up to two "
    "more (`label_2`, ...), `reason` where there is none, `verdict` of a test on new images; of every exemplar its "
    "caption, source, box and activation; every candidate with score and AUC."
)
_IMAGE_COLUMNS = " `exemplars` are the images that activate the unit most, `synthetic` those of its first label."


def _parts(run: RunFolder) -> Iterator[tuple[str, str]]:
    yield "method", method_of(run)
    probing = as_mapping(run.settings.get("probing"))
    sets = probing.get("sets") or [probing.get("set", "")]
    count = as_mapping(run.facts.get("probing")).get("images")
    shown = f"{count:,}" if isinstance(count, int) else "?"
    yield "probing images", f"{shown} of {', '.join(map(_last, sets if isinstance(sets, list) else [sets]))}"
    for role in _ROLES:
        chosen = as_mapping(run.settings.get(role))
        if chosen and f"{chosen.get('backend')}" != "None":
            yield role, " · ".join(str(chosen[key]) for key in ("backend", "model") if chosen.get(key))
    yield "seed", str(run.settings.get("seed", 0))
    yield "dnd", str(as_mapping(run.facts.get("versions")).get("dnd-describe", ""))


def _last(name: object) -> str:
    """Of a folder its name alone: the rest is about the machine."""
    return Path(str(name)).name


def _licences(run: RunFolder) -> Iterator[str]:
    known = Weights.default().by_name
    for name in as_mapping(run.facts.get("models")):
        model = known.get(name)
        source, licence = (model.source, model.licence) if model else ("not in models.lock here", "?")
        yield f"| {' | '.join(map(escape_markdown, (name, source, licence)))} |\n"
