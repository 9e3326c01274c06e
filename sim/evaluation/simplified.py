"""What the evaluation leaves out, in the words of its report: whoever changes what is simulated changes them here too."""

from __future__ import annotations

_SIMPLIFIED = """
No system's own code runs but ours: the others are policy models, one file each; what each leaves out is said below. No setting of
another system was adjusted to anything: read a distance to one as a distance to its model's defaults.

Settings of ours: spread and confirmation of the fluid policy were chosen three times, each time on loads that are not evaluated,
but the second time after the quick table had been seen, and the third after an hour of evaluated loads had (seed 0 at CV 1, 4, 8).

Changes of depth split and merge stages where they are, with old and new memory side by side, and are refused where that does not
fit. For OPT-66B the policy makes none: eight stages do less work per GPU than four. The paper's policy shares our
controller's limits, and what it loses by them was not taken apart.

Step times are published tables with interpolation, scaled by parameters for models that have none. The paper does not say what
its 82 GPUs are; they are A100s with 80 GiB here, since its Table 2 is of A100s.

Each model is evaluated alone on its cluster, as one daemon serves one model: a replica takes all memory that its devices have
left for KV, so that two models would divide devices and not share them, and what MuxServe and AlpaServe gain by sharing is not
measured.

The largest model is served for two hours, the others for half an hour, and for a quarter of an hour on the large maps.

Embeddings are prompts of the trace's lengths with one pass through the model. A transcription is half a minute of sound: 1500
frames in, at most 224 tokens out, as many as the trace's answer has; the encoder's frames are taken for a prompt.

Shared maps: the memory that co-tenants hold, and how busy they are, are drawn from published distributions, apart from each
other; beside one that computes a share u of the time ours takes 1 + u times as long.

A hop is 2.1 ms (the paper's Table 2); in its evaluation it seems to have been 15 ms, which would count against depth.

In calm weather a free GPU is allocated at once; a new process takes half a second; weights scatter as published loads do.

Bad weather is many times as frequent as in life, so that runs of a quarter or half an hour meet some. What is planned from a
history is planned for calm weather. A lost node is noticed after two seconds; what ran on it is computed anew elsewhere.

Static systems may be given any of the tried capacities with hindsight, and know a trace that they are planned for.

Goodput counts requests, not tokens. Deadlines are ours: the paper states none.
"""
SIMPLIFIED = tuple(" ".join(paragraph.split()) for paragraph in _SIMPLIFIED.strip().split("\n\n"))
NO_FIDELITY = (
    "The distance between this simulator, the simulated world of real actors and the real runtime is measured apart and is not "
    "part of these runs. Until it stands here, read differences of a few per cent as none."
)
