"""A poisoned catalogue does not poison results: whatever vectors, users and blocks a search meets, its lists stay sound.

`sound` states the promise over lists; `PROMISE` are worlds in which it is tested; `BREAKAGES` are changes to the
code, each of which must make one of these tests fail: they test the tests.
"""

import importlib
import inspect
import types
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from ann_world import LAYOUTS, clustered, model, settings, visitors
from retriever_contract import NOW, assert_well_formed, everyone, world

from pipelines.datasets.interactions import Histories
from pipelines.errors import StateError
from pipelines.retrieval import lineup
from pipelines.retrieval.ann import keeping
from pipelines.retrieval.ann.indexed import Indexed
from pipelines.retrieval.content import Content

KINDS = ("nan", "infinite", "zero", "duplicate")
SHARES = (0.001, 0.01, 0.05, 0.5)


def poisoned(vector, kind, share, seed=0):
    """Return vectors of which a share is bad, and which those are (of copies, not the original)."""
    rng = np.random.default_rng(seed)
    bad = np.sort(rng.permutation(len(vector) - 1)[: max(1, round(share * len(vector)))] + 1)
    vector = vector.copy()
    if kind == "duplicate":
        vector[bad] = vector[0]
    else:
        vector[bad] = {"nan": np.nan, "infinite": -np.inf, "zero": 0.0}[kind]
        if kind == "nan":
            vector[bad, 1:] = 1.0  # one coordinate is enough
        if kind == "infinite":
            vector[bad[::2]] = 3e30  # finite, but no product of two such is
    return vector, bad


def requests(rng, n_items, n_users):
    """Return users who saw something between nothing and nearly everything."""
    lengths = (n_items * rng.random(n_users) ** 6).astype(int) + rng.integers(0, 4, n_users)
    lengths[rng.random(n_users) < 0.05] = 0
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    n = int(indptr[-1]) if n_items else 0
    indptr = indptr if n_items else np.zeros_like(indptr)
    item = rng.integers(0, max(n_items, 1), n).astype(np.int32)
    return Histories(indptr, item, np.full(n, NOW - 1), np.ones(n, np.float32), n_items, NOW)


def sound(index, query, told, k, *, seen, blocked):
    """Ask, and assert the promise against a product of matrices; return recall@10 of those who were told."""
    found = index.search(query, told, k, seen=seen, blocked=blocked)
    assert_well_formed(found, len(query), k, index.n_items)
    assert np.isfinite(found.score[found.item >= 0]).all()
    if not index.n_items:
        return 1.0
    allowed = index.live if blocked is None else index.live & ~blocked
    with np.errstate(all="ignore"):
        truth = query.astype(np.float64) @ np.where(allowed[:, None], index.vector, 0).T.astype(np.float64)
    truth[:, ~allowed] = -np.inf
    if seen is not None:
        truth[seen.row_of_event(), seen.item] = -np.inf
    truth[~told | ~np.isfinite(query).all(axis=1)] = -np.inf
    row = np.arange(len(query))[:, None]
    given = found.item >= 0
    assert np.isfinite(truth[row, found.item][given]).all(), "nothing blocked, seen or bad, and nothing for whom nothing is known"
    assert (given.sum(axis=1) == np.minimum(k, np.isfinite(truth).sum(axis=1))).all(), "as many as there are"
    best = -np.sort(-truth, axis=1)[:, :10]
    if not np.isfinite(best).any():
        return 1.0
    score = truth[row, np.where(given, found.item, 0)][:, :10]
    last = np.where(np.isfinite(best), best, np.inf).min(axis=1, initial=1e30, keepdims=True)
    hits = (given[:, :10] & (score >= last - 1e-4 * np.abs(last))).sum(axis=1)
    wanted = np.minimum(np.isfinite(best).sum(axis=1), k)
    return float((np.minimum(hits, wanted)[wanted > 0] / wanted[wanted > 0]).mean())


def ask_all_kinds(index, rng, n_requests):
    """Ask requests of every kind: long and short lists, with and without what was seen and blocked, known and unknown users."""
    reached = []
    while n_requests > 0:
        n = int(min(n_requests, rng.integers(1, 60)))
        query = clustered(max(n, 1), int(rng.integers(1 << 30)), index.vector.shape[1])[:n]
        told = rng.random(n) < 0.95
        query[rng.random(n) < 0.03] = np.nan
        query[rng.random(n) < 0.03] = np.inf
        k = int(rng.choice([1, 10, 100, index.n_items + 7]))
        seen = requests(rng, index.n_items, n) if rng.random() < 0.7 else None
        blocked = rng.random(index.n_items) < rng.choice([0.02, 0.5, 0.98, 1.0]) if rng.random() < 0.6 else None
        reached.append(sound(index, query, told, k, seen=seen, blocked=blocked))
        n_requests -= n
    return float(np.mean(reached))


def built(vector, kind, **knobs):
    return Indexed(model(vector), settings(kind, **knobs)).over(visitors(len(vector)))


def check_refusals():
    """Too many bad vectors are refused, and so is what does not fit."""
    for kind in KINDS:
        for share in SHARES[1:]:
            vector, bad = poisoned(clustered(400), kind, share)
            with pytest.raises(StateError, match=f"{len(bad)} of 400 are bad .*{kind}: items .{bad[0]}"):
                built(vector, "ivf")
    index = built(clustered(400), "ivf").index
    for query in (np.ones((3, 16), np.float32), np.ones(8, np.float32)):
        with pytest.raises(StateError, match="query vectors: shape"):
            index.search(query, np.ones(len(query), dtype=bool), 5)
    with pytest.raises(StateError, match="another catalogue"):
        index.search(np.ones((1, 8), np.float32), np.ones(1, dtype=bool), 5, blocked=np.zeros(399, dtype=bool))
    with pytest.raises(StateError, match="recall@100"):
        noise = np.random.default_rng(0).standard_normal((3000, 32)).astype(np.float32)
        built(noise, "auto", flat_below=1, target_recall=1.0, min_recall=1.0)


def check_lists(n_requests, seed=0):
    """What is let in does not spoil the rest, in any layout."""
    rng = np.random.default_rng(seed)
    worlds = [(kind, layout) for kind in KINDS for layout in LAYOUTS if (kind, layout) != ("duplicate", "flat")]
    for kind, layout in worlds:
        for share in SHARES:
            vector, bad = poisoned(clustered(1000), kind, share)
            index = built(vector, layout, max_bad_share=1.0 if share > 0.001 else 0.001).index
            assert not index.live[bad].any(), "what is bad is left out"
            assert index.live.sum() == 1000 - len(bad), "and nothing else"
            assert ask_all_kinds(index, rng, n_requests // (len(worlds) * len(SHARES)) + 1) >= 0.95


def check_small_worlds():
    """No items, one, all blocked, all seen, all removed, more asked than there are."""
    rng = np.random.default_rng(0)
    for layout in LAYOUTS:
        for n_items in (0, 1, 2, 30):
            index = built(clustered(max(n_items, 1))[:n_items], layout).index
            assert ask_all_kinds(index, rng, 100) >= 0.95
            query, told = clustered(2), np.ones(2, dtype=bool)
            nobody = index.search(query, told, 5, blocked=np.ones(n_items, dtype=bool))
            assert (nobody.item == -1).all()
            all_seen = Histories(
                np.array([0, n_items, 2 * n_items]),
                np.tile(np.arange(n_items), 2).astype(np.int32),
                np.zeros(2 * n_items, np.int64),
                np.ones(2 * n_items, np.float32),
                n_items,
                NOW,
            )
            assert (index.search(query, told, 5, seen=all_seen).item == -1).all()
            assert (index.without(np.arange(n_items)).search(query, told, 5).item == -1).all()


def check_kept(folder):
    """A damaged index is refused, as is one beside another model."""
    fitted, other = built(clustered(400), "ivf"), model(clustered(400, seed=1))
    lineup.save(folder, "bpr", fitted)
    with pytest.raises(StateError, match="of one release"):
        keeping.load(folder, other)
    content = bytearray((folder / "index.faiss").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "index.faiss").write_bytes(content)
    with pytest.raises(StateError, match=r"index\.faiss: bytes that differ"):
        keeping.load(folder, fitted.model)


def test_a_build_with_more_than_a_thousandth_of_bad_vectors_is_refused_by_name():
    check_refusals()


def test_lists_are_sound_whatever_the_vectors_and_requests():
    check_lists(4_000)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_lists_are_sound_over_a_hundred_thousand_requests(seed):
    check_lists(25_000, seed=seed + 1)


def test_lists_are_sound_in_small_and_exhausted_catalogues():
    check_small_worlds()


def test_a_damaged_index_and_one_of_another_release_are_refused(tmp_path):
    check_kept(tmp_path)


@pytest.mark.parametrize("source", sorted(lineup.SOURCES))
def test_poisoned_state_of_any_source_is_neither_published_nor_loaded(source, tmp_path):
    for value in (np.nan, np.inf, -np.inf):
        sound = {"n_items": np.array([3]), "anything": np.array([1.0, 0.0, 2.0], np.float32)}
        poisoned = {**sound, "anything": np.array([1.0, value, 2.0], np.float32)}
        with pytest.raises(StateError, match="anything: NaN or infinity"):
            lineup.save(tmp_path / "never", source, replace(lineup.SOURCES[source], state=poisoned))
        assert not (tmp_path / "never").exists()
        lineup.save(tmp_path, source, replace(lineup.SOURCES[source], state=sound))
        np.savez(tmp_path / "state.npz", **poisoned)
        with pytest.raises(StateError, match="anything: NaN or infinity"):
            lineup.load(tmp_path)


@pytest.mark.parametrize("source", ["als", "bpr", "pure_svd", "nmf"])
def test_lists_of_a_source_are_sound_over_a_catalogue_of_odd_ids_and_events(source):
    rng = np.random.default_rng(0)
    events = [(int(u), int(i), float(age), float(w)) for u, i, age, w in zip(rng.integers(0, 40, 900), rng.integers(0, 60, 900), rng.integers(1, 50, 900), rng.choice([0.0, 1.0, 1e6], 900), strict=True)]  # fmt: skip
    known = world(events, 40, 62)
    ids = np.sort(np.array([chr(0x1F300 + n) * (1 + 999 * (n % 7 == 0)) for n in range(61)] + [""]))
    known = replace(known, item_ids=ids)
    for kind in LAYOUTS:
        fitted = Indexed(lineup.make(source, {"n_factors": 4}), settings(kind, max_bad_share=1.0)).fit(known)
        for k in (1, 10, 200):
            found = fitted.retrieve(everyone(known), k, exclude_seen=True)
            assert_well_formed(found, 40, k, 62)
            seen = everyone(known).matrix().toarray() > 0
            assert not seen[np.arange(40)[:, None], found.item][found.item >= 0].any()
            assert np.isin(found.item[found.item >= 0], known.item[known.weight > 0]).all()
        assert (fitted.retrieve(everyone(known), 10, exclude_seen=False, blocked=np.ones(62, dtype=bool)).item == -1).all()


def test_poisoned_titles_do_not_spoil_what_is_described_alike():
    known = world([(0, 0, 1.0, 1.0)], 1, 12)
    odd = ["green tea", "Green  TEA!", None, "", "nan", "\x00", "\u202e\ufeff", "🦄" * 1000, "tea " * 50_000, "'; drop", "-1", "green tea"]
    columns = known.items.column_names
    known = replace(known, items=known.items.set_column(columns.index("title"), "title", pa.array(odd)))
    found = Content().fit(known).retrieve(everyone(known), 20, exclude_seen=True)
    assert_well_formed(found, 1, 20, 12)
    assert set(found.item[0][:2].tolist()) == {1, 11}, "the ones with the same words lead, then those of the same colour"


# (module, what stands there, what is put in its place)
BREAKAGES = {
    "padding is an item": ("index", "may = (item >= 0) & rule.allowed", "may = rule.allowed"),
    "blocked items are served from lists": ("index", "& rule.allowed[item] &", "&"),
    "blocked items are served by comparison": ("index", "score[:, ~rule.allowed] = -np.inf", "pass"),
    "seen items are served from lists": ("index", " & ~_among(rows[:, None] * self.n_items + item, rule.hidden)", ""),
    "seen items are served by comparison": ("index", "score[row[own], hidden[own]] = -np.inf", "pass"),
    "short lists stay short": ("index", "< wanted[rows]]", "< 0]"),
    "users of whom nothing is known are asked for": ("index", "np.flatnonzero(told)", "np.arange(len(told))"),
    "queries are not looked at": ("index", "told & (np.abs(query)", "told | (np.abs(query)"),
    "dimensions are not compared": ("index", "query.ndim != 2 or query.shape[1] != self.vector.shape[1]", "False"),
    "catalogues are not compared": ("index", "len(blocked) != self.n_items", "False"),
    "zero vectors are let in": ("hygiene", '"zero": items[zero]', '"zero": items[:0]'),
    "infinite vectors are let in": ("hygiene", "infinite = ~nan & ~(size <= HUGE)", "infinite = nan & False"),
    "copies are let in": ("hygiene", "np.sort(left[copies[:, 0]])", "left[:0]"),
    "no share of bad vectors is refused": ("hygiene", "if n_bad > max_share * self.n_checked", "if n_bad > self.n_checked"),
    "bad vectors are not left out": ("indexed", "live[findings.items] = False", "pass"),
    "a catch-all takes what recall it gets": (
        "choosing",
        "    raise StateError(",
        "    return Choice(tried[0][1], 1.0, 1, trials)\n    raise StateError(",
    ),
    "digests are not compared": ("keeping", 'hashlib.sha256(content).hexdigest() != said["sha256"]', "False"),
    "releases are not compared": ("keeping", '(found := release(model)) != facts["release"]', "(found := '') != ''"),
}


@pytest.fixture
def broken(monkeypatch):
    """Return a function that puts a changed copy of a module's functions and methods into the place of its own."""

    def put(name, there, instead):
        module = importlib.import_module(f"pipelines.retrieval.ann.{name}")
        source = inspect.getsource(module)
        assert source.count(there) == 1, f"what the breakage changes stands in {name}.py once"
        copy = types.ModuleType(module.__name__)
        exec(compile(source.replace(there, instead), module.__file__, "exec"), vars(copy))
        for key, value in vars(copy).items():
            if getattr(value, "__module__", None) != module.__name__:
                continue
            if isinstance(value, type):
                for method, function in vars(value).items():
                    if isinstance(function, types.FunctionType) and not method.startswith("__"):
                        monkeypatch.setattr(getattr(module, key), method, function)
            elif callable(value):
                monkeypatch.setattr(module, key, value)

    return put


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_breakage_is_caught(name, broken, tmp_path):
    broken(*BREAKAGES[name])
    caught = []
    for check in (check_refusals, lambda: check_kept(tmp_path), check_small_worlds, lambda: check_lists(1200)):
        try:
            check()
        except (AssertionError, pytest.fail.Exception, RuntimeWarning, IndexError, RuntimeError, ValueError) as failure:
            caught.append(failure)
            break
    assert caught
