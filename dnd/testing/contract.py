"""The rules that every plugin keeps, whatever its kind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from typing import Any, ClassVar

import pydantic

from dnd import api
from dnd.config.problems import Problems
from dnd.plugin.registry import fault_of
from dnd.testing.fakes import runtime

HEAVY = frozenset(
    re.findall(
        r"\w+",
        "accelerate cv2 jax keras matplotlib onnxruntime pandas pyarrow scipy skimage sklearn tensorflow timm torch "
        "torchvision transformers",
    )
)
"""Libraries that have no place at the top of a plugin's module, as `dnd plugins` imports it."""


class BrokenRule(AssertionError):
    """A rule of the contract that a plugin does not keep."""


def require(kept: bool, otherwise: str) -> None:
    """An `assert` that stays under `python -O` and needs no pytest to say what was wrong."""
    if not kept:
        raise BrokenRule(otherwise)


class Contract:
    """Each method that begins with `test_` is one rule; its docstring says it in words."""

    kind: ClassVar[str]
    backend: ClassVar[type[api.Plugin]]
    """The class under test."""
    config: ClassVar[Mapping[str, Any]] = {}
    """Its settings, as in a run file."""
    runtime: ClassVar[api.Runtime] = runtime()

    def make_config(self) -> pydantic.BaseModel:
        problems = Problems()
        config = problems.check(self.kind, self.backend.Config, self.config)
        problems.raise_if_any()
        assert config is not None
        return config

    def make(self, runtime: api.Runtime | None = None) -> Any:
        """A new instance, not loaded."""
        return self.backend(self.make_config(), runtime or self.runtime)

    def test_the_class_can_be_registered(self) -> None:
        """It is a whole class of its kind, with a name and a Config that dnd accepts."""
        fault = fault_of(self.kind, self.backend)
        require(not fault, fault)

    def test_settings_refuse_unknown_names(self) -> None:
        """A setting that does not exist is refused, so that a slip of the pen is noticed."""
        try:
            self.backend.Config.model_validate({**self.config, "no_such_setting_": 1})
        except pydantic.ValidationError as error:
            found = [fault["type"] for fault in error.errors() if fault["loc"] == ("no_such_setting_",)]
            require(found == ["extra_forbidden"], f"with an unknown setting: {error}")
            return
        raise BrokenRule('Config takes a setting it does not have: leave extra="forbid" as it is')

    def test_settings_are_frozen(self) -> None:
        """Settings cannot change after the run has been keyed by them."""
        config = self.make_config()
        for name, value in config:
            try:
                setattr(config, name, value)
            except pydantic.ValidationError:
                continue
            raise BrokenRule(f"config.{name} can be assigned to: leave frozen=True as it is")
        require(bool(config.model_config.get("frozen")), "Config is not frozen: leave frozen=True as it is")

    def test_settings_survive_a_run_file(self) -> None:
        """Written to run.toml and read back, they are equal."""
        import tomli_w

        config = self.make_config()
        text = tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))
        again = self.backend.Config.model_validate(tomllib.loads(text))
        require(again == config, f"{config!r} came back as {again!r}")

    def test_making_one_is_cheap(self) -> None:
        """Importing its module and making an instance imports no heavy library: that belongs in load() or build()."""
        module, name = self.backend.__module__, self.backend.__qualname__
        require(
            module != "__main__" and "<locals>" not in name,
            f"{name} cannot be imported from {module}: it must stand at the top level of a module",
        )
        text = self.make_config().model_dump_json()
        done = subprocess.run(
            [sys.executable, "-c", _MAKE_ONE, module, name, text, self.runtime.device],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([*_inherited(), *(path or "." for path in sys.path)])},
            capture_output=True,
            text=True,
        )
        require(done.returncode == 0, f"in a fresh interpreter: {(done.stderr.strip() or 'it exits').splitlines()[-1]}")
        found = sorted(HEAVY.intersection(json.loads(done.stdout.splitlines()[-1])))
        require(not found, f"{', '.join(found)} is imported before there is work: import it in load() or build()")


def _inherited() -> list[str]:
    """PYTHONPATH as it is: the watch on the network comes first in it."""
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


_MAKE_ONE = """
import importlib, json, operator, sys
from pathlib import Path
from dnd.api import Runtime
module, name, text, device = sys.argv[1:]
cls = operator.attrgetter(name)(importlib.import_module(module))
cls(cls.Config.model_validate_json(text), Runtime(device, Path))
print()
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
"""The child must not ask for weights: a constructor that does gets a path that does not exist."""
