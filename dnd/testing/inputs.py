"""The rules of targets and probing sets: what is studied."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from dnd import api
from dnd.plugin.registry import KINDS
from dnd.testing import fakes
from dnd.testing.contract import Contract, require
from dnd.testing.isolation import chance_seeded, chance_state, no_network

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

FEW, MANY = 8, 10_000
"""How many images are opened, and how many names are read."""


class TargetContract(Contract):
    kind = "target"

    def built(self) -> tuple[torch.nn.Module, Callable[[Image], torch.Tensor]]:
        """What `build` of a new instance gives, after a look at its form."""
        import torch

        found: Any = self.make().build()
        require(isinstance(found, tuple) and len(found) == 2, "build() must return (module, preprocess)")
        module, preprocess = found
        require(isinstance(module, torch.nn.Module), f"build() gave a {type(module).__name__}, not a torch.nn.Module")
        require(callable(preprocess), "what build() gives for preprocess cannot be called")
        return module, preprocess

    def prepared(self, preprocess: Callable[[Image], torch.Tensor]) -> list[torch.Tensor]:
        """The inputs of some images, after a look at their form."""
        import torch

        found = []
        for image in fakes.images():
            before = image.tobytes()
            tensor: Any = preprocess(image)
            require(isinstance(tensor, torch.Tensor), f"preprocess gave a {type(tensor).__name__}, not a tensor")
            require(tensor.is_floating_point(), f"preprocess gave {tensor.dtype}, not floats")
            require(tensor.ndim == 3, f"preprocess gave the shape {tuple(tensor.shape)}, not (C, H, W)")
            require(bool(tensor.isfinite().all()), "preprocess gave values that are not finite")
            require(image.tobytes() == before, "preprocess writes to the image it is given")
            found.append(tensor)
        return found

    def test_preprocess_gives_float_tensors(self) -> None:
        """An RGB image of any size becomes a finite float tensor (C, H, W)."""
        _, preprocess = self.built()
        self.prepared(preprocess)

    def test_preprocess_is_the_same_every_time(self) -> None:
        """No random crop, flip or the like."""
        import torch

        _, preprocess = self.built()
        for first, second in zip(self.prepared(preprocess), self.prepared(preprocess), strict=True):
            require(torch.equal(first, second), "preprocess gives another tensor for the same image")

    def test_the_module_answers_the_same_every_time(self) -> None:
        """In eval mode the same input gives the same activations of every layer, alone or in a batch."""
        import torch

        module, preprocess = self.built()
        module.eval()
        for tensor in self.prepared(preprocess)[:2]:
            alone, again = _outputs(module, tensor[None]), _outputs(module, tensor[None])
            require(bool(alone), "no named layer gives a tensor")
            batch = _outputs(module, torch.stack([torch.zeros_like(tensor), tensor]))
            for name, value in alone.items():
                require(torch.equal(value, again[name]), f"layer {name} answers differently the second time")
                row = batch[name][1:] if name in batch and len(batch[name]) == 2 else value
                close = torch.allclose(row, value, rtol=1e-3, atol=1e-4)
                require(close, f"layer {name} answers differently in a batch")

    def test_building_twice_gives_the_same_network(self) -> None:
        """The fingerprint that keys all results is the same, or no run could resume."""
        from dnd.target.fingerprint import fingerprint

        require(
            fingerprint(*self.built()) == fingerprint(*self.built()),
            "two builds differ: weights must come from a file or from a generator with a seed of its own",
        )

    def test_grade_takes_labels_without_an_answer(self) -> None:
        """Units that failed are graded too, or grade gives None."""
        module, _ = self.built()
        layer = next(name for name, _ in module.named_modules() if name)
        found = self.make().grade([api.Label(api.Unit(layer, 0), "failed", (), "a test")])
        require(found is None or isinstance(found, api.Grading), f"grade() gave a {type(found).__name__}")

    def test_chance_elsewhere_is_left_alone(self) -> None:
        """Building and preparing do not seed the global random numbers; preparing uses none."""
        ends = []
        self.built()  # whatever is imported late is imported now
        for seed in (1, 2):
            with chance_seeded(seed):
                _, preprocess = self.built()
                before = chance_state()
                self.prepared(preprocess)
                ends.append(chance_state())
                moved = [name for name in before if before[name] != ends[-1].get(name)]
                require(not moved, f"preprocess uses the global random numbers of {', '.join(moved)}")
        seeded = [name for name in ends[0] if ends[0][name] == ends[1][name]]
        require(not seeded, f"build() seeds the global random numbers of {', '.join(seeded)}")

    def test_the_network_is_left_alone(self) -> None:
        """No connection beyond this machine is tried."""
        with no_network():
            self.prepared(self.built()[1])


class ProbingSetContract(Contract):
    kind = "probing-set"

    def some(self, images: api.ProbingSet) -> list[int]:
        """Numbers of a few images: the first ones and the last."""
        n = len(images)
        return sorted({*range(min(n, FEW - 1)), n - 1})

    def test_it_has_images(self) -> None:
        """len() is a number of at least one."""
        images = self.make()
        require(len(images) > 0, "it has no images")

    def test_names_are_distinct_and_stay(self) -> None:
        """Each image has a name of its own, one line, the same for every instance."""
        images, other = self.make(), self.make()
        numbers = range(min(len(images), MANY))
        names = [images.image_name(i) for i in numbers]
        for name in names:
            require(isinstance(name, str) and len(name.splitlines()) == 1, f"not a name in one line: {name!r}")
        require(len(set(names)) == len(names), "two images have the same name")
        require(names == [other.image_name(i) for i in numbers], "another instance has other names")

    def test_images_are_rgb(self) -> None:
        """Each is a PIL image in mode RGB."""
        from PIL.Image import Image

        images = self.make()
        for number in self.some(images):
            found: Any = images.open(number)
            require(isinstance(found, Image), f"open({number}) gave a {type(found).__name__}, not a PIL image")
            require(found.mode == "RGB", f"image {number} is {found.mode}, not RGB")

    def test_an_image_is_the_same_every_time(self) -> None:
        """Opened twice, in another order, by another instance or by threads, its pixels are the same."""
        images, other = self.make(), self.make()
        numbers = self.some(images)
        first = [_pixels(images, number) for number in numbers]
        backwards = [_pixels(images, number) for number in numbers[::-1]][::-1]
        require(backwards == first, "opened in another order, an image differs")
        require([_pixels(other, number) for number in numbers] == first, "another instance gives other images")
        with ThreadPoolExecutor(4) as pool:
            threads = list(pool.map(lambda number: _pixels(images, number), numbers * 4))
        require(threads == first * 4, "opened by several threads at once, an image differs")

    def test_masks_are_of_yes_and_no(self) -> None:
        """Where an image's concepts are marked, each mask is a bool array (h, w)."""
        images = self.make()
        for number in self.some(images):
            for category, concepts in images.masks(number).items():
                for concept, mask in concepts.items():
                    form = (str(getattr(mask, "dtype", type(mask).__name__)), getattr(mask, "ndim", 0))
                    require(form == ("bool", 2), f"the mask of {category} {concept!r} is {form}, not bool (h, w)")

    def test_the_digest_stays(self) -> None:
        """The name of the set's content is text, the same at every call, before and after images were opened."""
        images = self.make()
        first: Any = images.digest()
        require(isinstance(first, str) and bool(first), f"digest() gave {first!r}, not text")
        images.open(0)
        require(images.digest() == first, "digest() changes from call to call")
        require(self.make().digest() == first, "digest() differs between instances")

    def test_chance_elsewhere_is_left_alone(self) -> None:
        """Global random numbers are neither used nor seeded."""
        self.make().open(0)  # whatever is imported late is imported now
        before = chance_state()
        images = self.make()
        images.digest()
        for number in self.some(images):
            images.open(number)
        moved = [name for name, state in chance_state().items() if before.get(name) != state]
        require(not moved, f"the global random numbers of {', '.join(moved)} were used")

    def test_the_network_is_left_alone(self) -> None:
        """No connection beyond this machine is tried."""
        with no_network():
            images = self.make()
            images.digest()
            images.open(0)


def _pixels(images: api.ProbingSet, number: int) -> bytes:
    found = images.open(number)
    return f"{found.mode} {found.size}".encode() + found.tobytes()


def _outputs(module: torch.nn.Module, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    """What every named layer gives that is a tensor."""
    import torch

    found: dict[str, torch.Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_module: torch.nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, torch.Tensor):
                found[name] = output.detach().clone()

        return hook

    hooks = [part.register_forward_hook(note(name)) for name, part in module.named_modules() if name]
    try:
        with torch.inference_mode():
            module(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return found


class MethodContract(Contract):
    kind = "method"

    def test_its_own_check_finds_no_fault(self) -> None:
        """`check` says before any work what is missing; here, where it works, there is no complaint."""
        faults = list(self.make().check())
        require(not faults, f"check() complains: {faults[:1]}")

    def test_it_uses_kinds_that_there_are(self) -> None:
        """`uses` names kinds of backend."""
        unknown = sorted(set(self.make().uses) - KINDS.keys())
        require(not unknown, f"uses names {', '.join(unknown)}, which is no kind of plugin")
