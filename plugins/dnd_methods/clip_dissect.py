"""The method "clip-dissect" (Oikarinen & Weng, ICLR 2023): the concept whose CLIP scores go with the activations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Literal

from dnd import api
from dnd_hf.clip import ClipConfig, ClipEncoder
from dnd_methods.concepts import concept_set
from dnd_methods.labels import AT_MOST, label

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from dnd.api import Study

_TEXTS = 1024
"""Concepts handed to CLIP at once, which reads those of one length together."""


class ClipDissectConfig(ClipConfig):
    concepts: str = "common-words"
    """The concept set: a text file, one concept per line; "package:NAME/FILE" for a file in a package; or
    "common-words", 10,867 English words (words.LICENCE)."""
    similarity: Literal["soft-wpmi", "wpmi", "rank-reorder", "cosine", "cosine-cubed"] = "soft-wpmi"
    prompt: str = "{concept}"
    """What CLIP's text tower reads."""
    min_similarity: float | None = None
    """What the best concept must reach, or the unit is uninterpretable; the published method always answers."""


class ClipDissect(api.Method):
    """A concept set, CLIP, and the likeness of what CLIP sees to what the unit does (Oikarinen & Weng, 2023).

    The prior over units is taken over all units of a layer, so a unit's label does not hang on which are asked for.
    """

    name = "clip-dissect"
    crops = False
    all_activations = True
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

        from dnd_methods.similarity import SIMILARITIES, Likeness

        concepts = concept_set(self.config.concepts)
        likeness = Likeness(*self._embeddings(study, concepts))
        found = {}
        for layer in dict.fromkeys(unit.layer for unit in study.units):
            own = {unit.index: unit for unit in study.units if unit.layer == layer}
            tables = SIMILARITIES[self.config.similarity](likeness, study.activations(layer))
            for index, scores in enumerate(chain.from_iterable(tables)):
                if index in own:
                    best = np.argsort(-scores, kind="stable")[:AT_MOST]
                    found[own[index]] = [(concepts[i], float(scores[i])) for i in best]
        for unit in study.units:
            yield label(unit, found[unit], self.config.min_similarity, f"its best {self.config.similarity}")

    def _embeddings(self, study: Study, concepts: list[str]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """CLIP of every probing image and of every concept, computed once per model and kept."""
        import numpy as np

        clip = ClipEncoder(self.config, self.runtime)
        key = {"model": study.digest_of_model(self.config.model), "dtype": self.config.dtype}
        prompts = [self.config.prompt.replace("{concept}", concept) for concept in concepts]
        images = study.arrays(
            "clip-images",
            {**key, "probing": study.probing.digest()},
            {str(i): i for i in study.images},
            clip,
            clip.encode,
            ahead=study.probing.open,
        )
        texts = study.arrays(
            "clip-texts", key, {prompt: prompt for prompt in prompts}, clip, clip.encode, batch_size=_TEXTS
        )
        return np.stack([images[str(i)] for i in study.images]), np.stack([texts[prompt] for prompt in prompts])
