"""What fixed batches and CUDA graphs would bring to ONNX Runtime's CUDA provider, on a bundle's FP32 and FP16 variants.

    edgeclip export ViT-B-32 --pretrained none --output vit-b-32.edgeclip --variants fp16
    python benchmarks/cuda_graphs.py vit-b-32.edgeclip

Five ways of one session, from a batch in host memory to embeddings there: as the engine ``onnxruntime-cuda`` runs
it; with buffers of its own on the GPU; with the batch fixed, so that shapes are constants; and the last two recorded as
a CUDA graph. Prints the median of 60 calls after 15, the largest difference from the first way, and where nodes ran.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import onnxruntime as ort

from edgeclip.bundle import Bundle
from edgeclip.devices.machine.probe import describe_machine, summary
from edgeclip.prompts import FloatArray
from edgeclip.runtime.proof.golden import golden_of

# (batch fixed, CUDA graph, own buffers)
WAYS = ((False, False, False), (False, False, True), (True, False, True), (False, True, True), (True, True, True))


def open_session(path: str, batch: int, *, fixed: bool, graph: bool) -> ort.InferenceSession:
    """A session on the GPU."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if fixed:
        options.add_free_dimension_override_by_name("N", batch)
    cuda = {"use_tf32": "0", **({"enable_cuda_graph": "1"} if graph else {})}
    return ort.InferenceSession(path, options, providers=[("CUDAExecutionProvider", cuda), "CPUExecutionProvider"])


def caller(session: ort.InferenceSession, images: FloatArray, width: int, *, own: bool) -> Callable[[], FloatArray]:
    """A call that encodes ``images``, (N, 3, H, W) → (N, ``width``)."""
    if not own:
        return lambda: session.run(["embedding"], {"image": images})[0]
    given = ort.OrtValue.ortvalue_from_numpy(images, "cuda", 0)
    made = ort.OrtValue.ortvalue_from_shape_and_type((len(images), width), np.float32, "cuda", 0)
    binding = session.io_binding()
    binding.bind_ortvalue_input("image", given)
    binding.bind_ortvalue_output("embedding", made)

    def call() -> FloatArray:
        given.update_inplace(images)
        session.run_with_iobinding(binding)
        embeddings: FloatArray = made.numpy()
        return embeddings

    return call


def median_ms(call: Callable[[], FloatArray]) -> float:
    """Median of 60 calls after 15, milliseconds."""
    times = []
    for _ in range(75):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[15:])


def main() -> None:
    """Print a line a way, and the machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    bundle = Bundle.open(parser.parse_args().bundle)
    golden, encoder = golden_of(bundle), bundle.manifest.encoder
    if golden is None:
        parser.error("expected a bundle with golden images")
    ort.set_default_logger_severity(4)
    ort.preload_dlls()
    inputs = golden.inputs(encoder.preprocess)
    for variant in bundle.manifest.variants:
        if variant.precision not in ("fp32", "fp16"):
            continue
        for batch in (1, 8, 32):
            images = np.resize(inputs, (batch, *inputs.shape[1:]))
            first: FloatArray | None = None
            for fixed, graph, own in WAYS:
                session = open_session(str(bundle.variant_path(variant.name)), batch, fixed=fixed, graph=graph)
                call = caller(session, images, encoder.embedding_dim, own=own)
                first = call() if first is None else first
                took, differs = median_ms(call), float(np.abs(call() - first).max())
                placed = {part.ep_name: 0 for part in session.get_provider_graph_assignment_info()}
                for part in session.get_provider_graph_assignment_info():
                    placed[part.ep_name] += len(part.get_nodes())
                print(
                    f"{variant.name} batch {batch:2} fixed {fixed:d} graph {graph:d} own buffers {own:d}: "
                    f"{took:.3f} ms, differs by {differs:.1e}, {placed}",
                    flush=True,
                )
    print(summary(describe_machine()))


if __name__ == "__main__":
    main()
