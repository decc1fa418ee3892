"""Small sentence encoders as ONNX files: a table of word vectors, and one whose words look at each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

WORDS = ["[UNK]", "ebony", "ivory", "black", "white", "piano", "key", "red", "shoe", "sneaker", *(f"n{n}" for n in range(20))]


def write(folder: Path, table: np.ndarray, *, attends: bool = False, inputs: tuple[str, ...] = ("input_ids", "attention_mask")) -> Path:
    """Write model.onnx and tokenizer.json; word w of `WORDS` has the vector table[w].

    Args:
        table: float32 [len(WORDS), d].
        attends: add to each word's vector the softmax-weighted mean over the words that the mask shows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    d = table.shape[1]
    constants = [numpy_helper.from_array(table.astype(np.float32), "table"), numpy_helper.from_array(np.float32(1e9), "far")]
    constants += [numpy_helper.from_array(np.float32(1.0), "one"), numpy_helper.from_array(np.array([1], np.int64), "axis")]
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["words"])]
    if attends:
        nodes += [
            helper.make_node("Transpose", ["words"], ["turned"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["words", "turned"], ["likeness"]),
            helper.make_node("Cast", ["attention_mask"], ["there"], to=TensorProto.FLOAT),
            helper.make_node("Sub", ["one", "there"], ["away"]),
            helper.make_node("Mul", ["away", "far"], ["distance"]),
            helper.make_node("Unsqueeze", ["distance", "axis"], ["hidden"]),
            helper.make_node("Sub", ["likeness", "hidden"], ["seen"]),
            helper.make_node("Softmax", ["seen"], ["share"], axis=-1),
            helper.make_node("MatMul", ["share", "words"], ["context"]),
            helper.make_node("Add", ["words", "context"], ["last_hidden_state"]),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["words"], ["last_hidden_state"]))
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"]) for name in inputs],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "tokens", d])],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), folder / "model.onnx")
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def random_table() -> np.ndarray:
    """Return seeded random vectors; colours (ebony, ivory, black, white) are long ones."""
    table = np.random.default_rng(0).standard_normal((len(WORDS), 24)) / 4
    table[1:5] *= 2
    return table.astype(np.float32)


def drawn(folder: Path) -> Path:
    """Write an encoder whose words attend, of random vectors."""
    return write(folder, random_table(), attends=True)
