"""Reads the text of a compiled program: what it sends, and what its kernels move."""

import math
import re
from typing import Any, NamedTuple

_COLLECTIVE = re.compile(
    r"= (\S.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)"
    r"(-start)?\(.*?(channel_id=\d+|$)"
)
# Types such as f32 and bf16; u32[] are the tokens of started collectives.
_ARRAY = re.compile(r"\b(?!u32\[\])([a-z]+)(\d*)\w*\[([\d,]*)\]")
# Started, these two return their operands before what will arrive.
_WITH_OPERANDS = ("all-gather", "collective-permute")

_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")
_OPERAND = re.compile(r"%([\w.\-]+)")
_COMMUNICATION = re.compile(r"all-|reduce-scatter|collective-|async-")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
# Names of what is there already; loops are not looked into.
_NO_KERNELS = {
    "parameter",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "constant",
    "while",
}


class Collective(NamedTuple):
    """One collective operation of a compiled program.

    Attributes:
      kind: "all-gather", "all-reduce", "reduce-scatter", ...
      shapes: of the arrays of its result, on one device.
      nbytes: of them together.
      in_loop: it stands in the body of a loop.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    nbytes: int
    in_loop: bool


def collectives(text: str) -> list[Collective]:
    """Collectives of a compiled program, from its `as_text()`."""
    bodies = set(re.findall(r"body=%?([\w.\-]+)", text))
    # A TPU writes one that runs beside other work several times, with one channel.
    found: dict[Any, Collective] = {}
    block = ""
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")):
            block = line.split()[0].lstrip("%")
        match = _COLLECTIVE.search(line)
        if match:
            result, kind, started, channel = match.groups()
            arrays = _arrays(result)
            if started and kind in _WITH_OPERANDS:
                arrays = arrays[len(arrays) // 2 :]
            nbytes = sum(size for _, size in arrays)
            shapes = tuple(shape for shape, _ in arrays)
            one = Collective(kind, shapes, nbytes, block in bodies)
            found[(one, channel) if channel else line] = one
    return list(found.values())


class Kernel(NamedTuple):
    """One kernel that a step starts on a GPU.

    Attributes:
      kind: "convolution", "product" (of matrices), "fusion" (of elementwise work and
        reductions), "single" (an elementwise operation that was not fused), "copy",
        or XLA's own word.
      nbytes: of the arrays that it reads and writes.
    """

    kind: str
    nbytes: int


def kernels(text: str) -> list[Kernel]:
    """Kernels of a program that was compiled for a GPU, those in loops left out.

    An array counts whole, also where a kernel reads a part of it.
    """
    entry = text[text.index("\nENTRY ") :]
    sizes: dict[str, int] = {}
    found = []
    for name, result, operation, rest in _INSTRUCTION.findall(entry):
        sizes[name] = sum(size for _, size in _arrays(result))
        if operation not in _NO_KERNELS and not _COMMUNICATION.match(operation):
            operands = _OPERAND.findall(rest.split("), ")[0])
            nbytes = sizes[name] + sum(sizes.get(one, 0) for one in operands)
            found.append(Kernel(_kind(name, operation, rest), nbytes))
    return found


def _kind(name: str, operation: str, rest: str) -> str:
    target = _TARGET.search(rest)
    if target:
        convolution = target[1].startswith("__cudnn$conv")
        product = target[1].startswith("__cublas")
        return "convolution" if convolution else "product" if product else target[1]
    if operation == "copy":
        return "copy"
    if operation == "fusion":
        return "single" if name.startswith("wrapped_") else "fusion"
    return operation


def _arrays(result: str) -> list[tuple[tuple[int, ...], int]]:
    """(shape, bytes) of each array of a type; pred takes a byte."""
    found = []
    for _, bits, dims in _ARRAY.findall(result):
        shape = tuple(map(int, filter(None, dims.split(","))))
        found.append((shape, math.prod(shape) * int(bits or 8) // 8))
    return found
