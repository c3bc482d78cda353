"""Next-token training before GRPO, for a policy that starts from random weights.

It teaches what a pretrained model knows already: the language of records and the format of answers. It reads training questions
only: their records, with the masked value filled in and the lines in random order, and some worked answers. The backend's
ordinary update does the work: where every advantage is 1, on policy and normalised by tokens, the gradient of the GRPO
objective is that of the mean negative log-likelihood.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from transformers import PreTrainedTokenizerFast

from shared import grpo
from shared.backend import Backend
from shared.errors import TrainingError
from shared.grpo import GroupBatch, GroupLayout
from shared.grpo.section import GrpoConfig
from shared.policy.tokenizer import check_in_embedding, embedding_rows, special_tokens
from shared.questions.prompts import PromptStyle, encode
from shared.questions.record import LETTERS, MASK, Question
from shared.randomness import generator
from shared.tasks.prompts import user_message
from shared.training.metrics_log import MetricsWriter
from shared.training.progress import StepBar

if TYPE_CHECKING:
    from shared.config import RunConfig

# Weights of tokens in the loss; a token of a record has 1.
PROMPT_WEIGHT = 0.5  # of the prompt of a worked answer: the record in it is language too
ANSWER_WEIGHT = 5.0  # of a worked answer: it has far fewer tokens than a record


def worked_answer(question: Question) -> str:
    """The completion that shows the format: the masked line of the record, then the letter in a box."""
    value = question.choices[LETTERS.index(question.answer)]
    quoted_name = re.search(r"'(.+)'", question.question)
    name = quoted_name.group(1) if quoted_name else question.feature
    return f"\n{name}: {value}. \\boxed{{{question.answer}}}"


def record_text(question: Question, order: np.random.Generator) -> str:
    """The question's record with its masked value filled in, sections and their lines in random order."""
    value = question.choices[LETTERS.index(question.answer)]
    blocks = [block.split("\n") for block in question.context.replace(MASK, value).split("\n\n")]
    texts = []
    for index in order.permutation(len(blocks)):
        has_header = blocks[index][0].startswith("[")
        header, lines = (blocks[index][:1], blocks[index][1:]) if has_header else ([], blocks[index])
        texts.append("\n".join(header + [lines[i] for i in order.permutation(len(lines))]))
    return "\n\n".join(texts)


def warm_up(
    config: RunConfig,
    backend: Backend,
    model: Path,
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[Question],
    out: Path,
    workdir: Path,
    *,
    style: PromptStyle,
    progress: bool = True,
) -> None:
    """Train the model in `model` for `config.warmup.steps` steps and export it to `out`; losses to `workdir/warmup`.

    `style` is that of the prompts in worked answers. Raises InputError for a token that the model's embedding does not have.
    """
    warmup, rows = config.warmup, embedding_rows(model)
    objective = GrpoConfig(preset=config.grpo.preset, loss="bnpo", beta=0.0, max_logprob_gap=float("inf"))
    config = dataclasses.replace(config, grpo=objective)
    learner = backend.learner(config, model, optimizer=warmup.optimizer, steps=warmup.steps, reference=False)
    bar = StepBar(total=warmup.steps, description="warm-up", shown=progress)
    with contextlib.ExitStack() as stack:
        stack.enter_context(bar)
        writer = stack.enter_context(MetricsWriter(workdir / "warmup", 0)) if backend.process == 0 else None
        end = special_tokens(tokenizer, model).eos
        for step, batch in enumerate(batches(config, tokenizer, questions, end, style=style)):
            check_in_embedding(tokenizer, batch.tokens, rows, "warm-up")
            metrics = learner.update(batch)
            nll = -metrics["mean_logprob"]
            if not np.isfinite(metrics["grad_norm"]):
                raise TrainingError(
                    f"warm-up step {step}: gradient is not finite; lower warmup.optimizer.learning_rate"
                )
            if writer is not None:
                writer.write(step, {"loss": nll, **{name: metrics[name] for name in ("grad_norm", "learning_rate")}})
            bar.set_postfix(loss=f"{nll:.3f}", refresh=False)
            bar.update()
    learner.export(out)


def batches(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[Question],
    end: int,
    *,
    style: PromptStyle,
) -> Iterator[GroupBatch]:
    """`warmup.steps` batches of documents. The first token of a document counts as its prompt; `end` is its last token."""
    warmup, seed = config.warmup, config.seed
    order = generator(seed, "warmup")
    worked = [questions[i] for i in order.permutation(len(questions))[: warmup.worked_answers]]
    encoded: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def worked_document(question: Question) -> tuple[np.ndarray, np.ndarray]:
        if question.id not in encoded:
            prompt = encode(tokenizer, style.text(tokenizer, user_message(question)))
            answer = np.append(encode(tokenizer, worked_answer(question)), end)
            weights = np.append(np.full(len(prompt), PROMPT_WEIGHT), np.full(len(answer), ANSWER_WEIGHT))
            encoded[question.id] = np.append(prompt, answer), weights
        return encoded[question.id]

    def record_document(question: Question) -> tuple[np.ndarray, np.ndarray]:
        tokens = np.append(encode(tokenizer, record_text(question, order)), end)
        return tokens, np.ones(len(tokens))

    answers = round(warmup.batch_size * warmup.worked_fraction) if worked else 0
    for _ in range(warmup.steps):
        documents = [worked_document(worked[i]) for i in order.integers(max(1, len(worked)), size=answers)]
        others = order.integers(len(questions), size=warmup.batch_size - answers)
        documents += [record_document(questions[i]) for i in others]
        yield document_batch(documents, warmup.sequence_length)


def document_batch(documents: Sequence[tuple[np.ndarray, np.ndarray]], length: int) -> GroupBatch:
    """Documents (token ids `[time]` and their weights `[time]`) as rows of `length` tokens; a longer one loses its beginning."""
    documents = [(tokens[-length:], weights[-length:]) for tokens, weights in documents]
    batch = grpo.pack(
        [tokens[:1] for tokens, _ in documents],
        [[tokens[1:]] for tokens, _ in documents],
        GroupLayout(prompt=1, group=1, completion=length - 1),
        advantages=np.ones((len(documents), 1)),
        completion_masks=[[(weights[1:] > 0).astype(np.float32)] for _, weights in documents],
    )
    for row, (_, weights) in enumerate(documents):
        batch.advantages[row, 1 : len(weights)] = weights[1:]
    return batch
