"""Checks of the exercises of 07: the vote of neighbours, a split that does not leak, an interval."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from clay_lib.course.checking import as_tensor, attempt, compare, expect_shape, require, right


def check_vote(fn: Callable) -> None:
    """fn(train_x [N, D], train_y [N], test_x [M, D], k) -> [M], the commonest label of the k nearest (Euclidean)."""
    rng = np.random.default_rng(653)  # no test chip with a tie
    train_x, test_x = rng.normal(size=(40, 3)) * [1, 2, 1], rng.normal(size=(13, 3)) * [1, 2, 1]
    train_y, k = rng.choice([10, 20, 40, 90], 40), 5
    order = np.linalg.norm(test_x[:, None] - train_x, axis=2).argsort(1)

    def counted(nearest):
        """Of each row of nearest: its labels, and how often each is there."""
        return [np.unique(train_y[row], return_counts=True) for row in nearest]

    def vote(nearest):
        return np.array([labels[counts.argmax()] for labels, counts in counted(nearest)])

    labels = train_y[order[:, :k]]
    names = np.unique(train_y)
    wanted = vote(order[:, :k])
    far = np.abs(test_x[:, None] - train_x)
    weight = 1 / np.linalg.norm(test_x[:, None] - train_x, axis=2)
    weight[np.arange(13)[:, None], order[:, k:]] = 0
    cosine = (
        -(test_x / np.linalg.norm(test_x, axis=1, keepdims=True))
        @ (train_x / np.linalg.norm(train_x, axis=1, keepdims=True)).T
    )
    compare(
        attempt(fn, train_x, train_y, test_x, k),
        wanted,
        slips={
            "The farthest are asked: sort distances from the smallest up.": vote(order[:, -k:]),
            "Only the nearest is asked; all k of them vote.": train_y[order[:, 0]],
            "These are numbers of training chips: look up their labels, train_y[...].": order[:, 0],
            "The labels of the neighbours are averaged. A label is a name: count votes and take the commonest.": labels.mean(
                1
            ),
            "The labels of the neighbours are averaged and rounded. A label is a name: count votes and take the commonest.": (
                labels.mean(1).round(-1)
            ),
            "The labels of the neighbours are averaged, and the nearest label taken. A label is a name: count votes and "
            "take the commonest.": names[np.abs(labels.mean(1)[:, None] - names).argmin(1)],
            "This is the median of the neighbours' labels. A label is a name, and names have no order: count votes and "
            "take the commonest.": np.median(labels, axis=1),
            "This is the largest of the neighbours' labels: count votes and take the commonest.": labels.max(1),
            "This is the smallest of the neighbours' labels: count votes and take the commonest.": labels.min(1),
            "This is the number of votes that the commonest label has: answer with the label itself.": [
                counts.max() for _, counts in counted(order[:, :k])
            ],
            "This is the place of the commonest label among those that were voted for: answer with the label itself.": [
                counts.argmax() for _, counts in counted(order[:, :k])
            ],
            "This is the place of the commonest label among all labels: answer with the label itself.": names.searchsorted(
                wanted
            ),
            "Neighbours are taken by cosine; here by the Euclidean distance.": vote(cosine.argsort(1)[:, :k]),
            "Neighbours are taken by the sum of absolute differences; here by the Euclidean distance.": vote(
                far.sum(2).argsort(1)[:, :k]
            ),
            "Near neighbours count more than far ones: all k of them have one vote.": names[
                (weight @ (train_y[:, None] == names)).argmax(1)
            ],
            "One neighbour too few is asked.": vote(order[:, : k - 1]),
            "One neighbour too many is asked.": vote(order[:, : k + 1]),
            "The nearest is left out: a test chip is not among the training chips, so nobody has to be skipped.": vote(
                order[:, 1 : k + 1]
            ),
            "The nearest is left out, and one neighbour too few is asked.": vote(order[:, 1:k]),
            "All training chips vote: only the k nearest do.": vote(order),
        },
        axes="M",
        what="the answers",
    )
    compare(
        attempt(fn, train_x, train_y, test_x, 1),
        train_y[order[:, 0]],
        axes="M",
        what="the answers of one neighbour, k = 1",
    )
    right("The simplest probe there is: no training, one number to choose.")


def check_split(fn: Callable) -> None:
    """fn(blocks [N], share, seed) -> bool [N], True for test: whole blocks, round(share of them), drawn by the seed."""
    rng = np.random.default_rng(0)
    for count, shares in ((20, (0.3, 0.15, 0.63)), (15, (0.6, 0.2))):
        names = 100 + np.arange(count) * 7 % (count + 3) * 9
        blocks = rng.permutation(np.repeat(names, rng.integers(2, 11, count)))
        for share in shares:
            _check_drawn(fn, blocks, share)
    by_seed = [as_tensor(attempt(fn, blocks, 0.2, seed)).numpy() for seed in range(40)]
    require(
        len(set(blocks[np.any(by_seed, axis=0)])) == 15,
        "In 40 seeds, some blocks never test: each should have the same chance.",
    )
    right("No block is on both sides: the score is that of land never seen.")


def _check_drawn(fn: Callable, blocks: np.ndarray, share: float) -> None:
    count = len(set(blocks))
    wanted, drawn, splits = round(share * count), [], []
    for seed in range(6):
        answer = as_tensor(attempt(fn, blocks, share, seed))
        expect_shape(answer, blocks.shape, "N")
        test = answer.numpy()
        require(test.dtype == bool, f"True and False are wanted, one a chip; these are {test.dtype} numbers.")
        require(
            bool(test.any()),
            "No chip tests. (Numbers from rng.choice(len(names), ...) are places in the list of names, not names: "
            "names[numbers].)",
        )
        require(not test.all(), "All chips test: both sides need some.")
        both = set(blocks[test]) & set(blocks[~test])
        require(
            not both,
            f"{len(both)} of {count} blocks have chips on both sides: draw blocks, not chips, and let each chip follow its "
            "block (np.isin).",
        )
        drawn.append(len(set(blocks[test])))
        splits.append(test)
    least, most = min(drawn), max(drawn)
    should = f"with a share of {share} it should be {wanted}"
    if least == most != wanted:
        reason = ""
        if least == round((1 - share) * count):
            reason = ": share is the test's part, you took it for training"
        elif least == int(share * count):
            reason = ": round, do not cut off"
        elif least - 1 == int(share * count):
            reason = ": round, not always up"
        require(False, f"{least} of {count} blocks test; {should}{reason}.")
    require(
        most <= wanted,
        f"{least} to {most} of {count} blocks test, by the seed; {should}. Draw so many blocks, instead of asking for each "
        "block whether it tests, or adding blocks until there are enough chips.",
    )
    require(
        least == wanted,
        f"{least} to {most} of {count} blocks test, by the seed; {should}. Blocks are drawn twice and counted once: draw "
        "among np.unique(blocks), not among the chips, and with replace=False.",
    )
    again = as_tensor(attempt(fn, blocks, share, 0)).numpy()
    require(
        bool((again == splits[0]).all()),
        "The same seed gives another split: draw from np.random.default_rng(seed).",
    )
    require(
        len({split.tobytes() for split in splits}) > 1,
        "Every seed gives the same split: the blocks have to be drawn at random, from np.random.default_rng(seed).",
    )


def check_interval(fn: Callable) -> None:
    """fn(hits [M], places [M], draws, seed) -> (low, high): 95 % bootstrap interval of the mean, by whole places."""
    rng = np.random.default_rng(9)
    n = 40
    sizes = np.tile([3, 4, 5, 18], n // 4)  # places with many chips have the better scores
    places = np.repeat(500 + np.arange(n) * 13 % 41 * 3, sizes)
    order = rng.permutation(len(places))
    hits = (rng.random(len(places)) < np.repeat(np.tile([0.2, 0.5, 0.2, 0.9], n // 4), sizes)).astype(float)[order]
    places = places[order]
    M, mean = len(hits), hits.mean()

    found = as_tensor(attempt(fn, hits, places, 2000, 0)).double()
    expect_shape(found, (2,), "low high")
    low, high = found.tolist()
    require(low == low and high == high, "The ends are not numbers (NaN): was a draw empty?")
    require(abs(high - low) > 1e-6, "Every draw gave the same mean: draw with replacement, as many as there are.")
    require(low <= high, "The lower end is above the upper end: give (low, high).")
    require(high <= 1, "These are percent or counts; a share between 0 and 1 is wanted.")

    names = np.unique(places)
    chips = np.array([(places == name).sum() for name in names])
    right_ones = np.array([hits[places == name].sum() for name in names])
    score = right_ones / chips
    times = rng.multinomial(n, np.full(n, 1 / n), 10_000)  # how often each place is drawn [draws, n]

    def of(times):
        return times @ right_ones / (times @ chips)

    def half(values):
        return np.quantile(values, (0.025, 0.975))

    wanted = half(of(times))
    width = wanted[1] - wanted[0]

    def off(ends):
        """How far the middle and the width are from those of `ends`; up to 1 is what 2000 draws of one's own can do."""
        wide = ends[1] - ends[0]
        return max(
            abs(low + high - ends[0] - ends[1]) / 2 / (0.06 * wide), abs(np.log((high - low) / wide)) / np.log(1.11)
        )

    one_chip = rng.binomial(times, score).sum(1) / n
    every = rng.multinomial(M, np.full(n, 1 / n), 2_000)
    slips = {
        f"as if all {M} chips were independent. The chips of a place stand or fall together: draw places, and take all "
        "chips of each": half(rng.binomial(M, mean, 10_000) / M),
        "that of the mean of the places' means, in which a place with 3 chips counts as much as one with 18. Take the mean of "
        "all chips of the drawn places": half(times @ score / n),
        "that of one chip a place: take all chips of each place that is drawn": half(one_chip),
        "which is 90 %: for 95 % leave 2.5 % on each side, quantiles 0.025 and 0.975": np.quantile(
            of(times), (0.05, 0.95)
        ),
        "that of the drawn means' standard deviation to both sides, which is 68 %: take their quantiles 0.025 and 0.975": (
            of(times).mean() - of(times).std(),
            of(times).mean() + of(times).std(),
        ),
        f"as if there were {M} places: draw as many places as there are, {n}": half(of(every)),
        "that of places drawn among the chips, where those with many chips come up more often: draw among np.unique(places)": (
            half(of(rng.multinomial(n, chips / M, 2_000)))
        ),
        "that of the hits or of single places: the ends should be those of the drawn means": (0.0, 1.0),
        "that of single places: the ends should be those of means over as many places as there are": half(score),
    }
    said = f"The interval is {low:.3f} to {high:.3f}, "
    if off(wanted) > 1:
        # of five places of a chip each, one of them a hit, all means are whole fifths
        _, end = as_tensor(attempt(fn, np.array([0.0, 1, 0, 0, 0]), np.arange(5), 2000, 0)).double().tolist()
        require(
            not any(abs(end - 1 / several) < 1e-9 for several in (2, 3, 4)),
            f"{said}as if a place that is drawn twice counted once: np.isin(places, drawn) forgets how often. Join the chips "
            "of all drawn places, as often as each was drawn.",
        )
        mistake, ends = min(slips.items(), key=lambda slip: off(slip[1]))
        require(off(ends) > 1, f"{said}{mistake}.")
        require(
            low < mean < high,
            f"{said}and the mean {mean:.3f} is not in it: are the ends those of the drawn means?",
        )
        require(
            False,
            f"{said}{high - low:.3f} wide; a 95 % interval of these hits is about {wanted[0]:.3f} to {wanted[1]:.3f}, "
            f"{width:.3f} wide.",
        )
    require(
        as_tensor(attempt(fn, hits, places, 2000, 0)).double().tolist() == [low, high],
        "The same seed gives another interval: draw from np.random.default_rng(seed).",
    )
    require(
        as_tensor(attempt(fn, hits, places, 2000, 1)).double().tolist() != [low, high],
        "Every seed gives the same interval: draw places at random, from np.random.default_rng(seed).",
    )
    right("Wide enough to be honest: other places would have given another score.")
