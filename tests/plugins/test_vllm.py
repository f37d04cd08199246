"""The summarizer `vllm` with a server that only looks like vLLM (fake_vllm.py): its life, its deaths, its errors.

test_vllm_real.py has the real one.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pydantic
import pytest
from PIL import Image

from dnd.api import DeviceError, ItemError, PluginError, Runtime, SummaryRequest, UsageError
from dnd.offline import hook
from dnd.offline.block import offline
from dnd_vllm import VllmCaptioner, VllmCaptionerConfig, VllmSummarizer
from dnd_vllm.config import DEFAULT_MODEL, VllmConfig
from dnd_vllm.environment import server_environment
from dnd_vllm.failures import explain, last_words
from dnd_vllm.interpreter import Interpreter
from dnd_vllm.launch import command, environment, make_plan
from dnd_vllm.server import _private_folder

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "plugins/dnd_microworld/weights/microworld-llama"
RUNTIME = Runtime("cpu", lambda name: WEIGHTS)
PYTHON = Interpreter(Path(sys.executable), "0.32.0", "2")
REQUESTS = [SummaryRequest(("a red star", "a blue star", f"a {colour} star"), 3, 7) for colour in ("white", "green")]


class Fake:
    """An interpreter with the stand-in for vLLM, and what it left behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        package = folder / "site/vllm/entrypoints/openai"
        package.mkdir(parents=True)
        for parent in (package, package.parent, package.parent.parent):
            (parent / "__init__.py").touch()
        (package / "api_server.py").symlink_to(Path(__file__).parents[1] / "fake_vllm.py")
        self.python = folder / "python"
        self.python.write_text(f'#!/bin/sh\nPYTHONPATH={folder / "site"} exec {sys.executable} "$@"\n')
        self.python.chmod(0o755)
        self.needs("torch")
        self.vision = folder / "site/torchvision-1.dist-info"
        self.vision.mkdir()
        (self.vision / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 1\n")
        self.orders()

    def needs(self, requirement: str, version: str = "0.32.0") -> None:
        """What the installed vLLM says that it requires."""
        info = self.folder / "site" / "vllm-1.dist-info"
        info.mkdir(exist_ok=True)
        text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\nRequires-Dist: {requirement}\n"
        (info / "METADATA").write_text(text)

    def orders(self, **orders: Any) -> None:
        (self.folder / "orders.json").write_text(json.dumps(orders))

    def lines(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / f"{name}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def left(self) -> list[psutil.Process]:
        """Every process that still has this folder in its environment."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("VLLM_FAKE") == str(self.folder) and process.pid != os.getpid():
                    found.append(process)
            except psutil.Error:
                pass
        return found

    def captioner(self, **settings: Any) -> VllmCaptioner:
        config = VllmCaptionerConfig(**{"model": "tiny-vlm", "python": str(self.python), **settings})
        return VllmCaptioner(config, RUNTIME)

    def summarizer(self, **settings: Any) -> VllmSummarizer:
        config = VllmConfig(**{"model": "microworld-llama", "python": str(self.python), "n_samples": 4, **settings})
        return VllmSummarizer(config, RUNTIME)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    monkeypatch.setenv("VLLM_FAKE", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("dnd_vllm.server.Server.grace", 0.3)
    return Fake(tmp_path)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_until(true: Callable[[], object], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.05)
    return False


# --- at work -----------------------------------------------------------------------------------------


def test_it_starts_asks_all_at_once_and_leaves_nothing(fake: Fake) -> None:
    fake.orders(think=0.1)
    with fake.summarizer(concurrency=6) as summarizer:
        found = summarizer.summarize(REQUESTS)
        assert len(fake.left()) >= 4  # reaper, server and the server's own
    assert [sorted(concepts) for concepts in found] == [sorted(set(concepts)) for concepts in found]
    assert {concept for concepts in found for concept in concepts} <= {"star", "red star", "blue star"}
    asked = fake.lines("asked")
    assert 4 <= max(line["under_way"] for line in asked) <= 6
    assert len({line["seed"] for line in asked if line["temperature"] > 0}) >= 5
    assert fake.left() == []
    assert not list(fake.folder.glob("dnd-vllm-*.log"))


def test_the_server_is_told_to_stay_safe_offline_and_on_loopback(fake: Fake) -> None:
    with fake.summarizer(gpu_memory_fraction=0.4, quantization="fp8", eager=True) as summarizer:
        assert summarizer._server is not None
        key = summarizer._server.key
        lines = " ".join(" ".join(process.cmdline()) for process in fake.left())
    start = fake.lines("starts")[0]
    options = start["options"]
    assert options["uds"].endswith("/s")
    assert options["model"] == str(WEIGHTS)
    assert (options["generation_config"], options["load_format"]) == ("vllm", "safetensors")
    assert options["max_model_len"] == 2048
    assert options["gpu_memory_utilization"] == "0.4"
    assert options["quantization"] == "fp8"
    assert options["enable_prefix_caching"]
    assert options["enforce_eager"]
    assert not any("remote" in word for word in start["argv"])
    assert start["env"]["VLLM_API_KEY"] == key
    assert key not in lines
    assert start["env"]["HF_HUB_OFFLINE"] == start["env"]["VLLM_NO_USAGE_STATS"] == "1"
    assert start["env"]["VLLM_HOST_IP"] == "127.0.0.1"
    assert start["env"]["CUDA_VISIBLE_DEVICES"] == ""
    assert start["cwd"] == "/"


def test_every_request_says_how_to_sample(fake: Fake) -> None:
    with fake.summarizer(simplify=False, temperature=0.5) as summarizer:
        summarizer.summarize(REQUESTS[:1])
    asked = fake.lines("asked")
    assert asked
    for line in asked:
        assert line["temperature"] == 0.5
        assert (line["top_p"], line["repetition_penalty"], line["max_tokens"]) == (1.0, 1.0, 48)
        assert line["chat_template_kwargs"] == {"date_string": "26 Jul 2024", "enable_thinking": False}
        assert line["structured_outputs"]["regex"].startswith(r"[^\s,;|/]")


UNWANTED = {
    "PYTHONPATH": "site",
    "PYTHONHOME": "/nowhere",
    "PYTHONSTARTUP": "start.py",
    "PYTHONWARNINGS": "error",
    "PYTHONINSPECT": "1",
    "PYTHONUSERBASE": "base",
    "PYTHONPLATLIBDIR": "x",
    "LD_PRELOAD": "",
    "LD_AUDIT": "",
    "BASH_ENV": "x.sh",
    "ENV": "x.sh",
    "HF_TOKEN": "secret",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "HTTPS_PROXY": "http://127.0.0.1:9",
}


def test_nothing_of_our_environment_reaches_the_server_but_the_guard(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's PYTHONPATH would put other modules before vLLM's own, in the look at its Python as well."""
    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / "vllm.py").write_text("raise SystemExit('not this one')\n")
    (ours / "sitecustomize.py").write_text(f"open({str(tmp_path / 'seen')!r}, 'a').write('x')\n")
    fake.python.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{fake.folder / "site"}" exec {sys.executable} "$@"\n')
    with offline():
        for name, value in UNWANTED.items():
            if name not in ("PYTHONHOME", "LD_PRELOAD", "LD_AUDIT"):
                monkeypatch.setenv(name, str(tmp_path / value) if name.endswith(("TUP", "BASE")) else value)
        monkeypatch.setenv("PYTHONPATH", f"{hook.CHILDREN}:{ours}")
        with fake.summarizer() as summarizer:
            summarizer.summarize(REQUESTS)
    env = fake.lines("starts")[0]["env"]
    assert env["PYTHONPATH"].split(":") == [hook.CHILDREN, str(fake.folder / "site")]
    assert env["DND_OFFLINE_LOG"]
    assert not (UNWANTED.keys() - {"PYTHONPATH"}) & env.keys()
    assert not (tmp_path / "seen").exists()


def test_what_loads_code_or_is_a_secret_is_no_part_of_a_servers_environment() -> None:
    ours = {
        **UNWANTED,
        "LD_PRELOAD": "x.so",
        "PATH": "/bin",
        "CUDA_HOME": "/cuda",
        "LC_ALL": "C",
        "OMP_NUM_THREADS": "1",
    }
    assert server_environment(ours) == {"PATH": "/bin", "CUDA_HOME": "/cuda", "LC_ALL": "C", "OMP_NUM_THREADS": "1"}
    assert server_environment({**ours, "DND_OFFLINE_GUARD": "/guard"})["PYTHONPATH"] == "/guard"


@pytest.mark.parametrize(
    ("mode", "safe"), [(0o700, True), (0o755, True), (0o1777, True), (0o777, False), (0o775, False)]
)
def test_the_socket_lies_where_no_other_user_can_replace_it(
    monkeypatch: pytest.MonkeyPatch, mode: int, safe: bool
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as parent:  # a socket's path is short
        Path(parent).chmod(mode)
        monkeypatch.setattr("tempfile.tempdir", parent)
        folder = _private_folder()
        assert (folder.parent == Path(parent)) == safe
        assert folder.stat().st_mode & 0o777 == 0o700
        folder.rmdir()


def test_a_proxy_of_the_environment_gets_nothing(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with fake.summarizer() as summarizer:
        assert len(summarizer.summarize(REQUESTS)) == 2


def test_the_same_requests_have_the_same_answers_whatever_goes_wrong(fake: Fake) -> None:
    """Against an undisturbed run: passing errors, a death, and a server that hangs."""
    with fake.summarizer() as summarizer:
        expected = summarizer.summarize(REQUESTS)
    undisturbed = len(fake.lines("starts"))
    for orders, settings, starts in (
        ({"errors": 3}, {}, 1),
        ({"die_at": 5, "bad_starts": undisturbed + 2}, {}, 2),
        ({"hang_at": 5, "bad_starts": undisturbed + 4}, {"answer_seconds": 4}, 2),
    ):
        fake.orders(**orders)
        before = len(fake.lines("starts"))
        with fake.summarizer(**settings) as summarizer:
            assert summarizer.summarize(REQUESTS) == expected
        assert len(fake.lines("starts")) - before == starts
    assert fake.left() == []


def test_a_second_death_is_the_end_and_says_why(fake: Fake) -> None:
    fake.orders(die_at=3, bad_starts=9)
    with pytest.raises(DeviceError, match="died") as caught, fake.summarizer() as summarizer:
        summarizer.summarize(REQUESTS)
    assert "RuntimeError: the engine has died" in str(caught.value)
    log = next(fake.folder.glob("dnd-vllm-*.log"))
    assert str(log) in str(caught.value)
    assert len(fake.lines("starts")) == 2
    assert fake.left() == []


def test_too_long_a_prompt_fails_alone(fake: Fake) -> None:
    fake.orders(longest=200)
    with fake.summarizer(simplify=False) as summarizer:
        with pytest.raises(ItemError, match="so long a prompt"):
            summarizer.summarize([SummaryRequest(("a red star " * 30,), 2, 1)])
        assert summarizer.summarize([SummaryRequest(("star",), 2, 1)])


def test_a_chat_on_which_a_healthy_server_fails_fails_alone(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnd_vllm.served._TRIES", 2)
    with fake.summarizer(simplify=False) as summarizer:
        for _ in range(2):
            with pytest.raises(ItemError, match="a passing weakness"):
                summarizer.summarize([SummaryRequest(("a cursed star",), 2, 1)])
        assert summarizer.summarize([SummaryRequest(("star",), 2, 1)])
    assert len(fake.lines("starts")) == 2


# --- deaths at the start -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last_words", "cause", "remedy"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "memory", "gpu_memory_fraction"),
        ("ValueError: Free memory on device cuda:0 (3/24 GiB) on startup is less than desired GPU memory utilization"
         " (0.9, 21.6 GiB)", "memory", "end other processes"),
        ("ImportError: /x/vllm/_C.abi3.so: undefined symbol: _ZN3c10", "wrong torch", "Reinstall"),
        ("ModuleNotFoundError: No module named 'torchvision.ops'", "no torchvision", "Install torchvision there"),
        ("ValueError: There is no module or parameter named 'vision_tower.embeddings' in Llava", "vision_tower.e",
         "as its authors publish it"),
        ("RuntimeError: operator torchvision::nms does not exist", "wrong torch", "uninstall torchvision"),
        ("ValueError: Model architectures ['FooForCausalLM'] are not supported for now.", "architecture", "newer vLLM"),
        ("RuntimeError: Failed to infer device type", "no device", "CPU build"),
        ("a most unusual end", "stopped before it was ready", "what is finished is kept"),
    ],
)  # fmt: skip
def test_a_server_that_does_not_start_says_why(fake: Fake, last_words: str, cause: str, remedy: str) -> None:
    fake.orders(last_words=[last_words])
    with pytest.raises(PluginError) as caught, fake.summarizer():
        pass
    assert cause in str(caught.value)
    assert remedy in caught.value.hint
    assert last_words[:60] in str(caught.value)
    assert "dnd-vllm-" in str(caught.value)
    assert len(fake.lines("starts")) == 1
    assert fake.left() == []


def test_it_listens_where_nobody_else_can_be_in_its_place(fake: Fake) -> None:
    """A Unix socket in a folder of this user alone: no other user can take it first, or connect to it."""
    with fake.summarizer() as summarizer:
        assert summarizer._server is not None
        folder = summarizer._server.socket.parent
        assert stat.S_ISSOCK(summarizer._server.socket.stat().st_mode)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert folder.stat().st_uid == os.getuid()
        ports = [one for process in fake.left() for one in process.net_connections("inet") if one.status == "LISTEN"]
        assert ports == []
        assert summarizer.summarize(REQUESTS[:1])
    assert not folder.exists()


def test_a_long_temporary_folder_is_no_place_for_a_socket(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = tmp_path / ("x" * 100)
    far.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(far))
    with fake.summarizer() as summarizer:
        assert summarizer.summarize(REQUESTS[:1])


def test_a_server_that_takes_too_long_is_ended(fake: Fake) -> None:
    fake.orders(slow=60)
    with pytest.raises(PluginError, match="not ready after 1 s"), fake.summarizer(startup_seconds=1):
        pass
    assert fake.left() == []


# --- our own end -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("while_starting", [True, False])
def test_nothing_outlives_us(fake: Fake, how: signal.Signals, while_starting: bool) -> None:
    """However we end, the server's processes go: those that ignore SIGTERM, and those of another session."""
    fake.orders(slow=60 if while_starting else 0)
    code = f"""
        import logging, sys, time
        sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "plugins")!r}]
        logging.basicConfig(level=logging.INFO)
        from pathlib import Path
        from dnd.api import Runtime
        from dnd_vllm import VllmCaptioner, VllmCaptionerConfig, VllmSummarizer
        from dnd_vllm.config import VllmConfig
        from dnd_vllm.server import Server
        Server.grace = 0.3
        config = VllmConfig(model="m", python={str(fake.python)!r})
        with VllmSummarizer(config, Runtime("cpu", lambda name: Path({str(WEIGHTS)!r}))):
            time.sleep(60)
    """
    us = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stderr=subprocess.PIPE, text=True)
    assert us.stderr is not None
    assert while_starting or any("ready" in line for line in us.stderr)
    assert wait_until(lambda: len(fake.left()) >= 5)  # us, reaper, server and two of its own
    us.send_signal(how)
    us.wait(60)
    assert wait_until(lambda: not fake.left())
    us.stderr.close()


def test_the_reapers_death_is_no_escape_either(fake: Fake) -> None:
    with fake.summarizer() as summarizer:
        assert summarizer._server is not None
        assert summarizer._server._process is not None
        server = psutil.Process(fake.lines("starts")[0]["pid"])
        os.kill(summarizer._server._process.pid, signal.SIGKILL)
        assert wait_until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE)


def test_closing_twice_and_loading_again(fake: Fake) -> None:
    summarizer = fake.summarizer()
    summarizer.close()
    with summarizer:
        first = summarizer.summarize(REQUESTS)
    summarizer.close()
    assert summarizer.summarize(REQUESTS) == first
    summarizer.close()
    assert fake.left() == []


# --- another interpreter -----------------------------------------------------------------------------


def test_an_interpreter_without_vllm(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no snakes here >&2\nexit 3\n")
    broken.chmod(0o755)
    text = tmp_path / "text"
    text.write_text("hello")
    for python, message in (
        (None, "not installed in this environment"),
        (str(tmp_path / "nowhere"), "there is no Python at"),
        (str(tmp_path), "there is no Python at"),
        (str(text), "cannot be run"),
        (str(broken), "no snakes here"),
    ):
        summarizer = VllmSummarizer(VllmConfig(python=python), RUNTIME)
        faults = summarizer.check()
        assert [message in str(fault) for fault in faults] == [True], faults
        assert isinstance(faults[0], PluginError)
        assert "python3 -m venv" in faults[0].hint


def test_the_wrong_torch_is_found_before_anything_starts(fake: Fake) -> None:
    fake.needs("torch==1.0.0")
    with pytest.raises(PluginError, match=r"wrong torch .* built for torch==1\.0\.0") as caught, fake.summarizer():
        pass
    assert "pip install 'torch==1.0.0'" in caught.value.hint
    assert fake.lines("starts") == []


@pytest.mark.parametrize(
    ("version", "old"),
    [("0.10.2", True), ("0.9.0.dev1+cpu", True), ("0.11.0", False), ("0.11.0rc2", False), ("1.0", False)],
)
def test_a_vllm_that_is_too_old_is_found_before_anything_starts(fake: Fake, version: str, old: bool) -> None:
    fake.needs("torch", version)
    faults = fake.summarizer().check()
    assert [f"vLLM {version} in {fake.python} is too old: 0.11 or later" in str(one) for one in faults] == [True] * old
    assert fake.lines("starts") == []


def test_a_model_that_sees_needs_torchvision_beside_vllm(fake: Fake) -> None:
    weights = {"model": "microworld-llama"}
    assert not fake.captioner(**weights).check()
    (fake.vision / "METADATA").unlink()
    (fault,) = fake.captioner(**weights).check()
    assert isinstance(fault, PluginError)
    assert f"torchvision is not installed in {fake.python}" in str(fault)
    assert not fake.summarizer().check()


def test_check_is_content_where_all_is_well(fake: Fake) -> None:
    assert fake.summarizer().check() == []
    assert fake.summarizer(python=str(fake.folder / "python")).check() == []


def test_what_the_model_or_the_machine_cannot_do_is_said_early(fake: Fake) -> None:
    for settings, message in (
        ({"context_length": 9999}, "reaches 2048"),
        ({"tensor_parallel": 2}, "wants 2 GPUs, and this run has none"),
    ):
        faults = fake.summarizer(**settings).check()
        assert [message in str(fault) for fault in faults] == [True]
    three = Runtime("cuda:0", lambda name: WEIGHTS, ("cuda:0", "cuda:1", "cuda:2"))
    config = VllmConfig(model="microworld-llama", python=str(fake.python), tensor_parallel=3)
    assert "does not divide" in str(VllmSummarizer(config, three).check()[0])


# --- a server that is running ------------------------------------------------------------------------


def test_a_running_server_is_used_and_left_alone(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    def attached(**settings: Any) -> VllmSummarizer:
        given = {
            "url": f"{url}/v1/",
            "served_model": "dnd",
            "api_key_env": "THE_KEY",
            "n_samples": 4,
            "names": "one",
            **settings,
        }
        return VllmSummarizer(VllmConfig(**given), RUNTIME)

    port = free_port()
    fake.orders(port=port)
    with fake.summarizer() as ours:
        assert ours._server is not None
        url = f"http://127.0.0.1:{port}"
        monkeypatch.setenv("THE_KEY", ours._server.key)
        with attached() as summarizer:
            assert summarizer.summarize(REQUESTS) == ours.summarize(REQUESTS)
        assert ours._server.alive()
        assert "it has dnd" in str(attached(served_model="llama").check()[0])
        monkeypatch.setenv("THE_KEY", "wrong")
        assert "does not take the key" in str(attached().check()[0])
        monkeypatch.delenv("THE_KEY")
        assert "THE_KEY" in str(attached().check()[0])
        monkeypatch.setenv("THE_KEY", ours._server.key)
    fault = attached().check()[0]
    assert "nothing answers" in str(fault)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "http://example.org:8000", "served_model": "x"}, "not this machine"),
        ({"url": "http://10.0.0.7:8000", "served_model": "x"}, "not this machine"),
        ({"url": "http://localhost.example.org", "served_model": "x"}, "not this machine"),
        ({"url": "http://127.0.0.1@example.org", "served_model": "x"}, "not of the form"),
        ({"url": "unix:/run/x", "served_model": "x"}, "not of the form"),
        ({"url": "http://127.0.0.1:99999", "served_model": "x"}, "no valid port"),
        ({"url": "http://127.0.0.1:8000"}, "url needs served_model"),
        ({"url": "http://127.0.0.1:8000", "served_model": "x", "model": "smollm2-135m-q4"}, "leave it out with url"),
        ({"url": "http://[::1]:8000", "served_model": "x", "python": "/x"}, "leave it out with url"),
        ({"served_model": "x"}, "needs url"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        VllmConfig(**settings)


# --- settings ----------------------------------------------------------------------------------------


def test_settings_survive_a_run_file() -> None:
    for config in (VllmConfig(), VllmConfig(url="http://127.0.0.1:8000/v1", served_model="x")):
        assert VllmConfig(**config.model_dump(mode="json", exclude_none=True)) == config
    assert VllmConfig().model == DEFAULT_MODEL
    assert VllmConfig(url="http://localhost:1", served_model="x").model is None


def test_only_what_changes_answers_is_in_the_key() -> None:
    kept = VllmConfig.model_fields.keys() - VllmConfig.unkeyed
    own = {"model", "dtype", "quantization", "structured", "url", "served_model"}
    asking = {"names", "temperature", "n_samples", "n_extra_samples", "simplify", "max_new_tokens", "domain"}
    assert kept == own | asking


@pytest.mark.parametrize(
    ("devices", "share", "visible", "gpus"),
    [
        (("cuda",), None, None, "0"),
        (("cuda:2",), None, None, "2"),
        (("cuda:0", "cuda:1"), None, None, "0,1"),
        (("cuda:0", "cuda:1"), 1, None, "0"),
        (("cuda:0", "cuda:1", "cuda:3"), None, None, "0,1"),  # three do not divide four heads
        (("cuda:1", "cuda:2", "cuda:1"), 2, "4,5,GPU-ab", "5,GPU-ab"),
        (("cpu", "cpu"), None, "0", ""),
    ],
)
def test_the_gpus_of_the_run_share_the_model(
    devices: tuple[str, ...], share: int | None, visible: str | None, gpus: str
) -> None:
    config = VllmConfig(model="microworld-llama", tensor_parallel=share)
    plan = make_plan(config, Runtime(devices[0], lambda name: WEIGHTS, devices), WEIGHTS)
    ours = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert environment(config, plan, ours)["CUDA_VISIBLE_DEVICES"] == gpus


@pytest.mark.parametrize(
    ("devices", "tensor", "copies", "gpus", "options"),
    [
        (4, None, 4, 4, ["--tensor-parallel-size=1", "--data-parallel-size=4"]),
        (4, None, 2, 4, ["--tensor-parallel-size=2", "--data-parallel-size=2"]),
        (3, 1, 2, 2, ["--tensor-parallel-size=1", "--data-parallel-size=2"]),
        (3, None, 2, 2, ["--tensor-parallel-size=1", "--data-parallel-size=2"]),
        (4, 4, 1, 4, ["--tensor-parallel-size=4"]),
        (0, None, 1, 0, ["--tensor-parallel-size=1"]),
    ],
)
def test_copies_of_the_model_have_gpus_of_their_own(
    devices: int, tensor: int | None, copies: int, gpus: int, options: list[str]
) -> None:
    config = VllmConfig(model="microworld-llama", tensor_parallel=tensor, data_parallel=copies)
    named = tuple(f"cuda:{n}" for n in range(devices)) or ("cpu",)
    plan = make_plan(config, Runtime(named[0], lambda name: WEIGHTS, named), WEIGHTS)
    assert plan.gpus == tuple(range(gpus))
    given = command(config.model_copy(update={"gpu_memory_fraction": 0.5}), plan, PYTHON, WEIGHTS, Path("/s"))
    assert [one for one in given if "-parallel-size" in one] == options


@pytest.mark.parametrize(
    ("devices", "settings", "words"),
    [
        (("cuda:0",), {"data_parallel": 2}, "data_parallel = 2 wants 2 GPUs, and this run has 1"),
        (("cpu",), {"data_parallel": 2}, "data_parallel = 2 wants 2 GPUs, and this run has none"),
        (
            ("cuda:0", "cuda:1"),
            {"data_parallel": 2, "tensor_parallel": 2},
            "tensor_parallel = 2 and data_parallel = 2 want 4 GPUs, and this run has 2",
        ),
    ],
)
def test_more_copies_than_gpus_are_refused(devices: tuple[str, ...], settings: dict[str, int], words: str) -> None:
    config = VllmConfig(model="microworld-llama", **settings)
    with pytest.raises(UsageError, match=re.escape(words)):
        make_plan(config, Runtime(devices[0], lambda name: WEIGHTS, devices), WEIGHTS)


def test_the_root_of_a_failure_is_shown_before_the_last_lines() -> None:
    log = "\n".join(
        [
            "(EngineCore pid=7) ERROR 11-23 10:00:00 [core.py:5] torch.OutOfMemoryError: CUDA out of memory.",
            *[f"(EngineCore pid=7) ERROR 11-23 10:00:00 [core.py:6]   File {n}" for n in range(50)],
            "(APIServer pid=3) RuntimeError: Engine core initialization failed. See root cause above.",
        ]
    )
    words = last_words(log)
    assert words[0] == "torch.OutOfMemoryError: CUDA out of memory."
    assert words[-1] == "RuntimeError: Engine core initialization failed. See root cause above."
    assert len(words) <= 9
    assert explain(log)[0] == "there is too little memory"
    assert "too old" in explain("api_server.py: error: unrecognized arguments: --uds=/tmp/s")[0]
    assert explain("INFO 11-23 10:00:00 [x.py:1] Failed to import from vllm._C: ImportError, going on") == ("", "")


def test_the_plugin_imports_nothing_heavy() -> None:
    code = (
        "import dnd_vllm; dnd_vllm.VllmSummarizer(dnd_vllm.VllmConfig(), None);"
        "sys.exit(bool({'torch', 'transformers', 'httpx', 'psutil', 'vllm'} & sys.modules.keys()))"
    )
    path = [str(ROOT), str(ROOT / "plugins")]
    assert subprocess.run([sys.executable, "-c", f"import sys; sys.path[:0] = {path}; {code}"]).returncode == 0


def test_the_port_of_earlier_run_files_is_passed_over() -> None:
    assert VllmConfig.model_validate({"port": 8000}) == VllmConfig()
    assert VllmConfig.notes({"port": 8000}) == [f"port is ignored: {VllmConfig.removed['port']}"]


# --- images ------------------------------------------------------------------------------------------


def test_images_are_captioned_as_they_are_shown(fake: Fake) -> None:
    pictures = [Image.new("RGB", (40, 20), (200, 10, 30)), Image.new("RGB", (300, 100), (0, 90, 250))]
    with fake.captioner(max_side=150, prompt="what is it", max_new_tokens=20) as captioner:
        assert captioner.caption(pictures) == [
            "a picture 40x20 [200, 10, 30] what is it",
            "a picture 150x50 [0, 90, 250] what is it",
        ]
        assert captioner.caption([]) == []
    asked = fake.lines("asked")
    assert {(line["temperature"], line["max_tokens"], line["seed"]) for line in asked} == {(0.0, 20, 0)}
    assert not any("structured_outputs" in line for line in asked)
    options = fake.lines("starts")[0]["options"]
    assert options["chat_template_content_format"] == "openai"
    assert json.loads(options["limit_mm_per_prompt"]) == {"image": 1}
    assert fake.left() == []


def test_a_server_that_dies_is_started_again_with_its_images(fake: Fake) -> None:
    pictures = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in range(0, 200, 20)]
    fake.orders(die_at=4)
    with fake.captioner(prompt="?") as captioner:
        assert captioner.caption(pictures) == [f"a picture 8x8 [{shade}, 0, 0] ?" for shade in range(0, 200, 20)]
    assert len(fake.lines("starts")) == 2


def test_one_running_server_serves_captions_and_concepts(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    fake.orders(port=port)
    with fake.summarizer() as ours:  # its server stands for one that the user started
        assert ours._server is not None
        monkeypatch.setenv("SERVER_KEY", ours._server.key)
        running = {"model": None, "python": None, "url": f"http://127.0.0.1:{port}"}
        running |= {"served_model": "dnd", "api_key_env": "SERVER_KEY"}
        with fake.captioner(prompt="?", **running) as captioner, fake.summarizer(**running) as summarizer:
            assert captioner.memory() == 0
            assert captioner.caption([Image.new("RGB", (8, 8))]) == ["a picture 8x8 [0, 0, 0] ?"]
            assert summarizer.summarize(REQUESTS)
    assert len(fake.lines("starts")) == 1


SAME = {"model": "tiny-vlm", "context_length": 1024}


def test_concepts_come_from_the_server_of_the_captions(fake: Fake) -> None:
    with fake.summarizer(**SAME) as alone:
        expected = alone.summarize(REQUESTS)
    captioner, summarizer = fake.captioner(prompt="?", **SAME), fake.summarizer(**SAME)
    assert summarizer.borrow(captioner)
    with captioner:
        assert captioner.caption([Image.new("RGB", (8, 8))]) == ["a picture 8x8 [0, 0, 0] ?"]
        with summarizer:
            assert summarizer.summarize(REQUESTS) == expected
        assert captioner.caption([Image.new("RGB", (9, 8))]) == ["a picture 9x8 [0, 0, 0] ?"], "it is still there"
    assert len(fake.lines("starts")) == 2, "one for each half of this test"
    assert fake.left() == []


def test_a_borrowed_server_that_dies_is_started_again_and_ends_with_its_owner(fake: Fake) -> None:
    fake.orders(die_at=3)
    captioner, summarizer = fake.captioner(**SAME), fake.summarizer(**SAME)
    assert summarizer.borrow(captioner)
    with captioner:
        captioner.caption([Image.new("RGB", (8, 8))])
        with summarizer:
            assert all(summarizer.summarize(REQUESTS))
        assert fake.left()
    starts = fake.lines("starts")
    assert len(starts) == 2
    assert starts[0]["options"] == starts[1]["options"]
    assert fake.left() == []


def test_where_captions_are_known_the_summarizer_starts_the_same_server(fake: Fake) -> None:
    captioner, summarizer = fake.captioner(**SAME), fake.summarizer(**SAME)
    assert summarizer.borrow(captioner)
    with summarizer:
        assert all(summarizer.summarize(REQUESTS))
    with captioner:
        captioner.caption([Image.new("RGB", (8, 8))])
    first, second = (start["options"] for start in fake.lines("starts"))
    assert {**first, "uds": ""} == {**second, "uds": ""}
    assert fake.left() == []


@pytest.mark.parametrize(
    "other", [{"model": "another"}, {"dtype": "float32"}, {"context_length": 512}, {"eager": True}]
)
def test_another_server_is_not_borrowed(fake: Fake, other: dict[str, Any]) -> None:
    assert not fake.summarizer(**{**SAME, **other}).borrow(fake.captioner(**SAME))
    running = {"python": None, "url": "http://127.0.0.1:1", "served_model": "x", "model": None}
    assert not fake.summarizer(**running).borrow(fake.captioner(**running)), "nobody's to lend"


def test_the_captioner_stays_on_this_machine_and_has_a_model_of_its_own() -> None:
    with pytest.raises(pydantic.ValidationError, match="is not this machine"):
        VllmCaptionerConfig(url="http://example.org", served_model="x")
    assert VllmCaptionerConfig().model == "qwen2.5-vl-7b-instruct"
    assert VllmConfig().model == DEFAULT_MODEL
