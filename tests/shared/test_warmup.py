"""Next-token training before GRPO: what is read, and that the learner's update is its gradient."""

from __future__ import annotations

import collections
import dataclasses
import json
import math

import numpy as np
import pytest

from shared.config import OptimizerConfig, RunConfig, validate
from shared.errors import TrainingError
from shared.questions.prompts import PromptStyle, chat_text, encode
from shared.questions.record import write_questions
from shared.randomness import generator
from shared.runs import run
from shared.tasks.prompts import user_message
from shared.training.warmup import (
    ANSWER_WEIGHT,
    MASK,
    PROMPT_WEIGHT,
    batches,
    document_batch,
    record_text,
    warm_up,
    worked_answer,
)
from tests.support.exam import exam, exam_tokenizer

TRAIN = exam(12)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return exam_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer")


def a_config(**warmup) -> RunConfig:
    return validate({"name": "run", "seed": 3, "warmup": {"steps": 4, "batch_size": 6, "worked_answers": 5} | warmup})


def by_header(text: str) -> dict[str, collections.Counter]:
    """The lines of each section of a record, in any order."""
    sections = {}
    for block in text.split("\n\n"):
        header, *lines = block.split("\n")
        assert header.startswith("[")
        assert header not in sections
        sections[header] = collections.Counter(lines)
    return sections


class TestRecords:
    """A record as a document: whole, its mask filled in, in any order."""

    def test_only_the_order_changes(self):
        orders = set()
        for draw in range(50):
            for question in TRAIN:
                value = question.choices["ABCDE".index(question.answer)]
                text = record_text(question, generator(draw))
                assert by_header(text) == by_header(question.context.replace(MASK, value))
                assert MASK not in text
                assert f"Source: {value}" in text
            orders.add(record_text(TRAIN[2], generator(draw)))
        assert len(orders) > 20

    def test_lines_before_the_first_header_stay_together(self):
        question = dataclasses.replace(TRAIN[0], context="Age: 3\nSource: [MASK]\n\n[More]\nLactate: 2")
        for draw in range(20):
            blocks = record_text(question, generator(draw)).split("\n\n")
            assert {tuple(sorted(block.split("\n"))) for block in blocks} == {
                ("Age: 3", "Source: Lung"),
                ("Lactate: 2", "[More]"),
            }
            assert "[More]\nLactate: 2" in blocks

    def test_a_draw_decides(self):
        assert record_text(TRAIN[1], generator(5)) == record_text(TRAIN[1], generator(5))


def test_a_worked_answer_names_the_value_and_boxes_the_letter():
    question = TRAIN[1]
    assert question.answer == "B"
    assert worked_answer(question) == "\nSource: Urinary tract. \\boxed{B}"


class TestDocumentBatch:
    """Documents as rows; a weight of 0 does not count at all."""

    DOCUMENTS = (
        (np.array([5, 6, 7, 8]), np.array([0.0, 0.0, 5.0, 5.0])),
        (np.array([9, 8]), np.array([1.0, 1.0])),
        (np.arange(20, 30), np.linspace(1, 2, 10)),
    )

    def test_rows(self):
        batch = document_batch(self.DOCUMENTS, 6)
        assert batch.tokens.tolist() == [[5, 6, 7, 8, 0, 0], [9, 8, 0, 0, 0, 0], [24, 25, 26, 27, 28, 29]]
        assert batch.positions.tolist() == [[0, 1, 2, 3, 0, 0], [0, 1, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5]]
        assert batch.groups.tolist() == [[0, 0, 0, 0, -1, -1], [0, 0, -1, -1, -1, -1], [0] * 6]
        assert batch.completion_mask.tolist() == [[0, 0, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1]]

    def test_weights(self):
        batch = document_batch(self.DOCUMENTS, 6)
        assert batch.advantages[0].tolist() == [0, 0, 5, 5, 0, 0]
        assert batch.advantages[1].tolist() == [0, 1, 0, 0, 0, 0]
        # The end of a longer document is kept; its first token there is read, not predicted.
        np.testing.assert_allclose(batch.advantages[2], [0, *np.linspace(1, 2, 10)[-5:]], rtol=1e-6)

    def test_is_on_policy(self):
        batch = document_batch(self.DOCUMENTS, 6)
        assert batch.rollout_logprobs is None
        assert batch.old_logprobs is None
        assert batch.ref_logprobs is None


class TestBatches:
    """Which documents are read."""

    def documents(self, config, tokenizer, questions=TRAIN) -> list[tuple[str, np.ndarray]]:
        """(text, weights) of every document."""
        found = []
        for batch in batches(config, tokenizer, questions, tokenizer.eos_token_id, style=PromptStyle()):
            assert batch.tokens.shape == (config.warmup.batch_size, config.warmup.sequence_length)
            for row in range(batch.tokens.shape[0]):
                real = batch.groups[row] >= 0
                found.append((tokenizer.decode(batch.tokens[row, real]), batch.advantages[row, real]))
        return found

    def test_the_same_again(self, tokenizer):
        def drawn(seed: int) -> bytes:
            config = dataclasses.replace(a_config(), seed=seed)
            made = batches(config, tokenizer, TRAIN, tokenizer.eos_token_id, style=PromptStyle())
            return b"".join(batch.tokens.tobytes() + batch.advantages.tobytes() for batch in made)

        assert drawn(3) == drawn(3)
        assert drawn(3) != drawn(4)

    def test_as_many_as_configured(self, tokenizer):
        assert len(list(batches(a_config(steps=3), tokenizer, TRAIN, tokenizer.eos_token_id, style=PromptStyle()))) == 3

    @pytest.mark.parametrize(("fraction", "answers"), [(0.5, 12), (0.0, 0), (1.0, 24), (0.3, 8)])
    def test_a_share_are_worked_answers_of_a_few_training_questions(self, tokenizer, fraction, answers):
        config = a_config(worked_fraction=fraction, sequence_length=400)
        documents = self.documents(config, tokenizer)
        worked = [text for text, weights in documents if (weights == ANSWER_WEIGHT).any()]
        assert len(worked) == answers
        possible = {
            chat_text(tokenizer, user_message(question)) + worked_answer(question) + "<|im_end|>" for question in TRAIN
        }
        assert set(worked) <= possible
        assert len(set(worked)) <= config.warmup.worked_answers

    def test_the_rest_are_records_of_training_questions(self, tokenizer):
        documents = self.documents(a_config(worked_fraction=0.5, sequence_length=400), tokenizer)
        records = [text.removesuffix("<|im_end|>") for text, weights in documents if (weights[1:] == 1).all()]
        assert len(records) == 12
        known = [
            by_header(question.context.replace(MASK, question.choices["ABCDE".index(question.answer)]))
            for question in TRAIN
        ]
        assert all(by_header(record) in known for record in records)

    def test_the_answer_of_a_worked_document_counts_most(self, tokenizer):
        documents = self.documents(a_config(worked_fraction=1.0, sequence_length=400), tokenizer)
        for text, weights in documents:
            counted = len(encode(tokenizer, text[text.rindex("\nSource") :]))
            assert weights[-counted:].tolist() == [ANSWER_WEIGHT] * counted
            assert set(weights[1:-counted]) == {PROMPT_WEIGHT}

    def test_without_worked_answers_all_are_records(self, tokenizer):
        documents = self.documents(a_config(worked_answers=0, worked_fraction=0.9), tokenizer)
        assert not any((weights == ANSWER_WEIGHT).any() for _, weights in documents)


class Learner:
    """Writes down its batches; `export` makes the folder."""

    def __init__(self, grad_norm=0.5):
        self.batches, self.grad_norm = [], grad_norm

    def update(self, batch):
        self.batches.append(batch)
        metrics = {"mean_logprob": -float(len(self.batches)), "learning_rate": 1e-3, "loss": 9.0}
        return metrics | {"grad_norm": self.grad_norm}

    def export(self, folder):
        folder.mkdir()


class Backend:
    """Makes one learner and says what it was asked for."""

    name = "fake"
    process, processes = 0, 1

    def __init__(self, learner=None):
        self.made, self.asked = learner or Learner(), []

    def learner(self, config, model, *, optimizer, steps, reference):
        self.asked.append((config, model, optimizer, steps, reference))
        return self.made

    def resolved(self, config):
        return config

    def barrier(self):
        pass

    def any_process(self, flag):
        return flag


class TestWarmUp:
    """The loop around the updates."""

    def test_trains_and_exports(self, tokenizer, tmp_path):
        backend, config = Backend(), a_config()
        model = tmp_path / "initial"
        warm_up(
            config, backend, model, tokenizer, TRAIN, tmp_path / "policy", tmp_path, style=PromptStyle(), progress=False
        )
        [(asked, folder, optimizer, steps, reference)] = backend.asked
        assert (folder, optimizer, steps, reference) == (model, config.warmup.optimizer, 4, False)
        assert (asked.grpo.loss, asked.grpo.beta, asked.grpo.inner_steps) == ("bnpo", 0.0, 1)
        assert len(backend.made.batches) == 4
        assert (tmp_path / "policy").is_dir()
        lines = [json.loads(line) for line in (tmp_path / "warmup" / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [0, 1, 2, 3]
        assert [line["loss"] for line in lines] == [1.0, 2.0, 3.0, 4.0]  # the mean negative log-likelihood

    def test_a_gradient_that_is_not_finite_stops_it(self, tokenizer, tmp_path):
        backend = Backend(Learner(grad_norm=math.nan))
        with pytest.raises(TrainingError, match=r"warm-up step 0: .* lower warmup.optimizer.learning_rate"):
            warm_up(
                a_config(),
                backend,
                tmp_path,
                tokenizer,
                TRAIN,
                tmp_path / "policy",
                tmp_path,
                style=PromptStyle(),
                progress=False,
            )
        assert not (tmp_path / "policy").exists()


def test_a_run_shows_the_policy_training_questions_only(tmp_path, monkeypatch):
    """Tokenizer and warm-up: neither sees a question of the held-out patients."""
    held_out = exam(6, start=100)
    write_questions(tmp_path / "train.parquet", TRAIN)
    write_questions(tmp_path / "valid.parquet", held_out)
    seen: dict[str, list] = {}

    class Stop(Exception):
        pass

    def stop(config, backend, model, tokenizer, questions, *_, **__):
        seen["questions"] = list(questions)
        raise Stop

    def note(texts, vocab_size, folder):
        seen["texts"] = list(texts)
        exam_tokenizer(folder)

    monkeypatch.setattr("shared.runs.policy.warm_up", stop)
    monkeypatch.setattr("shared.runs.policy.train_tokenizer", note)
    data = {name: str(tmp_path / f"{name}.parquet") for name in ("train", "valid")}
    config = validate({"name": "run", "data": data, "warmup": {"steps": 1}})
    with pytest.raises(Stop):
        run.run(config, Backend(), tmp_path / "run", progress=False)
    assert seen["questions"] == TRAIN
    assert not any(f"Age: {40 + 100 + number}" in text for text in seen["texts"] for number in range(6))
    assert any("Age: 40" in text for text in seen["texts"])


@pytest.mark.slow
def test_an_update_is_the_gradient_of_the_weighted_mean_negative_log_likelihood(tmp_path):
    """Through the JAX learner, against autograd through Hugging Face's own model.

    With an eps that drowns the second moment, Adam's step is gradient * rate / eps.
    """
    import jax
    import torch
    from safetensors.torch import load_file

    from creason_jax.learner.learner import Learner as JaxLearner
    from creason_jax.mesh.sharding import make_mesh
    from tests.support.tiny import tiny_phi3

    theirs = tiny_phi3(tmp_path / "model")
    random = np.random.default_rng(0)
    documents = []
    for length, read in ((9, 4), (14, 0), (25, 0), (3, 1)):
        weights = np.where(np.arange(length) < read, 0.0, random.choice([1.0, ANSWER_WEIGHT], length))
        documents.append((random.integers(4, 320, length), weights))
    longest = 20

    loss, count = torch.zeros(()), 0
    for tokens, weights in documents:
        ids = torch.tensor(tokens[-longest:])
        weight = torch.tensor(weights[-longest:][1:], dtype=torch.float32)
        logits = theirs(ids[None]).logits[0, :-1].float()
        nll = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
        loss = loss + (weight * nll).sum()
        count += int((weight > 0).sum())
    (loss / count).backward()

    scale = 1e6
    optimizer = OptimizerConfig(learning_rate=scale, eps=scale, warmup_ratio=0.0, max_grad_norm=1e9)
    config = validate(
        {
            "name": "run",
            "grpo": {"loss": "bnpo", "beta": 0.0},
            "learner": {"compute_dtype": "float32", "micro_batch_rows": 3, "logprob_chunk": 8},
            "jax": {"mesh_fsdp": 1},
        }
    )
    mesh = make_mesh(config.jax, jax.devices()[:1])
    learner = JaxLearner(config, tmp_path / "model", mesh, optimizer=optimizer, steps=10, reference=False)
    metrics = learner.update(document_batch(documents, longest))
    learner.export(tmp_path / "after")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "after"))
    gradients = {name: weight.grad for name, weight in theirs.named_parameters()}
    assert after.keys() == gradients.keys()
    for name, gradient in gradients.items():
        found = before[name].float() - after[name].float()
        assert torch.linalg.norm(found - gradient) < 1e-3 * torch.linalg.norm(gradient), name
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
