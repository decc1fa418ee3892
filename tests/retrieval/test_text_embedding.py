"""Items by what their texts mean: the pooling on paper, the cache, and what is said where an encoder is missing."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from retriever_contract import described, everyone, world

from pipelines import columns as c
from pipelines import tables
from pipelines.datasets import profiles
from pipelines.errors import ReloopError, StateError
from pipelines.retrieval import fitting, lineup, sentence_encoder, text_embedding
from pipelines.retrieval.text_embedding import TextEmbedding

for needed in ("onnxruntime", "tokenizers", "onnx"):
    pytest.importorskip(needed, reason=f"{needed} is not installed (extras text and dev)")
tiny_encoder = pytest.importorskip("tiny_encoder")
SETTINGS = {"max_tokens": 128, "batch_size": 8, "num_threads": 1}


@pytest.fixture
def paper(tmp_path):
    """Return an encoder of words in the plane: ebony (1, 0), ivory (0, 1), black (3, 4); every other word is (0, 0)."""
    table = np.zeros((len(tiny_encoder.WORDS), 2))
    table[1:4] = [[1, 0], [0, 1], [3, 4]]
    return tiny_encoder.write(tmp_path / "paper", table)


@pytest.fixture
def drawn(tmp_path):
    return tiny_encoder.drawn(tmp_path / "drawn")


def catalogue(titles, n_users=1):
    """Return a world in which the first user viewed the first item, an hour ago."""
    known = world([(0, 0, 1 / 24, 1.0)], n_users, len(titles))
    return replace(known, items=described(tables.ITEMS, profiles.ITEMS, {c.TITLE: titles}, len(titles)))


def test_a_text_is_the_mean_of_its_words_made_one_long(paper):
    """Ebony and black: ((1, 0) + (3, 4)) / 2 = (2, 2), so (1, 1) / sqrt 2. A text without words, or of words without meaning, has no vector."""
    encoder = sentence_encoder.load(str(paper), **SETTINGS)
    assert encoder.n_factors == 2
    found = encoder.encode(["Ebony black", "black", "", "ivory"])
    np.testing.assert_allclose(found, [[0.5**0.5, 0.5**0.5], [0.6, 0.8], [0, 0], [0, 1]], atol=1e-6)


def test_a_model_whose_configuration_pools_the_first_token_is_pooled_by_it(paper):
    (paper / "1_Pooling").mkdir()
    settings = paper / "1_Pooling" / "config.json"
    settings.write_text('{"word_embedding_dimension": 2, "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}')
    np.testing.assert_allclose(sentence_encoder.load(str(paper), **SETTINGS).encode(["ebony ivory"]), [[1, 0]], atol=1e-6)
    settings.write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(StateError, match="pooling_mode_max_tokens"):
        sentence_encoder.load(str(paper), **SETTINGS)


def test_what_a_text_has_beyond_max_tokens_is_not_read(paper):
    encoder = sentence_encoder.load(str(paper), **SETTINGS | {"max_tokens": 1})
    np.testing.assert_allclose(encoder.encode(["ebony ivory black"]), [[1, 0]], atol=1e-6)


def test_a_vector_depends_on_its_text_alone(drawn):
    """Bit for bit: neither on the texts beside it, nor on how they are batched, nor on threads."""
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(tiny_encoder.WORDS[1:], rng.integers(1, 40))) for _ in range(60)]
    encoder = sentence_encoder.load(str(drawn), **SETTINGS)
    together = encoder.encode(texts)
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    threaded = sentence_encoder.load(str(drawn), **SETTINGS | {"num_threads": 2}).encode(texts[::-1])[::-1]
    assert together.tobytes() == alone.tobytes() == np.ascontiguousarray(threaded).tobytes()
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-6)


def test_padding_is_not_attended_to(drawn):
    """By hand, for two words: each word's vector and its softmax-weighted mean of both, then the mean, made one long."""
    words = tiny_encoder.random_table()[[5, 6]].astype(float)
    likeness = np.exp(words @ words.T)
    mean = (words + likeness / likeness.sum(axis=1, keepdims=True) @ words).mean(axis=0)
    found = sentence_encoder.load(str(drawn), **SETTINGS).encode(["piano key"])
    np.testing.assert_allclose(found[0], mean / np.linalg.norm(mean), rtol=1e-4)


def test_a_profile_is_the_decayed_mean_of_what_was_met(paper):
    """Ebony an hour ago and ivory a half-life before it: (1, 1/2), and black (.6, .8) lies nearest: (.6 + .4) / sqrt(5/4)."""
    known = world([(0, 0, 1.0, 1.0), (0, 1, 15.0, 1.0)], 1, 4)
    known = replace(known, items=described(tables.ITEMS, profiles.ITEMS, {c.TITLE: ["ebony", "ivory", "black", None]}, 4))
    fitted = TextEmbedding(encoder=str(paper)).fit(known)
    found = fitted.retrieve(everyone(known), 4, exclude_seen=False)
    assert found.item[0].tolist() == [0, 2, 1, -1], "an item without a text is never proposed"
    np.testing.assert_allclose(found.score[0, :3], np.array([1, 1, 0.5]) / 1.25**0.5, rtol=1e-5)


def test_an_item_is_described_by_title_category_brand_and_attributes():
    columns = {c.TITLE: ["Red shoe ", None, ""], c.CATEGORY: ["shoes", None, "toys"], c.BRAND: ["Acme", None, None]}
    attributes = [[("colour", "red"), ("size", "")], None, []]
    rows = {name: columns.get(name, [None] * 3) for name in profiles.ITEMS} | {c.ATTRIBUTES: attributes}
    items = pa.table(rows, schema=pa.schema([tables.ITEMS.field(name) for name in profiles.ITEMS]))
    assert list(text_embedding.texts(items, 3)) == ["Red shoe. shoes. Acme. colour: red", "", "toys"]
    assert list(text_embedding.texts(None, 2)) == ["", ""]


def test_a_second_fit_encodes_only_new_texts(drawn, tmp_path, monkeypatch):
    asked = []
    encode = sentence_encoder.SentenceEncoder.encode
    monkeypatch.setattr(sentence_encoder.SentenceEncoder, "encode", lambda self, texts: asked.append(list(texts)) or encode(self, texts))
    model, cache = TextEmbedding(encoder=str(drawn)), tmp_path / "cache"
    first = model.fit_cached(catalogue(["ebony", "piano key", "ebony"]), cache)
    again = model.fit_cached(catalogue(["ebony", "piano key", "ebony"]), cache)
    more = model.fit_cached(catalogue(["red shoe", "piano key", None]), cache)
    assert [sorted(texts) for texts in asked] == [["ebony", "piano key"], ["red shoe"]]
    assert first.state["factor"].tobytes() == again.state["factor"].tobytes()
    assert more.state["factor"].tobytes() == model.fit(catalogue(["red shoe", "piano key", None])).state["factor"].tobytes()
    assert len(list(cache.glob("*/*.parquet"))) == 2


def test_another_encoder_another_prefix_or_length_does_not_reuse_vectors(drawn, paper, tmp_path):
    identities = set()
    for knobs in ({"encoder": str(drawn)}, {"encoder": str(paper)}, {"encoder": str(drawn), "max_tokens": 4}):
        fitted = TextEmbedding(**knobs).fit_cached(catalogue(["ebony ivory black white piano"]), tmp_path / "cache")
        identities.add(str(fitted.state["encoder"][0]))
    assert len(identities) == len(list((tmp_path / "cache").iterdir())) == 3
    plain, prefixed = (
        TextEmbedding(encoder=str(drawn), prefix=prefix).fit_cached(catalogue(["ebony"]), tmp_path / "cache") for prefix in ("", "red ")
    )
    assert not np.allclose(plain.state["factor"], prefixed.state["factor"])


def test_a_killed_fit_goes_on_from_the_texts_that_were_published(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(text_embedding, "AT_ONCE", 2)
    encode, calls = sentence_encoder.SentenceEncoder.encode, []

    def dies_at_the_third(self, texts):
        calls.append(list(texts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, texts)

    monkeypatch.setattr(sentence_encoder.SentenceEncoder, "encode", dies_at_the_third)
    titles = ["ebony", "ivory", "black", "white", "piano", "key", "red"]
    model = TextEmbedding(encoder=str(drawn))
    with pytest.raises(KeyboardInterrupt):
        model.fit_cached(catalogue(titles), tmp_path)
    found = model.fit_cached(catalogue(titles), tmp_path)
    assert sum(len(texts) for texts in calls[3:]) == 3, "four of the seven were published"
    assert found.state["factor"].tobytes() == model.fit(catalogue(titles)).state["factor"].tobytes()


def test_a_cache_that_holds_something_else_is_refused(drawn, tmp_path):
    model = TextEmbedding(encoder=str(drawn))
    fitted = model.fit_cached(catalogue(["ebony"]), tmp_path)
    (tmp_path / str(fitted.state["encoder"][0]) / "x.parquet").write_bytes(b"no parquet")
    with pytest.raises(StateError, match="only a cache"):
        model.fit_cached(catalogue(["ebony"]), tmp_path)


def test_without_an_encoder_the_error_says_what_to_set():
    with pytest.raises(StateError, match=r"none is set.*folder with model.onnx.*\[retrieval.parameters.text_embedding\] encoder ="):
        lineup.make("text_embedding").fit(catalogue(["ebony"]))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), r"a folder with \['model.onnx'\]"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"torn"), "expected an ONNX model"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "expected an ONNX model and a tokenizer.json"),
    ],
    ids=["no tokenizer", "torn model", "no vocabulary"],
)
def test_a_folder_that_holds_no_encoder_is_named(paper, spoil, said):
    spoil(paper)
    with pytest.raises(StateError, match=said):
        sentence_encoder.load(str(paper), **SETTINGS)


def test_a_model_that_wants_what_a_text_does_not_give_is_refused(tmp_path):
    odd = tiny_encoder.write(tmp_path, np.zeros((len(tiny_encoder.WORDS), 2)), inputs=("input_ids", "attention_mask", "pixel_values"))
    with pytest.raises(StateError, match="pixel_values"):
        sentence_encoder.load(str(odd), **SETTINGS)


def test_a_name_on_the_hub_is_downloaded_or_said_to_be_out_of_reach(monkeypatch, paper):
    """The hub is not asked here: an endpoint that nobody serves stands for a machine without a network."""
    hub = pytest.importorskip("huggingface_hub")
    with pytest.raises(StateError, match="no such folder"):
        sentence_encoder.load("/no/such/folder", **SETTINGS)
    asked = {}

    def snapshot(name, **settings):
        asked.update(settings, name=name)
        return str(paper)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    assert sentence_encoder.load("owner/tiny@v1", **SETTINGS).n_factors == 2
    assert (asked["name"], asked["revision"]) == ("owner/tiny", "v1")
    assert "onnx/model.onnx" in asked["allow_patterns"]


def test_the_hub_out_of_reach_is_an_error_that_says_so(tmp_path):
    code = (
        "from pipelines.retrieval import sentence_encoder\n"
        "from pipelines.errors import StateError\n"
        "try:\n    sentence_encoder.load('owner/tiny', max_tokens=8, batch_size=2, num_threads=1)\n"
        "except StateError as error:\n    print(error)\n"
    )
    offline = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], env=offline, capture_output=True, text=True, check=True)
    assert "the hub did not give it" in done.stdout
    assert "name its folder" in done.stdout


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ReloopError, match=r"pip install 'reloop\[text\]'"):
        TextEmbedding(encoder="/anywhere").fit(catalogue(["ebony"]))


def test_a_fitted_one_answers_without_the_encoder(drawn, tmp_path):
    known = catalogue(["ebony", "ivory black", "piano"])
    lineup.save(tmp_path, "text_embedding", TextEmbedding(encoder=str(drawn)).fit(known))
    code = (
        "import sys\nfor name in ('onnxruntime', 'tokenizers', 'huggingface_hub'): sys.modules[name] = None\n"
        f"sys.path.insert(0, {str(next(p for p in sys.path if p.endswith('tests/retrieval')))!r})\n"
        "from pathlib import Path\nfrom retriever_contract import everyone, world\nfrom pipelines.retrieval import lineup\n"
        f"fitted = lineup.load(Path({str(tmp_path)!r}))\n"
        "found = fitted.retrieve(everyone(world([(0, 0, 1 / 24, 1.0)], 1, 3)), 3, exclude_seen=True)\n"
        "print((found.item[0] >= 0).sum())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2"


def test_a_training_run_keeps_vectors_for_the_next_one(drawn, tmp_path):
    known = catalogue(["ebony", "ivory"])
    fitting._fitted(TextEmbedding(encoder=str(drawn)), known, tmp_path / "checkpoint.npz", tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*/*.parquet"))) == 1
