"""Comparison of two runs' records: the same line for line, or the same up to rounding.

A record is what `Trial.records` returns: {stage: lines of its metrics.jsonl}.
"""

import itertools
from collections.abc import Iterator

# The largest relative difference that rounding may make between two devices, or two orders of summation: in the loss and the
# gradient norm of the first step, from the same weights and images, and in the loss of the second step. Later steps tell nothing:
# rounding alone moves a residual net's loss by 2e-2 at step 3. Measured on nets of 5 to 56 layers: fp32 in another order 9e-7,
# 2e-4, 1e-3; TF32, in which GPUs convolve, emulated 7e-5, 9e-3, 2e-3; bf16 against fp32 6e-4, 1e-2, 2e-3. fp16 has TF32's
# mantissa; its gradient norm is not recorded.
NEAR = {"no": (5e-4, 5e-2, 1e-2), "fp16": (5e-4, 5e-2, 1e-2), "bf16": (3e-3, 1e-1, 2e-2)}


def first_difference(ours: dict[str, list[dict]], theirs: dict[str, list[dict]]) -> str:
    """The first difference between two records, in words; "" if there is none."""
    for stage, left, right in _pairs(ours, theirs):
        if left != right:
            if not left or not right:
                return f"step {(left or right)['step']} is in one record only"
            key = next(key for key in {**left, **right} if left.get(key) != right.get(key))
            place = "" if stage == "." else f"{stage}, "
            return f"first at {place}step {left['step']}: {key} {left.get(key)} and {right.get(key)}"
    return ""


def _pairs(ours: dict[str, list[dict]], theirs: dict[str, list[dict]]) -> Iterator[tuple[str, dict, dict]]:
    """The lines of two records side by side, as (stage, ours, theirs); {} where one is shorter."""
    nothing: dict = {}
    for stage in sorted(ours.keys() | theirs.keys()):
        for left, right in itertools.zip_longest(ours.get(stage, []), theirs.get(stage, []), fillvalue=nothing):
            yield stage, left, right


def beginnings_near(ours: dict[str, list[dict]], theirs: dict[str, list[dict]], precision: str) -> tuple[bool, str]:
    """Return whether the first two steps of two records differ by rounding only, and the difference in words."""
    loss, norm, later = NEAR[precision]
    said = []
    (stage, our_lines), (other, their_lines) = (next(iter(record.items())) for record in (ours, theirs))
    if stage != other:
        return False, f"the first stage is {stage} in one record and {other} in the other"
    for step, key, bound in ((1, "loss", loss), (1, "gradient_norm", norm), (2, "loss", later)):
        left, right = (
            next((line.get(key) for line in lines if line["event"] == "train" and line["step"] == step), None)
            for lines in (our_lines, their_lines)
        )
        if left is None and right is None and (step, key) != (1, "loss"):  # one step only, or fp16
            continue
        if left is None or right is None:
            return False, f"step {step}: no {key} in one record"
        away = abs(left - right) / max(abs(left), 1e-3)
        if not away <= bound:
            return False, f"step {step}: {key} {left:.9g} and {right:.9g} differ by {away:.1e}; rounding is {bound:.0e}"
        said.append(f"{key.replace('_', ' ')} of step {step} {away:.1e}")
    return True, f"equal up to rounding ({precision}): {', '.join(said)}"
