"""Two towers: what a user did and is, and what an item is, are placed in one space by a network each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self, cast

import numpy as np
import numpy.typing as npt

from pipelines.datasets.interactions import Bools, Floats, Histories, Interactions, Ints
from pipelines.retrieval import topk
from pipelines.retrieval.neural import layers, sequences, tokens
from pipelines.retrieval.neural.backend import Array, Params
from pipelines.retrieval.neural.sequences import Sequences, Split
from pipelines.retrieval.neural.training import Batch, Material, Training, train
from pipelines.retrieval.protocol import Candidates

TOKENS: Final = 16  # of an item or a user that are read
AT_ONCE: Final = 8  # values a position and factor that the user tower holds at once, about


@dataclass(frozen=True)
class TwoTower(Training):
    """Cosine between a user's and an item's vector over a temperature, learnt against the items of the batch.

    An item enters as its own vector plus the mean of its tokens' (category, brand, price, words), so
    that items with few events lean on what they are. A user enters as the history, weighed by what
    each step is and how far back it lies, the newest step, and the tokens of the profile; each side
    then passes a network of one hidden layer.

    The loss is the in-batch softmax with logits less log Q of each item, Q its share of the targets,
    so that popular items are not punished for being drawn often (Yi et al., RecSys 2019, eq. 5);
    uniformly drawn items join them (Yang et al., WWW Companion 2020), and for each user the
    `n_hard` highest scored of a pool drawn for the batch. What a user already did is not counted
    against it. State: vector float32 [n_items, n_factors], the items' side of the product; the user
    tower's parameters and its vocabulary of profiles.

    Attributes:
        n_factors: length of a vector.
        max_history: newest steps that the user tower reads.
        temperature: of the softmax.
        n_negatives: items drawn uniformly for each batch.
        n_pool, n_hard: items drawn for the batch, of which each user meets the highest scored.
        n_tokens: words kept of all that describes items, and of users.
        dropout: share of values dropped in the hidden layers while training.
    """

    batch_size: int = 256
    n_factors: int = 64
    max_history: int = 30
    temperature: float = 0.1
    n_negatives: int = 256
    n_pool: int = 1024
    n_hard: int = 4
    n_tokens: int = 5000
    dropout: float = 0.1
    state: Params | None = field(default=None, repr=False, compare=False)

    def resume(self, interactions: Interactions, checkpoint: Path | None) -> Self:
        """Return a fitted copy, going on from a checkpoint where there is one of this very training."""
        steps = sequences.learnt_from(interactions)
        known = np.bincount(steps.item, minlength=steps.n_items) > 0
        rows = sequences.table_rows(steps.n_items)
        of_items = tokens.described(interactions.items, steps.n_items)
        of_users = tokens.described(interactions.users, len(interactions.user_ids))
        item_words, user_words = tokens.vocabulary(of_items, self.n_tokens), tokens.vocabulary(of_users, self.n_tokens)
        item_token = np.zeros((rows, TOKENS), dtype=np.int32)
        item_token[: steps.n_items] = tokens.indexed(of_items, item_words, TOKENS)
        user_token = tokens.indexed(of_users, user_words, TOKENS)
        rng = np.random.default_rng([self.seed, 0])
        params = self._first(rng, rows, len(item_words), len(user_words))
        if (steps.lengths() > 1).any():
            params = self._train(params, steps, known, (item_token, user_token), checkpoint)
        raw = _raw(np, params, item_token)
        state = {name: value for name, value in params.items() if name.startswith("user.")} | {
            "n_items": np.array([steps.n_items]),
            "known": known,
            "raw": raw,
            "vector": layers.unit(_tower(np, params, "item", raw, drop=layers.keep))[: steps.n_items],
            "user_words": user_words,
        }
        return replace(self, state=state)

    def _first(self, rng: np.random.Generator, rows: int, n_item_words: int, n_user_words: int) -> Params:
        d = self.n_factors
        scale = np.float32(d**-0.5)
        params = {
            "table": rng.standard_normal((rows, d)).astype(np.float32) * scale,
            "token": rng.standard_normal((sequences.table_rows(n_item_words), d)).astype(np.float32) * scale,
            "user.token": rng.standard_normal((sequences.table_rows(n_user_words), d)).astype(np.float32) * scale,
            "user.back": np.linspace(0, -2, self.max_history, dtype=np.float32),
            "user.weigh": np.zeros((d, 1), dtype=np.float32),
        }
        for name, n_in in (("item", d), ("user", 3 * d)):
            params[f"{name}.up"] = layers.dense(rng, n_in, 2 * d)
            params[f"{name}.up_shift"] = np.zeros(2 * d, dtype=np.float32)
            params[f"{name}.down"] = layers.dense(rng, 2 * d, d) * np.float32(0.5)
        return params

    def _train(
        self, params: Params, steps: Sequences, known: npt.NDArray[np.bool_], token: tuple[Ints, Ints], checkpoint: Path | None
    ) -> Params:
        item_token, user_token = token
        judged = sequences.split(steps, self)
        learner = replace(self, state=None)
        some = np.flatnonzero(known)
        share = np.bincount(steps.item, minlength=len(item_token)) / max(len(steps.item), 1)
        log_share = np.log(np.maximum(share, 1e-9)).astype(np.float32)

        def batches(rng: np.random.Generator, everything: bool) -> Iterable[Batch]:
            learnt = steps if everything or judged is None else judged.fit
            first = np.repeat(learnt.indptr[:-1], learnt.lengths())
            place = np.flatnonzero(np.arange(len(learnt.item)) > first)
            user = np.repeat(np.arange(len(learnt.lengths())), learnt.lengths())
            for batch in sequences.shuffled({"place": place}, self.batch_size, rng):
                at = batch["place"]
                back = at[:, None] - np.arange(1, self.max_history + 1)
                history = np.where(back >= first[at][:, None], learnt.item[np.maximum(back, 0)], learnt.pad).astype(np.int32)
                yield {
                    "history": history,
                    "target": learnt.item[at],
                    "user_token": user_token[user[at]],
                    "negative": some[rng.integers(0, len(some), self.n_negatives)].astype(np.int32),
                    "pool": some[rng.integers(0, len(some), self.n_pool)].astype(np.int32),
                }

        def quality(learnt: Params) -> float:
            raw = _raw(np, learnt, item_token)
            vector = layers.unit(_tower(np, learnt, "item", raw, drop=layers.keep))[: steps.n_items]

            def scored(some: Split) -> Floats:
                asked = some.history.newest(self.max_history)
                users = self._user(
                    np,
                    learnt,
                    raw[asked],
                    asked == steps.pad,
                    profile=_mean_token(np, learnt["user.token"], user_token[some.user]),
                    drop=layers.keep,
                )
                return np.where(known, users @ vector.T, np.float32(-np.inf))

            return sequences.validated(scored, cast("Split", judged))

        data = {"token": item_token, "log_share": log_share, "n_known": np.array(len(some))}
        made_of = (steps.indptr, steps.item, steps.at, item_token, user_token)
        return train(learner, params, Material(batches, None if judged is None else quality, data, made_of), checkpoint)

    def objective(self, params: Array, data: Array, batch: Array, key: Array) -> Array:
        """Return the mean loss of a batch of next steps."""
        from jax import lax
        from jax import numpy as jnp

        drop = layers.dropout(key, self.dropout)
        token, history, target = data["token"], batch["history"], batch["target"]
        pad = params["table"].shape[0] - 1

        def items(chosen: Array) -> Array:
            return layers.unit(_tower(jnp, params, "item", _raw(jnp, params, token, chosen), drop=drop))

        profile = _mean_token(jnp, params["user.token"], batch["user_token"])
        users = self._user(jnp, params, _raw(jnp, params, token, history), history == pad, profile=profile, drop=drop) / np.float32(
            self.temperature
        )

        def logits(chosen: Array, vectors: Array) -> Array:
            """Return [n, n_chosen], masked where an item is the target or in the user's history."""
            met = (chosen[None, :, None] == history[:, None, :]).any(axis=2) | (chosen == target[:, None])
            return jnp.where(met, layers.MASKED, users @ vectors.T)

        positive = items(target)
        own = (users * positive).sum(axis=1)
        # Of what is drawn, each logit is less the log of how often it is drawn; one that is not drawn needs no correction.
        in_batch = logits(target, positive) - data["log_share"][target] - np.log(np.float32(len(target)))
        uniform = logits(batch["negative"], items(batch["negative"])) + jnp.log(data["n_known"] / np.float32(self.n_negatives))
        parts = [
            own[:, None],
            jnp.logaddexp(layers.log_sum_exp(jnp, in_batch), layers.log_sum_exp(jnp, uniform))[:, None] - np.float32(np.log(2)),
        ]
        if self.n_hard:
            pool = lax.stop_gradient(logits(batch["pool"], items(batch["pool"])))
            hardest = jnp.take(batch["pool"], lax.top_k(pool, self.n_hard)[1])
            value = (users[:, None, :] * items(hardest)).sum(axis=2)
            parts.append(jnp.where(lax.top_k(pool, self.n_hard)[0] > layers.MASKED / 2, value, layers.MASKED))
        return (layers.log_sum_exp(jnp, jnp.concatenate(parts, axis=1)) - own).mean()

    def _user(self, xp: Any, params: Params, steps: Array, missing: Array, *, profile: Array, drop: layers.Drop) -> Array:
        """Return [n, n_factors], users' vectors of length 1.

        Args:
            steps: [n, max_history, n_factors], the items of the history before the item tower.
            missing: bool [n, max_history], where there is no step.
            profile: [n, n_factors].
        """
        weigh = (steps @ params["user.weigh"])[..., 0] + params["user.back"][::-1]
        weight = xp.where(missing, 0.0, layers.softmax(xp, xp.where(missing, layers.MASKED, weigh)))
        pooled = (weight[:, :, None] * steps).sum(axis=1)
        newest = xp.where(missing[:, -1:], 0.0, steps[:, -1])
        return layers.unit(_tower(xp, params, "user", xp.concatenate([pooled, newest, profile], axis=1), drop=drop, skip=pooled))

    def retrieve(self, histories: Histories, k: int, *, exclude_seen: bool) -> Candidates:
        """Return the items nearest to the user's vector."""
        state = cast("Params", topk.checked("two_tower", self.state, histories))
        known = state["known"].astype(bool)
        parts = []
        for _, _, rows in topk.blocks(histories, max(histories.n_items, AT_ONCE * self.max_history * self.n_factors)):
            users, told = self.query_vectors(rows)
            scores = np.where(known & told[:, None], users @ state["vector"].T, np.float32(-np.inf))
            if exclude_seen:
                topk.hide_seen(scores, rows)
            parts.append(topk.best(scores, k))
        return topk.stack(parts, k)

    def item_vectors(self) -> tuple[Floats, Bools]:
        """Return what the item tower made of each item, of length 1, and which items may be proposed."""
        state = topk.fitted("two_tower", self.state)
        return np.asarray(state["vector"], dtype=np.float32), np.asarray(state["known"], dtype=bool)

    def query_vectors(self, histories: Histories) -> tuple[Floats, Bools]:
        """Return what the user tower makes of each user, of length 1, and who has a step that the model knows."""
        topk.checked("two_tower", self.state, histories)
        blocks = topk.blocks(histories, AT_ONCE * self.max_history * self.n_factors)
        parts = [self._users(rows) for _, _, rows in blocks] or [self._users(histories)]
        return np.concatenate([users for users, _ in parts]), np.concatenate([told for _, told in parts])

    def _users(self, histories: Histories) -> tuple[Floats, Bools]:
        """Return the same for a block of users."""
        state = cast("Params", self.state)
        steps = sequences.asked_with(histories, state["known"].astype(bool))
        asked = steps.newest(self.max_history)
        profile = tokens.indexed(tokens.described(histories.users, histories.n_users), state["user_words"], TOKENS)
        vectors = self._user(
            np, state, state["raw"][asked], asked == steps.pad, profile=_mean_token(np, state["user.token"], profile), drop=layers.keep
        )
        return vectors, steps.lengths() > 0


def _tower(xp: Any, params: Params, side: str, x: Array, *, drop: layers.Drop, skip: Array | None = None) -> Array:
    """Return a network of one hidden layer, added to what it may skip."""
    hidden = layers.gelu(xp, x @ params[f"{side}.up"] + params[f"{side}.up_shift"])
    return (x if skip is None else skip) + drop(hidden) @ params[f"{side}.down"]


def _raw(xp: Any, params: Params, token: Array, chosen: Array | None = None) -> Array:
    """Return [..., n_factors], items before their tower: the own vector plus the mean of the tokens'."""
    own, words = (params["table"], token) if chosen is None else (params["table"][chosen], token[chosen])
    return own + _mean_token(xp, params["token"], words)


def _mean_token(xp: Any, table: Array, words: Array) -> Array:
    """Return [..., n_factors], the mean vector of the tokens that are there; zeros without any."""
    there = (words > 0).astype(np.float32)
    summed = (table[words] * there[..., None]).sum(axis=-2)
    return summed / xp.maximum(there.sum(axis=-1), np.float32(1))[..., None]
