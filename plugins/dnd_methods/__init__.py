"""The rivals: CLIP-Dissect, Network Dissection and MILAN, on the probing pass, the store and the targets of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pydantic

from dnd import api
from dnd_clip import Clip, ClipConfig
from dnd_methods.broden import BrodenSet

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from dnd.study import Study

HERE = Path(__file__).parent
AT_MOST = 3
"""Concepts in a label."""


class ClipDissectConfig(ClipConfig):
    concepts: str = "common-words"
    """The concept set: a text file, one concept per line; "package:NAME/FILE" for a file in a package; or
    "common-words", 10,867 English words (words.LICENCE)."""
    similarity: Literal["soft-wpmi", "wpmi", "rank-reorder", "cosine"] = "soft-wpmi"
    prompt: str = "{concept}"
    """What CLIP's text tower reads."""
    min_similarity: float | None = None
    """What the best concept must reach, or the unit is uninterpretable; the published method always answers."""


class _ClipTower(api.Backend):
    """CLIP in a backend's clothes: loaded when there is an image that the store does not know, closed after."""

    name = "clip"

    def __init__(self, config: ClipConfig, runtime: api.Runtime) -> None:
        self.config, self.runtime = config, runtime
        self.batch_size = config.batch_size
        self.clip: Clip | None = None

    def load(self) -> None:
        if self.clip is None:
            folder = self.runtime.weights(self.config.model)
            self.clip = Clip(folder, self.runtime.device, self.config.batch_size, self.config.model)

    def close(self) -> None:
        if self.clip is not None:
            self.clip.close()
            self.clip = None


class ClipDissect(api.Method):
    """A concept set, CLIP, and the likeness of what CLIP sees to what the unit does (Oikarinen & Weng, 2023).

    The prior over units is taken over all units of a layer, so a unit's label does not hang on which are asked for.
    """

    name = "clip-dissect"
    requires = ("transformers", "accelerate")
    Config = ClipDissectConfig

    def check(self) -> Sequence[str | api.DndError]:
        try:
            concept_set(self.config.concepts)
        except api.DndError as error:
            return [error]
        return ()

    def describe(self, study: Study) -> Iterator[api.Label]:
        import numpy as np

        from dnd_methods.similarity import SIMILARITIES

        concepts = concept_set(self.config.concepts)
        images, texts = self._embeddings(study, concepts)
        likeness = images @ texts.T  # (n_images, n_concepts)
        found = {}
        for layer in dict.fromkeys(unit.layer for unit in study.units):
            activations = study.activations(layer).astype(np.float64)  # (n_images, n_units of the layer)
            own = [unit for unit in study.units if unit.layer == layer]
            table = SIMILARITIES[self.config.similarity](likeness, activations)
            for unit in own:
                best = np.argsort(-table[unit.index], kind="stable")[:AT_MOST]
                found[unit] = [(concepts[i], float(table[unit.index, i])) for i in best]
        for unit in study.units:
            yield label(unit, found[unit], self.config.min_similarity, f"its best {self.config.similarity}")

    def _embeddings(self, study: Study, concepts: list[str]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """CLIP of every probing image and of every concept, computed once per model and kept."""
        import numpy as np

        tower = _ClipTower(self.config, self.runtime)
        key = {"model": study.digest_of_model(self.config.model)}

        def see(indices: Sequence[int]) -> list[npt.NDArray[np.float32]]:
            assert tower.clip is not None
            opened = [lambda i=i: study.probing.open(i) for i in indices]
            return list(tower.clip.images(opened).astype(np.float32))

        def read(texts: Sequence[str]) -> list[npt.NDArray[np.float32]]:
            assert tower.clip is not None
            return list(tower.clip.texts(texts).astype(np.float32))

        prompts = [self.config.prompt.replace("{concept}", concept) for concept in concepts]
        images = study.arrays(
            "clip-images", {**key, "probing": study.probing.digest()}, {str(i): i for i in study.images}, tower, see
        )
        texts = study.arrays("clip-texts", key, {prompt: prompt for prompt in prompts}, tower, read)
        return (
            np.stack([images[str(i)] for i in study.images]).astype(np.float64),
            np.stack([texts[prompt] for prompt in prompts]).astype(np.float64),
        )


class NetworkDissectionConfig(api.Config):
    share: float = pydantic.Field(0.005, gt=0, lt=1)
    """Of a unit's map cells over the probing set, the strongest so many count as its region."""
    resolution: int = pydantic.Field(112, ge=8, le=1024)
    """Side of the grid on which maps and masks are compared."""
    min_iou: float = pydantic.Field(0.04, ge=0, le=1)
    """What the best concept's IoU must reach, or the unit is uninterpretable."""


class NetworkDissection(api.Method):
    """IoU of thresholded maps with the masks that the probing set carries (Bau et al., 2017)."""

    name = "network-dissection"
    Config = NetworkDissectionConfig

    def describe(self, study: Study) -> Iterator[api.Label]:
        from dnd_methods.dissection import overlaps, thresholds

        if not any(study.probing.masks(index) for index in study.images[:16]):
            raise api.UsageError(
                "network-dissection needs a probing set with concept masks, and the first 16 images have none",
                "Give --probe broden with --set probing.folder=FOLDER, or a set of your own with `masks`.",
            )
        flat = next((unit.layer for unit in study.units if study.map_shape(unit.layer) == ()), None)
        if flat is not None:
            raise api.UsageError(
                f"network-dissection compares activation maps, and units of layer {flat} have none",
                "Choose a convolutional or ViT layer with --layer, or another --method.",
            )
        units = list(study.units)
        least = thresholds(study, units, self.config.share)
        table = overlaps(study, units, least, self.config.resolution)
        for unit in units:
            best = sorted(table[unit].items(), key=lambda pair: (-pair[1], pair[0]))[:AT_MOST]
            yield label(unit, best, self.config.min_iou, "its best IoU")


class MilanConfig(api.Config):
    weight: float = pydantic.Field(0.2, ge=0)
    """Of log p(description), which is taken off log p(description | exemplars)."""
    prior_images: int = pydantic.Field(16, ge=1)
    """Random probing images that p(description) is taken from."""


class Milan(api.Method):
    """Captions of the exemplars and their active regions, ranked by pointwise mutual information."""

    name = "milan"
    uses = ("captioner",)
    Config = MilanConfig

    def describe(self, study: Study) -> Iterator[api.Label]:
        from dnd_methods.milan import describe

        captioner, key = study.backend("captioner")
        if type(captioner).log_probabilities is api.Captioner.log_probabilities:
            raise api.UsageError(
                f"milan ranks captions by their probability, and the captioner {captioner.name!r} gives none",
                "Choose a captioner with `log_probabilities`, such as a BLIP-2.",
            )
        found = describe(study, captioner, {"captioner": key}, self.config.weight, self.config.prior_images)
        for unit in study.units:
            if unit in found:
                yield label(unit, found[unit][:AT_MOST], None, "")
            else:
                yield api.Label(unit, "failed", (), study.failed[unit])


def label(unit: api.Unit, best: Sequence[tuple[str, float]], least: float | None, what: str) -> api.Label:
    """`labelled`, or uninterpretable where even the best falls short of `least`."""
    if not best:
        return api.Label(unit, "uninterpretable", (), "no candidate concept")
    if least is not None and best[0][1] < least:
        reason = f"{what} is {best[0][1]:.3g} with {best[0][0]!r}, under {least:g}"
        return api.Label(unit, "uninterpretable", tuple(best), reason)
    return api.Label(unit, "labelled", tuple(best))


def concept_set(name: str) -> list[str]:
    """The distinct lines of a concept set; UsageError where there is none."""
    from importlib import util

    path = Path(name).expanduser()
    if name == "common-words":
        path = HERE / "words.txt"
    elif name.startswith("package:"):
        package, _, rest = name.removeprefix("package:").partition("/")
        spec = util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise api.UsageError(f"the concept set {name!r} is part of a package that is not installed: {package}")
        path = Path(spec.submodule_search_locations[0]) / rest
    try:
        text = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise api.UsageError(
            f"cannot read the concept set {path}: {getattr(error, 'strerror', None) or error}",
            "Set method.concepts to a text file with one concept per line, or to common-words.",
        ) from error
    concepts = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not concepts:
        raise api.UsageError(f"the concept set {path} is empty")
    return concepts


@api.hookimpl
def register_methods() -> Iterable[type[api.Method]]:
    return [ClipDissect, NetworkDissection, Milan]


@api.hookimpl
def register_probing_sets() -> Iterable[type[api.ProbingSet]]:
    return [BrodenSet]
