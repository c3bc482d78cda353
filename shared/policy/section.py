"""The section `model` of a run's config: the policy that it starts from."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

from shared.options.checks import at_least, check, is_day
from shared.policy.families import FAMILIES

# The names of a table are a field's choices; a type checker cannot read them from a value.
if TYPE_CHECKING:
    Family = str
else:
    Family = Literal[tuple(FAMILIES)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The policy: a Hugging Face directory, or a small architecture that starts from random weights."""

    # Hugging Face directory with config.json, safetensors and tokenizer. An address (gs://bucket/phi-4) is copied once into the
    # work directory of each host.
    path: str = ""
    # What the assistant's turn begins with; "" leaves it to the chat template. "auto": what prompts.json in `path` says, else
    # "Let's think step by step.", but nothing where the template or `thinking` has the model reason by itself.
    prefill: str = "auto"
    # A template's switch for thinking (Qwen3). "auto" leaves it alone; Qwen3's template then closes the thinking at once in
    # front of the prefill. "on": the model begins by itself, without a prefill. What comes of it is shown as a run starts.
    thinking: Literal["auto", "on", "off"] = "auto"
    # Today for a template that shows the date (Llama 3.2), as 2026-11-26; empty: the day on which the run begins, kept with it.
    template_date: str = ""
    # of a policy made here; this and the rest only without `path`
    family: Family = "phi3"
    vocab_size: int = 1_024  # the tokenizer's upper bound
    hidden_size: int = 128  # width of the hidden states
    intermediate_size: int = 384  # width of the feed-forward layers
    num_hidden_layers: int = 4  # layers
    num_attention_heads: int = 4  # attention heads of a layer
    num_key_value_heads: int = 2  # heads that keys and values have; divides num_attention_heads
    rope_theta: float = 10_000.0  # base of the rotary position embedding
    rms_norm_eps: float = 1e-5  # added to the mean square in RMSNorm
    initializer_range: float = 0.02  # standard deviation of the random weights
    tie_word_embeddings: bool = False  # one table for input and output embeddings

    def __post_init__(self) -> None:
        at_least(self, 1, "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                 "num_key_value_heads")  # fmt: skip
        at_least(self, 300, "vocab_size")  # 256 bytes and the special tokens must fit
        heads = self.num_attention_heads
        check(self.hidden_size % (2 * heads) == 0, "hidden_size", self.hidden_size,
              f"must be an even multiple of num_attention_heads = {heads}")  # fmt: skip
        check(heads % self.num_key_value_heads == 0, "num_key_value_heads", self.num_key_value_heads,
              f"must divide num_attention_heads = {heads}")  # fmt: skip
        check(self.thinking != "on" or self.prefill in ("", "auto"), "prefill", self.prefill,
              "must be 'auto' or empty with thinking = 'on': a model that thinks begins by itself")  # fmt: skip
        check(self.thinking != "on" or bool(self.path), "thinking", self.thinking,
              "needs a `path`: a policy made here has no thinking to switch on")  # fmt: skip
        check(not self.template_date or is_day(self.template_date), "template_date", self.template_date,
              "must be a day such as 2026-11-26")  # fmt: skip
