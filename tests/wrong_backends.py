"""Backends that break one rule of the contract each; `test_testing.py` says which."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

import numpy as np
import pydantic
import torch
from PIL import Image

from dnd import api

CALLS = count()


# --- a right one of each kind, to be spoilt ---


class Captioner(api.Captioner):
    name = "right"

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        return [f"{image.width} wide, {image.resize((1, 1)).getpixel((0, 0))}" for image in images]


class Summarizer(api.Summarizer):
    name = "right"

    def summarize(self, requests: Sequence[api.SummaryRequest]) -> list[list[str]]:
        return [self.one(request)[: request.n_concepts] for request in requests]

    def one(self, request: api.SummaryRequest) -> list[str]:
        return list(dict.fromkeys(request.captions[0].split()))


class Generator(api.Generator):
    name = "right"

    def generate(self, requests: Sequence[api.ImageRequest]) -> Sequence[Image.Image | None]:
        return [self.one(request) for request in requests]

    def one(self, request: api.ImageRequest) -> Image.Image:
        return self.noise(np.random.default_rng([request.seed, *request.concept.encode()]))

    def noise(self, chance: np.random.Generator) -> Image.Image:
        return Image.fromarray(chance.integers(0, 256, (8, 8, 3), dtype=np.uint8))


class Scorer(api.Scorer):
    name = "right"

    def score(self, evidence: Sequence[api.Evidence]) -> list[list[float]]:
        return [[float(value) for value in self.one(one)] for one in evidence]

    def one(self, one: api.Evidence) -> Sequence[float]:
        return one.activations.mean(axis=1).tolist()


class Encoder(api.Encoder):
    """Of an image its mean colour, of a text its first letters; as directions."""

    name = "right"

    def encode(self, items: Sequence[Image.Image | str]) -> list[np.ndarray]:
        return [self.direction(item) for item in items]

    def direction(self, item: Image.Image | str) -> np.ndarray:
        numbers = (
            [ord(letter) for letter in f"{item}   "[:3]] if isinstance(item, str) else np.asarray(item).mean((0, 1))
        )
        return np.asarray(numbers / np.linalg.norm(numbers), np.float32)


class NotOfLengthOne(Encoder):
    def direction(self, item: Image.Image | str) -> np.ndarray:
        return super().direction(item) * 2


class TwoSpaces(Encoder):
    def direction(self, item: Image.Image | str) -> np.ndarray:
        return super().direction(item) if isinstance(item, str) else np.ones(1, np.float32)


class Target(api.Target):
    name = "right"

    def build(self) -> tuple[torch.nn.Module, Callable[[Image.Image], torch.Tensor]]:
        layer = torch.nn.Conv2d(3, 2, 1, bias=False)
        torch.nn.init.constant_(layer.weight, 0.5)
        return torch.nn.Sequential(layer), self.prepare

    def prepare(self, image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(image.resize((8, 8)))).permute(2, 0, 1).float()


class Images(api.ProbingSet):
    name = "right"

    def __len__(self) -> int:
        return 12

    def image_name(self, index: int) -> str:
        return f"image {index}"

    def open(self, index: int) -> Image.Image:
        return Image.new("RGB", (8, 8), (index * 20, 0, 0))

    def digest(self) -> str:
        return "twelve"


class Method(api.Method):
    name = "right"

    def describe(self, study: object) -> list[api.Label]:
        return []


# --- settings and making ---


class NameOfTwoWords(Captioner):
    name = "two words"


class TakesStrangers(Captioner):
    class Config(api.Config, extra="ignore"):
        pass


class Thawed(Captioner):
    class Config(api.Config, frozen=False):
        words: int = 3


class ForgetsASetting(Captioner):
    class Config(api.Config):
        words: int = pydantic.Field(3, exclude=True)


class ImportsTorchAtOnce(Captioner):
    """As this module does, at its top."""


# --- answers ---


class OneAnswerShort(Captioner):
    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        return super().caption(images)[1:]


class FailsOnNothing(Captioner):
    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        return [super().caption([images[0]])[0], *super().caption(images[1:])]


class GivesATuple(Captioner):
    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        return tuple(super().caption(images))  # type: ignore[return-value]


class SortsItsAnswers(Captioner):
    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        return sorted(super().caption(images))


class CountsTheBatch(Captioner):
    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        return [f"{caption}, one of {len(images)}" for caption in super().caption(images)]


class CountsItsCalls(Captioner):
    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        return [f"{caption} {next(CALLS)}" for caption in super().caption(images)]


class SaysNothing(Captioner):
    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        return [" " for _ in images]


class SaysTwoLines(Captioner):
    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        return ["a dog\na cat" for _ in images]


class PaintsOnItsInput(Captioner):
    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        found = super().caption(images)
        for image in images:
            image.putpixel((0, 0), (1, 2, 3))
        return found


class TooManyConcepts(Summarizer):
    def summarize(self, requests: Sequence[api.SummaryRequest]) -> list[list[str]]:
        return [self.one(request) for request in requests]


class NoConcept(Summarizer):
    def one(self, request: api.SummaryRequest) -> list[str]:
        return []


class SameConceptTwice(Summarizer):
    def one(self, request: api.SummaryRequest) -> list[str]:
        return ["dog", "dog"]


class LoudConcepts(Summarizer):
    def one(self, request: api.SummaryRequest) -> list[str]:
        return ["Dog", "cat"]


class SeedsAreIgnored(Generator):
    def one(self, request: api.ImageRequest) -> Image.Image:
        return self.noise(np.random.default_rng(list(request.concept.encode())))


class OutOfOrder(Generator):
    def generate(self, requests: Sequence[api.ImageRequest]) -> list[Image.Image | None]:
        return [None if request.number == 3 else self.one(request) for request in requests]


class OneForAll(Generator):
    """Nothing is wrong with this one: it has one image of each concept, and says so."""

    def generate(self, requests: Sequence[api.ImageRequest]) -> list[Image.Image | None]:
        return [None if request.number else self.one(request) for request in requests]


class GlobalChance(Generator):
    def one(self, request: api.ImageRequest) -> Image.Image:
        np.random.seed(request.seed)
        return self.noise(np.random.default_rng(np.random.randint(1000)))


class NotRgb(Generator):
    def one(self, request: api.ImageRequest) -> Image.Image:
        return super().one(request).convert("L")


class NotAnImage(Generator):
    def one(self, request: api.ImageRequest) -> Image.Image:
        return np.asarray(super().one(request))  # type: ignore[return-value]


class NotANumber(Scorer):
    def one(self, one: api.Evidence) -> Sequence[float]:
        return [float("nan")] * len(one.concepts)


class OneScoreShort(Scorer):
    def one(self, one: api.Evidence) -> Sequence[float]:
        return list(super().one(one))[1:]


class NumpyScores(Scorer):
    def score(self, evidence: Sequence[api.Evidence]) -> list[list[float]]:
        return [list(one.activations.mean(axis=1)) for one in evidence]


class FirstIsBest(Scorer):
    def one(self, one: api.Evidence) -> Sequence[float]:
        return [1.0 / (1 + place) for place in range(len(one.concepts))]


class DividesBySpread(Scorer):
    def one(self, one: api.Evidence) -> Sequence[float]:
        with np.errstate(all="ignore"):
            return (one.activations.mean(axis=1) / one.sample_activations.std()).tolist()


class NeedsTwo(Scorer):
    def one(self, one: api.Evidence) -> Sequence[float]:
        means = list(super().one(one))
        return [value - max(means[:i] + means[i + 1 :]) for i, value in enumerate(means)]


class SortsInPlace(Scorer):
    def one(self, one: api.Evidence) -> Sequence[float]:
        found = super().one(one)
        one.activations.sort()
        return found


class Share(Scorer):
    """Right: the share of images that activate the unit, which each image to come can still raise."""

    def one(self, one: api.Evidence) -> Sequence[float]:
        return (one.activations > 0.5).mean(axis=1).tolist()

    def bound(self, evidence: Sequence[api.Evidence]) -> list[list[api.Bound]]:
        return [self.bounds(one) for one in evidence]

    def bounds(self, one: api.Evidence) -> list[api.Bound]:
        to_come = np.isnan(one.activations)
        best = ((one.activations > 0.5) | to_come).mean(axis=1)
        return [api.Bound(float(b), bool(some.any())) for b, some in zip(best, to_come, strict=True)]


class NotABound(Share):
    """What the images so far give."""

    def bounds(self, one: api.Evidence) -> list[api.Bound]:
        whole = super().bounds(one)
        return [api.Bound(score, b.open) for score, b in zip(self.one(one), whole, strict=True)]


class TooSure(Share):
    """Takes a candidate as settled after its first image."""

    def bounds(self, one: api.Evidence) -> list[api.Bound]:
        return [api.Bound(b.score, b.open and not row) for b, row in zip(super().bounds(one), one.images, strict=True)]


class NeverSettled(Share):
    def bounds(self, one: api.Evidence) -> list[api.Bound]:
        return [api.Bound(b.score, True) for b in super().bounds(one)]


# --- life ---


class Held(Captioner):
    """Holds an array from load to close, as a model would be."""

    def __init__(self, config: api.Config, runtime: api.Runtime) -> None:
        super().__init__(config, runtime)
        self.array: np.ndarray | None = None

    def load(self) -> None:
        self.array = np.ones(100_000)

    def close(self) -> None:
        self.array = None

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        assert self.array is not None
        return super().caption(images)


class ClosesOnce(Held):
    def close(self) -> None:
        del self.array


class NeedsItsModelToClose(Held):
    def load(self) -> None:
        self.runtime.weights("no-such-model")
        self.model = "model"

    def close(self) -> None:
        if self.array is None:
            self.model.strip()


class LoadsOnlyOnce(Held):
    loaded = False

    def load(self) -> None:
        if not self.loaded:
            self.loaded = True
            super().load()


class KeepsItsArray(Held):
    def close(self) -> None:
        pass


class KeepsItElsewhere(Held):
    cache: dict[str, np.ndarray] = {}  # noqa: RUF012

    def load(self) -> None:
        super().load()
        self.cache["array"] = self.array  # type: ignore[assignment]


class KeepsText(Held):
    def load(self) -> None:
        super().load()
        self.words = [str(number) for number in range(10_000)]


class Complains(Captioner):
    def check(self) -> Sequence[str]:
        return ["the moon is full"]


class ChangesItsMind(Captioner):
    mind = "float32"

    def load(self) -> None:
        self.mind = "float16"

    def chosen(self) -> dict[str, str]:
        return {"dtype": self.mind}


class FindsItsBatch(Captioner):
    """Nothing is wrong with this one: its batch size is no part of the key."""

    found = 64

    def load(self) -> None:
        self.found = 8

    def chosen(self) -> dict[str, int]:
        return {"batch_size": self.found}


class SeedsInLoad(Captioner):
    def load(self) -> None:
        random.seed(0)


class SeedsTorchInLoad(Captioner):
    def load(self) -> None:
        torch.manual_seed(0)


class UsesGlobalChance(Captioner):
    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        random.random()
        return super().caption(images)


class CallsHome(Captioner):
    def load(self) -> None:
        with suppress(Exception), socket.socket() as line:  # quietly, as many libraries do
            line.settimeout(0.01)
            line.connect(("192.0.2.1", 80))


class Prints(Captioner):
    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        print("captioning")
        return super().caption(images)


class LeavesAFile(Captioner):
    def load(self) -> None:
        Path("cache.txt").write_text(f"{next(CALLS)}")


# --- what is studied ---


class NoTuple(Target):
    def build(self) -> tuple[torch.nn.Module, Callable[[Image.Image], torch.Tensor]]:
        return super().build()[0]  # type: ignore[return-value]


class WholeNumbers(Target):
    def prepare(self, image: Image.Image) -> torch.Tensor:
        return super().prepare(image).long()


class WithBatchAxis(Target):
    def prepare(self, image: Image.Image) -> torch.Tensor:
        return super().prepare(image)[None]


class RandomFlip(Target):
    def prepare(self, image: Image.Image) -> torch.Tensor:
        return super().prepare(image) + next(CALLS)


class GlobalNoise(Target):
    def prepare(self, image: Image.Image) -> torch.Tensor:
        torch.rand(1)
        return super().prepare(image)


class OtherWeightsEachTime(Target):
    def build(self) -> tuple[torch.nn.Module, Callable[[Image.Image], torch.Tensor]]:
        return torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1)), self.prepare


class SeedsToBuild(Target):
    def build(self) -> tuple[torch.nn.Module, Callable[[Image.Image], torch.Tensor]]:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1)), self.prepare


class _AlwaysDropsOut(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(x, 0.5, training=True)


class AlwaysDropsOut(Target):
    def build(self) -> tuple[torch.nn.Module, Callable[[Image.Image], torch.Tensor]]:
        return torch.nn.Sequential(_AlwaysDropsOut()), self.prepare


class _CentresTheBatch(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean()


class CentresTheBatch(Target):
    def build(self) -> tuple[torch.nn.Module, Callable[[Image.Image], torch.Tensor]]:
        return torch.nn.Sequential(_CentresTheBatch()), self.prepare


class GradesOnlyAnswers(Target):
    def grade(self, labels: Sequence[api.Label]) -> api.Grading | None:
        return api.Grading((api.Grade(labels[0].labels[0][0], 1, 1),))


class NoImages(Images):
    def __len__(self) -> int:
        return 0


class OneNameForAll(Images):
    def image_name(self, index: int) -> str:
        return "image"


class GreyImages(Images):
    def open(self, index: int) -> Image.Image:
        return super().open(index).convert("L")


class ImagesInTurn(Images):
    """Gives its images one after the other, whatever is asked for."""

    def __init__(self, config: api.Config, runtime: api.Runtime) -> None:
        super().__init__(config, runtime)
        self.turn: Iterator[int] = count()

    def open(self, index: int) -> Image.Image:
        return super().open(next(self.turn) % 12)


class MaskOfGreys(Images):
    def masks(self, index: int) -> dict[str, dict[str, np.ndarray]]:
        return {"colour": {"red": np.full((2, 2), 0.5)}}


class DigestOfTheCall(Images):
    def digest(self) -> str:
        return f"{next(CALLS)}"


class DigestOfTheInstance(Images):
    def __init__(self, config: api.Config, runtime: api.Runtime) -> None:
        super().__init__(config, runtime)
        self.number = next(CALLS)

    def digest(self) -> str:
        return f"{self.number}"


class GlobalChanceImages(Images):
    def open(self, index: int) -> Image.Image:
        np.random.seed(index)
        return super().open(index)


class ImagesFromFar(Images):
    def digest(self) -> str:
        with suppress(Exception), socket.socket() as line:
            line.settimeout(0.01)
            line.connect(("192.0.2.1", 80))
        return "far"


class MethodThatComplains(Method):
    def check(self) -> Sequence[str]:
        return ["the moon is full"]


class UsesAStranger(Method):
    uses = ("captoner",)
