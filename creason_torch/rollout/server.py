"""A running vLLM server on other GPUs: token ids in and out over HTTP, weights through a folder that both sides see.

The server is started for this alone, with the routes that change its weights switched on, and is nobody else's:

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --dtype bfloat16 --max-model-len N --skip-tokenizer-init \\
        --generation-config vllm --hf-overrides '{"head_dtype": "float32"}'

where MODEL has the architecture that is trained and N is the longest prompt and completion together; with
`grpo.score_temperature = 'sampling'` also `--logprobs-mode processed_logprobs` (why: `creason_torch.rollout.vllm_options`).
"""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from creason_torch.model.decoder import long_factors, read_config, save_params
from creason_torch.rollout import vllm_names, vllm_options
from creason_torch.rollout.engine import Drawn, Engine, processes
from shared.backend import Probe, Sampling, longest_text
from shared.errors import InputError
from shared.policy import weight_files
from shared.storage import files

# Seconds without an answer before a server counts as lost.
QUICK = 120
READING_WEIGHTS = 1_800
GENERATING = 3_600  # a request waits for its turn among all others of a step

# Where the server's own description of its model says what ours must agree with.
SHOWN = {"vocab_size": r"org_vocab_size=(\d+)", "hidden_size": r"embedding_dim=(\d+)"}
SHOWN_LAYERS = {"num_hidden_layers": r"(\d+) x \w*DecoderLayer"}


class ServerEngine(Engine):
    """Every process asks the server for its own prompts; process 0 brings it new weights."""

    whole_tensors = True

    def _prepare(self) -> None:
        config = self.config
        self.url = config.torch.server_url.rstrip("/")
        self.folder = Path(config.torch.server_weights).absolute()
        self._read_back: dict[str, str] | None = None
        # Learner and server are on one network: no proxy stands between them.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            self._name = self._ask("/v1/models", timeout=QUICK)["data"][0]["id"]
            self._check_settings()
            self._check_architecture()
        except (KeyError, IndexError, TypeError):
            raise InputError(f"{self.url}: what answers there is no vLLM server; correct torch.server_url") from None

    def _load(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        failure = None
        self._read_back = None
        if processes()[0] > 0:
            for _ in weights:  # every process takes part in putting a weight together
                pass
        else:
            with files.replacing(self.folder) as temporary:
                temporary.mkdir()
                # Under both names where it is tied: a server on a CPU, which cannot be told from here, packs its head again
                # for a weight of that name only (`creason_torch.rollout.vllm`).
                save_params(temporary, self._named_twice(weights))
                weight_files.copy_config_and_tokenizer(self.model, temporary)
            try:
                self._publish()
            except InputError as error:
                failure = error
        self._agree(failure)

    def _publish(self) -> None:
        """Make the server read the weights in the folder, and forget what it computed with older ones."""
        order = {"method": "reload_weights", "kwargs": {"weights_path": str(self.folder)}}
        try:
            self._ask("/collective_rpc", order, timeout=READING_WEIGHTS)
        except InputError as error:
            raise InputError(f"{error}; it must see the folder {self.folder} (torch.server_weights)") from None
        if not self._ask("/reset_prefix_cache", {}, timeout=QUICK)["success"]:
            raise InputError(f"{self.url}: the prefix cache was not reset; is somebody else using this server?")

    def readable(self) -> Mapping[str, int]:
        """See `shared.backend.RolloutEngine`. Asked of the server, once after each `load`."""
        return {name: self._shapes[name][0] for name in self._digests()}

    def digests(self, probes: Sequence[Probe]) -> list[str]:
        """See `shared.backend.RolloutEngine`."""
        found = self._digests()
        return [found[probe.name] for probe in probes]

    def _digests(self) -> dict[str, str]:
        """SHA-256 of the weights that the server keeps whole, as it computes them from its own memory."""
        if self._read_back is None:
            failure, told = None, b""
            if processes()[0] == 0:  # the server reads all its weights for this: once is enough
                try:
                    order = {"method": "compute_weight_checksums"}
                    workers = self._ask("/collective_rpc", order, timeout=READING_WEIGHTS)["results"]
                    told = json.dumps(vllm_names.whole_digests(workers, self._shapes)).encode()
                except InputError as error:
                    failure = error
            self._agree(failure)
            self._read_back = json.loads(self._from_first(told))
        return self._read_back

    def _from_first(self, told: bytes) -> bytes:
        """What process 0 was told, in every process."""
        if processes()[1] == 1:
            return told
        place = torch.device("cpu") if dist.get_backend() == "gloo" else self.device
        size = torch.tensor([len(told)], device=place)
        dist.broadcast(size, 0)
        content = torch.zeros(int(size), dtype=torch.uint8, device=place)
        content[: len(told)] = torch.frombuffer(bytearray(told), dtype=torch.uint8).to(place) if told else content
        dist.broadcast(content, 0)
        return content.cpu().numpy().tobytes()

    def _agree(self, failure: InputError | None) -> None:
        """Go on in every process or in none."""
        if failure is not None and processes()[1] == 1:
            raise failure
        if processes()[1] > 1:
            place = "cpu" if dist.get_backend() == "gloo" else self.device
            failed = torch.tensor([failure is not None], dtype=torch.int32, device=place)
            dist.broadcast(failed, 0)
            if failed.item():
                raise failure or InputError(f"{self.url}: process 0 could not bring the server new weights")

    def _draw(self, prompts: Sequence[np.ndarray], sampling: Sampling, uniforms: np.ndarray | None) -> Drawn:
        vllm_options.check_sampling(self.config, sampling)
        drawn = Drawn.empty(len(prompts), sampling)
        if not prompts:
            return drawn
        begin = time.perf_counter()
        places = [(row, sample) for row in range(len(prompts)) for sample in range(sampling.group_size)]

        def one(place: tuple[int, int]) -> None:
            numbers = None if uniforms is None else uniforms[place]
            body = {
                "model": self._name,
                "prompt": prompts[place[0]].tolist(),
                **vllm_options.options(sampling, numbers, self.stop_tokens),
                "return_token_ids": True,
                "return_tokens_as_token_ids": True,
            }
            found = self._ask("/v1/completions", body, timeout=GENERATING)["choices"][0]
            length = len(found["token_ids"])
            drawn.tokens[place][:length] = found["token_ids"]
            drawn.logprobs[place][:length] = found["logprobs"]["token_logprobs"]
            drawn.lengths[place] = length

        at_once = self.config.rollout.slots * sampling.group_size
        with ThreadPoolExecutor(min(at_once, len(places))) as pool:
            for _ in pool.map(one, places):
                pass
        self._count("decode", begin)
        return drawn

    def _score(self, texts: Sequence[np.ndarray], tokens: Sequence[int]) -> np.ndarray:
        scored = np.zeros((len(texts), len(tokens)), np.float32)

        def one(row: int) -> None:
            body = {
                "model": self._name,
                "prompt": texts[row].tolist(),
                **vllm_options.scoring_options(tokens),
                "return_tokens_as_token_ids": True,
            }
            found = self._ask("/v1/completions", body, timeout=GENERATING)["choices"][0]["logprobs"]["top_logprobs"][0]
            scored[row] = [found[f"token_id:{token}"] for token in tokens]

        if texts:
            with ThreadPoolExecutor(min(self.config.rollout.slots, len(texts))) as pool:
                for _ in pool.map(one, range(len(texts))):
                    pass
        return scored

    def _check_settings(self) -> None:
        """Raise InputError where the server was started with other settings than this run needs."""
        found = self._ask("/server_info?config_format=json", timeout=QUICK)["vllm_config"]["model_config"]
        longest = self.config.longest_sequence
        ours = read_config(self.model)
        if long_factors(ours, found["max_model_len"]) != long_factors(ours, longest):
            raise InputError(
                f"{self.url}: the server holds {found['max_model_len']} tokens, for which it takes other longrope factors "
                f"than this run; start it with --max-model-len {longest}"
            )
        if found["max_model_len"] < longest_text(self.config, self.workload):
            raise InputError(
                f"{self.url}: the server holds {found['max_model_len']} tokens; start it with --max-model-len {longest}"
            )
        wanted = {
            "dtype": f"torch.{self.config.learner.compute_dtype}",
            "logprobs_mode": vllm_options.logprobs_mode(self.config),
            "generation_config": "vllm",  # else it may sample with the options in its checkpoint
        }
        for name, value in wanted.items():
            if found.get(name) != value:
                option = f"--{name.replace('_', '-')} {value.removeprefix('torch.')}"
                raise InputError(f"{self.url}: the server's {name} is {found.get(name)}; start it with {option}")
        for name in ("override_generation_config", "logits_processors"):
            if found.get(name):
                option = f"--{name.replace('_', '-')}"
                raise InputError(f"{self.url}: the server changes what is sampled by {option}; start it without that")

    def _check_architecture(self) -> None:
        """Raise InputError where the server's model is visibly another one."""
        shown = self._ask("/collective_rpc", {"method": "get_model_inspection"}, timeout=QUICK)["results"]
        ours = read_config(self.model)
        # Layers are counted where every worker holds all of them.
        for name, pattern in (SHOWN | (SHOWN_LAYERS if len(set(shown)) == 1 else {})).items():
            found = re.search(pattern, shown[0])
            if found and int(found[1]) != getattr(ours, name):
                raise InputError(
                    f"{self.url}: the server's model has {name} {found[1]}, {self.model} has {getattr(ours, name)}; start "
                    "it with the model that is trained"
                )

    def _ask(self, route: str, body: dict[str, Any] | None = None, *, timeout: float) -> Any:
        """The answer to a GET, or to a POST of `body`. Raises InputError where there is none, or a refusal."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + route, data, {"Content-Type": "application/json"})
        try:
            with self._opener.open(request, timeout=timeout) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise InputError(f"{self.url}: {_refusal(error)}") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise InputError(
                f"{self.url}: no vLLM server answers ({reason}); start one, or correct torch.server_url"
            ) from None


def _refusal(error: urllib.error.HTTPError) -> str:
    if error.code in (404, 405):
        return f"the server has no route {error.url}; start vLLM 0.32 or later with VLLM_SERVER_DEV_MODE=1"
    text = error.read().decode(errors="replace")
    try:
        text = json.loads(text)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        pass
    return f"the server refused a request with status {error.code} ({' '.join(text.split())[:300]})"
