"""Peak memory of scoring with the PyTorch backend, by vocabulary size: chunked log-probabilities against all logits at once.

python -m benchmarks.scoring_memory [--tokens=4096] [--width=256] [--chunk=256]

Each case runs a forward and a backward pass in a process of its own. Its figure is the peak memory of that process, minus the
memory before the forward pass.
"""

from __future__ import annotations

import resource
import subprocess
import sys

from absl import flags

from benchmarks import measure
from launch import app

FLAGS = flags.FLAGS
VOCABULARIES = (8_192, 32_768, 100_352)


def peak(how: str, tokens: int, width: int, vocabulary: int, chunk: int) -> float:
    """Peak memory of this process in MiB, minus the memory with only the inputs."""
    import torch

    from creason_torch.model.logprobs import token_logprobs

    torch.manual_seed(0)
    hidden = torch.randn(1, tokens, width, requires_grad=True)
    head = torch.randn(vocabulary, width, requires_grad=True)
    targets = torch.randint(vocabulary, (1, tokens))
    head.grad = torch.zeros_like(head)  # made before, because both cases need the head's gradient
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if how == "chunked":
        logprobs, _ = token_logprobs(hidden, head, targets, chunk=chunk)
    else:
        logprobs = torch.log_softmax(hidden @ head.T, dim=-1).gather(2, targets[..., None])
    logprobs.sum().backward()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def peak_in_new_process(how: str, vocabulary: int) -> float:
    """`peak` in a process of its own."""
    arguments = f"{how!r}, {FLAGS.tokens}, {FLAGS.width}, {vocabulary}, {FLAGS.chunk}"
    program = f"from benchmarks.scoring_memory import peak; print(peak({arguments}))"
    return float(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Print the table."""
    lines = []
    for vocabulary in VOCABULARIES:
        chunked, whole = peak_in_new_process("chunked", vocabulary), peak_in_new_process("whole", vocabulary)
        chunk_mib = 4 * FLAGS.chunk * vocabulary / 2**20
        lines.append(
            [f"{vocabulary:,}", f"{chunk_mib:.0f}", f"{chunked:.0f}", f"{whole:.0f}", f"{chunked / whole:.3f}"]
        )
    print(f"{FLAGS.tokens:,} tokens of width {FLAGS.width}, chunks of {FLAGS.chunk}, float32; MiB")
    measure.print_table(["vocabulary", "logits of one chunk", "chunked, peak", "all at once, peak", "ratio"], lines)


if __name__ == "__main__":
    flags.DEFINE_integer("tokens", 4_096, "Completion tokens in a micro-batch.", lower_bound=1)
    flags.DEFINE_integer("width", 256, "The model's width.", lower_bound=1)
    flags.DEFINE_integer("chunk", 256, "Tokens whose logits exist at the same time.", lower_bound=1)
    app.run(main)
