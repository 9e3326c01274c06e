"""The models of the evaluation and their published step times.

Owns the numbers and where they are from; nothing here was measured by us.

- Decoding: the fits that DistServe published for OPT-66B on A100 with tensor parallelism 2 (Zhong et al., OSDI'24; Apache-2.0):
  48.29 ms + 0.1276 ms a row (up to 95 rows; 28.73 + 0.2962 above) + 0.942 us a token of context.
- Prompts: medians of what splitwise-sim published for Llama-2-70B on A100 with tensor parallelism 2 (Patel et al., ISCA'24; MIT), a
  model of the same size: points of a table, which no straight line meets.
- Depth: Table 2 of the FlexPipe paper for OPT-66B on A100: S stages of 69.94, 36.63, 18.67 and 9.67 ms at S = 4, 8, 16 and 32. Its
  largest batches are 32 requests for each stage, and with 32 rows of 4096 tokens DistServe's fit gives 175.9 ms where the
  table has 279.8: so one device after the other takes 1.59 times as long as two side by side, and by this both tables are scaled.

Others are scaled by their parameters, which is what reading weights and multiplying by them cost: a simplification.
"""

from __future__ import annotations

from dataclasses import replace

from .engine_times import StepTimes
from .served_model import ServedModel

DISTSERVE_ROWS_S = {
    rows: (48.288015 + 0.1275502 * rows if rows <= 95 else 28.727694 + 0.2961779 * rows) / 1e3 for rows in (1, 32, 95)
}
DISTSERVE_CONTEXT_S = 0.9424343535737985e-6
SPLITWISE_PROMPT_S = {
    128: 0.0811,
    256: 0.1129,
    512: 0.1955,
    1024: 0.3771,
    2048: 0.6881,
    4096: 1.4853,
    8192: 2.9902,
}
PAPER_DEPTHS = (4, 8, 16, 32)
PAPER_STAGE_S = (69.94e-3, 36.63e-3, 18.67e-3, 9.67e-3)
PAPER_HOP_S = 2.1e-3
"""Between two stages: Table 2's communication is this for each of S - 1 hops at all four depths."""
PAPER_CLUSTER_HOP_S = 15e-3
"""The same in the paper's evaluation, derived: 45, 105 and 225 ms at 4, 8 and 16 stages."""
PAPER_LOAD_S = (47.14, 13.05, 9.19, 5.43)
"""Loading at these depths, of 30, 15, 7.5 and 3.75 GB a stage."""
PAPER_ROWS, PAPER_CONTEXT = 32, 4096
"""Requests of one step, and their context, at which Table 2 is taken to hold."""

OPT_66B_BYTES = 132_000_000_000
OPT_66B_PARAMETERS = 66e9


def opt_66b() -> ServedModel:
    """OPT-66B in half precision: 64 layers of width 9216."""
    return ServedModel(
        name="OPT-66B",
        layers=64,
        weight_bytes=OPT_66B_BYTES,
        kv_bytes_per_token=2 * 2 * 9216 * 64,
        activation_bytes_per_token=2 * 9216,
        times=opt_66b_times(),
        end_bytes=2 * 9216 * 50_272,
    )


def llama_2_7b() -> ServedModel:
    """Llama-2-7B in half precision: 32 layers of width 4096."""
    return _scaled("Llama-2-7B", layers=32, width=4096, parameters=6.74e9, vocabulary=32_000)


def bert_21b() -> ServedModel:
    """BERT-21B, an encoder: ask it for one token. Its shape is not published; 48 layers of width 6144 have its size."""
    return _scaled("BERT-21B", layers=48, width=6144, parameters=21e9, vocabulary=30_522)


def whisper_9b() -> ServedModel:
    """Whisper-9B: the encoder's 1500 frames of half a minute are its prompt. Its shape is not published; this one has its size."""
    return _scaled("Whisper-9B", layers=64, width=3456, parameters=9e9, vocabulary=51_865)


def opt_66b_times() -> StepTimes:
    """See the module. A decoding row's table ends where the prompt's begins."""
    scale = PAPER_DEPTHS[0] * PAPER_STAGE_S[0] / _distserve_s(PAPER_ROWS, PAPER_ROWS * PAPER_CONTEXT)
    points = {**DISTSERVE_ROWS_S, **SPLITWISE_PROMPT_S}
    whole = PAPER_DEPTHS[0] * PAPER_STAGE_S[0]
    return StepTimes(
        tokens=tuple(map(float, points)),
        seconds=tuple(points.values()),
        context_s=DISTSERVE_CONTEXT_S,
        depths=PAPER_DEPTHS,
        depth_factors=tuple(depth * s / whole for depth, s in zip(PAPER_DEPTHS, PAPER_STAGE_S, strict=True)),
    ).scaled(scale)


def _distserve_s(rows: int, context: int) -> float:
    return DISTSERVE_ROWS_S[rows] + context * DISTSERVE_CONTEXT_S


def _scaled(name: str, layers: int, width: int, parameters: float, vocabulary: int) -> ServedModel:
    kv_bytes = 2 * 2 * width * layers
    times = opt_66b_times().scaled(parameters / OPT_66B_PARAMETERS)
    # A token of context costs what its KV is to read, and that does not go with the parameters.
    context_s = opt_66b_times().context_s * kv_bytes / (2 * 2 * 9216 * 64)
    return ServedModel(
        name=name,
        layers=layers,
        weight_bytes=int(2 * parameters),
        kv_bytes_per_token=kv_bytes,
        activation_bytes_per_token=2 * width,
        times=replace(times, context_s=context_s),
        end_bytes=2 * width * vocabulary,
    )
