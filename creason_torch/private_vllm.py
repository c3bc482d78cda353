"""Names of vLLM that it does not promise to keep: all that we use stand here, and nowhere else.

They hold for `VERSION`; tests/test_private_names.py says when another version is installed, or when a name is gone.
"""

from __future__ import annotations

from typing import Any

VERSION = "0.32.0"  # of vllm, and of its CPU build


def keep_process_group(llm: Any) -> None:
    """Stop vLLM from destroying the process group when it ends: the learner still uses it."""
    finalizer = getattr(llm.llm_engine.engine_core, "_finalizer", None)
    if finalizer is not None:
        finalizer.detach()
