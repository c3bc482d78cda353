"""The training loop, driven with a learner and an engine that only write down what is asked of them."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exam import exam, exam_tokenizer

from shared import grpo
from shared.backend import Completion
from shared.config import RunConfig, validate
from shared.errors import SyncError, TrainingError
from shared.grpo import GroupLayout, completion_view
from shared.questions.prompts import PromptStyle, encode
from shared.questions.record import question_at
from shared.randomness import uniforms
from shared.tasks.prompts import prompt_tokens
from shared.training import loop
from shared.training.stopping import Stopped, StopRequest
from shared.training.trajectories import TrajectoryReader

QUESTIONS = exam(11)
METRICS = {"loss": 0.5, "kl": 0.01, "entropy": 1.5, "grad_norm": 0.2, "logprob_gap": 1e-6, "learning_rate": 1e-6}
LIMIT = 16


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return exam_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer")


@pytest.fixture(scope="module")
def prompts(tokenizer):
    return prompt_tokens(tokenizer, QUESTIONS, style=PromptStyle(), rows=None, max_tokens=400, overlong="drop")[1]


class Engine:
    """Answers the right letter where the first random number is below `skill` (of the question); else a wrong one."""

    def __init__(self, events: list, tokenizer, prompts, skill=lambda question: 0.5):
        self.events, self.tokenizer, self.skill = events, tokenizer, skill
        self.by_prompt = {prompt.tobytes(): question for question, prompt in zip(QUESTIONS, prompts, strict=True)}
        self.calls: list[dict[str, Any]] = []
        self.version, self.whole_tensors = None, False

    def generate(self, prompts, sampling, numbers):
        questions = [self.by_prompt[np.asarray(prompt).tobytes()] for prompt in prompts]
        completions = [
            [self.complete(question, numbers[row, sample]) for sample in range(sampling.group_size)]
            for row, question in enumerate(questions)
        ]
        self.events.append("generate")
        self.calls.append(
            {
                "questions": questions,
                "sampling": sampling,
                "uniforms": numbers.copy(),
                "completions": completions,
                "version": self.version,
            }
        )
        return completions

    def complete(self, question, numbers) -> Completion:
        letter = question.answer if numbers[0] < self.skill(question) else "AB"[question.answer == "A"]
        # One token for each byte, which is not how the tokenizer would cut this text.
        tokens = [self.tokenizer.convert_tokens_to_ids(byte) for byte in f"\\boxed{{{letter}}}"]
        truncated = bool(numbers[1] < 0.25)
        more = [tokens[0]] * (LIMIT - len(tokens)) if truncated else [self.tokenizer.eos_token_id]
        ids = np.array(tokens + more, np.int32)
        return Completion(ids, -np.float32(numbers[2]) * np.arange(1, len(ids) + 1, dtype=np.float32), truncated)

    def sleep(self):
        self.events.append("sleep")

    def seconds(self):
        return {"prefill": 0.25, "decode": 0.5}

    def readable(self):
        return {"weight": 3}

    def digests(self, probes):
        return [f"{probe} {self.version}" for probe in probes]


class Learner:
    """Counts its updates; what it saves is the count."""

    def __init__(self, events: list, metrics=lambda update: {}):
        self.events, self.metrics = events, metrics
        self.updates = 0
        self.batches: list[grpo.GroupBatch] = []
        self.saved: dict[int, dict[str, int]] = {}

    @property
    def step(self):
        return self.updates

    def digests(self, probes):
        return [f"{probe} {self.updates}" for probe in probes]

    def logprobs(self, batch, which):
        self.events.append(f"score {which}")
        return np.where(batch.completion_mask > 0, {"policy": -1.0, "reference": -2.0}[which], 0.0).astype(np.float32)

    def update(self, batch):
        self.events.append("update")
        self.batches.append(batch)
        self.updates += 1
        return METRICS | self.metrics(self.updates)

    def sync_reference(self):
        self.events.append(f"sync {self.updates}")

    def publish(self, engine):
        self.events.append("publish")
        engine.version = self.updates

    def save(self, folder, step, extra):
        assert step == self.updates
        lines = (folder.parent / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == step  # killed here, a run would not miss a line
        self.events.append(f"save {step}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "latest.json").write_text(json.dumps([step, extra]))
        self.saved[step] = dict(extra)

    def finish_saves(self):
        self.events.append("finish saves")

    def restore(self, folder, step=None):
        path = folder / "latest.json"
        if not path.is_file():
            return None
        self.updates, extra = json.loads(path.read_text())
        return self.updates, extra


@dataclasses.dataclass
class Run:
    """What happened."""

    events: list[str]
    learner: Learner
    engine: Engine
    workdir: Path

    @property
    def asked(self) -> list[str]:
        return [question.id for call in self.engine.calls for question in call["questions"]]

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.workdir / "metrics.jsonl").read_text().splitlines()]


def a_config(*, every: int = 1_000, **changes) -> RunConfig:
    top = {
        name: changes.pop(name) for name in ("store_trajectories", "learner", "rollout", "health") if name in changes
    }
    return validate(
        {
            "name": "run",
            "seed": 7,
            "grpo": {"group_size": 3, "questions_per_step": 2, "steps": 4} | changes,
            "checkpoint": {"every": every},
            **top,
            "rollout": {"max_prompt_tokens": 400, "max_new_tokens": LIMIT} | top.get("rollout", {}),
        }
    )


@pytest.fixture
def start(tokenizer, prompts, tmp_path):
    """Run the loop in one work directory; what goes wrong is for the test to see."""

    def run(config: RunConfig, *, skill=lambda question: 0.5, metrics=lambda update: {}, agreed=bool) -> Run:
        events: list[str] = []
        made = Run(events, Learner(events, metrics), Engine(events, tokenizer, prompts, skill), tmp_path)
        run.last = made
        source = loop.Sampled(config, made.engine, tokenizer, QUESTIONS, prompts)
        loop.train(config, made.learner, source, tmp_path, agreed=agreed, progress=False)
        return made

    return run


def in_order(config: RunConfig, count: int, first: int = 0) -> list[str]:
    return [question_at(QUESTIONS, config.seed, position).id for position in range(first, first + count)]


class TestOrder:
    """What is asked, and with which numbers."""

    def test_questions_come_in_order_and_into_the_next_epoch(self, start):
        config = a_config(steps=7)
        assert start(config).asked == in_order(config, 14)

    def test_a_step_generates_with_the_weights_of_the_step_before(self, start):
        run = start(a_config(steps=3))
        assert [call["version"] for call in run.engine.calls] == [0, 1, 2]
        assert run.events == ["publish"] + 2 * ["generate", "sleep", "score reference", "update", "publish"] + [
            "generate", "sleep", "score reference", "update", "publish", "save 3",
        ]  # fmt: skip

    def test_draws_are_keyed_by_seed_step_position_question_and_sample(self, start):
        config = a_config(steps=3)
        for step, call in enumerate(start(config).engine.calls):
            assert call["uniforms"].shape == (2, 3, LIMIT)
            for row, question in enumerate(call["questions"]):
                for sample in range(3):
                    wanted = uniforms(LIMIT, 7, "sample", step, 2 * step + row, question.id, sample)
                    assert np.array_equal(call["uniforms"][row, sample], wanted)

    def test_sampling_is_the_configs(self, start):
        rollout = {"temperature": 0.7, "top_k": 5, "top_p": 0.8, "min_p": 0.1}
        [call] = start(a_config(steps=1, rollout=rollout)).engine.calls
        sampling = dataclasses.asdict(call["sampling"])
        assert sampling == rollout | {"group_size": 3, "max_new_tokens": LIMIT}


class TestBatch:
    """What the learner is given."""

    def test_token_ids_generated_are_the_token_ids_scored(self, start, tokenizer):
        run = start(a_config(steps=2))
        for call, batch in zip(run.engine.calls, run.learner.batches, strict=True):
            assert batch.layout == GroupLayout(prompt=400, group=3, completion=LIMIT)
            views = {
                name: completion_view(getattr(batch, name), batch.layout)
                for name in ("tokens", "completion_mask", "rollout_logprobs")
            }
            flat = [completion for samples in call["completions"] for completion in samples]
            for row, completion in enumerate(flat):
                length = len(completion.tokens)
                assert np.array_equal(views["tokens"][row, :length], completion.tokens)
                assert np.array_equal(views["rollout_logprobs"][row, :length], completion.logprobs)
                assert views["completion_mask"][row].tolist() == [1.0] * length + [0.0] * (LIMIT - length)
        text = tokenizer.decode(flat[0].tokens, skip_special_tokens=True)
        assert len(encode(tokenizer, text)) < len(flat[0].tokens) - 1  # encoded again, they would be other tokens

    def test_rewards_and_advantages_belong_to_their_completions(self, start, tokenizer):
        run = start(a_config(steps=3))
        seen = set()
        for call, batch, line in zip(run.engine.calls, run.learner.batches, run.lines, strict=True):
            right = [
                [f"{{{q.answer}}}" in tokenizer.decode(c.tokens) for c in samples]
                for q, samples in zip(call["questions"], call["completions"], strict=True)
            ]
            rewards = np.array(right, float)
            assert line["reward"] == pytest.approx(rewards.mean())
            wanted = grpo.advantages(rewards, "group").reshape(-1)
            first = completion_view(batch.advantages, batch.layout)[:, 0]
            assert np.allclose(first, wanted, atol=1e-6)
            seen |= set(rewards.sum(axis=1))
        assert seen & {1.0, 2.0}  # some group had a difference

    def test_only_what_the_objective_needs_is_scored(self, start):
        run = start(a_config(steps=1, beta=0.0))
        assert not [event for event in run.events if event.startswith("score")]
        assert run.learner.batches[0].ref_logprobs is None
        assert run.learner.batches[0].old_logprobs is None
        run = start(a_config(steps=2, beta=0.1))
        batch = run.learner.batches[-1]
        assert np.array_equal(batch.ref_logprobs, -2.0 * batch.completion_mask)
        assert batch.old_logprobs is None

    def test_truncated_completions_can_carry_no_loss(self, start):
        run = start(a_config(steps=3, mask_truncated=True))
        cut = [c.truncated for call in run.engine.calls for samples in call["completions"] for c in samples]
        counted = [
            bool(row.any())
            for batch in run.learner.batches
            for row in completion_view(batch.completion_mask, batch.layout)
        ]
        assert any(cut) and not all(cut)
        assert counted == [not truncated for truncated in cut]

    def test_rows_can_hold_one_completion_each(self, start):
        config = a_config(steps=1, learner={"group_layout": False})
        [batch] = start(config).learner.batches
        assert batch.layout == GroupLayout(prompt=400, group=1, completion=LIMIT)
        assert batch.tokens.shape == (6, 400 + LIMIT)

    def test_rows_can_be_as_long_as_the_batch_needs(self, start, prompts):
        run = start(a_config(steps=1, learner={"length_bucket": 8}))
        [call], [batch] = run.engine.calls, run.learner.batches
        longest = max(len(prompts[QUESTIONS.index(question)]) for question in call["questions"])
        written = max(len(c.tokens) for samples in call["completions"] for c in samples)
        assert batch.layout.prompt == -(-longest // 8) * 8 < 400
        assert batch.layout.completion == -(-written // 8) * 8

    def test_trajectories_hold_what_was_learned_from(self, start):
        run = start(a_config(steps=2, store_trajectories=True))
        reader = TrajectoryReader(run.workdir / "trajectories")
        assert reader.steps() == [0, 1]
        for step, (call, batch) in enumerate(zip(run.engine.calls, run.learner.batches, strict=True)):
            stored, rewards, ids = reader.read(step)
            assert ids == [question.id for question in call["questions"]]
            assert rewards.shape == (2, 3)
            for field in dataclasses.fields(batch):
                if field.name != "layout" and getattr(batch, field.name) is not None:
                    assert np.array_equal(getattr(stored, field.name), getattr(batch, field.name)), field.name


class TestInnerSteps:
    """Several updates on one set of rollouts."""

    def test_one_set_of_rollouts_for_two_updates(self, start):
        config = a_config(steps=4, inner_steps=2, beta=0.0)
        run = start(config)
        round_ = ["generate", "sleep", "score policy", "update", "update", "publish"]
        assert run.events == ["publish", *round_, *round_, "save 4"]
        assert run.asked == in_order(config, 4)
        first, second, third, _ = run.learner.batches
        assert first is second
        assert first is not third
        assert np.array_equal(first.old_logprobs, -1.0 * first.completion_mask)

    def test_a_run_may_end_between_two_updates(self, start):
        run = start(a_config(steps=3, inner_steps=2, beta=0.0))
        assert run.events[-4:] == ["score policy", "update", "publish", "save 3"]
        assert [line["step"] for line in run.lines] == [0, 1, 2]


class TestUniformGroups:
    """Groups whose rewards are all equal, and so teach nothing."""

    @staticmethod
    def easy(*names):
        return lambda question: 1.0 if question.id in names else 0.5

    def real_rows(self, batch) -> int:
        return int((batch.groups[:, 0] >= 0).sum())

    def uniform(self, call) -> list[bool]:
        right = [
            [int(np.array_equal(c.tokens[:8], samples[0].tokens[:8])) for c in samples]
            for samples in call["completions"]
        ]
        return [all(row) for row in right]

    def test_kept(self, start):
        run = start(a_config(steps=3, uniform_groups="keep"), skill=lambda question: 1.0)
        assert [self.real_rows(batch) for batch in run.learner.batches] == [2, 2, 2]
        assert len(run.engine.calls) == 3
        assert all(not batch.advantages.any() for batch in run.learner.batches)

    def test_dropped(self, start):
        config = a_config(steps=6, uniform_groups="drop")
        run = start(config)
        assert run.asked == in_order(config, 12)
        wanted = [self.uniform(call).count(False) for call in run.engine.calls]
        assert set(wanted) >= {1, 2}
        assert [self.real_rows(batch) for batch in run.learner.batches] == wanted
        assert all(batch.tokens.shape[0] == 2 for batch in run.learner.batches)  # one shape for every step
        assert [line["uniform_groups"] for line in run.lines] == [1 - count / 2 for count in wanted]

    def test_a_step_with_nothing_to_learn_is_still_a_step(self, start):
        run = start(a_config(steps=2, uniform_groups="drop"), skill=lambda question: 1.0)
        assert [self.real_rows(batch) for batch in run.learner.batches] == [0, 0]
        assert all(not batch.completion_mask.any() for batch in run.learner.batches)
        assert [line["reward"] for line in run.lines] == [1.0, 1.0]

    def test_refilled_with_the_next_questions(self, start):
        config = a_config(steps=5, uniform_groups="refill")
        run = start(config)
        assert run.asked == in_order(config, len(run.asked))
        assert len(run.engine.calls) > 5
        calls = iter(run.engine.calls)
        for step, (batch, line) in enumerate(zip(run.learner.batches, run.lines, strict=True)):
            useful: list[str] = []
            asked = 0
            while len(useful) < 2 and asked < 2 * (1 + loop.REFILL_ROUNDS):
                call = next(calls)
                asked += len(call["questions"])
                useful += [q.id for q, same in zip(call["questions"], self.uniform(call), strict=True) if not same]
                assert call["version"] == step
            assert self.real_rows(batch) == min(2, len(useful))
            assert line["questions"] == asked
        assert next(calls, None) is None

    def test_refilling_ends(self, start):
        config = a_config(steps=2, uniform_groups="refill", beta=0.0)
        run = start(config, skill=lambda question: 1.0)
        rounds = ["generate"] * (1 + loop.REFILL_ROUNDS) + ["sleep", "update", "publish"]
        assert run.events == ["publish", *rounds, *rounds, "save 2"]
        assert [line["questions"] for line in run.lines] == [8, 8]

    def test_a_question_met_twice_in_a_step_is_drawn_anew(self, start):
        run = start(a_config(steps=2, uniform_groups="refill", questions_per_step=4), skill=lambda question: 1.0)
        calls = run.engine.calls[:4]  # 16 places in an order of 11 questions
        asked = [question.id for call in calls for question in call["questions"]]
        assert len(set(asked)) < len(asked)
        draws = {row.tobytes() for call in calls for row in call["uniforms"].reshape(-1, LIMIT)}
        assert len(draws) == 16 * 3

    def test_positions_used_up_by_a_refill_are_saved(self, start):
        run = start(a_config(steps=2, uniform_groups="refill", every=1), skill=lambda question: 1.0)
        assert run.learner.saved == {
            1: {"position": 8, "health.no signal": 1}, 2: {"position": 16, "health.no signal": 2}
        }  # fmt: skip


class TestCadence:
    """When the reference moves and when the state is saved."""

    @pytest.mark.parametrize(
        ("steps", "sync", "inner", "wanted"),
        [(130, 64, 1, [64, 128]), (9, 3, 1, [3, 6, 9]), (8, 3, 2, [3, 6]), (5, 0, 1, []), (3, 4, 1, [])],
    )
    def test_the_reference_moves_after_exactly_these_steps(self, start, steps, sync, inner, wanted):
        run = start(a_config(steps=steps, ref_sync_steps=sync, inner_steps=inner))
        assert [event for event in run.events if event.startswith("sync")] == [f"sync {step}" for step in wanted]

    @pytest.mark.parametrize(
        ("steps", "every", "inner", "wanted"),
        [
            (7, 2, 1, [2, 4, 6, 7]),
            (4, 1, 1, [1, 2, 3, 4]),
            (3, 256, 1, [3]),
            (12, 3, 2, [4, 6, 10, 12]),
            (6, 1, 2, [2, 4, 6]),
            (7, 2, 3, [3, 6, 7]),
        ],
    )
    def test_the_state_is_saved_between_rollouts_and_at_the_end(self, start, steps, every, inner, wanted):
        run = start(a_config(steps=steps, every=every, inner_steps=inner))
        assert list(run.learner.saved) == wanted
        rounds = [-(-step // inner) for step in wanted]
        assert [extra["position"] for extra in run.learner.saved.values()] == [2 * count for count in rounds]

    def test_a_saved_policy_is_the_published_one(self, start):
        run = start(a_config(steps=2, every=1))
        assert run.events[-3:] == ["update", "publish", "save 2"]


class TestStopping:
    """A run that must not go on says so before it keeps anything of the step."""

    @pytest.mark.parametrize("gap", [0.6, math.nan, math.inf])
    def test_engine_and_learner_that_disagree(self, start, gap):
        with pytest.raises(SyncError, match=r"step 2: .* nats a token, more than grpo.max_logprob_gap = 0.5"):
            start(a_config(every=1), metrics=lambda update: {"logprob_gap": gap} if update == 3 else {})
        run = start.last
        assert list(run.learner.saved) == [1, 2]
        assert [line["step"] for line in run.lines] == [0, 1]
        assert run.events[-1] == "update"

    def test_a_gap_within_the_bound_goes_on(self, start):
        assert len(start(a_config(max_logprob_gap=0.7), metrics=lambda update: {"logprob_gap": 0.7}).lines) == 4

    @pytest.mark.parametrize("name", ["loss", "grad_norm"])
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_numbers_that_are_none(self, start, name, value):
        with pytest.raises(TrainingError, match="step 1: loss .* not finite; lower optimizer.learning_rate"):
            start(a_config(every=1), metrics=lambda update: {name: value} if update == 2 else {})
        assert list(start.last.learner.saved) == [1]
        assert [line["step"] for line in start.last.lines] == [0]


HEALTH = {"no_signal_steps": 3, "no_signal_completions": 1}


class TestHealth:
    """A run that is not well says so; what its checks are is in test_health.py."""

    def test_a_run_without_a_signal_stops_and_keeps_what_it_saved(self, start):
        config = a_config(steps=9, every=2, health=HEALTH)
        with pytest.raises(TrainingError, match=r"^step 2: no signal for 3 steps: .*health.stop = False") as caught:
            start(config, skill=lambda question: 1.0)
        assert "100 % of completions had a readable answer" in str(caught.value) and "\n" not in str(caught.value)
        assert [line["step"] for line in start.last.lines] == [0, 1, 2]
        assert list(start.last.learner.saved) == [2]
        again = a_config(steps=9, every=2, health=HEALTH)  # it remembers the two steps before the checkpoint
        with pytest.raises(TrainingError, match=r"^step 2: no signal for 3 steps"):
            start(again, skill=lambda question: 1.0)
        assert len(start.last.engine.calls) == 1

    def test_it_goes_on_where_it_is_told_to(self, start, capsys):
        run = start(a_config(steps=6, health=HEALTH | {"stop": False}), skill=lambda question: 1.0)
        assert len(run.lines) == 6
        said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: step 2: no signal")]
        assert len(said) == 1

    def test_a_step_with_a_signal_begins_the_count_anew(self, start):
        learns = {question.id for question in QUESTIONS[::3]}
        config = a_config(steps=8, health=HEALTH)
        run = start(config, skill=lambda question: 0.5 if question.id in learns else 1.0)
        uniform = [line["uniform_groups"] for line in run.lines]
        assert 1.0 in uniform and min(uniform) < 1.0

    def test_an_engine_that_keeps_old_weights_ends_the_run(self, start):
        def behind(update: int) -> dict[str, float]:
            if update == 3:
                start.last.engine.digests = lambda probes: [f"{probe} 2" for probe in probes]
            return {}

        with pytest.raises(SyncError, match="step 3: the engine's weight is not the learner's"):
            start(a_config(every=1), metrics=behind)
        assert list(start.last.learner.saved) == [1, 2]


class TestAskedToStop:
    """SIGTERM: the step is ended and saved, and the run says how it goes on."""

    @pytest.mark.parametrize(("inner", "asked", "wanted"), [(1, 2, 2), (2, 1, 2), (2, 2, 2), (2, 3, 4), (1, 6, 6)])
    def test_the_step_is_ended_and_saved(self, start, inner, asked, wanted):
        """Between two updates on the same rollouts there is nothing to go on from."""
        config = a_config(steps=6, inner_steps=inner)
        before = signal.getsignal(signal.SIGTERM)

        def ask(update: int) -> dict[str, float]:
            if update == asked:
                os.kill(os.getpid(), signal.SIGTERM)
            return {}

        with pytest.raises(
            Stopped, match=f"^stopped as asked after step {wanted} of 6, which is saved; the same command"
        ):
            start(config, metrics=ask)
        assert list(start.last.learner.saved) == [wanted]
        assert len(start.last.lines) == wanted and start.last.events[-1] == "finish saves"
        assert signal.getsignal(signal.SIGTERM) == before
        rest = start(config)
        assert rest.learner.updates == 6 and [line["step"] for line in rest.lines] == list(range(6))
        assert rest.asked == in_order(config, 2 * (6 - wanted) // inner, 2 * wanted // inner)

    def test_processes_stop_together(self, start):
        told: list[bool] = []

        def another_was_asked(flag: bool) -> bool:
            told.append(flag)
            return len(told) == 3

        with pytest.raises(Stopped, match="after step 3 of 6"):
            start(a_config(steps=6), agreed=another_was_asked)
        assert told == [False] * 3  # and each was asked once a step

    def test_a_second_request_does_what_it_would_have_done(self):
        seen = []
        before = signal.signal(signal.SIGTERM, lambda *_: seen.append("before"))
        try:
            with StopRequest() as request:
                os.kill(os.getpid(), signal.SIGTERM)
                assert request.made and seen == []
                os.kill(os.getpid(), signal.SIGTERM)
                assert seen == ["before"]
        finally:
            signal.signal(signal.SIGTERM, before)


class TestResume:
    """A run goes on from its newest checkpoint as if it had never stopped."""

    @pytest.mark.parametrize("changes", [{}, {"inner_steps": 2}, {"uniform_groups": "refill"}])
    @pytest.mark.parametrize("stop", [3, 5])
    def test_the_same_questions_draws_and_metrics(self, start, stop, changes, tmp_path):
        config = a_config(steps=8, every=2, **changes)
        whole = start(config)
        lines = [{k: v for k, v in line.items() if not k.startswith(("seconds", "tokens_per"))} for line in whole.lines]
        for path in (tmp_path / "metrics.jsonl", tmp_path / "checkpoints" / "latest.json"):
            path.unlink()
        with pytest.raises(TrainingError):
            start(config, metrics=lambda update: {"loss": math.nan} if update == stop + 1 else {})
        saved = max(start.last.learner.saved)
        assert saved <= stop
        rest = start(config)
        done = len(whole.engine.calls) - len(rest.engine.calls)
        assert done > 0
        for call, again in zip(whole.engine.calls[done:], rest.engine.calls, strict=True):
            assert [q.id for q in call["questions"]] == [q.id for q in again["questions"]]
            assert np.array_equal(call["uniforms"], again["uniforms"])
        again = [{k: v for k, v in line.items() if not k.startswith(("seconds", "tokens_per"))} for line in rest.lines]
        assert again == lines
        assert rest.learner.updates == 8

    def test_a_run_that_has_ended_does_nothing(self, start):
        config = a_config(steps=3)
        before = start(config).lines
        run = start(config)
        assert run.events == []
        assert run.lines == before


def test_a_metrics_line_has_what_a_report_shows(start):
    run = start(a_config(steps=2, every=1, reward_format=0.5, reward_length=0.25))
    line = run.lines[1]
    wanted = {
        "step", "loss", "reward", "reward_std", "reward_answer", "reward_format", "reward_length", "reward_overlong",
        "kl", "entropy", "grad_norm", "learning_rate", "completion_length", "answered", "truncated", "uniform_groups",
        "questions",
        "logprob_gap", "seconds_prefill", "seconds_decode", "seconds_scoring", "seconds_update", "seconds_publish",
        "seconds_checkpoint", "seconds_total", "tokens_per_second",
    }  # fmt: skip
    assert wanted <= line.keys()
    assert line["step"] == 1
    assert (line["seconds_prefill"], line["seconds_decode"]) == (0.25, 0.5)
    assert line["reward"] == pytest.approx(line["reward_answer"] + line["reward_format"] + line["reward_length"])
    assert line["reward_format"] == 0.5
    completions = [c for samples in run.engine.calls[1]["completions"] for c in samples]
    assert line["completion_length"] == pytest.approx(np.mean([len(c.tokens) for c in completions]))
    assert line["truncated"] == pytest.approx(np.mean([c.truncated for c in completions]))
    assert line["answered"] == 1
    assert line["reward_length"] == pytest.approx(0.25 * (1 - line["truncated"]))


def test_speed_counts_prompts_and_completions_once(start, prompts):
    run = start(a_config(steps=2, inner_steps=2))
    [call] = run.engine.calls
    read = sum(len(prompts[QUESTIONS.index(question)]) for question in call["questions"])
    written = sum(len(c.tokens) for samples in call["completions"] for c in samples)
    first, second = run.lines
    assert first["tokens_per_second"] * first["seconds_total"] == pytest.approx(read + written)
    assert second["tokens_per_second"] == 0
