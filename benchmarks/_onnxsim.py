"""onnxsim's structured pruning of an ONNX file, with the refit that it has (`pip install onnxsim`).

Channels are ranked by weight and activation (`apply_structured_wanda_pruning`), all layers with one sparsity. It is
bisected until the MACs are at or below the target. Then `apply_pruning_finetune` fits what matrix products are
left, in closed form; of version 0.8.1, convolutions are not fitted.
"""

from __future__ import annotations

import io
import math
import warnings

import onnx
import torch
from torch import Tensor, nn

from benchmarks.post_training import BATCH, Inputs, UnreachableError, parts

HALVINGS = 12


class Session(nn.Module):
    """An ONNX graph in onnxruntime, called like the network it was exported from."""

    def __init__(self, graph: onnx.ModelProto) -> None:
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(
            graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        names = [given.name for given in self.session.get_inputs()]
        given = dict(zip(names, inputs, strict=False)) | named
        feed = {name: x.contiguous().numpy() for name, x in given.items()}
        return torch.from_numpy(self.session.run(None, feed)[0])


def macs(graph: onnx.ModelProto) -> int:
    """Multiply-accumulates of convolutions and matrix products with constant weights, for one image."""
    bare = onnx.ModelProto()
    bare.CopyFrom(graph)
    del bare.graph.value_info[:]  # those of the dense network
    graph = onnx.shape_inference.infer_shapes(bare)
    weights = {w.name: list(w.dims) for w in graph.graph.initializer}
    known = (*graph.graph.value_info, *graph.graph.output)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in known}
    total = 0
    for node in graph.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            weight, out = weights[node.input[1]], shapes[node.output[0]]
            per_output = math.prod(weight[1:]) if node.op_type == "Conv" else math.prod(weight) // out[-1]
            total += math.prod(out[1:]) * per_output
    return total


def exported(network: nn.Module, example: Inputs) -> onnx.ModelProto:
    file, batch = io.BytesIO(), torch.export.Dim("batch")
    named = {"images": example} if isinstance(example, Tensor) else example
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(),
            tuple(named.values()),
            file,
            input_names=list(named),
            dynamo=True,
            dynamic_shapes=tuple({0: batch} for _ in named),
            verbose=False,
        )
    return onnx.load_model_from_string(file.getvalue())


def pruned(network: nn.Module, inputs: Inputs, target: float) -> nn.Module:
    """A graph with at most ``target`` of the MACs; the inputs calibrate it."""
    import onnxsim

    batches = parts(inputs, BATCH)
    dense = exported(network, parts(inputs, 2)[0])
    calibration = [
        {name: x.numpy() for name, x in ({"images": b} if isinstance(b, Tensor) else b).items()}
        for b in batches
    ]
    low, high, best = 0.0, 1.0, None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        found = onnxsim.apply_structured_wanda_pruning(dense, calibration, sparsity=middle)
        if macs(found) <= target * macs(dense):
            high, best = middle, found
        else:
            low = middle
    if best is None:
        raise UnreachableError(f"onnxsim cannot reach {target} of the MACs")
    return Session(onnxsim.apply_pruning_finetune(dense, best, calibration))
