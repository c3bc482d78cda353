"""What an evaluation is asked for. The flags of `creason evaluate` have the names of these fields.

An error therefore names a field as `--NAME`, as one would give it to the program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any, Literal

from shared.errors import InputError
from shared.options.checks import at_least, check
from shared.questions.boxes import RULES

PROTOCOLS = ("boxed", "forced_choice")
# The options that have a meaning without a model: with answers made elsewhere, and for a task folder alone.
WITH_ANSWERS = {
    "answers", "answer_rule", "allow_missing", "questions", "out", "limit", "samples", "cyclic", "patients", "compare",
    "registry", "bootstrap", "seed",
}  # fmt: skip
FOR_TASK = {"lm_eval", "lm_eval_name", "questions", "limit", "max_new_tokens", "prefill"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How a model directory writes completions: limits, the beginning of an answer, number format, engine.

    docs/configuration.md explains those that the configuration has too (model, rollout, learner, torch).
    """

    max_prompt_tokens: int = 9_000
    max_new_tokens: int = 2_000
    slots: int = 64  # prompts that are answered at once, at most
    compute_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    prefill: str = "auto"
    thinking: Literal["auto", "on", "off"] = "auto"
    template_date: str = ""
    engine: Literal["auto", "vllm", "server", "hf"] = "auto"  # of the PyTorch backend
    server_url: str = ""
    server_weights: str = ""

    def __post_init__(self) -> None:
        at_least(self, 1, "max_prompt_tokens", "max_new_tokens", "slots")
        wanted = self.engine == "server"
        for name in ("server_url", "server_weights"):
            value = getattr(self, name)
            if value and not wanted:
                raise InputError(f"--{name}: only --engine=server reads it; leave it out, or give that engine")
            if wanted and not value:
                raise InputError(f"--{name}: --engine=server needs it (docs/gpu.md)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """What is evaluated, on which questions, and by which rules. A path is a text, as a command line has it.

    Raises InputError for options that do not go together, or that nothing would read.
    """

    questions: Sequence[str]  # question files; addresses such as gs:// too
    out: str = ""  # folder of everything that is written, but for the task folder
    model: str = ""  # Hugging Face model directory
    answers: str = ""  # file of answers made elsewhere, in place of a model (`shared.evaluation.given_answers`)
    allow_missing: bool = False  # questions that `answers` lacks count as unanswered
    limit: int = 0  # only so many questions, the first; 0: all
    protocol: Literal["boxed", "forced_choice"] = "boxed"
    answer_rule: Literal["strict_first", "lenient_last"] = "strict_first"
    samples: int = 1  # completions of each question; the most frequent letter counts
    temperature: float = 0.0  # of the samples; 0 is greedy
    cyclic: bool = False  # each question with its options in every cyclic order
    patients: str = ""  # patients.parquet of the questions: adds figures of subgroups
    compare: str = ""  # answers.parquet of another model on the same questions: adds a comparison
    registry: str = ""  # prepared registry of the questions: adds boosted trees to the baselines
    completions: bool = False  # questions and completions are written as text, too
    show_examples: bool = False  # some of these stand on the page
    lm_eval: str = ""  # folder for a task of lm-evaluation-harness
    lm_eval_name: str = "creason"  # name of that task
    bootstrap: int = 2_000  # resamples of patients for the intervals
    seed: int = 42  # of the resamples and of the samples
    generation: GenerationOptions = GenerationOptions()

    def __post_init__(self) -> None:
        self._check_values()
        if self.answers:
            self._check_unread("--answers", WITH_ANSWERS)
        elif self.lm_eval and not self.model:
            self._check_unread("--lm_eval without a --model", FOR_TASK)
        if self.allow_missing and not self.answers:
            raise InputError("--allow_missing: goes with --answers; leave it out")
        if self.evaluates:
            self._check_evaluation()

    @property
    def evaluates(self) -> bool:
        """Whether there is something to evaluate; false where only a task folder is wanted."""
        return bool(self.model or self.answers or not self.lm_eval)

    def _check_values(self) -> None:
        if not self.questions or isinstance(self.questions, str):
            raise InputError("--questions: give a list of question files")
        check(self.protocol in PROTOCOLS, "protocol", self.protocol, f"must be one of {', '.join(PROTOCOLS)}")
        check(self.answer_rule in RULES, "answer_rule", self.answer_rule, f"must be one of {', '.join(RULES)}")
        at_least(self, 0, "limit", "temperature")
        at_least(self, 1, "samples")
        at_least(self, 100, "bootstrap")

    def _check_unread(self, mode: str, read: Collection[str]) -> None:
        """Raise InputError for an option that is set and that this `mode` does not read."""
        changed = _changed(self, EvaluationOptions) | _changed(self.generation, GenerationOptions)
        for name in sorted(changed.keys() - {*read, "generation"}):
            raise InputError(f"--{name}: {mode} does not read it; leave it out")

    def _check_evaluation(self) -> None:
        for name in ("out",) if self.answers else ("model", "out"):
            if not getattr(self, name):
                others = "; or --answers=FILE for answers made elsewhere, or --lm_eval=DIR for a task of lm-evaluation-harness"
                raise InputError(f"--{name}: is needed to evaluate{others if name == 'model' else ''}")
        if self.samples > 1 and self.temperature == 0 and not self.answers:
            raise InputError("--samples: greedy samples are all equal; give --temperature")
        if self.protocol == "forced_choice":
            if self.samples > 1 or self.temperature > 0:
                raise InputError(
                    "--protocol=forced_choice follows one greedy reasoning; leave --samples and --temperature out"
                )
            if self.completions:
                raise InputError("--completions: only with --protocol=boxed")
        if self.show_examples and not self.completions:
            raise InputError("--show_examples: shows some of what --completions keeps; give that, too")


def _changed(options: Any, kind: Any) -> dict[str, Any]:
    """The options that are not at their default, by name."""
    return {
        field.name: value
        for field in dataclasses.fields(kind)
        if (value := getattr(options, field.name)) != field.default
    }
