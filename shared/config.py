"""A run's configuration: an ml_collections file, validated into frozen dataclasses.

A config file is Python with `get_config() -> ConfigDict`; its keys are the fields below and nothing else. An error names
the field and the reason. Defaults are the paper's (spec: grpo, section 1) unless the comment says otherwise.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

from ml_collections import ConfigDict

from shared.cohorts.mimic3.options import Mimic3Config
from shared.errors import InputError
from shared.options import data
from shared.options.checks import at_least, check
from shared.options.health import HealthConfig
from shared.policy.families import FAMILIES
from shared.questions.days import is_day
from shared.tasks.catalogue import TASKS, suiting

# The names of a table are a field's choices; a type checker cannot read them from a value.
if TYPE_CHECKING:
    Family = str
    TaskName = str
else:
    Family = Literal[tuple(FAMILIES)]
    TaskName = Literal[tuple(TASKS)]
Loss = Literal["grpo", "bnpo", "dr_grpo", "dapo", "gspo", "cispo", "sapo", "vespo", "luspo"]
Remat = Literal["none", "layer", "dots", "offload"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where questions come from. With `train` and `valid` empty they are made from `cohort` into the work directory."""

    # which registry; custom: your own table and codebook
    cohort: Literal["synthetic", "sepsis", "hospitalized", "stroke", "mimic3", "custom"] = "synthetic"
    # what is asked: a masked value, AKI within 48 hours, mRS at 3 months, MACE within a year; of MIMIC-III a measurement 24 hours
    # ahead, or death in the hospital
    task: TaskName = "denoising"
    source: str = ""  # folder of the raw files; empty with `synthetic`: the registry is drawn
    # of a custom registry's texts, such as cp949, where its files do not say it and are not in UTF-8
    encoding: str = ""
    delimiter: str = ""  # between the cells of a custom registry's text file; empty: found, and said
    decimal: str = ""  # mark of decimals in a custom registry, a point or a comma; empty: found, and said
    exclude: str = ""  # file of the ids of patients to leave out of a custom registry, such as those who withdrew
    train: str = ""  # question files that exist already: paths, or addresses such as gs://bucket/train.parquet
    valid: str = ""  # the same for held-out questions
    compat: Literal["none", "paper"] = "none"  # paper: the original's values, statistics and draws, faults included
    patients: int = 2_000  # drawn, for `synthetic` only
    valid_patients: int = 1_000  # held out
    split: Literal["random", "site", "time"] = "random"  # who is held out
    held_out: str = ""  # sites held out, or the first date held out; empty: by valid_patients
    fit: Literal["train", "all"] = "train"  # whose values statistics and mutual information describe (the paper: all)
    train_questions: int = 30_000  # training questions (spec: grpo, section 1)
    valid_questions: int = 1_000  # held-out questions
    num_choices: int = 5  # options of a question, 2 to 5 (spec: registry, section e)
    # Distance between options that are numbers, in standard deviations: smaller is harder (spec: registry, section e).
    difficulty: float = 2.0
    mi_cutoff: float = 0.5  # nats; features that share more with the masked one are hidden (spec: registry, section e)
    # Each option is the right one equally often, so that frequency is no answer. "train": held-out values come as often as
    # among patients, e.g. to judge calibration. "none": the paper.
    balance: Literal["all", "train", "none"] = "all"
    all_victims: bool = False  # held-out patients: every value of one after the other, not one drawn from each in turn
    masked: int = 1  # values masked together in a record; each is asked for
    causal: bool = False  # show nothing from sections that a record shows after that of the masked value
    core_features: int = 0  # keep only so many features of the registry, the most informative; 0 keeps all
    core_kind: Literal["any", "category", "number"] = "any"  # kind of the features kept
    # "sorted" shows options in the order of the codebook, or of the numbers, for policies too small to look a letter up.
    option_order: Literal["shuffled", "sorted"] = "shuffled"
    context_features: int = 0  # features shown in a record; 0 shows the whole record, as the paper does
    mimic3: Mimic3Config = Mimic3Config()

    def __post_init__(self) -> None:
        at_least(self, 1, "patients", "valid_patients", "train_questions", "valid_questions", "masked")
        at_least(self, 0, "core_features", "context_features", "mi_cutoff")
        check(2 <= self.num_choices <= 5, "num_choices", self.num_choices, "must be 2 to 5, the letters A to E")
        check(self.difficulty > 0, "difficulty", self.difficulty, "must be above 0")
        check(bool(self.train) == bool(self.valid), "valid", self.valid, "give both `train` and `valid`, or neither")
        check(self.cohort == "synthetic" or bool(self.source or self.train), "source", self.source,
              f"the folder with the raw files of {self.cohort!r} is needed")  # fmt: skip
        drawn = self.cohort == "synthetic" and not self.source and not self.held_out
        check(not drawn or self.valid_patients < self.patients, "valid_patients", self.valid_patients,
              f"must leave training patients: below patients = {self.patients}")  # fmt: skip
        check(self.task in TASKS, "task", self.task, f"must be one of {', '.join(TASKS)}")
        suited = TASKS[self.task].cohorts
        check(self.cohort in suited, "task", self.task, f"needs cohort = {' or '.join(map(repr, suited))}; the tasks of "
              f"{self.cohort!r} are {', '.join(suiting(self.cohort))}")  # fmt: skip
        check(not (self.exclude and self.train), "exclude", self.exclude,
              "nobody can be left out of questions that are made already; leave them out when they are prepared")  # fmt: skip
        check(self.compat == "none" or self.cohort != "custom", "compat", self.compat,
              "the original had no custom cohort")  # fmt: skip
        check(self.compat == "none" or self.cohort != "mimic3", "compat", self.compat,
              "the questions of mimic3 are the original's in any case; leave it out")  # fmt: skip
        check(self.compat == "none" or (self.split, self.fit) == ("random", "train"), "compat", self.compat,
              "fixes the split and what is fitted; leave split and fit alone")  # fmt: skip
        defaults = types.SimpleNamespace(**{field.name: field.default for field in dataclasses.fields(self)})
        for name, reason in self.unread().items():
            value, default = (attrgetter(name)(values) for values in (self, defaults))
            check(value == default, name, value, reason)

    def unread(self) -> dict[str, str]:
        """The options that nothing would read, and why; `balance` = "none" is what compat = "paper" does anyway."""
        found = data.unread(**{name: getattr(self, name) for name in data.DECIDING})
        if (self.compat, self.balance) == ("paper", "none"):
            del found["balance"]
        return found


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up from 0 and cosine decay to 0."""

    learning_rate: float = 1e-6  # peak (spec: grpo, section 1)
    warmup_ratio: float = 0.1  # of all steps, rounded up (spec: grpo, section 1)
    b1: float = 0.9  # decay of Adam's first moment (spec: grpo, section 1)
    b2: float = 0.999  # decay of Adam's second moment (spec: grpo, section 1)
    eps: float = 1e-8  # added to the root of the second moment (spec: grpo, section 1)
    weight_decay: float = 0.0  # decoupled, as in AdamW (spec: grpo, section 1)
    max_grad_norm: float = 1.0  # the gradient's global norm is clipped to this (spec: grpo, section 1)

    def __post_init__(self) -> None:
        at_least(self, 0, "learning_rate", "weight_decay")
        check(0 <= self.warmup_ratio < 1, "warmup_ratio", self.warmup_ratio, "must be in [0, 1)")
        check(0 <= self.b1 < 1, "b1", self.b1, "must be in [0, 1)")
        check(0 <= self.b2 < 1, "b2", self.b2, "must be in [0, 1)")
        check(self.eps > 0, "eps", self.eps, "must be above 0")
        check(self.max_grad_norm > 0, "max_grad_norm", self.max_grad_norm, "must be above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmupConfig:
    """Next-token training before GRPO, for a policy that starts from random weights; off where `steps` is 0."""

    steps: int = 0  # optimizer steps; 0: none
    batch_size: int = 32  # documents in a step
    sequence_length: int = 256  # tokens of a document; longer ones are cut
    worked_answers: int = 1_000  # training questions shown with their answer; the rest is serialised records
    worked_fraction: float = 0.5  # of each batch
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3, b2=0.95, warmup_ratio=0.05)

    def __post_init__(self) -> None:
        at_least(self, 0, "steps", "worked_answers")
        at_least(self, 1, "batch_size")
        at_least(self, 2, "sequence_length")
        check(0 <= self.worked_fraction <= 1, "worked_fraction", self.worked_fraction, "must be in [0, 1]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrpoConfig:
    """The objective (spec: grpo, sections 2 and 4). `preset` is the name of the choices this started from."""

    preset: Literal["paper", "paper_fixed", "modern"] = "paper"  # the choices this started from (docs/spec/grpo.md)
    group_size: int = 7  # G, completions for each question (spec: grpo, section 1)
    questions_per_step: int = 5  # questions of an optimizer step (spec: grpo, section 1)
    steps: int = 0  # optimizer steps; 0: as many as one epoch of the training questions gives
    inner_steps: int = 1  # optimizer steps on one set of rollouts (spec: grpo, section 2)
    # how tokens are weighted, and the policy term; formulas: shared/grpo/objective.py (spec: grpo, section 2)
    loss: Loss = "grpo"
    # ratio to the old policy, of each token or of a completion (its mean over tokens)
    ratio_level: Literal["token", "sequence"] = "token"
    epsilon_low: float = 0.2  # the ratio is clipped below 1 - this
    epsilon_high: float = 0.2  # the ratio is clipped above 1 + this; cispo: the cap on the ratio itself
    delta: float | None = None  # cap on the ratio where the advantage is negative; None: no cap
    # standard deviation that centred rewards are divided by: the group's, the batch's, or none (spec: grpo, section 2)
    advantage_scale: Literal["group", "batch", "none"] = "group"
    # weight of the KL to the reference policy; 0: no reference policy in memory (spec: grpo, section 1)
    beta: float = 0.04
    # of the KL, for each token; k3 is exp(d) - d - 1 with d = reference - policy (spec: grpo, section 1)
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    kl_in_ratio: bool = False  # multiply the KL term by the ratio (TRL calls it kl_bias_correction)
    mask_truncated: bool = False  # completions that the length limit ended carry no loss
    # groups with equal rewards stay, are left out, or are replaced by further questions (spec: grpo, section 2)
    uniform_groups: Literal["keep", "drop", "refill"] = "keep"
    # importance weight between the engine's and the learner's log-probabilities
    rollout_correction: Literal["none", "token", "sequence"] = "none"
    rollout_correction_cap: float = 2.0  # that weight is cut to this
    # nats a token; completions with a negative advantage that drifted further from the old policy carry no policy term
    off_policy_mask_threshold: float | None = None
    sapo_temperature_pos: float = 1.0  # of the sapo gate where the advantage is positive
    sapo_temperature_neg: float = 1.05  # of the sapo gate elsewhere
    vespo_k_pos: float = 2.0  # exponent of the vespo weight where the advantage is not negative
    vespo_lambda_pos: float = 3.0  # decay of the vespo weight where the advantage is not negative
    vespo_k_neg: float = 3.0  # exponent of the vespo weight where the advantage is negative
    vespo_lambda_neg: float = 2.0  # decay of the vespo weight where the advantage is negative
    # what logits are divided by when log-probabilities are scored: 1, or rollout.temperature (spec: grpo, section 2)
    score_temperature: Literal["one", "sampling"] = "one"
    # optimizer steps between moves of the reference policy; 0: it never moves (spec: grpo, section 1)
    ref_sync_steps: int = 64
    ref_mixup: float = 0.9  # a move is ref <- ref_mixup * policy + (1 - ref_mixup) * ref (spec: grpo, section 1)
    reward_answer: float = 1.0  # for the right letter in a box (spec: grpo, section 3)
    reward_format: float = 0.0  # for any box with a letter in it
    reward_length: float = 0.0  # for completions that end by themselves
    overlong_soft: int = 0  # tokens; from here to the limit a penalty grows linearly to -1; 0: off
    # Which box is the answer, for the terms answer and format alike (shared/questions/boxes.py): the first, read strictly (the
    # paper), or the last behind the reasoning, read leniently. The evaluations of a run report by it, with the other one beside.
    answer_rule: Literal["strict_first", "lenient_last"] = "strict_first"
    # prompts above max_prompt_tokens lose their beginning, or are left out (spec: grpo, section 1)
    overlong_prompts: Literal["truncate_left", "drop"] = "truncate_left"
    max_logprob_gap: float = 0.5  # nats, mean over a batch's tokens; a run stops beyond it

    def __post_init__(self) -> None:
        at_least(self, 2, "group_size")
        at_least(self, 1, "questions_per_step", "inner_steps")
        at_least(self, 0, "steps", "beta", "epsilon_low", "epsilon_high", "ref_sync_steps", "overlong_soft",
                 "rollout_correction_cap", "reward_answer")  # fmt: skip
        check(self.delta is None or self.delta > 0, "delta", self.delta, "must be above 0, or None")
        check(0 <= self.ref_mixup <= 1, "ref_mixup", self.ref_mixup, "must be in [0, 1]")
        check(self.max_logprob_gap > 0, "max_logprob_gap", self.max_logprob_gap, "must be above 0")
        check(self.epsilon_low < 1, "epsilon_low", self.epsilon_low, "must be below 1: the ratio is positive")
        check(self.loss != "gspo" or self.ratio_level == "sequence", "ratio_level", self.ratio_level,
              "loss gspo is defined by a sequence ratio")  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """Generation during training."""

    temperature: float = 0.9  # of sampling (spec: grpo, section 1)
    top_k: int = 0  # sample from the likeliest k tokens; 0: off (spec: grpo, section 1)
    # sample from the likeliest tokens that together have this probability; 1: off (spec: grpo, section 1)
    top_p: float = 1.0
    # leave out tokens less likely than this share of the likeliest one; 0: off (spec: grpo, section 1)
    min_p: float = 0.0
    max_prompt_tokens: int = 9_000  # longest prompt (spec: grpo, section 1)
    max_new_tokens: int = 2_000  # longest completion (spec: grpo, section 1)
    slots: int = 64  # groups that decode at once; the JAX backend takes fewer where memory does not hold them
    prefill_batch: int = 16  # prompts computed in one call
    decode_steps: int = 8  # tokens for each round trip to the host
    mesh_tensor: int = 0  # devices that decode together, on the JAX backend; 0: the learner's mesh

    def __post_init__(self) -> None:
        at_least(self, 0, "temperature", "top_k", "mesh_tensor")
        at_least(self, 1, "max_prompt_tokens", "max_new_tokens", "slots", "prefill_batch", "decode_steps")
        check(0 < self.top_p <= 1, "top_p", self.top_p, "must be in (0, 1]")
        check(0 <= self.min_p < 1, "min_p", self.min_p, "must be in [0, 1)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """How the update is computed; none of it changes the result beyond rounding."""

    micro_batch_rows: int = 1  # rows in one forward and backward pass, over all devices
    group_layout: bool = True  # False: a row for each completion, its prompt computed again
    # auto: bfloat16 where the device is faster in it (TPUs, GPUs; under PyTorch also CPUs with units for it), float32
    # elsewhere. A run's config.json says which; to compare backends, name one.
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    # What the backward pass keeps of each layer, the rest is computed again. "none": all of it; "dots": its products with
    # weights; "layer": its input; "offload": its input, in the host's memory. PyTorch knows "none" and "layer".
    remat: Remat = "layer"
    # How Adam's moments are stored; computed with in float32. bfloat16 is rounded at random, without bias. JAX only.
    moments_dtype: Literal["float32", "bfloat16"] = "float32"
    # Where the reference policy is when it does not score and is not mixed. JAX only.
    reference_memory: Literal["device", "host"] = "device"
    logprob_chunk: int = 1_024  # tokens whose logits exist at once on one device
    length_bucket: int = 0  # rows are as long as the batch needs, rounded up to this; 0: as the limits, compiled once
    mesh_data: int = 1  # devices along the axis that splits rows and copies weights
    mesh_fsdp: int = -1  # devices along the axis that splits rows and weights; -1: all remaining devices
    mesh_tensor: int = 1  # devices along the axis that splits each layer's products
    # Hidden states between layers split along time over mesh_tensor: the backward pass keeps 1 / mesh_tensor of them.
    sequence_parallel: bool = False

    def __post_init__(self) -> None:
        at_least(self, 1, "micro_batch_rows", "logprob_chunk", "mesh_data", "mesh_tensor")
        at_least(self, 0, "length_bucket")
        check(self.mesh_fsdp == -1 or self.mesh_fsdp >= 1, "mesh_fsdp", self.mesh_fsdp, "must be at least 1, or -1")


def torch_unread(*, rollout_engine: str) -> dict[str, str]:
    """The fields of the torch section that nothing would read, and for each the reason, as the end of a message."""
    if rollout_engine == "server":
        return {}
    reason = f"only rollout_engine = 'server' reads it, and this is {rollout_engine!r}; leave one of the two out"
    return dict.fromkeys(("server_url", "server_weights"), reason)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TorchConfig:
    """What only the PyTorch backend reads; none of it changes the result beyond rounding."""

    zero_stage: Literal[0, 1, 2, 3] = 3  # DeepSpeed ZeRO: shards nothing, optimizer state, gradients too, weights too
    rollout_engine: Literal["auto", "vllm", "server", "hf"] = "auto"  # auto: vllm where it is installed, else hf
    gpu_memory_utilization: float = 0.45  # share of a GPU that vLLM may fill while it is awake, beside the learner
    server_url: str = ""  # address of a running vLLM server, e.g. http://node8:8000
    server_weights: str = ""  # folder that the learner writes and the server reads new weights from
    publish_bucket_mb: int = 1_024  # megabytes of weights gathered at once on the way to the engine

    def __post_init__(self) -> None:
        at_least(self, 1, "publish_bucket_mb")
        check(0 < self.gpu_memory_utilization < 1, "gpu_memory_utilization", self.gpu_memory_utilization,
              "must be in (0, 1)")  # fmt: skip
        served = self.rollout_engine == "server"
        check(not served or self.server_url.startswith("http"), "server_url", self.server_url,
              "rollout_engine = 'server' needs the server's address, e.g. http://localhost:8000")  # fmt: skip
        check(not served or bool(self.server_weights), "server_weights", self.server_weights,
              "rollout_engine = 'server' needs a folder that learner and server both see")  # fmt: skip
        for name, reason in torch_unread(rollout_engine=self.rollout_engine).items():
            check(not getattr(self, name), name, getattr(self, name), reason)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Greedy evaluation on held-out patients, before and after."""

    max_new_tokens: int = 0  # longest completion; 0: as in rollout (the paper: 8,192)
    slots: int = 0  # questions that decode at once; 0: as in rollout
    bootstrap: int = 2_000  # resamples of patients for the intervals
    examples: int = 6  # completions shown in the report; only of synthetic patients, unless the flag allows others

    def __post_init__(self) -> None:
        at_least(self, 0, "max_new_tokens", "slots", "examples")
        at_least(self, 100, "bootstrap")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the whole state of a run is saved."""

    every: int = 256  # optimizer steps between two checkpoints (spec: grpo, section 1)
    keep: int = 2  # checkpoints kept, the newest
    # This run's alone: a folder that all processes see, or gs://bucket/folder (JAX backend); empty: in the work directory.
    folder: str = ""

    def __post_init__(self) -> None:
        at_least(self, 1, "every", "keep")
        check("://" not in self.folder or self.folder.startswith("gs://"), "folder", self.folder,
              "must be a folder or a gs:// address; elsewhere a killed save may look whole")  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything about a run. The same file serves both backends."""

    name: str  # of the run, in its report and metrics
    seed: int = 42  # decides splits, questions, weights made here, order and samples (spec: grpo, section 1)
    store_trajectories: bool = False  # token ids, masks, log-probabilities and rewards of every step
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    warmup: WarmupConfig = WarmupConfig()
    grpo: GrpoConfig = GrpoConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    rollout: RolloutConfig = RolloutConfig()
    learner: LearnerConfig = LearnerConfig()
    torch: TorchConfig = TorchConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    health: HealthConfig = HealthConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    def __post_init__(self) -> None:
        truncated = self.rollout.top_k > 0 or self.rollout.top_p < 1 or self.rollout.min_p > 0
        check(not (truncated and self.grpo.rollout_correction != "none"), "grpo.rollout_correction",
              self.grpo.rollout_correction, "cannot go with top_k, top_p or min_p: the engine renormalises and the "
              "ratio is biased")  # fmt: skip
        check(self.rollout.temperature > 0, "rollout.temperature", self.rollout.temperature,
              "must be above 0 in training: greedy samples of a group are all equal")  # fmt: skip
        check(not (self.store_trajectories and self.learner.length_bucket), "learner.length_bucket",
              self.learner.length_bucket, "must be 0 with store_trajectories: stored rows have one length")  # fmt: skip
        check(self.grpo.overlong_soft < self.rollout.max_new_tokens, "grpo.overlong_soft", self.grpo.overlong_soft,
              f"must be below rollout.max_new_tokens = {self.rollout.max_new_tokens}")  # fmt: skip

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.grpo.steps:
            return self.grpo.steps
        return -(-self.data.train_questions // self.grpo.questions_per_step) * self.grpo.inner_steps

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest prompt and the longest completion that the run asks for."""
        return self.rollout.max_prompt_tokens + max(self.rollout.max_new_tokens, self.evaluation.max_new_tokens)


def with_compute_dtype(config: RunConfig, dtype: Literal["float32", "bfloat16"]) -> RunConfig:
    """The config with `learner.compute_dtype = dtype` where it says auto."""
    if config.learner.compute_dtype != "auto":
        return config
    return dataclasses.replace(config, learner=dataclasses.replace(config.learner, compute_dtype=dtype))


PRESETS: dict[str, dict[str, Any]] = {
    # The authors' run (spec: grpo, sections 1 and 2).
    "paper": {"preset": "paper"},
    # The same recipe; prompts that are too long are left out instead of losing their system prompt.
    "paper_fixed": {"preset": "paper_fixed", "overlong_prompts": "drop"},
    # The best-supported choices since: token-level normaliser, asymmetric clip, no KL and so no reference model, truncated
    # importance sampling, and groups without a difference replaced by further questions (spec: grpo, section 4). The answer is
    # the last box, read leniently: a model may change its mind, and write a letter as models do (spec: registry, quirk 35).
    "modern": {
        "preset": "modern",
        "loss": "dapo",
        "epsilon_low": 0.2,
        "epsilon_high": 0.28,
        "beta": 0.0,
        "rollout_correction": "token",
        "uniform_groups": "refill",
        "mask_truncated": True,
        "answer_rule": "lenient_last",
        "overlong_prompts": "drop",
    },
}


KINDS_IN_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    tuple: "a list",
    type(None): "None",
}
# What only one backend reads; a config file serves both, so it may say it for either.
ONE_BACKEND = {
    "learner.mesh_data": "jax",
    "learner.mesh_fsdp": "jax",
    "learner.mesh_tensor": "jax",
    "learner.sequence_parallel": "jax",
    "rollout.mesh_tensor": "jax",
    "torch": "torch",
}
NOT_IN_PRESETS = ("preset", "steps")  # a preset says how a step is made, not how many are


def changed_in_preset(config: GrpoConfig) -> list[str]:
    """Fields of the `grpo` section that are not what its preset says, in the section's order."""
    wanted = GrpoConfig(**PRESETS[config.preset])
    names = [field.name for field in dataclasses.fields(GrpoConfig) if field.name not in NOT_IN_PRESETS]
    return [name for name in names if getattr(config, name) != getattr(wanted, name)]


def check_backend(fields: Iterable[str], backend: str) -> None:
    """Raise InputError for the first of `fields`, given for this run alone, that its backend does not read."""
    for field in fields:
        reader = ONE_BACKEND.get(field) or ONE_BACKEND.get(field.partition(".")[0], backend)
        if reader != backend:
            raise InputError(
                f"--config.{field}: only the {reader} backend reads it, and this is {backend}; leave it out"
            )


def check_data_given(fields: Iterable[str], config: RunConfig) -> None:
    """Raise InputError for the first of `fields`, given for this run alone, that says how questions are made where the config
    names question files: these are read as they are."""
    if not config.data.train:
        return
    read = {"data.train", "data.valid"} | (set() if config.grpo.steps else {"data.train_questions"})  # an epoch's steps
    for field in fields:
        if field.startswith("data.") and field not in read:
            raise InputError(
                f"--config.{field}: says how questions are made, and data.train = {config.data.train!r} names files that hold "
                "them already; leave one of the two out"
            )


def grpo_preset(name: str) -> dict[str, Any]:
    """The fields of `GrpoConfig` that a preset sets, to start a config file's `grpo` section from."""
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    return dict(PRESETS[name])


def validate(config: ConfigDict | Mapping[str, Any], given: Iterable[str] = ()) -> RunConfig:
    """Turn a ConfigDict (or any mapping) into a RunConfig. Raises InputError naming the field that is wrong.

    `given`: fields that stand on the command line, such as `data.cohort`. Where they choose something for which nothing reads
    what the config file set for its own choice (`data.patients`, once the cohort is not synthetic), that is as if not set.
    """
    values = config.to_dict() if isinstance(config, ConfigDict) else config
    if not isinstance(values, Mapping):
        raise InputError(f"the config must be a mapping of fields, not {type(values).__name__}")
    return _build(RunConfig, _without_unread(values, set(given)), "")


# Of a section, the fields that decide which others are read, and what says which are not.
UNREAD: dict[str, tuple[type, tuple[str, ...], Callable[..., dict[str, str]]]] = {
    "data": (DataConfig, data.DECIDING, data.unread),
    "torch": (TorchConfig, ("rollout_engine",), torch_unread),
}


def _without_unread(values: Mapping[str, Any], given: AbstractSet[str]) -> dict[str, Any]:
    """The values without those that the config file set and nothing reads after what the command line chose."""
    left = dict(values)
    for section, (kind, deciding, unread) in UNREAD.items():
        held = values.get(section)
        if not isinstance(held, Mapping) or not any(f"{section}.{name}" in given for name in deciding):
            continue
        defaults = {field.name: field.default for field in dataclasses.fields(kind)}
        chosen = {name: held.get(name, defaults[name]) for name in deciding}
        dropped = {name for name in unread(**chosen) if f"{section}.{name}" not in given}
        left[section] = _without(held, dropped)
    return left


def _without(values: Mapping[str, Any], dropped: AbstractSet[str], prefix: str = "") -> dict[str, Any]:
    """The values without `dropped`, of which `mimic3.fix` is a field of a section inside."""
    return {
        name: _without(value, dropped, f"{prefix}{name}.") if isinstance(value, Mapping) else value
        for name, value in values.items()
        if prefix + name not in dropped
    }


def _build(kind: type, values: Mapping[str, Any], prefix: str, default: Any = None) -> Any:
    """`kind` with `values`; what they leave out is as in `default`, the section's own default where it has one."""
    hints = typing.get_type_hints(kind)
    sections = {field.name: field.default for field in dataclasses.fields(kind)}
    arguments = {} if default is None else {name: getattr(default, name) for name in hints}
    for name, value in dict(values).items():
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else f"; known: {', '.join(hints)}"
            raise InputError(f"unknown field {prefix}{name}{hint}")
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, Mapping):
                raise InputError(f"{prefix}{name} = {value!r}: must be a section with fields")
            arguments[name] = _build(typing.cast(type, hints[name]), value, f"{prefix}{name}.", sections[name])
        else:
            arguments[name] = _typed(value, hints[name], prefix + name)
    required = [
        f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING and f.name not in arguments
    ]
    if required:
        raise InputError(f"{prefix}{required[0]}: is needed and not given")
    try:
        return kind(**arguments)
    except InputError as error:
        raise InputError(f"{prefix}{error}") from None


def kinds_in_words(kinds: Iterable[type]) -> str:
    """What a field of one of these types takes, for a message: `a whole number or None`."""
    return " or ".join(KINDS_IN_WORDS.get(kind, kind.__name__) for kind in kinds)


def _typed(value: Any, hint: Any, field: str) -> Any:
    if typing.get_origin(hint) is Literal:
        options = typing.get_args(hint)
        check(value in options, field, value, f"must be one of {', '.join(map(str, options))}")
        return value
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if float in kinds and isinstance(value, float):
        check(value == value and abs(value) != float("inf"), field, value, "must be a finite number")
    right = any(type(value) is kind for kind in kinds)
    check(right, field, value, f"must be {kinds_in_words(kinds)}")
    return value
