"""The code generation process: LLVM IR text in, object bytes or assembly text out. Run as a script, by path.

It imports llvmlite and the standard library, nothing else, so that it starts at once. LLVM may abort it; `workers` notices.
Messages on both pipes are pickles behind a length of eight bytes.

    python worker.py FOLDER      FOLDER: where the package llvmlite lies
"""

from __future__ import annotations

import functools
import os
import pickle
import struct
import sys
from typing import IO, Any


def read_message(stream: IO[bytes]) -> Any:
    """The next message; EOFError where the stream has ended."""
    head = stream.read(8)
    if len(head) < 8:
        raise EOFError
    (length,) = struct.unpack("<Q", head)
    body = stream.read(length)
    if len(body) < length:
        raise EOFError
    return pickle.loads(body)


def write_message(stream: IO[bytes], message: Any) -> None:
    body = pickle.dumps(message, protocol=4)
    stream.write(struct.pack("<Q", len(body)) + body)
    stream.flush()


@functools.cache
def target_machine(triple: str, cpu: str, features: str, level: int, abi: str) -> Any:
    import llvmlite.binding as llvm

    machine = llvm.Target.from_triple(triple).create_target_machine(
        cpu=cpu, features=features, opt=level, reloc="pic", codemodel="small", abiname=abi
    )
    machine.set_asm_verbosity(False)
    return machine


def generate(request: dict[str, Any]) -> bytes | str:
    """Object bytes, or the assembly as text where request["assembly"]."""
    import llvmlite.binding as llvm

    machine = target_machine(request["triple"], request["cpu"], request["features"], request["level"], request["abi"])
    module = llvm.parse_assembly(request["ir"], llvm.create_context())
    module.data_layout = str(machine.target_data)  # the passes would take pointers to be 64 bits wide
    module.verify()
    if request["passes"]:
        manager = llvm.create_new_module_pass_manager()
        for name in request["passes"]:
            getattr(manager, f"add_{name}_pass")()
        manager.run(module, llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2)))
    return machine.emit_assembly(module) if request["assembly"] else machine.emit_object(module)


def main() -> None:
    sys.path.append(sys.argv[1])
    import llvmlite.binding as llvm

    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what LLVM prints must not get between the messages
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    # It would add products to each other before the accumulator: shorter chains, but more values at once than there are registers.
    llvm.set_option("worker", "-x86-machine-combiner=false")
    while True:
        try:
            request = read_message(requests)
        except EOFError:
            return
        try:
            reply = {"output": generate(request), "error": ""}
        except Exception as error:
            reply = {"output": b"", "error": f"{type(error).__name__}: {error}"}
        sys.stderr.flush()
        write_message(replies, reply)


if __name__ == "__main__":
    main()
