"""A sentence encoder: an ONNX model and its tokenizer, from a folder or from the Hugging Face hub, run without its framework."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipelines import publish
from pipelines.datasets.interactions import Floats
from pipelines.errors import StateError
from pipelines.retrieval import extras

WHO: Final = "text_embedding"
EXTRA: Final = "text"
MODELS: Final = ("model.onnx", "onnx/model.onnx")  # where an export, and where the hub's sentence-transformers keep it
WANTED: Final = ["tokenizer.json", *MODELS, *(f"{name}_data" for name in MODELS), "1_Pooling/config.json"]
NAME: Final = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?")
BUCKET: Final = 16  # a text is padded to the next multiple of so many tokens
INPUTS: Final = frozenset({"input_ids", "attention_mask", "token_type_ids"})


@dataclass(frozen=True)
class SentenceEncoder:
    """Text to vector: the mean over a text's tokens of the model's last layer (Reimers, Gurevych, EMNLP 2019, section 3), of length 1.

    A model whose `1_Pooling/config.json` names the first token is pooled by that one; one that gives a vector a text by
    itself is taken at its word. A text runs in a block whose shape depends on its own length alone, so its vector
    depends neither on the texts beside it nor on how many there are.

    Attributes:
        identity: sha256 of the model's files and of whatever else shapes a vector.
        n_factors: length of a vector.
    """

    identity: str
    n_factors: int
    max_tokens: int
    batch_size: int
    first_token: bool
    _session: Any = field(repr=False, compare=False)
    _tokenizer: Any = field(repr=False, compare=False)

    def encode(self, texts: list[str]) -> Floats:
        """Return float32 [n, n_factors]; a vector of zeros where a text has no token."""
        tokens = [made.ids for made in self._tokenizer.encode_batch(texts)] if texts else []
        vectors = np.zeros((len(texts), self.n_factors), dtype=np.float32)
        length = np.array([len(ids) for ids in tokens], dtype=np.int64)
        width = np.minimum(-(-length // BUCKET) * BUCKET, self.max_tokens)
        for wide in np.unique(width[length > 0]):
            places = np.flatnonzero((width == wide) & (length > 0))
            for first in range(0, len(places), self.batch_size):
                some = places[first : first + self.batch_size]
                vectors[some] = self._run([tokens[place] for place in some], int(wide))
        size = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: Floats = np.divide(vectors, size, out=np.zeros_like(vectors), where=size > 0)
        return unit

    def _run(self, tokens: list[list[int]], width: int) -> Floats:
        """Return float32 [n, n_factors] of some texts of like length, the block filled up with the first of them."""
        ids = np.zeros((self.batch_size, width), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row in range(self.batch_size):
            text = tokens[row if row < len(tokens) else 0]
            ids[row, : len(text)], mask[row, : len(text)] = text, 1
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        out = self._session.run(None, {one.name: given[one.name] for one in self._session.get_inputs()})
        vectors: Floats = _pooled(out, mask, first_token=self.first_token)[: len(tokens)]
        return vectors


def _pooled(out: list[npt.NDArray[Any]], mask: npt.NDArray[np.int64], *, first_token: bool) -> Floats:
    """Return float32 [n, n_factors]: the output that is a vector a text, or the first output's mean over tokens that are there."""
    for given in out:
        if given.ndim == 2:
            return given.astype(np.float32)
    last = out[0].astype(np.float32)
    if first_token:
        return last[:, 0]
    there = mask[:, :, None].astype(np.float32)
    mean: Floats = (last * there).sum(axis=1) / np.maximum(there.sum(axis=1), 1)
    return mean


def require(encoder: str) -> None:
    """Check what can be checked without loading it.

    Raises:
        StateError: no encoder is named.
        ReloopError: the extra is not installed.
    """
    if not encoder:
        raise StateError(
            "text_embedding: encoder",
            found="none is set",
            allowed="a folder with model.onnx and tokenizer.json, or a name on the Hugging Face hub",
            hint='in reloop.toml: [retrieval.parameters.text_embedding] encoder = "/models/all-MiniLM-L6-v2"',
        )
    extras.require(WHO, EXTRA, "onnxruntime", "tokenizers")


def load(encoder: str, *, max_tokens: int, batch_size: int, num_threads: int) -> SentenceEncoder:
    """Return the encoder that a setting names.

    Args:
        encoder: a folder with `model.onnx` (or `onnx/model.onnx`) and `tokenizer.json`, or `owner/name[@revision]` on the
            hub, which is downloaded once into its client's cache (HF_HOME).
        max_tokens: what a text has beyond them is not read.

    Raises:
        StateError: nothing is named, or what is named cannot be had or is no sentence encoder.
        ReloopError: the extra is not installed.
    """
    require(encoder)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork; tokens are not what takes long
    import onnxruntime
    from tokenizers import Tokenizer

    folder = _folder(encoder)
    model, tokens = _files(encoder, folder)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = num_threads, 1, 3
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    try:
        tokenizer = Tokenizer.from_file(str(tokens))
        session = onnxruntime.InferenceSession(str(model), options, providers=providers)
    except Exception as error:  # neither library's errors share a base class
        raise StateError(f"text_embedding: encoder {encoder!r}", found=str(error), allowed="an ONNX model and a tokenizer.json") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    inputs = {one.name for one in session.get_inputs()}
    if not {"input_ids", "attention_mask"} <= inputs <= INPUTS:
        raise StateError(f"{model}: inputs", found=str(sorted(inputs)), allowed=f"input_ids, attention_mask, of {sorted(INPUTS)}")
    first_token = _pooling(folder)
    made_of = [model, *sorted(model.parent.glob(f"{model.name}_data")), tokens]
    described = [publish.digest(file) for file in made_of] + [str(max_tokens), str(batch_size), str(first_token)]
    identity = hashlib.sha256("\n".join(described).encode()).hexdigest()
    unmeasured = SentenceEncoder(identity, 0, max_tokens, batch_size, first_token, session, tokenizer)
    return replace(unmeasured, n_factors=unmeasured._run([[0]], min(BUCKET, max_tokens)).shape[1])


def _folder(encoder: str) -> Path:
    """Return the folder that holds the encoder, downloaded where it is a name on the hub."""
    path = Path(encoder).expanduser()
    if path.is_dir():
        return path
    if not NAME.fullmatch(encoder):
        raise StateError(
            f"text_embedding: encoder {encoder!r}", found="no such folder", allowed="a folder, or owner/name[@revision] on the hub"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise extras.missing(WHO, str(error.name), EXTRA) from error
    name, _, revision = encoder.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=WANTED))
    except (OSError, ValueError) as error:
        raise StateError(
            f"text_embedding: encoder {encoder!r}",
            found=f"no such folder here, and the hub did not give it: {error}",
            allowed="a folder, or owner/name[@revision] on the hub",
            hint="download it where there is a network, and name its folder",
        ) from error


def _files(encoder: str, folder: Path) -> tuple[Path, Path]:
    models = [folder / name for name in MODELS if (folder / name).is_file()]
    if not models or not (folder / "tokenizer.json").is_file():
        raise StateError(
            f"text_embedding: encoder {encoder!r}",
            found=f"a folder with {sorted(file.name for file in folder.iterdir())}",
            allowed="model.onnx (or onnx/model.onnx) and tokenizer.json",
            hint="export it: optimum-cli export onnx --model NAME FOLDER",
        )
    return models[0], folder / "tokenizer.json"


def _pooling(folder: Path) -> bool:
    """Tell whether the model's own configuration pools by the first token; the mean is the rule.

    Raises:
        StateError: it pools by something else.
    """
    file = folder / "1_Pooling" / "config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    modes = {name for name, chosen in settings.items() if name.startswith("pooling_mode_") and chosen is True}
    if modes - {"pooling_mode_mean_tokens", "pooling_mode_cls_token"} or len(modes) > 1:
        raise StateError(str(file), found=str(sorted(modes)), allowed="pooling_mode_mean_tokens or pooling_mode_cls_token")
    return modes == {"pooling_mode_cls_token"}
