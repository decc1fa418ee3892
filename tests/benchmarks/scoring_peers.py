"""LightGBM's model scored by other libraries: the other side of `bench_scoring.py`.

Run as `python scoring_peers.py MODEL MATRIX SIZES [compiled]` with the Python of .venv-peers; MATRIX is float32 [n, n_features] in .npy, SIZES
like 1,10,500. Prints one line of JSON: {library: {"ms": {size: median CPU milliseconds a call}, "error": the largest difference
from LightGBM's own scores}}. Each runs one thread; what a request would have to pay is counted, such as building a DMatrix.
tl2cgen compiles the model with gcc, which takes minutes, and runs only with `compiled`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import lightgbm
import numpy as np

ROUNDS = 15


def main() -> None:
    """Load the model into each library, and time it."""
    model, matrix, sizes = sys.argv[1], np.load(sys.argv[2]), [int(size) for size in sys.argv[3].split(",")]
    booster = lightgbm.Booster(model_file=model)
    told = {}
    compiled = {"tl2cgen": tl2cgen} if "compiled" in sys.argv[4:] else {}
    for name, make in {"onnxruntime": onnx, "treelite gtil": gtil, **compiled}.items():
        score = make(model, booster)
        error = np.abs(score(matrix[:500]).ravel() - booster.predict(matrix[:500], num_threads=1)).max()
        told[name] = {"ms": {size: median_ms(score, matrix[:size]) for size in sizes}, "error": float(error)}
    print(json.dumps(told))


def median_ms(score: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> float:
    """Return the median CPU milliseconds of a call."""
    score(x)
    taken = []
    for _ in range(ROUNDS if len(x) <= 500 else 5):
        began = time.process_time()
        score(x)
        taken.append(time.process_time() - began)
    return 1000 * float(np.median(taken))


def onnx(model: str, booster: lightgbm.Booster) -> Callable[[np.ndarray], np.ndarray]:
    """ONNX Runtime, which sums float32."""
    import onnxruntime
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    graph = convert_lightgbm(booster, initial_types=[("x", FloatTensorType([None, booster.num_feature()]))])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x})[0]


def gtil(model: str, booster: lightgbm.Booster) -> Callable[[np.ndarray], np.ndarray]:
    """Treelite's own predictor."""
    import treelite

    loaded = treelite.frontend.load_lightgbm_model(model)
    return lambda x: treelite.gtil.predict(loaded, x, nthread=1)


def tl2cgen(model: str, booster: lightgbm.Booster) -> Callable[[np.ndarray], np.ndarray]:
    """The model as C, compiled."""
    import tl2cgen as generator
    import treelite

    library = str(Path(tempfile.mkdtemp()) / "model.so")
    loaded = treelite.frontend.load_lightgbm_model(model)
    generator.export_lib(loaded, toolchain="gcc", libpath=library, params={"parallel_comp": 8}, nthread=2, verbose=False)
    predictor = generator.Predictor(library, nthread=1)
    return lambda x: predictor.predict(generator.DMatrix(x, dtype="float64"))


if __name__ == "__main__":
    main()
