"""`python -m vmm_adapters.cpu.codegen NAME [AVX2]`: an object file for this machine, to standard output.

NAME is `steps`, `pictures`, or `common` or the number of a form, for kernels: of the best instruction set, unless one
is named.
"""

import sys

from vmm_adapters.cpu.codegen.kernels import compile_object, places_of
from vmm_adapters.cpu.codegen.parts import compile_steps
from vmm_adapters.cpu.codegen.pictures import compile_pictures
from vmm_adapters.cpu.codegen.target import host, initialize
from vmm_adapters.cpu.formats import COMMON, PICTURES, STEPS
from vmm_adapters.cpu.isa import InstructionSet


def main(name: str, *isa: str) -> None:
    """Compile, and write it out."""
    target = host()
    chosen = InstructionSet[isa[0]] if isa else target.instruction_sets[0]
    if chosen not in target.instruction_sets:
        raise SystemExit(
            f"this machine has no {chosen.name}; it has {', '.join(s.name for s in target.instruction_sets)}"
        )
    initialize()
    if name == STEPS:
        compiled = compile_steps(target)
    elif name == PICTURES:
        compiled = compile_pictures(target)
    else:
        compiled = compile_object(chosen, target, places_of(None if name == COMMON else int(name)))
    sys.stdout.buffer.write(compiled)


if __name__ == "__main__":
    main(*sys.argv[1:])
