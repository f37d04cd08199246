"""Settings of what vLLM serves."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

import pydantic

from dnd.api import Config, ModelName
from dnd_llama.conversation import AskingConfig

DEFAULT_MODEL = "llama-3.1-8b-instruct"
OWN = ("model", "dtype", "quantization", "python", "gpu_memory_fraction", "context_length")
OWN += ("tensor_parallel", "data_parallel", "eager")
"""Settings of a server that dnd starts."""


class ServerConfig(Config):
    """Most of these belong to a server of our own; with `url` only the last three do not."""

    default_model: ClassVar[str] = DEFAULT_MODEL
    removed: ClassVar[Mapping[str, str]] = {"port": "a server of our own listens on a Unix socket in a private folder"}
    unkeyed: ClassVar[frozenset[str]] = Config.unkeyed | {
        "python",
        "gpu_memory_fraction",
        "context_length",
        "tensor_parallel",
        "data_parallel",
        "eager",
        "startup_seconds",
        "api_key_env",
        "concurrency",
        "answer_seconds",
    }
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {"model": ("summarizer", "captioner")}
    model: ModelName | None = None
    """Left out: a model that is usual for it, or with `url` what `served_model` names there."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """ "auto" is the checkpoint's own."""
    quantization: Literal["fp8", "bitsandbytes"] | None = None
    """Pack the weights while they load. A checkpoint that is packed already needs no setting."""

    python: str | None = None
    """The Python that has vLLM, or its virtual environment's folder; left out: this one."""
    gpu_memory_fraction: float | None = pydantic.Field(None, gt=0, le=1)
    """Share of each GPU's memory that vLLM takes; left out: nine tenths, or what is free."""
    context_length: int | None = pydantic.Field(None, ge=256)
    """Tokens of prompt and answer; left out: 4096, or as many as the model can. The prompts need a few hundred."""
    tensor_parallel: int | None = pydantic.Field(None, ge=1)
    """So many of the run's GPUs share the model; left out: as many as divide its attention heads."""
    data_parallel: int | None = pydantic.Field(None, ge=1)
    """So many copies of the model answer beside each other, each on `tensor_parallel` GPUs: faster than sharing where
    one GPU holds the model."""
    eager: bool = False
    """Do not compile the model: ready sooner, slower afterwards."""
    startup_seconds: float = pydantic.Field(1200, gt=0)
    """How long the server may take until it is ready."""

    url: str | None = None
    """A server that is running on this machine, http://127.0.0.1:8000 for example."""
    served_model: str | None = None
    """Its name for the model."""
    api_key_env: str | None = None
    """The environment variable that holds its key."""
    concurrency: int = pydantic.Field(128, ge=1, le=1024)
    """Chats under way at once."""
    answer_seconds: float = pydantic.Field(1800, gt=0)
    """How long one chat may take, waiting for others included, until the server counts as dead."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _name_the_default(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("model") is None and values.get("url") is None:
            return {**values, "model": cls.default_model}
        return values

    @pydantic.field_validator("url")
    @classmethod
    def _stay_on_this_machine(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        try:
            _ = parts.port
        except ValueError as error:
            raise ValueError(f"{url!r} has no valid port") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ValueError(f"{url!r} is not of the form http://127.0.0.1:8000")
        if not _is_loopback(parts.hostname):
            raise ValueError(
                f"{parts.hostname} is not this machine, and dnd sends nothing beyond it; a tunnel"
                " (ssh -L 8000:127.0.0.1:8000 HOST) brings a server of yours to http://127.0.0.1:8000"
            )
        return url.rstrip("/").removesuffix("/v1")

    @pydantic.model_validator(mode="after")
    def _one_or_the_other(self) -> Self:
        if self.url is None:
            for name in ("served_model", "api_key_env"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is for a server that is running: it needs url")
            return self
        if self.served_model is None:
            raise ValueError("url needs served_model, the server's name for the model")
        fields = type(self).model_fields
        for name in OWN:
            if getattr(self, name) != fields[name].default:
                raise ValueError(f"{name} is for a server that dnd starts: leave it out with url")
        return self

    def same_server(self, other: ServerConfig) -> bool:
        """Whether dnd starts a server for each that could serve the other as well."""
        alike = all(getattr(self, name) == getattr(other, name) for name in OWN)
        return alike and self.url is None and other.url is None


class VllmConfig(ServerConfig, AskingConfig):
    """Settings of the summarizer `vllm`."""

    unkeyed: ClassVar[frozenset[str]] = ServerConfig.unkeyed | AskingConfig.unkeyed
    structured: bool = True
    """Hold the model to one to five plain words where it is asked for a concept: a weak model then has fewer answers
    that cannot be read (benchmarks/results/vllm.json)."""
    batch_size: int = pydantic.Field(256, ge=1)
    """Units at a time: their chats go out together, and their answers are kept before the next units' turn."""


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
