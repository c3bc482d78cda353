"""The training loop in time: inner steps, saving, stopping, resuming; with parts that only write down what is asked of them."""

from __future__ import annotations

import math
import os
import signal

import numpy as np
import pytest

from shared.errors import SyncError, TrainingError
from shared.training.stopping import Stopped, StopRequest
from tests.support.exam import exam_tokenizer
from tests.support.fake_training import QUESTIONS, Starter, a_config, exam_prompts, in_order


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return exam_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer")


@pytest.fixture(scope="module")
def prompts(tokenizer):
    return exam_prompts(tokenizer)


@pytest.fixture
def start(tokenizer, prompts, tmp_path):
    return Starter(tokenizer, prompts, tmp_path)


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
            start(a_config(steps=6), any_process=another_was_asked)
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
