"""The rules of captioners, summarizers, generators, scorers and encoders."""

from __future__ import annotations

import gc
import io
import math
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from dnd import api
from dnd.testing import fakes
from dnd.testing.contract import BrokenRule, Contract, require
from dnd.testing.isolation import chance_seeded, chance_state, folder_state, held, no_network

if TYPE_CHECKING:
    from PIL.Image import Image

SLACK = 64 * 1024
"""Bytes that a closed backend may hold beyond what it held when it was new."""


class BackendContract(Contract):
    """What the kinds of backend have in common. A subclass says what goes in, what must come out, and what is equal."""

    def items(self) -> list[Any]:
        """What the backend is asked; at least two, no two alike."""
        raise NotImplementedError

    def ask(self, backend: Any, items: Sequence[Any]) -> list[Any]:
        raise NotImplementedError

    def fault(self, item: Any, answer: Any) -> str:
        """What is wrong with an answer by itself; "" if nothing is."""
        raise NotImplementedError

    def equal(self, one: Any, other: Any) -> bool:
        return bool(one == other)

    def state(self, item: Any) -> object:
        """The content of an item, comparable."""
        return item

    def answers(self, items: Sequence[Any] | None = None) -> list[Any]:
        """Those of a backend of its own, made, loaded and closed for them."""
        with self.make() as backend:
            return self.asked(backend, self.items() if items is None else items)

    def asked(self, backend: Any, items: Sequence[Any]) -> list[Any]:
        """Its answers, as many as there are items."""
        found = self.ask(backend, items)
        require(isinstance(found, list), f"it gave a {type(found).__name__}, not a list")
        require(len(found) == len(items), f"{len(found)} answers came back for {len(items)} items")
        return found

    def compare(self, found: Sequence[Any], wanted: Sequence[Any], when: str) -> None:
        for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
            if not self.equal(one, other):
                raise BrokenRule(f"item {number}: {_short(one)} {when}, {_short(other)} at first")

    # --- answers ---

    def test_there_is_one_good_answer_per_item(self) -> None:
        """A list of the same length comes back, and each answer has the form that its kind wants."""
        items = self.items()
        for number, (item, answer) in enumerate(zip(items, self.answers(items), strict=True)):
            fault = self.fault(item, answer)
            require(not fault, f"item {number}: {fault}")

    def test_answers_come_in_order(self) -> None:
        """The same items the other way round give the same answers the other way round."""
        items = self.items()
        with self.make() as backend:
            first = self.asked(backend, items)
            self.compare(self.asked(backend, items[::-1])[::-1], first, "with the items reversed")

    def test_an_answer_does_not_depend_on_the_batch(self) -> None:
        """One by one the items get the same answers as together."""
        items = self.items()
        with self.make() as backend:
            together = self.asked(backend, items)
            alone = [self.asked(backend, [item])[0] for item in items]
        self.compare(alone, together, "alone")

    def test_the_same_request_gives_the_same_answer(self) -> None:
        """Asked twice, and asked of another instance, it answers the same."""
        items = self.items()
        with self.make() as backend:
            first = self.asked(backend, items)
            self.compare(self.asked(backend, items), first, "when asked again")
        self.compare(self.answers(items), first, "from another instance")

    def test_what_it_is_given_stays_as_it_was(self) -> None:
        """Images, requests and arrays are not written to."""
        items = self.items()
        before = [self.state(item) for item in items]
        self.answers(items)
        changed = [i for i, item in enumerate(items) if self.state(item) != before[i]]
        require(not changed, f"item {changed[:1]} was changed")

    # --- life ---

    def test_close_is_safe_at_any_time(self) -> None:
        """Before load, after it, and twice in a row."""
        backend = self.make()
        backend.close()
        backend.load()
        backend.close()
        backend.close()

    def test_close_is_safe_after_a_load_that_failed(self) -> None:
        """Where a model is missing, load says so with that ModelError and close still works."""

        def missing(name: str) -> Path:
            raise api.ModelError(f"the model {name!r} is not here")

        backend = self.make(replace(self.runtime, weights=missing))
        with suppress(api.ModelError):
            backend.load()
        backend.close()
        backend.close()

    def test_it_works_again_after_close(self) -> None:
        """Closed and loaded once more, it answers as before."""
        items, backend = self.items(), self.make()
        with backend:
            first = self.asked(backend, items)
        with backend:
            self.compare(self.asked(backend, items), first, "after close and load")

    def test_close_gives_memory_back(self) -> None:
        """Nothing of what load and the work put on the instance is left, there or anywhere else."""
        backend = self.make()
        empty, kept = held(backend)
        with backend:
            self.asked(backend, self.items())
            _, heavy = held(backend)
        gc.collect()
        size, _ = held(backend)
        require(size <= empty + SLACK, f"{size - empty} bytes hang on the instance after close()")
        alive = [name for name, thing in heavy.items() if name not in kept and thing() is not None]
        require(not alive, f"what {', '.join(alive)} held is still in memory after close(): who else refers to it?")

    def test_its_own_check_finds_no_fault(self) -> None:
        """`check` and `memory` say before load what `dnd doctor` shows; here, where it works, there is no complaint."""
        backend = self.make()
        faults = list(backend.check())
        require(not faults, f"check() complains: {faults[:1]}")
        size = backend.memory()
        require(size is None or (isinstance(size, int) and size >= 0), f"memory() gave {size!r}, not bytes or None")
        require(isinstance(backend.batch_size, int) and backend.batch_size > 0, f"batch_size is {backend.batch_size!r}")

    def test_what_it_chose_stays(self) -> None:
        """`chosen` says the same before load and after close, but for what is not part of the stage's key."""
        backend = self.make()
        before = self.keyed(backend)
        with backend:
            self.asked(backend, self.items()[:1])
        after = self.keyed(backend)
        require(after == before, f"chosen() was {before!r}, after close {after!r}")

    def keyed(self, backend: Any) -> dict[str, Any]:
        """What it chose that may change an answer."""
        return {name: value for name, value in backend.chosen().items() if name not in backend.config.unkeyed}

    # --- what is not its own ---

    def test_chance_elsewhere_is_left_alone(self) -> None:
        """Work neither uses nor moves global random numbers, and load does not seed them."""
        ends, found = [], []
        self.answers()  # whatever is imported late is imported now
        for seed in (1, 2):
            with chance_seeded(seed), self.make() as backend:
                before = chance_state()
                found.append(self.asked(backend, self.items()))
                ends.append(chance_state())
                moved = [name for name in before if before[name] != ends[-1].get(name)]
                require(not moved, f"the global random numbers of {', '.join(moved)} were used while it worked")
        self.compare(found[1], found[0], "with global random numbers seeded otherwise")
        seeded = [name for name in ends[0] if ends[0][name] == ends[1][name]]
        require(not seeded, f"load() seeds the global random numbers of {', '.join(seeded)}")

    def test_the_network_is_left_alone(self) -> None:
        """No connection beyond this machine is tried."""
        with no_network():
            self.answers()

    def test_the_current_folder_is_left_alone(self) -> None:
        """Nothing is written into the folder it is run from."""
        here = Path.cwd()
        before = folder_state(here)
        self.answers()
        after = folder_state(here)
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        require(not changed, f"{', '.join(changed[:3])} changed in the current folder")

    def test_standard_output_is_left_alone(self) -> None:
        """Nothing is printed there, where `dnd` writes what others read; `logging` is for what has to be said."""
        said = io.StringIO()
        with redirect_stdout(said):
            self.answers()
        require(not said.getvalue(), f"it printed {_short(said.getvalue())}: use logging, or print to sys.stderr")


class CaptionerContract(BackendContract):
    kind = "captioner"

    def items(self) -> list[Image]:
        return fakes.images()

    def ask(self, backend: api.Captioner, items: Sequence[Image]) -> list[str]:
        return backend.caption(items)

    def fault(self, item: Image, answer: Any) -> str:
        return _text_fault(answer, 2000)

    def state(self, item: Image) -> object:
        return item.mode, item.size, item.tobytes()


class SummarizerContract(BackendContract):
    kind = "summarizer"

    def items(self) -> list[api.SummaryRequest]:
        of_images = issubclass(self.backend, api.Summarizer) and self.backend.reads == "images"
        return [
            *fakes.summary_requests(of_images=of_images),
            *fakes.summary_requests(1, n_concepts=1, of_images=of_images),
        ]

    def ask(self, backend: api.Summarizer, items: Sequence[api.SummaryRequest]) -> list[list[str]]:
        return backend.summarize(items)

    def fault(self, item: api.SummaryRequest, answer: Any) -> str:
        if not isinstance(answer, list) or not 1 <= len(answer) <= item.n_concepts:
            return f"1 to {item.n_concepts} concepts were asked for, not {_short(answer)}"
        faults = [fault for concept in answer if (fault := _text_fault(concept, 100))]
        if faults:
            return faults[0]
        if len(set(answer)) < len(answer):
            return f"not distinct: {_short(answer)}"
        loud = [concept for concept in answer if concept != concept.lower()]
        return f"not in lower case: {loud[0]!r}" if loud else ""


class GeneratorContract(BackendContract):
    kind = "generator"
    concepts: ClassVar[Sequence[str]] = fakes.CONCEPTS
    """What it is asked to draw: for a generator that cannot draw these, set others."""

    def items(self) -> list[api.ImageRequest]:
        return fakes.image_requests(self.concepts)

    def ask(self, backend: api.Generator, items: Sequence[api.ImageRequest]) -> list[Image | None]:
        found: list[Image | None] = backend.generate(items)  # type: ignore[assignment]  # the rules look at it
        return found

    def fault(self, item: api.ImageRequest, answer: Any) -> str:
        from PIL.Image import Image

        if answer is None and item.number:
            return ""
        if not isinstance(answer, Image):
            return f"a {type(answer).__name__}, not a PIL image"
        return "" if answer.mode == "RGB" else f"the image is {answer.mode}, not RGB"

    def equal(self, one: Image | None, other: Image | None) -> bool:
        """To the last bit on a CPU; on a GPU another batch rounds otherwise."""
        if one is None or other is None:
            return one is other
        if self.runtime.device == "cpu" or one.size != other.size:
            return one.mode == other.mode and one.size == other.size and one.tobytes() == other.tobytes()
        return float(np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32)).mean()) < 4

    def test_another_seed_gives_another_image(self) -> None:
        """The images of a concept differ, or a score over them would rest on one image alone. Where there are no more
        of them the answer is None, and so for all higher numbers."""
        requests = [api.ImageRequest(self.concepts[0], 7 + number, number) for number in range(8)]
        answers = self.answers(requests)
        made = [image.tobytes() for image in answers if image is not None]
        require(None not in answers[: len(made)], "None, and an image for a higher number")
        alike = len(made) > 1 and len(set(made)) == 1
        require(not alike, f"{len(made)} seeds gave the very same image of {self.concepts[0]!r}")


class ScorerContract(BackendContract):
    kind = "scorer"

    def items(self) -> list[api.Evidence]:
        return [fakes.evidence(fakes.CONCEPTS[:n], seed=seed) for seed, n in enumerate((4, 2, 3))]

    def ask(self, backend: api.Scorer, items: Sequence[api.Evidence]) -> list[list[float]]:
        return backend.score(items)

    def fault(self, item: api.Evidence, answer: Any) -> str:
        if not isinstance(answer, list) or len(answer) != len(item.concepts):
            return f"{len(item.concepts)} candidates want as many scores, not {_short(answer)}"
        wrong = [score for score in answer if type(score) is not float or not math.isfinite(score)]
        return f"not a finite float: {wrong[0]!r} ({type(wrong[0]).__name__})" if wrong else ""

    def equal(self, one: Sequence[float], other: Sequence[float]) -> bool:
        return len(one) == len(other) and bool(np.allclose(one, other, rtol=1e-4, atol=1e-6))

    def state(self, item: api.Evidence) -> object:
        arrays = (item.exemplar_activations, item.activations, item.sample_activations)
        return [array.tobytes() for array in arrays], item.concepts, item.images

    def test_scores_follow_their_candidates(self) -> None:
        """Candidates in another order get the same scores in that order, unless the scorer looks at no images: then the
        order may be all that it has."""
        if issubclass(self.backend, api.Scorer) and not self.backend.needs_images:
            return
        one = self.items()[0]
        order = [2, 0, 3, 1][: len(one.concepts)]
        moved = replace(
            one,
            concepts=tuple(one.concepts[i] for i in order),
            images=tuple(one.images[i] for i in order),
            activations=one.activations[order],
        )
        first, second = self.answers([one, moved])
        self.compare([second], [[first[i] for i in order]], "with the candidates in another order")

    def test_a_lone_candidate_is_scored(self) -> None:
        """One candidate, with nothing to compare it with, gets a score too."""
        alone = fakes.evidence(fakes.CONCEPTS[:1])
        fault = self.fault(alone, self.answers([alone])[0])
        require(not fault, fault)

    def test_a_unit_that_never_varies_is_scored(self) -> None:
        """Activations that are all alike, a spread of zero, give finite scores."""
        one = self.items()[0]
        still = replace(
            one,
            activations=np.zeros_like(one.activations),
            exemplar_activations=np.zeros_like(one.exemplar_activations),
            sample_activations=np.zeros_like(one.sample_activations),
        )
        fault = self.fault(still, self.answers([still])[0])
        require(not fault, fault)

    def test_bounds_hold(self) -> None:
        """Where it gives bounds: candidates that come first by bound and are not open come first by score, with that
        score, whatever the images to come; with all its images none is open."""
        with self.make() as backend:
            if not backend.gives_bounds:
                return
            for seed in range(12):
                chance = np.random.default_rng(seed)
                whole = fakes.evidence(fakes.CONCEPTS[: 3 + seed % 2], seed=seed)
                drawn = chance.normal(chance.uniform(0, 1.5, (len(whole.concepts), 1)), 0.6, whole.activations.shape)
                whole = replace(whole, activations=drawn.astype(np.float32))
                made = chance.integers(0, whole.activations.shape[1] + 1, len(whole.concepts))
                self._hold(backend, whole, made if seed % 3 else np.where(made > 1, whole.activations.shape[1], 0))

    def _hold(self, backend: api.Scorer, whole: api.Evidence, made: npt.NDArray[np.int_]) -> None:
        """With the first `made` images of each candidate, and the others as they are, weak, strong or either."""
        to_come = np.arange(whole.activations.shape[1]) >= made[:, None]
        images = tuple(row[:n] for row, n in zip(whole.images, made, strict=True))
        partial = replace(whole, images=images, activations=np.where(to_come, np.float32("nan"), whole.activations))
        (bounds,) = backend.bound([partial])
        require(
            len(bounds) == len(whole.concepts), f"{len(bounds)} bounds came back for {len(whole.concepts)} candidates"
        )
        open_ = [one.open for one, some in zip(bounds, to_come, strict=True) if one.open and not some.any()]
        require(not open_, "a candidate is open with all its images")
        ways = np.random.default_rng(len(made)).choice([-9, 9], (6, len(made), 1)).astype(np.float32)
        for way in (whole.activations, *ways):
            (scores,) = backend.score([replace(whole, activations=np.where(to_come, way, whole.activations))])
            first, best = (api.ranked([float(one) for one in some]) for some in ([one.score for one in bounds], scores))
            for place in range(min(api.N_LABELS, len(scores))):
                if bounds[first[place]].open:
                    break
                one = first[place]
                require(
                    one == best[place] and bool(np.isclose(bounds[one].score, scores[one], rtol=1e-4, atol=1e-6)),
                    f"images of {made.tolist()} were made: candidate {one} was to come in place {place + 1} with"
                    f" {bounds[one].score:.4g} whatever the others show, but the scores became {_short(scores)}",
                )


class EncoderContract(BackendContract):
    kind = "encoder"

    def items(self) -> list[Image | str]:
        return [*fakes.images(), *fakes.CONCEPTS]

    def ask(self, backend: api.Encoder, items: Sequence[Image | str]) -> list[Any]:
        return backend.encode(items)

    def fault(self, item: Image | str, answer: Any) -> str:
        if not isinstance(answer, np.ndarray) or answer.ndim != 1 or answer.dtype != np.float32:
            return f"not a float32 vector: {_short(answer)}"
        length = float(np.linalg.norm(answer))
        return "" if abs(length - 1) < 1e-3 else f"a vector of length {length:.4g}, not 1"

    def equal(self, one: Any, other: Any) -> bool:
        return one.shape == other.shape and bool(np.allclose(one, other, rtol=0, atol=1e-4))

    def state(self, item: Image | str) -> object:
        return item if isinstance(item, str) else item.tobytes()

    def test_images_and_texts_are_of_one_space(self) -> None:
        """Every vector has as many numbers."""
        widths = {answer.shape for answer in self.answers()}
        require(len(widths) == 1, f"vectors of different shapes: {sorted(widths)}")


def _text_fault(text: Any, longest: int) -> str:
    if not isinstance(text, str):
        return f"a {type(text).__name__}, not text: {_short(text)}"
    if not text.strip():
        return "empty text; raise dnd.api.ItemError where there is nothing to say"
    if len(text.splitlines()) > 1:
        return f"more than one line: {_short(text)}"
    return f"{len(text)} characters, {longest} at most" if len(text) > longest else ""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 90 else f"{text[:87]}..."
