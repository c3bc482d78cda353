"""The policy network: Hugging Face's model code with a head that can compute log-probabilities of tokens without all logits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from creason_torch.model import attention, logprobs
from shared.errors import InputError
from shared.grpo import GroupLayout
from shared.policy import weight_files
from shared.policy.families import FAMILIES, MODEL_CONFIG
from shared.storage import files


class ScoringHead(nn.Module):
    """The language-model head. With targets it returns their log-probabilities, chunk by chunk; without targets, logits.

    It is a module, so that ZeRO-3 gathers its weight just before it is used, as for any layer.
    """

    def __init__(self, weight: nn.Parameter):
        super().__init__()
        self.weight = weight

    def forward(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor | None = None,
        *,
        chunk: int = 0,
        temperature: float = 1.0,
    ) -> Any:
        """Logits `[..., vocabulary]` of hidden states `[..., model]`; with `targets` `[batch, time]` their log-probabilities
        and the entropies, both float32 `[batch, time]`."""
        if targets is None:
            return nn.functional.linear(hidden, self.weight)
        return logprobs.token_logprobs(hidden, self.weight, targets, chunk=chunk, temperature=temperature)


class Policy(nn.Module):
    """A network that takes batches in the group layout and returns log-probabilities of the completion tokens."""

    def __init__(self, network: PreTrainedModel, *, chunk: int, temperature: float):
        super().__init__()
        self.network = network
        self.chunk, self.temperature = chunk, temperature

    def forward(
        self, tokens: torch.Tensor, positions: torch.Tensor, groups: torch.Tensor, layout: GroupLayout
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability and entropy of every completion token, both `[rows * G, C]` float32; inputs `[rows, time]`."""
        valid = groups >= 0
        hidden = self.network.model(
            input_ids=tokens, position_ids=positions, use_cache=False, group_layout=layout, valid=valid
        ).last_hidden_state
        rows, _, width = hidden.shape
        last = (valid[:, : layout.prompt].sum(dim=1) - 1).clamp(min=0)
        first = hidden[torch.arange(rows, device=hidden.device), last][:, None, None]
        first = first.expand(rows, layout.group, 1, width)
        own = hidden[:, layout.prompt :].reshape(rows, layout.group, layout.completion, width)
        # The token at c is scored by the state at c - 1, the first one by the prompt's last state.
        before = torch.cat([first, own[:, :, :-1]], dim=2).reshape(rows * layout.group, layout.completion, width)
        targets = tokens[:, layout.prompt :].reshape(rows * layout.group, layout.completion)
        return self.network.lm_head(before, targets, chunk=self.chunk, temperature=self.temperature)

    def named_weights(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by their Hugging Face names; a tied parameter has only its first name."""
        return dict(self.network.named_parameters())


def read_config(folder: Path) -> Any:
    """The architecture in `folder/config.json`, every dropout 0. Raises InputError for a family that is not computed."""
    values = files.read_json_object(folder / MODEL_CONFIG)
    kind = values.get("model_type")
    if kind not in FAMILIES:
        raise InputError(
            f"{folder / 'config.json'}: model_type is {kind!r}; this backend computes {', '.join(FAMILIES)}"
        )
    config = AutoConfig.from_pretrained(folder)
    for name in config.to_dict():
        if name.endswith(("dropout", "pdrop")):  # each family has names of its own
            setattr(config, name, 0.0)
    return config


def long_factors(config: Any, longest: int) -> bool:
    """Whether a run whose longest sequence has `longest` tokens uses longrope's long factors, in all of its sequences.

    Hugging Face chooses again at each call, by the largest position in that call. Then a row would depend on the other rows of
    its micro-batch, and training could rotate otherwise than the rollout. vLLM has the rule used here, by its `max_model_len`.
    """
    rope = config.rope_parameters
    return rope["rope_type"] == "longrope" and longest > rope["original_max_position_embeddings"]


def fix_rotation(network: PreTrainedModel, longest: int) -> None:
    """Set a network's rotary frequencies: always in float32, and one table for every sequence of a run.

    A network that was built in `zero.sharded` needs this again outside of it: inside, DeepSpeed rounds the frequencies, or their
    inputs, to the compute dtype. With bfloat16 frequencies the angles are wrong by radians after some hundred tokens.
    """
    rounded = network.model.rotary_emb
    with torch.device("cpu"):  # there every engine and every ZeRO stage gets the same bits
        rotary = type(rounded)(config=network.config)
        if rotary.rope_type == "longrope":
            # With `seq_len`, Transformers' function takes the long factors for lengths above
            # `original_max_position_embeddings`, else the short ones.
            frequencies, _ = ROPE_INIT_FUNCTIONS["longrope"](network.config, torch.device("cpu"), seq_len=longest)
            rotary.inv_freq.copy_(frequencies)
            rotary.rope_type = "default"  # for this type Transformers never chooses the factors again
    network.model.rotary_emb = rotary.to(rounded.inv_freq.device)


def check_tables(network: nn.Module) -> None:
    """Raise InputError for a floating-point buffer that is not float32: DeepSpeed or a cast has rounded it."""
    for name, buffer in network.named_buffers():
        if buffer.is_floating_point() and buffer.dtype != torch.float32:
            raise InputError(
                f"{name} of this model is a table in {buffer.dtype}; this backend keeps its tables in float32"
            )


def build_network(folder: Path, dtype: torch.dtype, *, longest: int, remat: bool = False) -> PreTrainedModel:
    """The network that `folder/config.json` describes, with attention over the group layout and a scoring head.

    Its weights are not initialised. Inside `zero.sharded` each process allocates only its own slices. `longest`: see
    `long_factors`. `remat`: the backward pass computes the layers again (gradient checkpointing).
    """
    attention.register()
    config = read_config(folder)
    with no_init_weights():
        network = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention.NAME)
        network.lm_head = ScoringHead(network.lm_head.weight)
    network.tie_weights()
    # Transformers' embedding gives no gradient to the row of the pad token. Here padding is masked, and the policy may sample
    # that token like any other, so its row must be trained.
    network.get_input_embeddings().padding_idx = None
    fix_rotation(network, longest)
    if remat:
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return network


def load_weights(
    folder: Path, weights: Mapping[str, nn.Parameter], put: Callable[[nn.Parameter, torch.Tensor], None]
) -> None:
    """Call `put(parameter, stored tensor)` for each parameter, one at a time: no process holds the whole model.

    Raises InputError for a tensor that is missing, truncated or has another shape, and for one that the model does not have.
    """
    missing = set(weights)
    for name, value in stored_weights(folder):
        weight_files.check_known(folder, [name], weights)
        if name not in weights:
            continue
        stored, needed = tuple(value.shape), tuple(getattr(weights[name], "ds_shape", weights[name].shape))
        if stored != needed:
            raise InputError(f"{folder}: tensor {name} has shape {stored}, config.json asks for {needed}")
        put(weights[name], value)
        missing.discard(name)
    if missing:
        raise weight_files.missing(folder, min(missing))


def stored_weights(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and stored values of every tensor of a model directory, one at a time.

    Raises InputError for a missing or truncated file, for values that are not finite, and as `weight_files.places` does.
    """
    named = weight_files.places(folder)
    for path in sorted(set(named.values())):
        with weight_files.opened(path, "pt") as stored:
            for name in [name for name, file in named.items() if file == path]:
                weight_files.check_dtype(folder, name, stored.get_slice(name).get_dtype())
                tensor = stored.get_tensor(name)
                if tensor.numel() and not all(map(torch.isfinite, tensor.aminmax())):
                    raise weight_files.not_finite(path, name)
                yield name, tensor


class StoredWeights:
    """A context manager over a model directory: `read` gives a tensor by its name.

    Raises InputError as `stored_weights` does.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._held = contextlib.ExitStack()
        self._files: dict[str, Any] = {}

    def __enter__(self) -> StoredWeights:
        named = weight_files.places(self.folder)
        with contextlib.ExitStack() as stack:
            files = {path: stack.enter_context(weight_files.opened(path, "pt")) for path in sorted(set(named.values()))}
            self._files = {name: files[path] for name, path in named.items()}
            self._held = stack.pop_all()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._held.close()

    def read(self, name: str) -> torch.Tensor:
        """The stored tensor of that name. Raises InputError if there is none."""
        if name not in self._files:
            raise weight_files.missing(self.folder, name)
        return self._files[name].get_tensor(name)


def save_params(folder: Path, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Write (name, tensor) pairs as safetensors: one file, or several and an index."""
    on_host = ((name, tensor.detach().to("cpu", copy=True).contiguous()) for name, tensor in weights)
    weight_files.write(folder, on_host, save_file)
