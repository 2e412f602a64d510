"""The bundled network on a phone's processor and a microcontroller: the saved bundle, linked by both linkers, run under QEMU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from arm_boards import run_on_aarch64, run_on_mps2

import cortado
from cortado import digits
from cortado.compiler.reference import run_graph

IMAGES = 3


def bundle(target: str, folder: Path) -> tuple[bytes, dict[str, str]]:
    """The library and the header of the bundled network."""
    cortado.compile(graph(), target=target, name="digits").save(folder)
    return (folder / "libdigits.a").read_bytes(), {"digits.h": (folder / "digits.h").read_text()}


def graph() -> cortado.compiler.graph.Graph:
    return cortado.load(digits.model_folder(), inputs={"data": digits.network_input(digits.held_out()[0][0]).shape})


def inputs() -> np.ndarray:
    return np.concatenate([digits.network_input(image) for image in digits.held_out()[0][:IMAGES]])


def expected() -> np.ndarray:
    loaded = graph()
    return np.concatenate([next(iter(run_graph(loaded, {"data": x[None]}).values())).reshape(1, -1) for x in inputs()])


def program(show: str) -> str:
    numbers = ", ".join(f"0x{bits:08x}u" for bits in np.ascontiguousarray(inputs()).view(np.uint32).ravel())
    size = inputs()[0].size
    return f"""
    {show}
    #include "digits.h"
    static const uint32_t images[{IMAGES}][{size}] = {{{numbers}}};
    static unsigned char arena[digits_ARENA_BYTES];
    int main(void) {{
      if (digits_init(arena, 0)) return 1;
      for (int i = 0; i < {IMAGES}; i++) {{
        uint32_t scores[10];
        const void *in[1] = {{images[i]}};
        void *out[1] = {{scores}};
        if (digits_run(arena, in, out)) return 2;
        put_words(scores, 10);
      }}
      return 0;
    }}"""


def scores(text: str) -> np.ndarray:
    return np.array([int(line, 16) for line in text.split()], np.uint32).view(np.float32).reshape(IMAGES, 10)


@pytest.mark.emulator
@pytest.mark.parametrize("float_abi, linker", [("hard", "bfd"), ("hard", "lld"), ("softfp", "bfd"), ("softfp", "lld")])
def test_microcontroller(tmp_path: Path, float_abi: str, linker: str) -> None:
    library, files = bundle("cortex-m4", tmp_path)
    got = scores(run_on_mps2(program('#include "board.h"'), [library], float_abi, files=files, linker=linker))
    np.testing.assert_allclose(got, expected(), rtol=1e-4, atol=1e-6)


@pytest.mark.emulator
@pytest.mark.parametrize("core", ["cortex-m0", "cortex-m3"])
def test_microcontroller_without_float_unit(tmp_path: Path, core: str) -> None:
    library, files = bundle(core, tmp_path)
    got = scores(run_on_mps2(program('#include "board.h"'), [library], "soft", core=core, files=files))
    np.testing.assert_allclose(got, expected(), rtol=1e-4, atol=1e-6)


@pytest.mark.emulator
@pytest.mark.parametrize("linker", ["bfd", "lld"])
def test_phone(tmp_path: Path, linker: str) -> None:
    library, files = bundle("aarch64", tmp_path)
    show = (
        "#include <stdint.h>\n#include <stdio.h>\n"
        'static void put_words(const uint32_t *w, int n) { while (n--) printf("%08x\\n", (unsigned)*w++); }'
    )
    got = scores(run_on_aarch64(program(show), [library], linker, files=files))
    np.testing.assert_allclose(got, expected(), rtol=1e-4, atol=1e-6)
