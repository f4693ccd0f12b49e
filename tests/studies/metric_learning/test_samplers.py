"""Samplers: invariants of every draw, and uniform coverage."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tangram.errors import TangramError
from tangram.evaluation.classifiers import draw_per_class
from tangram_studies.metric_learning.samplers import (
    LabeledPool,
    sample_pairs,
    sample_regions,
    sample_spans,
    sample_triplets,
    shift_and_mirror,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


LABELS = torch.tensor([2, 0, 1, 1, 0, 2, 2, 1, 0, 0, 2])


@given(st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_triplets_are_of_the_classes_they_should_be(seed):
    anchors, positives, negatives = sample_triplets(LabeledPool(LABELS), 50, generator(seed))
    assert (LABELS[anchors] == LABELS[positives]).all()
    assert (anchors != positives).all()
    assert (LABELS[anchors] != LABELS[negatives]).all()


def test_triplets_reach_every_possible_one_evenly():
    anchors, positives, negatives = sample_triplets(LabeledPool(LABELS), 60_000, generator())
    for i in range(len(LABELS)):
        share = (anchors == i).float().mean().item()
        assert share == pytest.approx(1 / 3 / int((LABELS[i] == LABELS).sum()), rel=0.1)
        others = positives[anchors == i].unique().tolist()
        assert others == [j for j in range(len(LABELS)) if LABELS[j] == LABELS[i] and j != i]
        foreign = negatives[anchors == i].unique().tolist()
        assert foreign == [j for j in range(len(LABELS)) if LABELS[j] != LABELS[i]]


def test_half_of_the_pairs_are_of_one_class():
    ones, others, same = sample_pairs(LabeledPool(LABELS), 40, generator())
    assert same.sum() == 20
    assert ((LABELS[ones] == LABELS[others]) == same).all()
    assert (ones != others).all()


def test_anchors_are_one_of_each_class_in_order():
    for seed in range(5):
        assert LABELS[LabeledPool(LABELS).anchors(generator(seed))].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("labels", "message"),
    [([1, 1, 1], "no labeled example|one class"), ([0, 0], "one class"), ([0, 2], "class 1 has no labeled example")],
)
def test_labels_that_allow_no_comparison_are_refused(labels, message):
    with pytest.raises(TangramError, match=message):
        LabeledPool(torch.tensor(labels))


def test_a_lone_example_has_no_pair():
    with pytest.raises(TangramError, match="class 1 has only one labeled example"):
        LabeledPool(torch.tensor([0, 0, 1])).another(torch.tensor([0, 2]), generator())


def test_draws_per_class_are_distinct_and_of_every_class():
    drawn = draw_per_class(LABELS, 2, seed=3)
    assert len(set(drawn.tolist())) == 6
    assert LABELS[drawn].tolist() == [0, 0, 1, 1, 2, 2]
    assert drawn.tolist() != draw_per_class(LABELS, 2, seed=4).tolist()
    with pytest.raises(TangramError, match="class 1 has 3 examples to label, 4 wanted"):
        draw_per_class(LABELS, 4, seed=0)


def test_regions_are_pieces_of_their_own_image():
    images = torch.arange(5 * 2 * 6 * 7.0).reshape(5, 2, 6, 7)
    seen = set()
    for seed in range(20):
        regions = sample_regions(images, 3, generator(seed))
        assert regions.shape == (5, 2, 3, 3)
        for image, region in zip(images, regions, strict=True):
            top, left = divmod(int(region[0, 0, 0] - image[0, 0, 0]), 7)
            assert torch.equal(region, image[:, top : top + 3, left : left + 3])
            seen.add((top, left))
    assert seen == {(top, left) for top in range(4) for left in range(5)}
    with pytest.raises(ValueError, match="does not fit"):
        sample_regions(images, 8, generator())


def test_shifted_images_are_moved_and_mirrored_copies():
    images = torch.rand(40, 1, 5, 5, generator=generator())
    assert torch.equal(shift_and_mirror(images, 0, False, generator()), images)
    mirrored = shift_and_mirror(images, 0, True, generator())
    flips = [torch.equal(new, old.flip(-1)) for new, old in zip(mirrored, images, strict=True)]
    assert all(flip or torch.equal(n, o) for flip, n, o in zip(flips, mirrored, images, strict=True))
    assert 5 < sum(flips) < 35
    moved = shift_and_mirror(torch.ones(40, 1, 5, 5), 1, False, generator())
    assert {int(image.sum()) for image in moved} == {25, 20, 16}  # not moved, along one axis, along both


@given(st.integers(2, 40), st.integers(1, 5), st.integers(0, 10), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_spans_lie_inside_their_sequence_without_its_first_token(length, shortest, more, seed):
    shortest = min(shortest, length - 1)
    spans = sample_spans(3, length, 4, shortest, shortest + more, generator(seed))
    sequence, start, end = spans.unbind(1)
    assert sequence.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert (start >= 1).all()
    assert (end <= length).all()
    assert (end - start >= shortest).all()
    assert (end - start <= shortest + more).all()


def test_spans_that_do_not_fit_are_refused():
    with pytest.raises(TangramError, match="spans of 8 tokens do not fit into sequences of 8"):
        sample_spans(1, 8, 1, 8, 9, generator())
