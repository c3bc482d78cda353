"""What a compiled program does, read from its text: floating-point operations, memory traffic, collectives.

XLA's own cost analysis counts the body of a loop once and knows nothing of Pallas kernels; here bodies count as often as
they run. All figures are of one device.
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
# Instructions that name values and move nothing.
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
    in_hbm: bool  # False: in the chip's own memory, where access is not what this file counts

    @property
    def bytes(self) -> int:
        """Without the padding of its layout."""
        return math.ceil(math.prod(self.shape) * SIZES.get(self.dtype, 0))


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    argument: str  # what stands in the parentheses

    @functools.cached_property
    def called(self) -> list[str]:
        """Computations that it runs once; of a loop, the body."""
        names = CALLED.findall(self.attributes)
        for inside in BRANCHES.findall(self.attributes):
            names += [name.strip().lstrip("%") for name in inside.split(",")]
        return names


@dataclasses.dataclass(frozen=True)
class Collective:
    """A kind of communication in a program."""

    count: int = 0
    bytes: float = 0.0  # that a device sends or receives, whichever is more


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one run of a program, on one device."""

    flops: float = 0.0
    bytes: float = 0.0  # read from and written to HBM
    collectives: Mapping[str, Collective] = dataclasses.field(default_factory=dict)
    kernels: Mapping[str, int] = dataclasses.field(default_factory=dict)  # calls of Pallas kernels

    def plus(self, other: Cost, times: int = 1, *, traffic: bool = True) -> Cost:
        """With `other` added so many times; without its memory traffic where that stays inside a fusion."""
        collectives = dict(self.collectives)
        for kind, more in other.collectives.items():
            own = collectives.get(kind, Collective())
            collectives[kind] = Collective(own.count + times * more.count, own.bytes + times * more.bytes)
        kernels = dict(self.kernels)
        for name, count in other.kernels.items():
            kernels[name] = kernels.get(name, 0) + times * count
        moved = other.bytes if traffic else 0.0
        return Cost(self.flops + times * other.flops, self.bytes + times * moved, collectives, kernels)

    @property
    def collective_bytes(self) -> float:
        """Of all kinds together."""
        return sum(each.bytes for each in self.collectives.values())


class Program:
    """The computations of a compiled program's text."""

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
        """Of the whole program. `kernel_flops` says what one call of a Pallas kernel computes, by the start of its name."""
        return self._cost(self.entry, kernel_flops or {}, {})

    def inside_loops(self) -> Iterator[tuple[str, Instruction]]:
        """Every instruction that a loop repeats, with the name of the body it stands in or is called from."""
        for instructions in self.computations.values():
            for each in instructions.values():
                if each.opcode == "while":
                    for name in each.called:
                        yield from ((name, found) for found in self.reached(name))

    def reached(self, name: str) -> Iterator[Instruction]:
        """Every instruction of a computation and of those that it calls, loops in it apart."""
        for each in self.computations.get(name, {}).values():
            yield each
            if each.opcode != "while":
                for called in each.called:
                    yield from self.reached(called)

    def trips(self, loop: Instruction) -> int:
        """How often a loop runs, from the one number that its condition compares with. A loop that may end earlier counts
        with that limit; one without any limit counts once."""
        condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
        assert condition
        own = self.computations[condition.group(1)]
        compares = [each for each in own.values() if each.opcode == "compare"]
        compared = [own[name] for each in compares for name in each.operands if name in own]
        limits = list(filter(None, map(_integer, compared))) or list(
            filter(None, map(_integer, self.reached(condition.group(1))))
        )
        counters = [_index(each) for each in compared if each.opcode == "get-tuple-element"]
        step = self._step(loop.called[0], counters[0]) if len(counters) == 1 and loop.called else 1
        return -(-max(limits, default=1) // step)

    def _step(self, body: str, counter: int) -> int:
        """By how much a loop's body adds to one of the values that it carries: two where it was unrolled once; one if unclear."""
        own = self.computations.get(body, {})
        handed_on = [each for each in own.values() if each.opcode == "tuple"]
        if not handed_on or counter >= len(handed_on[-1].operands):
            return 1
        each = own.get(handed_on[-1].operands[counter])
        while each is not None and each.opcode in ("copy", "bitcast"):
            each = own.get(each.operands[0])
        if each is None or each.opcode != "add":
            return 1
        return max((_integer(own[name]) for name in each.operands if name in own), default=1) or 1

    def _cost(self, name: str, kernel_flops: Mapping[str, float], known: dict[str, Cost]) -> Cost:
        if name in known:
            return known[name]
        total = Cost()
        instructions = self.computations.get(name, {})
        for each in instructions.values():
            total = total.plus(self._own(each, instructions, kernel_flops, in_fusion="scatter" in name))
            times = self.trips(each) if each.opcode == "while" else 1
            for called in each.called:
                inner = self._cost(called, kernel_flops, known)
                total = total.plus(inner, times, traffic=each.opcode in ("while", "conditional", "call", "async-start"))
        known[name] = total
        return total

    def _own(
        self, each: Instruction, around: Mapping[str, Instruction], kernel_flops: Mapping[str, float], in_fusion: bool
    ) -> Cost:
        flops = 0.0
        kernels = {}
        if each.opcode == "dot":
            flops = _dot_flops(each, around)
        elif each.opcode == "convolution":
            flops = _convolution_flops(each, around)
        elif each.opcode == "custom-call" and "tpu_custom_call" in each.attributes:
            kernels = {each.name.rsplit(".", 1)[0]: 1}
            flops = next((count for start, count in kernel_flops.items() if each.name.startswith(start)), 0.0)
        return Cost(flops, self._traffic(each, around), _collectives(each, around, in_fusion), kernels)

    def _traffic(self, each: Instruction, around: Mapping[str, Instruction]) -> float:
        """Bytes of HBM that an instruction reads and writes, if it stands outside a fusion."""
        if each.opcode in FREE or each.opcode in ("while", "conditional", "call", "async-start"):
            return 0.0
        if each.opcode == "copy-start":
            return sum(array.bytes for array in each.arrays[:2] if array.in_hbm)
        if each.opcode in ("slice", "dynamic-slice"):
            source = around.get(each.operands[0])
            return _hbm(each) + (each.arrays[0].bytes if source and _hbm(source) else 0)
        if each.opcode == "dynamic-update-slice":
            return 2 * _hbm(around[each.operands[1]]) if each.operands[1] in around else 0.0
        sources = [around[name] for name in each.operands if name in around]
        if each.opcode != "fusion":
            return _hbm(each) + sum(map(_hbm, sources))
        inside = self.computations.get(each.called[0], {}) if each.called else {}
        parameters = {int(line.argument): line for line in inside.values() if line.opcode == "parameter"}
        read = 0.0
        for index, source in enumerate(sources):
            whole: float = _hbm(source)
            parameter = parameters.get(index)
            users = [line for line in inside.values() if parameter and parameter.name in line.operands]
            if whole and users and all(line.opcode in ("slice", "dynamic-slice", "gather") for line in users):
                whole = min(whole, sum(array.bytes for line in users for array in line.arrays))
            elif whole and users and all(line.opcode == "dynamic-update-slice" for line in users):
                whole = 0.0  # written in place
            read += whole
        updates = [line for line in inside.values() if line.opcode == "dynamic-update-slice"]
        written: float = _hbm(each)
        if updates:
            small = sum(
                a.bytes for line in updates if line.operands[1] in inside for a in inside[line.operands[1]].arrays
            )
            written = min(written, small) if written else 0.0
        return read + written


def _index(each: Instruction) -> int:
    """Which of a tuple's values an instruction takes."""
    index = re.search(r"index=(\d+)", each.attributes)
    assert index
    return int(index.group(1))


def _integer(each: Instruction) -> int:
    """The value of an integer constant; 0 for anything else."""
    whole = each.opcode == "constant" and each.arrays[0].dtype in ("s32", "u32", "s64") and each.argument.isdigit()
    return int(each.argument) if whole else 0


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


def _hbm(each: Instruction) -> int:
    return sum(array.bytes for array in each.arrays if array.in_hbm)


def _dot_flops(each: Instruction, around: Mapping[str, Instruction]) -> float:
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", each.attributes)
    dims = [int(n) for n in contracted.group(1).split(",") if n] if contracted else []
    left = around[each.operands[0]].arrays[0].shape
    return 2.0 * math.prod(each.arrays[0].shape) * math.prod(left[dim] for dim in dims)


def _convolution_flops(each: Instruction, around: Mapping[str, Instruction]) -> float:
    """TPU programs write matrix products as convolutions, some with heads as a padded spatial dimension: only products
    with what is not padding count."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", each.attributes)
    assert labels
    left, right, out = labels.groups()
    window = re.search(r"window=\{([^}]*)\}", each.attributes)
    fields = dict(part.split("=") for part in window.group(1).split()) if window else {}
    source, kernel = (around[name].arrays[0].shape for name in each.operands[:2])
    result = each.arrays[0].shape
    flops = 2.0 * result[out.index("b")] * result[out.index("f")] * kernel[right.index("i")]
    for dim in range(len([label for label in out if label.isdigit()])):
        digit = str(dim)
        size = kernel[right.index(digit)]
        stride, dilated, spread = (_field(fields, key, dim, 1) for key in ("stride", "rhs_dilate", "lhs_dilate"))
        low = int(fields["pad"].split("x")[dim].split("_")[0]) if "pad" in fields else 0
        there = (source[left.index(digit)] - 1) * spread + 1
        places = (at * stride + tap * dilated - low for at in range(result[out.index(digit)]) for tap in range(size))
        flops *= sum(0 <= place < there and place % spread == 0 for place in places)
    return flops


def _field(fields: Mapping[str, str], key: str, dim: int, default: int) -> int:
    return int(fields[key].split("x")[dim]) if key in fields else default


def _collectives(each: Instruction, around: Mapping[str, Instruction], in_fusion: bool) -> dict[str, Collective]:
    kind = each.opcode.removesuffix("-start")
    if kind not in COLLECTIVES or _continues(each, around):
        return {}
    ways = _group_size(each.attributes)
    given = sum(array.bytes for name in each.operands if name in around for array in around[name].arrays)
    made = sum(array.bytes for array in each.arrays)
    if each.opcode.endswith("-start") and kind != "all-reduce":
        made = max(array.bytes for array in each.arrays)  # the rest of the tuple is its operand and its bookkeeping
    share = (ways - 1) / ways
    if kind == "all-reduce" and in_fusion:
        kind = "reduce-scatter"  # the TPU compiler's form of it: a sum of which each device takes its slice
    moved = {
        "all-gather": made * share,
        "all-reduce": 2 * given * share,
        "reduce-scatter": given * share,
        "all-to-all": given * share,
        "collective-permute": float(given),
    }[kind]
    return {kind: Collective(1, moved)}


def _continues(each: Instruction, around: Mapping[str, Instruction]) -> bool:
    """Whether a collective is another stage of one that began before. The TPU compiler lets one run beside several fusions
    and writes it into each of them; all but the first are given the array that it fills."""
    if "async_collective_fusion_config" not in each.attributes:
        return False
    given = [other for other in around.values() if other.opcode == "parameter" and other.name not in each.operands]
    filled = [(array.dtype, array.shape) for array in each.arrays]
    return any((array.dtype, array.shape) in filled for other in given for array in other.arrays)


def _group_size(attributes: str) -> int:
    """Devices that take part together, in the three ways in which XLA writes groups."""
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}", attributes)
    if mesh:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh.group(1)))
        # An axis by its name, or a part of one by its name, what comes before the part, and the part's size.
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh.group(2))
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    tiled = re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes)
    if tiled:
        return int(tiled.group(2))
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    if listed:
        return len(listed.group(1).split(","))
    return 2  # a permutation: pairs
