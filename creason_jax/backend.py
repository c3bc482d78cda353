"""What `shared.training` drives: builds the learner and the engine on one mesh."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax

from creason_jax import sharding
from creason_jax.learner import Learner, copy_companions
from creason_jax.model import DecoderConfig, init_params, load_params, save_params
from creason_jax.rollout import Engine
from shared import files
from shared.config import OptimizerConfig, RunConfig
from shared.tokenizer import load_tokenizer, special_tokens


class Backend:
    """See `shared.backend.Backend` for the contract."""

    name = "jax"

    def __init__(self, config: RunConfig):
        if config.learner.compute_dtype == "float32":
            # On TPU and GPU the default precision of a float32 product is lower than float32.
            jax.config.update("jax_default_matmul_precision", "highest")
        self.mesh = sharding.make_mesh(config.learner)

    def initialise(self, config: RunConfig, tokenizer_folder: Path, out: Path) -> None:
        """See `shared.backend.Backend`."""
        tokens = special_tokens(load_tokenizer(tokenizer_folder), tokenizer_folder)
        wanted = config.model
        model = DecoderConfig(
            vocab_size=tokens.vocab_size,
            hidden_size=wanted.hidden_size,
            intermediate_size=wanted.intermediate_size,
            num_hidden_layers=wanted.num_hidden_layers,
            num_attention_heads=wanted.num_attention_heads,
            num_key_value_heads=wanted.num_key_value_heads,
            rms_norm_eps=wanted.rms_norm_eps,
            rope_theta=wanted.rope_theta,
            initializer_range=wanted.initializer_range,
            tie_word_embeddings=wanted.tie_word_embeddings,
        )
        with files.replacing(out) as temporary:
            temporary.mkdir()
            save_params(temporary, init_params(model, config.seed), model)
            files.write_json(
                temporary / "config.json",
                model.to_hugging_face(bos=tokens.bos, eos=tokens.eos, pad=tokens.pad),
            )
            copy_companions(tokenizer_folder, temporary)

    def learner(
        self, config: RunConfig, model: Path, *, optimizer: OptimizerConfig, steps: int, reference: bool
    ) -> Learner:
        """See `shared.backend.Backend`."""
        return Learner(config, model, self.mesh, optimizer=optimizer, steps=steps, reference=reference)

    def engine(self, config: RunConfig, model: Path, *, stop_tokens: Sequence[int]) -> Engine:
        """See `shared.backend.Backend`."""
        return Engine(config, DecoderConfig.read(model), self.mesh, stop_tokens=stop_tokens)

    def load(self, engine: Engine, model: Path) -> None:
        """See `shared.backend.Backend`."""
        engine.load(load_params(model, engine.model, sharding.param_shardings(engine.model, self.mesh)))
