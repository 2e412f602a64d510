"""Operators of Caffe2 that are not imported: reasons of those that are known, and what a net can say instead."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_ENGINE = "it exists under Caffe2's DNNLOWP engine only, whose arithmetic is another than that of the other Int8 operators"
_OUTSIDE = "it reads or writes files, databases or queues; a compiled program has its inputs and outputs only"
_LEARNS = "it belongs to training"
_DEVICE = "it moves tensors between devices; a compiled program has one memory"
_REPEATS = "how often its net runs depends on the data"

REASONS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(
            ("Int8BatchMatMul", "Int8FCRelu", "Int8Gather", "Int8GroupNorm", "Int8Mul", "Int8SpatialBN", "Int8SpatialBNRelu", "Int8Tanh"),
            _ENGINE,
        ),
        **dict.fromkeys(
            ("Checkpoint", "CreateDB", "DequeueBlobs", "EnqueueBlobs", "ImageInput", "Load", "Print", "Save", "TensorProtosDBInput"), _OUTSIDE
        ),
        **dict.fromkeys(
            ("Accuracy", "Adagrad", "Adam", "AtomicIter", "Iter", "LabelCrossEntropy", "LearningRate", "MakeTwoClass", "MomentumSGDUpdate"),
            _LEARNS,
        ),
        **dict.fromkeys(("CopyCPUToGPU", "CopyCPUToMKL", "CopyGPUToCPU", "CopyMKLToCPU"), _DEVICE),
        **dict.fromkeys(("RecurrentNetwork", "While"), _REPEATS),
        "Do": "its net has a scope of blobs of its own",
    }
)  # fmt: skip

_TRAINING = "it belongs to training; save the net for inference (a predict_net), which does without it"
_DEVICES = "Copy; a compiled program has one memory"

# Operator type -> the nearest thing that is supported.
REWRITES: Mapping[str, str] = MappingProxyType(
    {
        "ConvTransposeUnpool": "ConvTranspose",
        "CopyCPUToGPU": _DEVICES,
        "CopyCPUToMKL": _DEVICES,
        "CopyGPUToCPU": _DEVICES,
        "CopyMKLToCPU": _DEVICES,
        "DepthToSpace": "Reshape, Transpose, Reshape",
        "Do": "the operators of its net in its place",
        "Embedding": "Gather",
        "EmbeddingBag": "SparseLengthsSum, or Gather and ReduceSum",
        "Equal": "EQ",
        "FbFCPacked": "FC with the weights as they were before packing",
        "For": "the operators of its net as often as it runs them",
        "GatherND": "FlattenToVec and Gather with indices into all elements",
        "GivenTensorFp16Fill": "GivenTensorFill",
        "Greater": "GT",
        "GreaterEqual": "GE",
        "HardSwish": "HardSigmoid (alpha 1/6, beta 1/2) and Mul",
        "Identity": "Copy",
        "Int8BatchMatMul": "Int8Dequantize, BatchMatMul, Int8Quantize",
        "Int8FCRelu": "Int8FC and Int8Relu",
        "Int8Gather": "Int8Dequantize, Gather, Int8Quantize",
        "Int8GroupNorm": "Int8Dequantize, GroupNorm, Int8Quantize",
        "Int8Mul": "Int8Dequantize, Mul, Int8Quantize",
        "Int8SpatialBN": "scale and shift folded into the weights of the Int8Conv before it",
        "Int8SpatialBNRelu": "scale and shift folded into the weights of the Int8Conv before it, made an Int8ConvRelu",
        "Int8Tanh": "Int8Dequantize, Tanh, Int8Quantize",
        "Less": "LT",
        "LessEqual": "LE",
        "Log1p": "Add of 1 and Log",
        "LogSoftmax": "Softmax and Log",
        "MaxPoolWithIndex": "MaxPool",
        "Mish": "Softplus, Tanh, Mul",
        "Neg": "Negative",
        "NonMaxSuppression": "BoxWithNMSLimit",
        "PixelShuffle": "Reshape, Transpose, Reshape",
        "RMSNorm": "Sqr, ReduceMean, Add, Pow, Mul",
        "RecurrentNetwork": "LSTM or GRU cells written out, step by step",
        "ReduceProd": "Log, ReduceSum, Exp, where all numbers are positive",
        "ReduceSumSquare": "Sqr and ReduceSum",
        "ResizeBilinear": "UpsampleBilinear",
        "Round": "Add of 0.5 and Floor",
        "RowWiseArgMax": "ArgMax with axis=1, keepdims=1",
        "ScaleGradient": "Copy",
        "SpaceToDepth": "Reshape, Transpose, Reshape",
        "Unsqueeze": "ExpandDims",
        "Upsample": "ResizeNearest or UpsampleBilinear",
        "UpsampleNearest": "ResizeNearest",
        "While": "the operators of its body as often as it runs them, or If for what is done once",
        **dict.fromkeys(
            (
                "Accuracy", "Adagrad", "Adam", "Allreduce", "AtomicIter", "Barrier", "Checkpoint", "CreateDB", "DequeueBlobs",
                "EnqueueBlobs", "ImageInput", "Iter", "LabelCrossEntropy", "LearningRate", "Load", "MakeTwoClass", "MomentumSGDUpdate",
                "Print", "Save", "TensorProtosDBInput", "WallClockTime",
            ),
            _TRAINING,
        ),
    }
)  # fmt: skip


def hint(kind: str) -> str:
    """What to say of an operator type that is not imported: ": reason", "; instead: rewrite", both or nothing."""
    reason, rewrite = REASONS.get(kind), REWRITES.get(kind)
    return (f": {reason}" if reason else "") + (f"; instead: {rewrite}" if rewrite else "")
