"""The method "clip-dissect" (Oikarinen & Weng, ICLR 2023): the concept whose CLIP scores go with the activations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from dnd import api
from dnd_hf.clip import ClipConfig, ClipEncoder
from dnd_methods.concepts import concept_set
from dnd_methods.labels import AT_MOST, label

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from dnd.api import Study


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

        clip = ClipEncoder(self.config, self.runtime)
        key = {"model": study.digest_of_model(self.config.model), "dtype": self.config.dtype}

        def see(indices: Sequence[int]) -> list[npt.NDArray[np.float32]]:
            return clip.encode([study.probing.open(index) for index in indices])

        prompts = [self.config.prompt.replace("{concept}", concept) for concept in concepts]
        images = study.arrays(
            "clip-images", {**key, "probing": study.probing.digest()}, {str(i): i for i in study.images}, clip, see
        )
        texts = study.arrays("clip-texts", key, {prompt: prompt for prompt in prompts}, clip, clip.encode)
        return (
            np.stack([images[str(i)] for i in study.images]).astype(np.float64),
            np.stack([texts[prompt] for prompt in prompts]).astype(np.float64),
        )
