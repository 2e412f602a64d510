"""The networks in int8 for the benchmark: samples that every engine calibrates with, and ONNX Runtime's model, which OpenVINO reads too.

usage of the module as a program: python benchmarks/quantized.py MODEL.onnx SAMPLES.npz RESULT.onnx
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

SAMPLES = 8
SEED = 3


def samples(x: np.ndarray) -> np.ndarray:
    """SAMPLES inputs of the shape of x, normally distributed, along axis 0: float32."""
    random = np.random.Generator(np.random.PCG64(SEED))
    return np.concatenate([random.standard_normal(x.shape, np.float32) for _ in range(SAMPLES)])


def quantize(model: Path, feeds: dict[str, np.ndarray], result: Path) -> None:
    """Static quantization with pairs of QuantizeLinear and DequantizeLinear: uint8 activations, int8 weights with a scale per channel.

    feeds: by input name, samples along axis 0. Softmax gives float32: its result would have the range [0, 1] whatever was observed, and
    probabilities below 1/510 would become 0, which of a thousand alike are all.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            count = len(next(iter(feeds.values())))
            self._left: Iterator[dict[str, np.ndarray]] = iter(
                [{name: array[i : i + 1] for name, array in feeds.items()} for i in range(count)]
            )

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._left, None)

    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
        types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        how = {"per_channel": True, "extra_options": {"OpTypesToExcludeOutputQuantization": ["Softmax"]}}
        quantize_static(str(prepared), str(result), Reader(), quant_format=QuantFormat.QDQ, **types, **how)


if __name__ == "__main__":
    with np.load(sys.argv[2]) as arrays:
        quantize(Path(sys.argv[1]), dict(arrays), Path(sys.argv[3]))
