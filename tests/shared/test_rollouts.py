"""What the training loop samples, and what the learner is given of it: with parts that only write down what is asked of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from shared import grpo
from shared.grpo import GroupLayout, completion_view
from shared.questions.prompts import encode
from shared.randomness import uniforms
from shared.training.rollouts import REFILL_ROUNDS
from shared.training.trajectories import TrajectoryReader
from tests.support.exam import exam_tokenizer
from tests.support.fake_training import LIMIT, QUESTIONS, Starter, a_config, exam_prompts, in_order


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return exam_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer")


@pytest.fixture(scope="module")
def prompts(tokenizer):
    return exam_prompts(tokenizer)


@pytest.fixture
def start(tokenizer, prompts, tmp_path):
    return Starter(tokenizer, prompts, tmp_path)


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
            while len(useful) < 2 and asked < 2 * (1 + REFILL_ROUNDS):
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
        rounds = ["generate"] * (1 + REFILL_ROUNDS) + ["sleep", "update", "publish"]
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


def test_speed_counts_prompts_and_completions_once(start, prompts):
    run = start(a_config(steps=2, inner_steps=2))
    [call] = run.engine.calls
    read = sum(len(prompts[QUESTIONS.index(question)]) for question in call["questions"])
    written = sum(len(c.tokens) for samples in call["completions"] for c in samples)
    first, second = run.lines
    assert first["tokens_per_second"] * first["seconds_total"] == pytest.approx(read + written)
    assert second["tokens_per_second"] == 0
