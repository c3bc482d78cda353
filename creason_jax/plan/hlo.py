"""The cost of a compiled program, read from its HLO text: FLOPs, memory traffic and collectives of one device.

XLA's own cost analysis counts the body of a loop once and does not know Pallas kernels. Here a body counts as often as it runs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
SIZES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4,
         "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16}  # fmt: skip
# Instructions that move no bytes.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id", "iota",
        "copy-done", "async-done", "async-update", "all-gather-done", "all-reduce-done", "collective-permute-done",
        "opt-barrier", "add-dependency"}  # fmt: skip
ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
HEADING = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an instruction's result."""

    dtype: str
    shape: tuple[int, ...]
    in_hbm: bool  # False: in the chip's on-chip memory, whose traffic is not counted here

    @property
    def bytes(self) -> int:
        """Size of the array, without the padding of its layout."""
        return math.ceil(math.prod(self.shape) * SIZES.get(self.dtype, 0))


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    argument: str  # the text in the parentheses

    @functools.cached_property
    def called(self) -> list[str]:
        """Names of the computations that this instruction runs; for a loop, its body."""
        names = CALLED.findall(self.attributes)
        for inside in BRANCHES.findall(self.attributes):
            names += [name.strip().lstrip("%") for name in inside.split(",")]
        return names


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind in a program."""

    count: int = 0
    bytes: float = 0.0  # sent or received by a device, whichever is more


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one run of a program on one device."""

    flops: float = 0.0
    bytes: float = 0.0  # read from and written to HBM
    collectives: Mapping[str, Collective] = dataclasses.field(default_factory=dict)
    kernels: Mapping[str, int] = dataclasses.field(default_factory=dict)  # calls of Pallas kernels

    def plus(self, other: Cost, times: int = 1, *, traffic: bool = True) -> Cost:
        """This cost plus `times` times `other`. `traffic=False` leaves out the memory traffic of `other` (inside a fusion)."""
        collectives = dict(self.collectives)
        for kind, added in other.collectives.items():
            own = collectives.get(kind, Collective())
            collectives[kind] = Collective(own.count + times * added.count, own.bytes + times * added.bytes)
        kernels = dict(self.kernels)
        for name, count in other.kernels.items():
            kernels[name] = kernels.get(name, 0) + times * count
        moved = other.bytes if traffic else 0.0
        return Cost(self.flops + times * other.flops, self.bytes + times * moved, collectives, kernels)

    @property
    def collective_bytes(self) -> float:
        """Bytes of all collectives together."""
        return sum(collective.bytes for collective in self.collectives.values())


class Program:
    """A compiled program: its computations by name, each with its instructions by name."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            heading = HEADING.match(line)
            if heading:
                current = self.computations.setdefault(heading.group(2), {})
                if heading.group(1):
                    self.entry = heading.group(2)
            elif " = " in line and line.startswith(" "):
                instruction = _instruction(line)
                current[instruction.name] = instruction

    def cost(self, kernel_flops: Mapping[str, float] | None = None) -> Cost:
        """The cost of the whole program. `kernel_flops`: start of a Pallas kernel's name -> FLOPs of one call."""
        return self._cost(self.entry, kernel_flops or {}, {})

    def inside_loops(self) -> Iterator[tuple[str, Instruction]]:
        """Every instruction that a loop repeats, as (name of the loop's body, instruction)."""
        for instructions in self.computations.values():
            for instruction in instructions.values():
                if instruction.opcode == "while":
                    for name in instruction.called:
                        yield from ((name, inner) for inner in self.reached(name))

    def reached(self, name: str) -> Iterator[Instruction]:
        """Every instruction of a computation and of the computations that it calls, but not of the loops in it."""
        for instruction in self.computations.get(name, {}).values():
            yield instruction
            if instruction.opcode != "while":
                for called in instruction.called:
                    yield from self.reached(called)

    def trips(self, loop: Instruction) -> int:
        """How often a loop runs: the limit in its condition, divided by the step of its counter.

        A loop that may end earlier counts with its limit; a loop without a limit counts once."""
        condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
        assert condition
        computation = self.computations[condition.group(1)]
        compares = [compare for compare in computation.values() if compare.opcode == "compare"]
        compared = [computation[name] for compare in compares for name in compare.operands if name in computation]
        limits = list(filter(None, map(_integer, compared))) or list(
            filter(None, map(_integer, self.reached(condition.group(1))))
        )
        counters = [_index(value) for value in compared if value.opcode == "get-tuple-element"]
        step = self._step(loop.called[0], counters[0]) if len(counters) == 1 and loop.called else 1
        return -(-max(limits, default=1) // step)

    def _step(self, body: str, counter: int) -> int:
        """How much a loop's body adds to its counter (2 if the loop was unrolled once); 1 if it cannot be read.

        `counter`: the index of the counter among the values that the loop carries."""
        computation = self.computations.get(body, {})
        tuples = [instruction for instruction in computation.values() if instruction.opcode == "tuple"]
        if not tuples or counter >= len(tuples[-1].operands):
            return 1
        instruction = computation.get(tuples[-1].operands[counter])
        while instruction is not None and instruction.opcode in ("copy", "bitcast"):
            instruction = computation.get(instruction.operands[0])
        if instruction is None or instruction.opcode != "add":
            return 1
        return (
            max((_integer(computation[name]) for name in instruction.operands if name in computation), default=1) or 1
        )

    def _cost(self, name: str, kernel_flops: Mapping[str, float], costs: dict[str, Cost]) -> Cost:
        if name in costs:
            return costs[name]
        total = Cost()
        instructions = self.computations.get(name, {})
        for instruction in instructions.values():
            total = total.plus(self._own_cost(instruction, instructions, kernel_flops, in_fusion="scatter" in name))
            times = self.trips(instruction) if instruction.opcode == "while" else 1
            for called in instruction.called:
                inner = self._cost(called, kernel_flops, costs)
                total = total.plus(
                    inner, times, traffic=instruction.opcode in ("while", "conditional", "call", "async-start")
                )
        costs[name] = total
        return total

    def _own_cost(
        self,
        instruction: Instruction,
        computation: Mapping[str, Instruction],
        kernel_flops: Mapping[str, float],
        in_fusion: bool,
    ) -> Cost:
        flops = 0.0
        kernels = {}
        if instruction.opcode == "dot":
            flops = _dot_flops(instruction, computation)
        elif instruction.opcode == "convolution":
            flops = _convolution_flops(instruction, computation)
        elif instruction.opcode == "custom-call" and "tpu_custom_call" in instruction.attributes:
            kernels = {instruction.name.rsplit(".", 1)[0]: 1}
            flops = next((count for start, count in kernel_flops.items() if instruction.name.startswith(start)), 0.0)
        return Cost(
            flops, self._traffic(instruction, computation), _collectives(instruction, computation, in_fusion), kernels
        )

    def _traffic(self, instruction: Instruction, computation: Mapping[str, Instruction]) -> float:
        """Bytes of HBM that an instruction outside a fusion reads and writes."""
        if instruction.opcode in FREE or instruction.opcode in ("while", "conditional", "call", "async-start"):
            return 0.0
        if instruction.opcode == "copy-start":
            return sum(array.bytes for array in instruction.arrays[:2] if array.in_hbm)
        if instruction.opcode in ("slice", "dynamic-slice"):
            source = computation.get(instruction.operands[0])
            return _hbm(instruction) + (instruction.arrays[0].bytes if source and _hbm(source) else 0)
        if instruction.opcode == "dynamic-update-slice":
            return 2 * _hbm(computation[instruction.operands[1]]) if instruction.operands[1] in computation else 0.0
        sources = [computation[name] for name in instruction.operands if name in computation]
        if instruction.opcode != "fusion":
            return _hbm(instruction) + sum(map(_hbm, sources))
        inside = self.computations.get(instruction.called[0], {}) if instruction.called else {}
        parameters = {int(line.argument): line for line in inside.values() if line.opcode == "parameter"}
        read = 0.0
        for index, source in enumerate(sources):
            bytes_read: float = _hbm(source)
            parameter = parameters.get(index)
            users = [line for line in inside.values() if parameter and parameter.name in line.operands]
            if bytes_read and users and all(line.opcode in ("slice", "dynamic-slice", "gather") for line in users):
                bytes_read = min(bytes_read, sum(array.bytes for line in users for array in line.arrays))
            elif bytes_read and users and all(line.opcode == "dynamic-update-slice" for line in users):
                bytes_read = 0.0  # written in place
            read += bytes_read
        updates = [line for line in inside.values() if line.opcode == "dynamic-update-slice"]
        written: float = _hbm(instruction)
        if updates:
            small = sum(
                a.bytes for line in updates if line.operands[1] in inside for a in inside[line.operands[1]].arrays
            )
            written = min(written, small) if written else 0.0
        return read + written


def _index(instruction: Instruction) -> int:
    """The index of the tuple's value that a get-tuple-element takes."""
    index = re.search(r"index=(\d+)", instruction.attributes)
    assert index
    return int(index.group(1))


def _integer(instruction: Instruction) -> int:
    """The value of an integer constant; 0 for anything else."""
    whole = (
        instruction.opcode == "constant"
        and instruction.arrays[0].dtype in ("s32", "u32", "s64")
        and instruction.argument.isdigit()
    )
    return int(instruction.argument) if whole else 0


def _instruction(line: str) -> Instruction:
    line = re.sub(r"/\*.*?\*/", "", line).strip().removeprefix("ROOT ")
    name, _, rest = line.partition(" = ")
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    end = _closing(rest, len(opcode))
    argument = rest[len(opcode) + 1 : end]
    arrays = tuple(
        Array(dtype, tuple(int(n) for n in shape.split(",") if n), not re.search(r"S\([1-9]", layout))
        for dtype, shape, layout in ARRAY.findall(kind)
    )
    operands = tuple(re.findall(r"%([\w.\-]+)", argument))
    return Instruction(name.strip().lstrip("%"), opcode.strip(), arrays, operands, rest[end + 1 :], argument)


def _closing(text: str, start: int) -> int:
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index
    return len(text)


def _hbm(instruction: Instruction) -> int:
    return sum(array.bytes for array in instruction.arrays if array.in_hbm)


def _dot_flops(instruction: Instruction, computation: Mapping[str, Instruction]) -> float:
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
    dims = [int(n) for n in contracted.group(1).split(",") if n] if contracted else []
    left_shape = computation[instruction.operands[0]].arrays[0].shape
    return 2.0 * math.prod(instruction.arrays[0].shape) * math.prod(left_shape[dim] for dim in dims)


def _convolution_flops(instruction: Instruction, computation: Mapping[str, Instruction]) -> float:
    """TPU programs write matrix products as convolutions, some with heads as a padded spatial dimension: products with padding
    are not counted."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels
    left_labels, right_labels, out_labels = labels.groups()
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    fields = dict(part.split("=") for part in window.group(1).split()) if window else {}
    source, kernel = (computation[name].arrays[0].shape for name in instruction.operands[:2])
    result = instruction.arrays[0].shape
    flops = 2.0 * result[out_labels.index("b")] * result[out_labels.index("f")] * kernel[right_labels.index("i")]
    for dim in range(len([label for label in out_labels if label.isdigit()])):
        digit = str(dim)
        size = kernel[right_labels.index(digit)]
        stride, dilated, spread = (_field(fields, key, dim, 1) for key in ("stride", "rhs_dilate", "lhs_dilate"))
        low = int(fields["pad"].split("x")[dim].split("_")[0]) if "pad" in fields else 0
        padded_size = (source[left_labels.index(digit)] - 1) * spread + 1
        positions = (
            at * stride + tap * dilated - low for at in range(result[out_labels.index(digit)]) for tap in range(size)
        )
        flops *= sum(0 <= position < padded_size and position % spread == 0 for position in positions)
    return flops


def _field(fields: Mapping[str, str], key: str, dim: int, default: int) -> int:
    return int(fields[key].split("x")[dim]) if key in fields else default


def _collectives(
    instruction: Instruction, computation: Mapping[str, Instruction], in_fusion: bool
) -> dict[str, Collective]:
    kind = instruction.opcode.removesuffix("-start")
    if kind not in COLLECTIVES or _continues(instruction, computation):
        return {}
    ways = _group_size(instruction.attributes)
    operand_bytes = sum(
        array.bytes for name in instruction.operands if name in computation for array in computation[name].arrays
    )
    result_bytes = sum(array.bytes for array in instruction.arrays)
    if instruction.opcode.endswith("-start") and kind != "all-reduce":
        # The tuple holds the operand, the result and some bookkeeping; the result is the largest.
        result_bytes = max(array.bytes for array in instruction.arrays)
    share = (ways - 1) / ways
    if kind == "all-reduce" and in_fusion:
        kind = "reduce-scatter"  # the TPU compiler writes it as an all-reduce of which each device takes its slice
    moved = {
        "all-gather": result_bytes * share,
        "all-reduce": 2 * operand_bytes * share,
        "reduce-scatter": operand_bytes * share,
        "all-to-all": operand_bytes * share,
        "collective-permute": float(operand_bytes),
    }[kind]
    return {kind: Collective(1, moved)}


def _continues(instruction: Instruction, computation: Mapping[str, Instruction]) -> bool:
    """Whether a collective continues one that began in an earlier fusion.

    The TPU compiler lets a collective run during several fusions, and writes it into each of them. All but the first have the
    array that it fills as a parameter."""
    if "async_collective_fusion_config" not in instruction.attributes:
        return False
    unused = [
        parameter
        for parameter in computation.values()
        if parameter.opcode == "parameter" and parameter.name not in instruction.operands
    ]
    filled = [(array.dtype, array.shape) for array in instruction.arrays]
    return any((array.dtype, array.shape) in filled for parameter in unused for array in parameter.arrays)


def _group_size(attributes: str) -> int:
    """The number of devices in a group of the collective, from any of the three forms in which XLA writes groups."""
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}", attributes)
    if mesh:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh.group(1)))
        # A whole axis is its name; a part of an axis is its name, the size before the part, and the size of the part.
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh.group(2))
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    tiled = re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes)
    if tiled:
        return int(tiled.group(2))
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    if listed:
        return len(listed.group(1).split(","))
    return 2  # a permutation: pairs
