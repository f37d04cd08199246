"""Stands in for `vllm.entrypoints.openai.api_server`: the same command line and HTTP, no model. Run by test_vllm.py.

$VLLM_FAKE is a folder: `orders.json` says how to behave; what happens is left there for the test to read.
Like vLLM it has processes of its own that a careless end would leave behind.
"""

import argparse
import base64
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer

from PIL import Image

HERE = Path(os.environ["VLLM_FAKE"])
ORDERS = json.loads((HERE / "orders.json").read_text())
LOCK = threading.Lock()
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"
ORPHAN = f"import subprocess, sys; subprocess.Popen([sys.executable, '-S', '-c', {STUBBORN!r}], start_new_session=True)"


class Local(ThreadingHTTPServer):
    """At a Unix socket."""

    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        TCPServer.server_bind(self)

    def get_request(self) -> tuple:
        return self.socket.accept()[0], ("", 0)


class Chat(BaseHTTPRequestHandler):
    """Counts what it is asked; misbehaves as ordered."""

    protocol_version = "HTTP/1.1"
    asked = 0
    under_way = 0
    most = 0

    def do_GET(self) -> None:
        if self.path == "/health":
            self.reply(200, {})
        elif self.allowed():
            self.reply(200, {"object": "list", "data": [{"id": self.server.model}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed():
            return
        with LOCK:
            Chat.asked += 1
            number = Chat.asked
            Chat.under_way += 1
            Chat.most = max(Chat.most, Chat.under_way)
            with (HERE / "asked.jsonl").open("a") as file:
                file.write(json.dumps({**body, "under_way": Chat.under_way}) + "\n")
        time.sleep(ORDERS.get("think", 0.0))
        if self.server.start_number <= ORDERS.get("bad_starts", 1):
            if number == ORDERS.get("die_at"):
                print("RuntimeError: the engine has died", file=sys.stderr, flush=True)
                os._exit(1)
            if number >= ORDERS.get("hang_at", 10**9):
                time.sleep(300)
        with LOCK:
            Chat.under_way -= 1
        text = said(body["messages"][-1]["content"])
        if number <= ORDERS.get("errors", 0) or "cursed" in text:
            self.reply(500, {"error": {"message": "a passing weakness"}})
        elif len(text) > ORDERS.get("longest", 10**9):
            self.reply(400, {"error": {"message": "This model's maximum context length is 8 tokens."}})
        else:
            self.reply(200, {"choices": [{"message": {"content": answer(text, body["seed"])}}]})

    def allowed(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {os.environ['VLLM_API_KEY']}":
            return True
        self.reply(401, {"error": "Unauthorized"})
        return False

    def reply(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


def said(content: object) -> str:
    """A message as text; of an image its size and the mean of its colours."""
    if isinstance(content, str):
        return content
    parts = []
    for part in content:
        if part["type"] == "image_url":
            head, _, data = part["image_url"]["url"].partition(",")
            assert head == "data:image/png;base64", head
            with Image.open(io.BytesIO(base64.b64decode(data))) as image:
                mean = [round(band.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))) for band in image.split()]
                parts.append(f"picture {image.width}x{image.height} {mean}")
        else:
            parts.append(part["text"])
    return " ".join(parts)


def answer(text: str, seed: int) -> str:
    if text.startswith("picture "):
        return f"a {text}\n"
    if "Caption: " in text:
        return text.rpartition("Caption: ")[2].removeprefix("a ")
    return ("star", "red star", "blue star")[seed % 3]


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("model", "served-model-name", "uds", "load-format", "dtype", "generation-config", "quantization"):
        parser.add_argument(f"--{name}")
    for name in ("chat-template-content-format", "uvicorn-log-level", "gpu-memory-utilization", "limit-mm-per-prompt"):
        parser.add_argument(f"--{name}")
    for name in ("max-model-len", "tensor-parallel-size", "seed"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("enable-prefix-caching", "enforce-eager", "no-enable-chunked-prefill"):
        parser.add_argument(f"--{name}", action="store_true")
    options = vars(parser.parse_args())
    starts = HERE / "starts.jsonl"
    start_number = len(starts.read_text().splitlines()) + 1 if starts.exists() else 1
    with starts.open("a") as file:
        record = {
            "argv": sys.argv,
            "options": options,
            "env": dict(os.environ),
            "cwd": str(Path.cwd()),
            "pid": os.getpid(),
        }
        file.write(json.dumps(record) + "\n")
    print("(APIServer pid=1) INFO 11-23 10:00:00 [api_server.py:1] starting", flush=True)
    last_words = ORDERS.get("last_words", [])
    if len(last_words) >= start_number and last_words[start_number - 1]:
        print(last_words[start_number - 1], file=sys.stderr, flush=True)
        sys.exit(1)
    subprocess.Popen([sys.executable, "-S", "-c", STUBBORN])
    subprocess.run([sys.executable, "-S", "-c", ORPHAN], check=True)
    time.sleep(ORDERS.get("slow", 0.0))
    ThreadingHTTPServer.request_queue_size = 64
    server = Local(options["uds"], Chat)
    server.model, server.start_number = options["served_model_name"], start_number
    if "port" in ORDERS:
        other = ThreadingHTTPServer(("127.0.0.1", ORDERS["port"]), Chat)
        other.model, other.start_number = server.model, server.start_number
        threading.Thread(target=other.serve_forever, daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    main()
