"""TRL's GRPOTrainer with Transformers' generation: its own generation, scoring, loss and optimizer step."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import contest

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer


def _tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer with `size` words. Only its special tokens are used."""
    words = {f"w{index}": index for index in range(size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w1"))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="w0", unk_token="w1", eos_token="w2", padding_side="left"
    )


def phases(work: contest.Work) -> Mapping[str, Callable[[], Any]]:
    """The phases, all rows in one micro-batch."""
    questions, group, completion = work.completions.shape
    rows = questions * group
    with contextlib.redirect_stdout(None):
        model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32)
        settings = GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            use_cpu=True,
            bf16=False,
            report_to=[],
            disable_tqdm=True,
            per_device_train_batch_size=rows,
            num_generations=group,
            max_completion_length=completion,
            temperature=contest.TEMPERATURE,
            beta=contest.BETA,
            epsilon=contest.EPSILON,
            learning_rate=contest.LEARNING_RATE,
            loss_type="grpo",
            gradient_checkpointing=False,
            generation_kwargs={"min_new_tokens": completion},
            max_steps=10_000,
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=settings,
            train_dataset=Dataset.from_dict({"prompt": ["w3"] * rows}),
            processing_class=_tokenizer(model.config.vocab_size),
        )
    trainer.create_optimizer_and_scheduler(num_training_steps=10_000)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # its training loop sets this
    prompts, completions = torch.tensor(work.repeated).long(), torch.tensor(work.rows).long()
    inputs = {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": completions,
        "completion_mask": torch.ones_like(completions),
        "advantages": torch.tensor(work.advantages.reshape(-1)).float(),
        "num_items_in_batch": torch.tensor(completions.numel()),
    }
    prompt_ids = work.repeated.tolist()

    def rollout() -> None:
        completion_ids, _ = trainer._generate_single_turn(prompt_ids, None, {}, group)
        assert all(len(tokens) == completion for tokens in completion_ids)

    def scoring() -> torch.Tensor:
        whole = torch.cat([prompts, completions], dim=1)
        with torch.no_grad():
            return trainer._get_per_token_logps_and_entropies(
                trainer.ref_model, whole, torch.ones_like(whole), completion
            )[0]

    inputs["ref_per_token_logps"] = scoring()

    def update() -> None:
        loss = trainer.compute_loss(trainer.model, inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        trainer.model.zero_grad()

    return {contest.ROLLOUT: rollout, contest.SCORING: scoring, contest.UPDATE: update}


if __name__ == "__main__":
    contest.answer(phases)
