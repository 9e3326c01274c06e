"""Draws tokens from logits: owns the order of filters and the randomness. Knows no model, no batch, no torch.

The order is vLLM's (V1 sampler): penalties (repetition, then frequency and presence) → temperature → min-p → top-k →
top-p → draw. Log-probabilities are those of the raw logits, before any of it, also as vLLM reports them.

Randomness is counter-based: the one uniform number a token needs is ``Philox(key=seed, counter=position)``, so it is
the same in every process, after every replay, and whoever shares the batch. Every row is computed on its own, with
sums in double precision, for the same reason.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .interface import EngineError, SampledToken, SampleRow, SamplingParams

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.intp]

TEMPERATURE_MIN = 1e-5
"""Temperatures between 0 (greedy) and this are raised to it, so that no quotient overflows; such draws are greedy."""

BINS = 512
BINS_PER_NAT = np.float32(16.0)
"""Bins of the distribution over which top-p sums masses: 512 of 1/16 nat; the last also holds all below e**-32."""

_WORD = (1 << 64) - 1


def sample(logits: FloatArray, rows: Sequence[SampleRow]) -> list[SampledToken]:
    """Draw one token for each row of ``logits`` float32 [N, V]; ``rows`` has N entries.

    Raises `EngineError` where a row's logits hold NaN or infinity: the weights or an activation are corrupt.
    """
    if len(logits) != len(rows):
        raise EngineError(f"{len(logits)} rows of logits were computed but {len(rows)} sampling rows were given")
    return [_sample_row(scores, row) for scores, row in zip(logits, rows, strict=True)]


def uniform(seed: int, position: int) -> float:
    """The random number in [0, 1) for the token at ``position`` of a request with ``seed``; 53 random bits."""
    generator = np.random.Philox(key=seed & _WORD, counter=position)
    return (int(generator.random_raw()) >> 11) * 2.0**-53


def _sample_row(raw: FloatArray, row: SampleRow) -> SampledToken:
    """One token from one row of raw logits [V]."""
    params = row.params
    likeliest = int(np.argmax(raw))
    if not np.isfinite(raw[likeliest]):  # argmax lands on a NaN if there is one
        raise EngineError(
            f"The logits of the token at position {row.position} are not finite; weights or activations are corrupt"
        )
    scores = _penalised(raw, row) if params.needs_history else raw
    if params.temperature <= 0.0:
        token = int(np.argmax(scores)) if params.needs_history else likeliest
    else:
        token = _draw(scores, params, uniform(params.seed, row.position))
    if params.logprobs is None:
        return SampledToken(token)
    return _with_logprobs(raw, token, params.logprobs)


def _penalised(raw: FloatArray, row: SampleRow) -> FloatArray:
    """A copy of the logits with the three penalties applied to the tokens of the row's history."""
    params, history = row.params, row.history
    if history is None:
        raise EngineError(f"The row at position {row.position} has penalties but no history to apply them to")
    if len(history) and not (int(history.min()) >= 0 and int(history.max()) < len(raw)):
        raise EngineError(f"The history of the row at position {row.position} names tokens outside the vocabulary")
    scores = raw.copy()
    seen = np.unique(history)
    if params.repetition_penalty != 1.0:
        values = scores[seen]
        penalty = np.float32(params.repetition_penalty)
        scores[seen] = np.where(values > 0, values / penalty, values * penalty)
    tokens, counts = np.unique(history[row.prompt_tokens :], return_counts=True)
    scores[tokens] -= (params.frequency_penalty * counts + params.presence_penalty).astype(np.float32)
    return scores


def _draw(scores: FloatArray, params: SamplingParams, chance: float) -> int:
    """Invert the distribution function of the filtered distribution at ``chance``."""
    # Dividing by a tiny temperature may overflow, so the maximum is taken away first; softmax does not notice.
    with np.errstate(over="ignore"):
        scaled = (scores - scores.max()) / np.float32(max(params.temperature, TEMPERATURE_MIN))
    kept = _filtered(scaled, params)
    weights = np.exp(scaled if kept is None else scaled[kept])
    cumulative = np.cumsum(weights, dtype=np.float64)
    place = int(np.searchsorted(cumulative[:-1], chance * cumulative[-1], side="right"))
    return place if kept is None else int(kept[place])


def _filtered(scaled: FloatArray, params: SamplingParams) -> IntArray | None:
    """Ids that survive min-p, top-k and top-p, ascending; None where no filter is on. ``scaled`` has maximum 0."""
    kept: IntArray | None = None
    values = scaled
    if params.min_p > 0.0:
        kept = np.flatnonzero(scaled >= np.log(min(params.min_p, 1.0)))
        values = scaled[kept]
    if 0 < params.top_k < len(values):
        survivors = np.flatnonzero(values >= _kth_largest(values, params.top_k))  # ties stay, as in vLLM
        kept = survivors if kept is None else kept[survivors]
        values = values[survivors]
    if params.top_p < 1.0:
        survivors = _nucleus(values, params.top_p)
        kept = survivors if kept is None else kept[survivors]
    return kept


def _nucleus(scaled: FloatArray, top_p: float) -> IntArray:
    """Places, ascending, of the fewest likeliest tokens whose mass reaches ``top_p`` of the whole; at least one.

    A token stays if the mass before it, in descending order, is below ``top_p``; ties go to the lower id. Nothing but
    one bin of the distribution is sorted: masses are first summed in bins of equal width, and only the bin where the
    sum passes ``top_p`` needs an order.
    """
    weights = np.exp(scaled)
    bins = np.minimum(scaled * -BINS_PER_NAT, BINS - 1).astype(np.intp)
    mass_through = np.cumsum(np.bincount(bins, weights=weights, minlength=BINS))
    wanted = top_p * mass_through[-1]
    split = int(np.searchsorted(mass_through, wanted, side="left"))
    members = np.flatnonzero(bins == split)
    members = members[np.argsort(-scaled[members], kind="stable")]
    mass_above = mass_through[split - 1] if split else 0.0
    before = mass_above + np.cumsum(weights[members], dtype=np.float64) - weights[members]
    stays = members[: max(int(np.searchsorted(before, wanted, side="left")), 0 if split else 1)]
    return np.sort(np.concatenate((np.flatnonzero(bins < split), stays)))


def _kth_largest(values: FloatArray, k: int) -> np.float32:
    """The ``k``-th largest value."""
    return np.float32(np.partition(values, len(values) - k)[len(values) - k])


def _largest(values: FloatArray, count: int) -> IntArray:
    """Places of the ``count`` largest values, largest first, ties in order of place."""
    places = np.arange(len(values)) if count >= len(values) else np.flatnonzero(values >= _kth_largest(values, count))
    return places[np.argsort(-values[places], kind="stable")][:count]


def _with_logprobs(raw: FloatArray, token: int, alternatives: int) -> SampledToken:
    """The token with its log-probability and the ``alternatives`` likeliest ones, under the raw distribution."""
    highest = float(raw.max())
    log_total = highest + float(np.log(np.exp(raw - raw.max()).sum(dtype=np.float64)))
    top = _largest(raw, alternatives) if alternatives > 0 else ()
    return SampledToken(
        token_id=token,
        logprob=float(raw[token]) - log_total,
        top=tuple((int(place), float(raw[place]) - log_total) for place in top),
    )
