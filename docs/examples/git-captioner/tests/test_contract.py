"""The contract on a GIT with random weights, small enough to be made on the spot."""

import pytest
import torch
from git_captioner import GitCaptioner
from transformers import BertTokenizerFast, CLIPImageProcessorPil, GitConfig, GitForCausalLM, GitProcessor

from dnd.testing import CaptionerContract, runtime

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "dog", "star", "sky"]
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="session", autouse=True)
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-git")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    GitProcessor(images, tokenizer).save_pretrained(folder)
    ends = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "vocab_size": len(WORDS)}
    torch.manual_seed(0)
    model = GitForCausalLM(
        GitConfig(vision_config={**SIZES, "image_size": 32, "patch_size": 8}, initializer_range=0.5, **SIZES, **ends)
    )
    with torch.no_grad():
        model.output.bias[:5] = -100  # words alone
    model.save_pretrained(folder)
    TestGitCaptioner.runtime = runtime(folders={"tiny-git": folder})


class TestGitCaptioner(CaptionerContract):
    backend = GitCaptioner
    config = {"model": "tiny-git", "max_new_tokens": 4}  # noqa: RUF012
