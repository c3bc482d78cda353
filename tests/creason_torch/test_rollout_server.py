from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from creason_torch.rollout import Engine, make_engine, readback
from creason_torch.rollout.server import ServerEngine
from shared.backend import Probe, Workload
from shared.errors import InputError
from shared.storage import files
from tests.support import rollouts
from tests.support.rollouts import CPU, GREEDY, LIMIT, LONGEST, SAMPLED, World, assert_same, rollout_config, weights
from tests.support.tiny import tiny_phi3
from tests.support.workers import free_port

pytestmark = pytest.mark.slow

# What vLLM's server needs beside vLLM itself.
NEEDED = (
    "vllm",
    "fastapi",
    "uvicorn",
    "prometheus_fastapi_instrumentator",
    "model_hosting_container_standards",
    "jmespath",
)
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
needs_server = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
STARTING = 300  # seconds


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    """With tied tables: their head is packed apart, and must be the new weights' too."""
    return rollouts.make_world(tmp_path_factory.mktemp("models"), tie_word_embeddings=True)


@pytest.fixture(scope="module")
def server(world, tmp_path_factory) -> Iterator[str]:
    """The address of a real vLLM server on the CPU. It starts with the second model's weights, which nobody asks for."""
    port = free_port()
    log = tmp_path_factory.mktemp("server") / "log.txt"
    settings = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                "VLLM_TARGET_DEVICE": "cpu",
                "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}  # fmt: skip
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(world.other_folder), "--host",
        "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", str(LONGEST + LIMIT),
        "--enforce-eager", "--skip-tokenizer-init", "--max-num-seqs", "16", "--generation-config", "vllm",
    ]  # fmt: skip
    with log.open("w") as out:
        process = subprocess.Popen(
            command, env=os.environ | settings, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + STARTING
        while not answers(url):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-4_000:]
            time.sleep(0.5)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def options(url: str, folder: Path) -> dict[str, Any]:
    return {"server_url": url, "server_weights": str(folder)}


@pytest.fixture(scope="module")
def engine(world, server, tmp_path_factory) -> Engine:
    return world.engine("server", torch_options=options(server + "/", tmp_path_factory.mktemp("published") / "weights"))


@needs_server
@rollouts.every_check
def test_a_vllm_server(world, engine, check):
    check(world, engine)


@needs_server
def test_a_prefix_cache_that_is_not_reset_shows(world, engine, monkeypatch):
    ask = engine._ask

    def without_reset(route: str, *arguments: Any, **named: Any) -> Any:
        return {"success": True} if route == "/reset_prefix_cache" else ask(route, *arguments, **named)

    @contextlib.contextmanager
    def patched() -> Iterator[None]:
        with monkeypatch.context() as context:
            context.setattr(engine, "_ask", without_reset)
            yield

    rollouts.check_stale_caches_show(world, engine, patched)


@needs_server
def test_what_is_published_is_a_model_directory(world, engine):
    engine.load(weights(world.folder))
    described = json.loads((world.folder / "config.json").read_text()) | {"dtype": "float32", "torch_dtype": "float32"}
    assert json.loads((engine.folder / "config.json").read_text()) == described
    published = load_file(engine.folder / "model.safetensors")
    expected = dict(weights(world.folder))
    expected["lm_head.weight"] = expected["model.embed_tokens.weight"]
    assert published.keys() == expected.keys()
    assert all(torch.equal(published[name], expected[name]) for name in expected)
    assert [path for path in engine.folder.parent.iterdir() if path != engine.folder] == []


@needs_server
def test_what_the_server_holds_is_read_back(world, engine):
    for version, network in enumerate((world.network, world.other_network)):
        held = {name: weight.detach() for name, weight in network.named_parameters()}
        engine.load(held.items(), version=version)
        names = engine.readable()
        norms = {name for name in held if "norm" in name}
        assert norms | {"model.embed_tokens.weight"} <= names.keys() <= held.keys()
        probes = [Probe(name, None) for name in names]
        assert engine.digests(probes) == [readback.digest(held[name]) for name in names]
        assert engine.version == version
    engine._publish = lambda: None  # the server keeps what it has
    try:
        engine.load(weights(world.folder), version=2)
    finally:
        del engine._publish
    expected = dict(weights(world.folder))
    assert engine.digests(probes) != [readback.digest(expected[name]) for name in names]


@needs_server
def test_a_server_of_another_kind_is_refused(world, server, tmp_path):
    def message(folder: Path = world.folder, **sections: Any) -> str:
        with pytest.raises(InputError) as caught:
            build(server, tmp_path, folder, **sections)
        assert "\n" not in str(caught.value) and server in str(caught.value)
        return str(caught.value)

    assert f"start it with --max-model-len {LONGEST + 13}" in message(rollout={"max_new_tokens": 13})
    short = Workload(prompt_tokens=LONGEST - 1, questions=1)  # what is asked counts, not what might be
    build(server, tmp_path, world.folder, short, rollout={"max_new_tokens": 13})
    assert "start it with --dtype bfloat16" in message(learner={"compute_dtype": "bfloat16"})
    assert "--logprobs-mode processed_logprobs" in message(grpo={"score_temperature": "sampling"})
    for name, value in {"vocab_size": 640, "hidden_size": 256, "num_hidden_layers": 3}.items():
        tiny_phi3(tmp_path / name, **{name: value})
        assert f"the server's model has {name}" in message(tmp_path / name)


@needs_server
def test_a_folder_that_the_server_does_not_see_is_named(world, server, tmp_path):
    engine = world.engine("server", torch_options=options(server, tmp_path / "seen"))
    engine.folder = tmp_path / "elsewhere"
    with pytest.raises(InputError, match=f"it must see the folder {tmp_path}/elsewhere"):
        engine._publish()
    engine.folder = tmp_path / "seen"
    engine.load(weights(world.folder))
    rollouts.check_greedy(world, engine)


@needs_server
def test_processes_share_the_prompts(world, server, engine, tmp_path):
    engine.load(weights(world.folder))
    expected = engine.generate(world.prompts, SAMPLED, world.uniforms)
    chosen = options(server, tmp_path / "weights")
    for found in rollouts.draw_in_processes(world, "server", tmp_path, processes=2, torch_options=chosen):
        assert_same(found, expected)


def build(
    url: str, weights_folder: Path, model: Path, workload: Workload | None = None, **sections: Any
) -> ServerEngine:
    config = rollout_config("server", torch_options=options(url, weights_folder), **sections)
    engine = make_engine(config, model, stop_tokens=[3], device=CPU, workload=workload)
    assert isinstance(engine, ServerEngine)
    return engine


@dataclasses.dataclass
class Stub:
    """A server that answers each route as it is told: (status, body)."""

    url: str
    routes: dict[str, tuple[int, Any]]


@pytest.fixture
def stub() -> Iterator[Stub]:
    settings = {
        "max_model_len": 10_000, "dtype": "torch.float32", "logprobs_mode": "raw_logprobs", "generation_config": "vllm",
        "override_generation_config": {}, "logits_processors": None,
    }  # fmt: skip
    routes = {
        "/v1/models": (200, {"data": [{"id": "policy"}]}),
        "/server_info": (200, {"vllm_config": {"model_config": settings}}),
        "/collective_rpc": (200, {"results": ["(a description that says nothing)"]}),
        "/reset_prefix_cache": (200, {"success": True}),
    }

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = routes.get(self.path.split("?")[0], (404, {"detail": "Not Found"}))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

        do_GET = do_POST = answer

        def log_message(self, *_: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """A client that has given up is no news."""

    with Quiet(("127.0.0.1", 0), Handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield Stub(f"http://127.0.0.1:{found.server_address[1]}", routes)
        found.shutdown()


def test_no_server_ends_with_one_line(world, tmp_path):
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(InputError, match=f"{url}: no vLLM server answers .*refused.*torch.server_url"):
        build(url, tmp_path, world.folder)


def test_something_else_at_that_address_ends_with_one_line(world, stub, tmp_path):
    stub.routes["/v1/models"] = (200, b"<html>welcome</html>")
    with pytest.raises(InputError, match="no vLLM server answers"):
        build(stub.url, tmp_path, world.folder)
    stub.routes["/v1/models"] = (200, {"hello": 1})
    with pytest.raises(InputError, match="what answers there is no vLLM server"):
        build(stub.url, tmp_path, world.folder)


def test_a_server_without_the_routes_for_weights_says_how_to_start_it(world, stub, tmp_path):
    del stub.routes["/server_info"]
    with pytest.raises(InputError, match="has no route .*/server_info.*VLLM_SERVER_DEV_MODE=1"):
        build(stub.url, tmp_path, world.folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"generation_config": "auto"}, "generation_config is auto; start it with --generation-config vllm"),
        ({"generation_config": "/models/x"}, "generation_config is /models/x; start it with --generation-config vllm"),
        ({"generation_config": None}, "start it with --generation-config vllm"),
        ({"override_generation_config": {"top_k": 20}}, "by --override-generation-config; start it without that"),
        ({"logits_processors": ["a.B"]}, "by --logits-processors; start it without that"),
    ],
)
def test_a_server_that_may_sample_by_its_own_options_is_refused(world, stub, tmp_path, settings, message):
    stub.routes["/server_info"][1]["vllm_config"]["model_config"] |= settings
    with pytest.raises(InputError, match=message):
        build(stub.url, tmp_path, world.folder)


def test_refusals_while_a_run_goes_on_end_with_one_line(world, stub, tmp_path):
    engine = build(stub.url, tmp_path / "published", world.folder)
    stub.routes["/reset_prefix_cache"] = (200, {"success": False})
    with pytest.raises(InputError, match="prefix cache was not reset"):
        engine.load(weights(world.folder))
    stub.routes["/collective_rpc"] = (500, {"error": {"message": "cannot\nread"}})
    with pytest.raises(InputError, match=r"status 500 \(cannot read\); it must see the folder"):
        engine.load(weights(world.folder))
    with pytest.raises(InputError, match="no weights yet"):
        engine.generate(world.prompts, GREEDY, None)
    stub.routes |= {"/collective_rpc": (200, {}), "/reset_prefix_cache": (200, {"success": True})}
    engine.load(weights(world.folder))
    stub.routes["/v1/completions"] = (503, b"busy")
    with pytest.raises(InputError, match=r"status 503 \(busy\)"):
        engine.generate(world.prompts, GREEDY, None)


def test_a_silent_server_ends_with_one_line(world, stub, tmp_path, monkeypatch):
    engine = build(stub.url, tmp_path, world.folder)
    hold = threading.Event()
    monkeypatch.setattr("creason_torch.rollout.server.GENERATING", 0.2)
    monkeypatch.setattr("http.server.BaseHTTPRequestHandler.send_response", lambda *_: hold.wait(5))
    engine.loaded = True
    with pytest.raises(InputError, match="no vLLM server answers .*timed out"):
        engine.generate(world.prompts[:1], GREEDY, None)
    hold.set()


def test_large_models_are_published_in_several_files(world, stub, tmp_path, monkeypatch):
    monkeypatch.setattr("shared.policy.weight_files.SHARD_BYTES", 2**18)
    engine = build(stub.url, tmp_path / "published", world.folder)
    engine.load(weights(world.folder))
    index = files.read_json(engine.folder / "model.safetensors.index.json")["weight_map"]
    expected = dict(weights(world.folder))
    expected["lm_head.weight"] = expected["model.embed_tokens.weight"]
    assert index.keys() == expected.keys() and len(set(index.values())) > 2
    for name, file in index.items():
        assert torch.equal(load_file(engine.folder / file)[name], expected[name])
