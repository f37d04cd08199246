"""The captioner "vlm": an image-text-to-text chat model, through transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from pydantic import Field

from dnd import api
from dnd_hf import loading, precision
from dnd_hf.captioning import CaptioningConfig, HfCaptioner
from dnd_llama.prompts import TEMPLATE
from dnd_vlm.question import PROMPT, QuestionConfig, shrunk

if TYPE_CHECKING:
    from PIL.Image import Image

_PACKAGES = {"SmolVLMProcessor": "num2words"}
"""What the processors of transformers need beyond it, torch and pillow: found before a run begins."""
NEEDS = "config.json of an image-text-to-text model, the files of its processor and its tokenizer"


class VlmConfig(CaptioningConfig, QuestionConfig):
    """Settings of the captioner "vlm"."""

    model: api.ModelName = "qwen2.5-vl-7b-instruct"
    """Any model of `AutoModelForImageTextToText` with a chat template: Qwen2.5-VL and Qwen3-VL, Gemma 3,
    LLaVA-OneVision, SmolVLM, InternVL and others."""
    prompt: str = Field(PROMPT, min_length=1)
    """What the model is asked about each image; its answer is the caption."""
    max_new_tokens: int = Field(64, ge=1)
    no_repeat_ngram: int = Field(0, ge=0)
    """No sequence of so many tokens comes twice, the words of the prompt included; 0 lets them. Chat models need it
    seldom."""


class VlmCaptioner(HfCaptioner):
    """Any image-text-to-text chat model of transformers, asked for a sentence about each image."""

    name = "vlm"
    Config = VlmConfig
    config: VlmConfig
    _prompt: str

    @property
    def trial_size(self) -> tuple[int, int]:  # type: ignore[override]
        return self.config.max_side, self.config.max_side

    def check(self) -> Sequence[str | api.DndError]:
        try:
            folder = self.runtime.weights(self.config.model)
        except api.ModelError:
            return ()  # the core looks at models itself
        package = _PACKAGES.get(processor_class(folder), "")
        if not package or find_spec(package):
            return ()
        return [api.UsageError(f"{self.config.model} needs the package {package}", f"Run: pip install {package}")]

    def _load(self, placement: loading.Placement) -> tuple[Any, Any]:
        from transformers import AutoModelForImageTextToText

        name, folder = self.config.model, self.runtime.weights(self.config.model)
        with loading.load_errors(name, folder, "an image-text-to-text model", NEEDS):
            processor = load_processor(folder)
            model = loading.load_model(AutoModelForImageTextToText, folder, name, placement)
            # Not the processor's own method, which reads what a template does not know as settings of its own.
            template = getattr(processor, "chat_template", None) or processor.tokenizer.chat_template
            loading.prepare_chat(model, processor.tokenizer, name, template)
            asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": self.config.prompt}]}]
            self._prompt = processor.tokenizer.apply_chat_template(
                asked, chat_template=template, add_generation_prompt=True, tokenize=False, **TEMPLATE
            )
        return processor, model

    def _inputs(self, images: list[Image]) -> Any:
        found = self._processor(
            images=[[shrunk(image, self.config.max_side)] for image in images],
            text=[self._prompt] * len(images),
            padding=True,
            add_special_tokens=False,  # the template has them
            return_tensors="pt",
        )
        return found.to(dtype=precision.torch_dtype(self._precision[0]))

    def _given(self, inputs: Any) -> int:
        return 0 if self._model.config.is_encoder_decoder else int(inputs["input_ids"].shape[1])

    def _compiled(self) -> Any:
        return self._model


def processor_class(folder: Path) -> str:
    """As the folder names it; "" where it does not."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        try:
            if found := json.loads((folder / name).read_text("utf-8")).get("processor_class"):
                return str(found)
        except (OSError, ValueError, AttributeError):
            pass  # loading it tells
    return ""


def load_processor(folder: Path) -> Any:
    """UsageError where a processor needs a package that is not here."""
    from transformers import AutoProcessor

    try:
        with _without_videos():
            # The PIL image processor everywhere: pixels must not depend on whether torchvision is installed.
            processor: Any = AutoProcessor.from_pretrained(folder, backend="pil", **loading.LOCAL)
    except ImportError as error:
        raise api.UsageError(" ".join(str(error).split())) from error
    if not hasattr(processor, "tokenizer"):
        raise ValueError("it has no processor, but a lone tokenizer")
    return processor


@contextmanager
def _without_videos() -> Iterator[None]:
    """Processors are made without the part that reads videos: it needs torchvision, and no video is ever read."""
    from transformers.models.auto.video_processing_auto import AutoVideoProcessor
    from transformers.processing_utils import ProcessorMixin

    check = ProcessorMixin.check_argument_for_proper_class

    def checked(self: Any, argument: str, value: Any) -> Any:
        return None if value is None and "video" in argument else check(self, argument, value)

    with (
        patch.object(AutoVideoProcessor, "from_pretrained", lambda *args, **options: None),
        patch.object(ProcessorMixin, "check_argument_for_proper_class", checked),
    ):
        yield
