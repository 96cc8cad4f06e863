"""A classic-BPF evaluator for seccomp programs: what a filter answers, decided without a kernel.

It knows the instructions the kernel lets a seccomp filter hold (kernel/seccomp.c,
seccomp_check_filter) that casemate or libseccomp emit, and refuses every other one. `decode` checks
what the kernel's verifier checks: targets inside the program, no jump backwards (they cannot be
written), a `ret` at the end, aligned loads within struct seccomp_data.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

KILL = 0x8000_0000
KILL_THREAD = 0x0000_0000
ALLOW = 0x7FFF_0000
ERRNO = 0x0005_0000

LOAD, AND, RETURN, JUMP = 0x20, 0x54, 0x06, 0x05
IF_EQUAL, IF_GREATER, IF_NOT_LESS, IF_BITS = 0x15, 0x25, 0x35, 0x45
CONDITIONS = {
    IF_EQUAL: lambda a, k: a == k,
    IF_GREATER: lambda a, k: a > k,
    IF_NOT_LESS: lambda a, k: a >= k,
    IF_BITS: lambda a, k: a & k != 0,
}
DATA = struct.Struct("<iIQ6Q")  # struct seccomp_data


@dataclass(frozen=True)
class Instruction:
    code: int
    jt: int
    jf: int
    k: int

    def targets(self, at: int) -> list[int]:
        """Where control may go from here."""
        if self.code == RETURN:
            return []
        if self.code == JUMP:
            return [at + 1 + self.k]
        if self.code in CONDITIONS:
            return [at + 1 + self.jt, at + 1 + self.jf]
        return [at + 1]


class MalformedError(Exception):
    """The kernel would not take this program, or the evaluator does not know an instruction."""


def decode(code: bytes) -> list[Instruction]:
    program = [Instruction(*fields) for fields in struct.iter_unpack("<HBBI", code)]
    if not 0 < len(program) <= 4096:
        raise MalformedError(f"{len(program)} instructions")
    for at, instruction in enumerate(program):
        if instruction.code not in {LOAD, AND, RETURN, JUMP, *CONDITIONS}:
            raise MalformedError(f"{at}: unknown code {instruction.code:#x}")
        if instruction.code == LOAD and (instruction.k % 4 or instruction.k >= DATA.size):
            raise MalformedError(f"{at}: load from {instruction.k}")
        if any(target >= len(program) for target in instruction.targets(at)):
            raise MalformedError(f"{at}: leaves the program")
    return program


@dataclass(frozen=True)
class Answer:
    value: int
    steps: int
    loads: frozenset[int]  # offsets into seccomp_data that were looked at

    @property
    def errno(self) -> int | None:
        return self.value & 0xFFFF if self.value & 0xFFFF_0000 == ERRNO else None


def evaluate(
    program: list[Instruction], audit: int, number: int, arguments: tuple[int, ...] = ()
) -> Answer:
    """The filter's answer to one system call; arguments are any 64-bit values."""
    padded = [argument & (2**64 - 1) for argument in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
    signed = (number & 0xFFFF_FFFF) ^ 0x8000_0000
    data = DATA.pack(signed - 0x8000_0000, audit, 0x7FFF_1234_5678, *padded)
    accumulator = at = steps = 0
    loads: set[int] = set()
    while True:
        instruction = program[at]
        steps += 1
        at += 1
        if instruction.code == RETURN:
            return Answer(instruction.k, steps, frozenset(loads))
        if instruction.code == LOAD:
            loads.add(instruction.k)
            (accumulator,) = struct.unpack_from("<I", data, instruction.k)
        elif instruction.code == AND:
            accumulator &= instruction.k
        elif instruction.code == JUMP:
            at += instruction.k
        else:
            holds = CONDITIONS[instruction.code](accumulator, instruction.k)
            at += instruction.jt if holds else instruction.jf
