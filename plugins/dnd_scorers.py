"""The bundled scorers: how well each candidate concept explains a unit.

All scores are higher-is-better, and those that compare activations use ranks or the unit's own spread, so
that scores of units of different scale can be put side by side. CLIP looks at each distinct image once.
"""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pydantic

from dnd import api
from dnd.labels import drive

if TYPE_CHECKING:
    from collections.abc import Callable

Floats = npt.NDArray[np.float64]


# --- activations alone -------------------------------------------------------------------------------


def ranks(activations: npt.NDArray[np.float32]) -> Floats:
    """(n_concepts, n_images) -> each candidate's ranks among all synthetic images, its strongest first.

    0 is the strongest of all. A tie with another candidate's image counts half; a candidate's own equal images
    take successive ranks, so that raising one of its values never costs it.
    """
    found = np.empty(activations.shape, np.float64)
    for row, own in enumerate(activations):
        others = np.sort(np.delete(activations, row, axis=0), axis=None)
        strongest_first = np.sort(own)[::-1]
        weaker = np.searchsorted(others, strongest_first, "left") + np.searchsorted(others, strongest_first, "right")
        found[row] = others.size - weaker / 2 + np.arange(own.size)
    return found


def topk_squared(activations: npt.NDArray[np.float32], top: int) -> Floats:
    """(n_concepts, n_images) -> (n_concepts,) in 0..1: 1 minus the mean square of a candidate's best `top` ranks
    among all synthetic images, as a share of the worst rank's square. (Describe-and-Dissect's TopK-squared.)"""
    if activations.size < 2:
        return np.ones(len(activations))
    best = ranks(activations)[:, :top] / (activations.size - 1)
    found: Floats = 1 - (best**2).mean(axis=1)
    return found


class TopKConfig(api.Config):
    top: int = pydantic.Field(5, ge=1)
    """How many of a candidate's strongest images count."""


class TopKSquared(api.Scorer):
    """Mean square of each candidate's best ranks among all synthetic images of the unit; no model."""

    name = "topk-squared"
    Config = TopKConfig

    def score(self, evidence: Sequence[api.Evidence]) -> list[list[float]]:
        return [topk_squared(one.activations, self.config.top).tolist() for one in evidence]


class MeanActivation(api.Scorer):
    """Mean activation on a candidate's images, in standard deviations above the random sample's mean."""

    name = "mean"

    def score(self, evidence: Sequence[api.Evidence]) -> list[list[float]]:
        answers = []
        for one in evidence:
            centre, spread = (0.0, 0.0)
            if one.sample_activations.size:
                centre, spread = float(one.sample_activations.mean()), float(one.sample_activations.std())
            means = one.activations.astype(np.float64).mean(axis=1)
            answers.append([float((m - centre) / (spread or 1.0)) for m in means])
        return answers


# --- CLIP --------------------------------------------------------------------------------------------


class ClipConfig(api.Config):
    """Settings of every scorer that looks at images through CLIP."""

    model: api.ModelName = "clip-vit-base-patch16"
    """A `CLIPModel` with its processor."""
    top: int = pydantic.Field(5, ge=1)
    """How many of a candidate's strongest images count."""
    batch_size: int = pydantic.Field(64, ge=1)
    """Images at a time; fewer once the device's memory has run out."""
    cache: int = pydantic.Field(20_000, ge=1)
    """How many images' embeddings are kept, the least recently used go first."""


class _ClipScorer(api.Scorer):
    """Loads CLIP and keeps the embeddings of the images it has seen."""

    requires = ("transformers", "accelerate")
    Config = ClipConfig
    batch_size = 16

    def __init__(self, config: ClipConfig, runtime: api.Runtime) -> None:
        super().__init__(config, runtime)
        self._model: Any = None
        self._processor: Any = None
        self._embed: Callable[[Sequence[api.Picture]], Floats] | None = None
        self._known: OrderedDict[str, Floats] = OrderedDict()
        self._texts: dict[str, Floats] = {}

    def load(self) -> None:
        """Raises ModelError where the folder holds no usable CLIP."""
        from accelerate.utils import find_executable_batch_size  # type: ignore[import-untyped]
        from transformers import CLIPModel, CLIPProcessor

        if self._model is not None:
            return
        folder = self.runtime.weights(self.config.model)
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            # The PIL image processor everywhere: pixels must not depend on whether torchvision is installed.
            self._processor = CLIPProcessor.from_pretrained(folder, backend="pil", **local)
            model: Any = CLIPModel.from_pretrained(folder, use_safetensors=True, **local)
        except (OSError, ValueError, KeyError) as error:
            raise api.ModelError(
                f"{self.config.model!r} in {folder} does not load as a CLIP: {error}",
                "the folder needs config.json, the processor's files and safetensors weights",
            ) from error
        self._model = model.float().to(self.runtime.device).eval()
        # Remembers what fits: after an out-of-memory it starts from the smaller size for good.
        self._embed = find_executable_batch_size(self._embed_by, starting_batch_size=self.config.batch_size)

    def close(self) -> None:
        held = self._model is not None
        self._model = self._processor = self._embed = None
        self._known.clear()
        self._texts.clear()
        if held:
            gc.collect()
            import torch

            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def images(self, pictures: Sequence[api.Picture]) -> Floats:
        """(n, d): embeddings of length 1, in the order of `pictures`."""
        if self._embed is None:
            raise RuntimeError("images() before load()")
        found: dict[str, Floats] = {}
        for digest in {p.digest for p in pictures} & self._known.keys():
            self._known.move_to_end(digest)
            found[digest] = self._known[digest]
        new = list({p.digest: p for p in pictures if p.digest not in found}.values())
        if new:
            found |= {p.digest: row for p, row in zip(new, self._embed(new), strict=True)}
            self._known |= {p.digest: found[p.digest] for p in new}
            while len(self._known) > self.config.cache:
                self._known.popitem(last=False)
        if not pictures:
            return np.zeros((0, 0))
        return np.stack([found[p.digest] for p in pictures])

    def _embed_by(self, batch_size: int, pictures: Sequence[api.Picture]) -> Floats:
        import torch

        parts = []
        for at in range(0, len(pictures), batch_size):
            opened = [p.open().convert("RGB") for p in pictures[at : at + batch_size]]
            inputs = self._processor(images=opened, return_tensors="pt").to(self._model.device)
            with torch.inference_mode():
                parts.append(self._model.get_image_features(**inputs).pooler_output.double().cpu().numpy())
        return _unit(np.concatenate(parts))

    def texts(self, texts: Iterable[str]) -> Floats:
        """(n, d): embeddings of length 1."""
        import torch

        wanted = list(texts)
        for text in dict.fromkeys(t for t in wanted if t not in self._texts):
            inputs = self._processor(text=[text], truncation=True, return_tensors="pt").to(self._model.device)
            with torch.inference_mode():
                found = self._model.get_text_features(**inputs).pooler_output.double().cpu().numpy()
            self._texts[text] = _unit(found)[0]
        return np.stack([self._texts[text] for text in wanted])

    def product(self, one: api.Evidence) -> Floats:
        """(n_concepts,), -1..1: mean cosine between the unit's exemplars and a candidate's strongest images."""
        exemplars = self.images(one.exemplars).mean(axis=0)
        strongest = [
            [row[i] for i in np.argsort(-acts, kind="stable")[: self.config.top]]
            for row, acts in zip(one.images, one.activations, strict=True)
        ]
        return np.array([float(self.images(row).mean(axis=0) @ exemplars) for row in strongest])


def _unit(rows: npt.NDArray[Any]) -> Floats:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float64)


class ImageProduct(_ClipScorer):
    """CLIP's mean cosine between a unit's exemplars and each candidate's strongest synthetic images.

    A lone candidate scores 1: there is nothing to compare it with, and no image is looked at.
    """

    name = "image-product"

    def score(self, evidence: Sequence[api.Evidence]) -> list[list[float]]:
        return [self.product(one).tolist() if len(one.concepts) > 1 else [1.0] * len(one.concepts) for one in evidence]


class ClipRank(_ClipScorer):
    """Describe-and-Dissect's combination: TopK-squared times image product, both in 0..1 and both counting upwards.

    A lone candidate scores 1: there is nothing to compare it with, and no image is looked at.
    """

    name = "clip-rank"

    def score(self, evidence: Sequence[api.Evidence]) -> list[list[float]]:
        answers = []
        for one in evidence:
            if len(one.concepts) < 2:
                answers.append([1.0] * len(one.concepts))
                continue
            answers.append(combine(topk_squared(one.activations, self.config.top), self.product(one)).tolist())
        return answers


def combine(topk: Floats, product: Floats) -> Floats:
    """Of scores in 0..1 and cosines in -1..1: 0..1, never falling when either part rises."""
    return topk * (1 + product) / 2


# --- coverage ----------------------------------------------------------------------------------------


class CoverageConfig(ClipConfig):
    prompt: str = "{concept}"
    """What CLIP's text tower reads."""
    enough_drive: float = pydantic.Field(0.85, gt=0.5, le=1)
    """A candidate is docked only where its images drive the unit less than this (AUC against random images)."""

    @pydantic.field_validator("prompt")
    @classmethod
    def _has_a_place(cls, value: str) -> str:
        if "{concept}" not in value:
            raise ValueError("must contain {concept}")
        return value


class Coverage(_ClipScorer):
    """How much of what the unit does each candidate accounts for, beyond the candidates before it.

    Over the exemplars and the random sample, CLIP's likeness of image and candidate predicts the unit's
    activation; see `coverage`. A name that is too narrow misses images that drive the unit, a name that is too
    broad promises images that do not: both predict worse than the right one. Scores are shares of a multiple
    correlation, 0..1, and so compare between units; a lone candidate's too.
    """

    name = "coverage"
    Config = CoverageConfig

    def score(self, evidence: Sequence[api.Evidence]) -> list[list[float]]:
        return [self._score(one) if one.concepts else [] for one in evidence]

    def _score(self, one: api.Evidence) -> list[float]:
        order = sorted(range(len(one.concepts)), key=lambda i: one.concepts[i])  # so that no tie hangs on the order
        points = self.images([*one.sample, *one.exemplars])
        texts = self.texts(self.config.prompt.replace("{concept}", one.concepts[i]) for i in order)
        activations = np.concatenate([one.sample_activations, one.exemplar_activations]).astype(np.float64)
        drives = np.array([drive(one.activations[i], one.sample_activations) for i in order])
        found = coverage(
            likeness(texts @ points.T, len(one.sample)), activations, np.minimum(drives / self.config.enough_drive, 1)
        )
        scores = np.empty(len(order))
        scores[order] = found
        return [float(score) for score in scores]


def likeness(cosines: Floats, n_sample: int) -> Floats:
    """(n_concepts, n_points) cosines, the random sample's `n_sample` first -> the exponential of how many of the
    sample's standard deviations each is above the sample's mean, at most 4: what stands out counts most."""
    ordinary = cosines[:, :n_sample] if n_sample else cosines
    spread = ordinary.std(axis=1, keepdims=True)
    scaled = (cosines - ordinary.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1)
    found: Floats = np.exp(np.minimum(scaled, 4.0))
    return found


def coverage(likenesses: Floats, activations: Floats, weights: Floats) -> Floats:
    """Greedy forward selection of non-negative regression: which candidate adds most to the correlation.

    likenesses (n_concepts, n_points), activations (n_points,), weights (n_concepts,) in 0..1 by which a
    candidate's gain is multiplied. Returns (n_concepts,) in 0..1: the first candidate's weighted correlation with
    the activations, then what each adds to the multiple correlation of those chosen before it, never rising.
    """
    from scipy.optimize import nnls  # type: ignore[import-untyped]

    features = likenesses - likenesses.mean(axis=1, keepdims=True)
    goal = activations - activations.mean()
    size = float(np.linalg.norm(goal))
    scores = np.zeros(len(features))
    if size == 0:
        return scores
    chosen: list[int] = []
    reached, limit = 0.0, 1.0
    while len(chosen) < len(features):
        gains: dict[int, tuple[float, float]] = {}
        for i in set(range(len(features))) - set(chosen):
            _, miss = nnls(features[[*chosen, i]].T, goal)
            correlation = float(np.sqrt(max(0.0, 1 - (miss / size) ** 2)))
            gains[i] = (max(0.0, correlation - reached) * float(weights[i]), correlation)
        best = max(sorted(gains), key=lambda i: gains[i][0])
        limit = scores[best] = min(limit, gains[best][0])
        reached = max(reached, gains[best][1])
        chosen.append(best)
    return scores


@api.hookimpl
def register_scorers() -> Iterable[type[api.Scorer]]:
    return [Coverage, ClipRank, ImageProduct, TopKSquared, MeanActivation]
