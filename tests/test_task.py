"""Loss and measures of images with several labels: micro-batches add up, unknown labels count nowhere, scikit-learn's values."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from launch.data import task
from launch.data.mix import soft_labels
from launch.data.task import SEVERAL, UNKNOWN, average_precision, best_threshold, binary_loss, by_label, measured


def drawn(seed: int, images: int = 60, k: int = 4, ties: bool = False, unknown: bool = False) -> tuple[Tensor, Tensor]:
    """Logits that know something of the labels; with `ties` few different values; the last label is rare."""
    rng = torch.Generator().manual_seed(seed)
    labels = (torch.rand(images, k, generator=rng) < torch.linspace(0.6, 0.05, k)).byte()
    labels[0] = 1
    logits = torch.randn(images, k, generator=rng) + labels
    if unknown:
        labels[torch.rand(images, k, generator=rng) < 0.2] = UNKNOWN
        labels[1] = 1
    return (logits.mul(2).round() if ties else logits), labels


@pytest.mark.parametrize("unknown", [False, True])
@pytest.mark.parametrize("ties", [False, True])
def test_measures_are_scikit_learns(ties, unknown):
    sklearn = pytest.importorskip("sklearn.metrics")
    for seed in range(8):
        logits, labels = drawn(seed, ties=ties, unknown=unknown)
        threshold, columns = 0.6, []
        for label, of in enumerate(by_label(logits, labels, threshold)):
            known = labels[:, label] != UNKNOWN
            truth, scores = labels[known, label].numpy(), logits[known, label].double().numpy()
            given = 1 / (1 + np.exp(-scores)) >= threshold
            assert of["average_precision"] == pytest.approx(sklearn.average_precision_score(truth, scores), abs=1e-12)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert of["f1"] == pytest.approx(sklearn.f1_score(truth, given, zero_division=0), abs=1e-12)
                assert of["precision"] == pytest.approx(sklearn.precision_score(truth, given, zero_division=0), abs=1e-12)
            columns.append((of["average_precision"], of["f1"]))
        means = measured(logits, labels, threshold)
        assert (means["mean_average_precision"], means["f1"]) == pytest.approx(tuple(np.mean(columns, axis=0)), abs=1e-12)
        if not unknown:
            whole = sklearn.average_precision_score(labels.numpy(), logits.numpy(), average="macro")
            assert means["mean_average_precision"] == pytest.approx(whole, abs=1e-12)
            f1 = sklearn.f1_score(
                labels.numpy(), (logits.double().sigmoid() >= threshold).numpy(), average="macro", zero_division=0
            )
            assert means["f1"] == pytest.approx(f1, abs=1e-12)


def test_control_ties_taken_one_by_one_are_another_average_precision():
    logits, labels = drawn(0, ties=True)
    truth = labels[:, 0] == 1
    order = logits[:, 0].argsort(descending=True, stable=True)
    hits = truth[order].double().cumsum(0)
    one_by_one = float((hits / torch.arange(1, len(hits) + 1))[truth[order]].mean())
    assert one_by_one != pytest.approx(average_precision(logits[:, 0], truth), abs=1e-4)


@pytest.mark.parametrize(("ties", "unknown"), [(False, False), (True, False), (False, True)])
def test_no_threshold_has_a_higher_f1(ties, unknown):
    for seed in range(6):
        logits, labels = drawn(seed, images=25, ties=ties, unknown=unknown)
        chosen = measured(logits, labels, None)
        tried = [*logits.double().sigmoid().unique().tolist(), *np.linspace(0, 1, 50)]
        assert chosen["f1"] == pytest.approx(max(measured(logits, labels, value)["f1"] for value in tried), abs=1e-12)
        assert measured(logits, labels, chosen["threshold"])["f1"] == chosen["f1"]


def test_of_several_thresholds_that_are_as_good_it_is_the_one_nearest_to_a_half():
    labels = torch.tensor([[1], [0]], dtype=torch.uint8)
    for logits, threshold in (([2.0, -3.0], 0.5), ([3.0, 1.0], (1 / (1 + np.exp(-3)) + 1 / (1 + np.exp(-1))) / 2)):
        assert best_threshold(torch.tensor(logits)[:, None], labels) == pytest.approx(threshold, abs=1e-12)
    assert best_threshold(torch.zeros(2, 1), torch.zeros(2, 1, dtype=torch.uint8)) == 0.5  # nothing to choose by


def test_labels_that_no_image_has_do_not_count():
    logits, labels = drawn(1)
    labels[:, 2] = 0
    rows = by_label(logits, labels, 0.5)
    there = [row["average_precision"] for row in rows if row["count"]]
    assert (rows[2]["count"], rows[2]["average_precision"], len(there)) == (0, 0.0, 3)
    assert measured(logits, labels, 0.5)["mean_average_precision"] == pytest.approx(sum(there) / 3)


@pytest.mark.parametrize("positive", [None, torch.tensor([3.0, 1.0, 0.5, 9.0])])
def test_the_loss_of_a_batch_is_the_weighted_mean_of_its_micro_batches(positive):
    logits, labels = drawn(2, images=10, unknown=True)
    whole = binary_loss(logits.double(), labels, positive, smoothing=0.1)
    parts = [slice(0, 4), slice(4, 7), slice(7, 10)]
    summed = sum(
        binary_loss(logits[part].double(), labels[part], positive, smoothing=0.1) * (part.stop - part.start) for part in parts
    )
    assert summed / 10 == pytest.approx(whole.item(), rel=1e-12)
    known = labels != UNKNOWN
    mean_of_known = SEVERAL.losses(logits, labels)[known].mean()  # which would not add up: another divisor in each part
    assert mean_of_known != pytest.approx(SEVERAL.loss(logits, labels).item(), rel=1e-3)
    assert SEVERAL.loss_sum(logits, labels) / 10 == pytest.approx(SEVERAL.loss(logits, labels).item())


def test_the_loss_is_pytorchs_and_unknown_labels_have_no_gradient():
    logits, labels = drawn(3)
    assert SEVERAL.loss(logits, labels) == F.binary_cross_entropy_with_logits(logits, labels.float())
    labels[5, 2], logits.requires_grad = UNKNOWN, True
    SEVERAL.loss(logits, labels).backward()
    assert logits.grad[5, 2] == 0
    assert logits.grad.count_nonzero() == logits.numel() - 1


def test_mixed_labels_are_shares_and_what_one_of_two_images_does_not_know_is_unknown():
    labels = torch.tensor([[1, 0, UNKNOWN], [1, 1, 1], [0, 0, 0]], dtype=torch.uint8)
    shares = soft_labels(labels[1:], labels[:-1], torch.tensor([0.75, 0.25]), 3)
    assert shares.tolist() == [[1.0, 0.75, UNKNOWN], [0.75, 0.75, 0.75]]
    logits = torch.randn(2, 3, requires_grad=True)
    SEVERAL.loss(logits, shares).backward()
    assert logits.grad[0, 2] == 0
    assert logits.grad.isfinite().all()


def test_a_split_keeps_the_rarest_label_of_each_image_in_proportion():
    labels = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 0, UNKNOWN], [0, 0, 0], [1, 1, 1]], dtype=torch.uint8)
    assert SEVERAL.strata(labels).tolist() == [1, 0, 0, 3, 2]
    assert task.ONE.strata(torch.tensor([2, 0])).tolist() == [2, 0]
