"""What is known of TensorFlow's operations: their kinds, and what their kernels do with 16 bits."""

from __future__ import annotations

from typing import Literal

from castiron.keras.replay.calls import MOVES as _MOVES

Island = Literal["softmax", "normalization", "reductions", "exponentials", "loss"]

PRODUCTS = frozenset((
    "MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum", "Conv2D", "Conv3D", "Conv",
    "DepthwiseConv2dNative", "Conv2DBackpropInput", "Conv3DBackpropInputV2", "SparseMatMul",
    "SparseTensorDenseMatMul", "CudnnRNN", "CudnnRNNV2", "CudnnRNNV3", "XlaDot", "XlaDotV2", "XlaEinsum",
))  # fmt: skip
"""Operations whose cost is multiplications: the ones that a policy's `compute` is about. (The `Backprop` ones
are transposed convolutions, in a forward pass.)"""

BACKWARD_PRODUCTS = PRODUCTS | frozenset((
    "Conv2DBackpropFilter", "Conv3DBackpropFilterV2", "DepthwiseConv2dNativeBackpropFilter",
    "DepthwiseConv2dNativeBackpropInput", "CudnnRNNBackpropV3",
))  # fmt: skip

ISLANDS: dict[str, Island] = {
    **dict.fromkeys(("Softmax", "LogSoftmax"), "softmax"),
    **dict.fromkeys(("EuclideanNorm", "FusedBatchNorm"), "normalization"),
    **dict.fromkeys(("Sum", "Mean", "Prod", "Cumsum", "Cumprod", "CumulativeLogsumexp"), "reductions"),
    **dict.fromkeys((
        "Exp", "Expm1", "Log", "Log1p", "Pow", "Rsqrt", "Reciprocal", "Softplus", "Sinh", "Cosh", "Tan",
        "Asin", "Acos", "Erfinv", "Xlogy", "Xlog1py", "Lgamma", "Digamma",
    ), "exponentials"),
    **dict.fromkeys((
        "SoftmaxCrossEntropyWithLogits", "SparseSoftmaxCrossEntropyWithLogits", "CTCLoss", "CTCLossV2",
        "L2Loss",
    ), "loss"),
}  # fmt: skip
"""Operations that a policy keeps wide, by the field of its `islands` that says so."""

WIDE_WITHIN = frozenset((("Sum", "bfloat16"), ("Mean", "bfloat16")))
"""Sums that TensorFlow's kernels carry in float32, and round once. (Those of float16 they carry in float16
along every axis but the last: 9,000 ones sum to 2,048.)"""

MOVES = frozenset(_MOVES) | frozenset((
    "DynamicStitch", "DynamicPartition", "InvertPermutation", "Unique", "Bitcast", "CheckNumerics",
    "StatelessCase", "ConjugateTranspose", "SparseReshape", "MatrixDiagPartV3", "TensorListPushBack",
    "TensorListPopBack", "TensorListConcatV2", "TensorListReserve", "ResourceGatherNd", "Cast",
))  # fmt: skip
"""Operations that hand numbers on, or only change their format."""
HANDS_ON = MOVES - {"Cast"}

FREE = MOVES | frozenset((
    "Const", "Placeholder", "NoOp", "ReadVariableOp", "AssignVariableOp", "Shape", "ShapeN", "Size", "Rank",
    "BroadcastArgs", "BroadcastGradientArgs", "While", "StatelessWhile", "If", "StatelessIf", "Case",
    "PartitionedCall", "StatefulPartitionedCall", "Assert", "TensorListElementShape", "TensorListLength",
    "VarIsInitializedOp", "VariableShape", "Range", "ConcatOffset", "EmptyTensorList", "AccumulatorN",
    "SymbolicGradient", "StatelessRandomGetKeyCounter", "StatelessRandomGetAlg", "Empty",
))  # fmt: skip
"""Operations that compute nothing that a format matters to."""

PROMOTES = frozenset((
    "add", "subtract", "multiply", "divide", "true_divide", "divide_no_nan", "floor_divide", "mod", "power",
    "maximum", "minimum", "where", "select", "concatenate", "stack", "hstack", "vstack", "append", "matmul",
    "dot", "vdot", "inner", "outer", "tensordot", "einsum", "cross", "arctan2", "hypot", "logaddexp",
    "logaddexp2", "clip", "fmod", "nextafter", "interp", "kron", "copysign", "greater", "greater_equal",
    "less", "less_equal", "equal", "not_equal", "isclose",
))  # fmt: skip
"""Functions of keras.ops that take operands of several formats and compute in the widest. (Plain operations
of TensorFlow refuse them.)"""

CASTS = frozenset(("cast", "saturate_cast", "astype", "convert_to_tensor", "to_float", "to_double",
                   "to_bfloat16"))  # fmt: skip
"""Functions that a user calls to change a format."""
