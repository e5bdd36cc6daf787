"""Checks of the exercises of 12: vectors in few bits a number, the variance that components keep, one bit a number."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from clay_lib.course.checking import as_tensor, attempt, compare, expect_shape, require, right, value


def check_rounded(fn: Callable) -> None:
    """fn(vectors [N, D], bits) -> [N, D] read back: whole numbers of so many bits times one scale a vector."""
    vectors = np.random.default_rng(1).normal(size=(4, 7)).astype(np.float32) * np.array([[1], [20], [0], [3]], "f")
    vectors[1] -= 3  # its largest number by absolute value is negative
    for bits in (4, 8):
        most = 2 ** (bits - 1) - 1

        def back(top, *, most=most, whole=np.rint):
            scale = np.where(top > 0, top, 1) / most
            return whole(vectors / scale) * scale

        size = np.abs(vectors)
        top = size.max(1, keepdims=True)
        low, span = vectors.min(1, keepdims=True), np.ptp(vectors, axis=1, keepdims=True)
        step = np.where(span > 0, span, 1) / (2**bits - 1)
        whole = np.rint(vectors / np.where(top > 0, top / most, 1))
        got = as_tensor(attempt(fn, vectors, bits))
        expect_shape(got, vectors.shape, "N D")
        require(
            bool(got.double().isfinite().all()),
            "There are numbers that are not finite. The largest number of a vector of zeros is 0, and nothing can be "
            "divided by it: any other scale will do there.",
        )
        compare(
            got,
            back(top),
            slips={
                "These are the whole numbers as they are stored: multiply by the scale to read them back.": whole,
                "Nothing was rounded: np.rint(vectors / scale), then times the scale.": vectors,
                f"One scale serves all vectors, so small vectors lose most: one scale a vector, {len(vectors)} in all.": back(
                    size.max()
                ),
                "There is one scale for each of the D numbers: one a vector is wanted, the largest along axis 1.": back(
                    size.max(0, keepdims=True)
                ),
                "Numbers are cut off towards zero, by up to a whole scale: np.rint takes the nearest.": back(
                    top, whole=np.trunc
                ),
                "Numbers are rounded down: np.rint takes the nearest.": back(top, whole=np.floor),
                "The largest number is taken with its sign: a vector's largest may be negative, use np.abs.": back(
                    vectors.max(1, keepdims=True)
                ),
                f"{bits} bits hold {2**bits} whole numbers, half of them negative: the largest is {most}, not "
                f"{2**bits - 1}.": back(top, most=2**bits - 1),
                f"{bits} bits hold {2**bits} whole numbers, but half of them negative: the largest is {most}.": back(
                    top, most=2**bits
                ),
                "The range from a vector's smallest number to its largest is cut into steps. Here 0 stays 0, and the scale "
                f"is the largest absolute number over {most}.": np.rint((vectors - low) / step) * step + low,
                f"The largest whole number of {bits} bits is {most}, one less than {most + 1}, since 0 takes a place.": back(
                    top, most=most + 1
                ),
                "This is the number of bits, not the largest whole number that they hold, 2 ** (bits - 1) - 1.": back(
                    top, most=bits
                ),
                "The largest whole number is always 127, that of 8 bits: make it of `bits`.": back(top, most=127),
            },
            axes="N D",
            what=f"the numbers ({bits} bits)",
        )
    right("Nothing is off by more than half a scale, and every bit less doubles the scale.")


def check_variance_kept(fn: Callable) -> None:
    """fn(train [N, D], test [M, D], k) -> share of the test vectors' squares about train's mean on train's k first axes."""
    draw = np.random.default_rng(2)
    mix = draw.normal(size=(6, 6)) * np.array([3, 2, 1.5, 1, 0.6, 0.4])
    train = draw.normal(size=(30, 6)) @ mix.T + 2
    test = draw.normal(size=(11, 6)) @ (mix + draw.normal(size=(6, 6)) * 0.6).T + 2 + draw.normal(size=6)
    asked = (1, 2, 4)

    def along(fit=train, seen=test, centre=None, uncentred=False):
        """Coordinates [M, 6] of `seen` on the axes of `fit`, about `centre`, by default the mean of `fit`."""
        axes = np.linalg.svd(fit if uncentred else fit - fit.mean(0), full_matrices=False)[2]
        return (seen - (fit.mean(0) if centre is None else centre)) @ axes.T

    def shares(weight):
        return [weight[:k].sum() / weight.sum() for k in asked]

    def made(**slip):
        return shares(np.square(along(**slip)).sum(0))

    square = np.square(along()).sum(0)
    kept = shares(square)
    _, singular, axes = np.linalg.svd(train - train.mean(0))
    seen = test - train.mean(0)
    scaled = np.linalg.svd((train - train.mean(0)) / train.std(0))[2]
    answers = [value(attempt(fn, train, test, k)) for k in asked]
    compare(
        answers,
        kept,
        slips={
            "This is the share of the training vectors' variance: fit on train, but measure on test.": made(seen=train),
            "The components are fitted on the test vectors themselves, so that they look better than they will be on "
            "land never seen: fit them on train.": made(fit=test),
            "The components are fitted on train and test together: fit them on train alone.": made(
                fit=np.concatenate([train, test]), seen=test
            ),
            "Test vectors are taken about their own mean (`var` does so by itself): take away the mean of train, and "
            "add up squares.": made(centre=test.mean(0)),
            "The training vectors are not centred before the components are found: the first one points at their "
            "mean.": made(uncentred=True),
            "Nothing is centred: take the mean of train away from both.": made(uncentred=True, centre=0),
            "The mean of train is taken away from train alone: from test too, as from all vectors of the archive.": made(
                centre=0
            ),
            "These are the last components, along which vectors differ least. (np.linalg.eigh gives them in rising "
            "order.)": shares(square[::-1]),
            "This is the share that is lost: give that which is kept.": [1 - share for share in kept],
            "The columns of what svd gives third are taken for the axes: its rows are the axes.": shares(
                np.square(seen @ axes).sum(0)
            ),
            "The numbers are brought to the same spread first: only the mean is taken away.": shares(
                np.square(seen / train.std(0) @ scaled.T).sum(0)
            ),
            "The share is taken vector by vector and averaged: add up the squares of all test vectors first.": [
                (np.square(along()[:, :k]).sum(1) / np.square(along()).sum(1)).mean() for k in asked
            ],
            "Lengths along the components are added up, not their squares.": shares(np.abs(along()).sum(0)),
            "Singular values of train are added up without squaring, and nothing is measured on test.": shares(
                singular
            ),
            "Only component k itself counts: the first k together.": [square[k - 1] / square.sum() for k in asked],
            "This is the share of length: add up squares, and take no root.": [share**0.5 for share in kept],
            "These are percent; a share between 0 and 1 is wanted.": [100 * share for share in kept],
        },
        axes="k",
        what="the shares for k = 1, 2 and 4",
    )
    right("Measured on vectors that the components have not seen, as every vector added to the archive will be.")


def check_bits(fn: Callable) -> None:
    """fn(vectors [N, D], mean [D]) -> uint8 [N, ceil(D / 8)], one bit a number: 1 above the mean."""
    draw = np.random.default_rng(3)
    vectors, mean = draw.normal(size=(5, 19)).astype("f") + 0.3, draw.normal(size=19).astype("f")
    above = vectors > mean
    packed = np.packbits(above, axis=1)
    got = attempt(fn, vectors, mean)
    compare(
        got,
        packed,
        slips={
            "These are 19 numbers of a byte each: np.packbits puts eight of them into one byte.": above,
            "All vectors are packed into one row of bits: np.packbits needs axis=1.": np.packbits(above),
            "Eight vectors share a byte: np.packbits has to go along a vector, axis=1.": np.packbits(above, axis=0),
            "The bits tell the sign, as if the mean were 0: a bit is 1 where the number is above `mean`.": np.packbits(
                vectors > 0, axis=1
            ),
            "The bits are the wrong way round: 1 above the mean, 0 below.": np.packbits(~above, axis=1),
            "The mean is that of each vector: take the one given, number by number.": np.packbits(
                vectors > vectors.mean(1, keepdims=True), axis=1
            ),
            "The mean is that of these few vectors: take the one given, which the whole archive shares.": np.packbits(
                vectors > vectors.mean(0), axis=1
            ),
            "In each byte the first number is the lowest bit; here the highest, as np.packbits has it by itself.": np.packbits(
                above, axis=1, bitorder="little"
            ),
            "The zeros that fill up the last byte stand in front: they belong at the end.": np.packbits(
                np.pad(above, ((0, 0), (5, 0))), axis=1
            ),
        },
        axes="N bytes",
        what="the bytes",
    )
    size = as_tensor(got).element_size()
    require(size == 1, f"The bytes are right, but each is kept in {size}: they should be uint8.")
    right("19 numbers in 3 bytes; as float32 they take 76.")


def check_differing(fn: Callable) -> None:
    """fn(a uint8 [N, K], b uint8 [M, K]) -> [N, M], the number of bits in which each of a differs from each of b."""
    draw = np.random.default_rng(4)
    a, b = (draw.integers(0, 256, (n, 3), dtype=np.uint8) for n in (5, 4))
    b[1], b[2, 0] = a[3], a[0, 0]
    x, y = np.unpackbits(a, axis=1).astype(int)[:, None], np.unpackbits(b, axis=1).astype(int)
    wanted = (x != y).sum(2)
    compare(
        attempt(fn, a, b),
        wanted,
        slips={
            "These are the bits that agree: count those that differ, so that the nearest has the smallest number.": 24
            - wanted,
            "Bytes that differ are counted: count their bits.": (a[:, None] != b).sum(2),
            "Bytes are subtracted as if they were numbers: compare bit by bit, with ^.": np.abs(
                a[:, None].astype(int) - b
            ).sum(2),
            "The bytes of a ^ b are added up as numbers: count the bits in them.": (a[:, None] ^ b).sum(2),
            "The count of each byte stands by itself: add up a vector's bytes, the last axis.": np.bitwise_count(
                a[:, None] ^ b
            ),
            "The bits of a ^ b stand by themselves: add them up.": (x != y),
            "Bits that are 1 in both are counted (&): count those that differ (^).": (x & y).sum(2),
            "Bits that are 1 in either are counted (|): count those that differ (^).": (x | y).sum(2),
            "The rows belong to b and the columns to a: give [N, M].": wanted.T,
            "This is the share of bits; give their number.": wanted / 24,
            "This is the Euclidean distance of the bits, the root of their number.": wanted**0.5,
            "Bits are subtracted as uint8, where 0 - 1 is 255: compare them instead, with ^ or !=.": (
                (x - y) % 256
            ).sum(2),
        },
        axes="N M",
        what="the counts",
    )
    right("A search by these reads one bit where it read thirty-two.")
