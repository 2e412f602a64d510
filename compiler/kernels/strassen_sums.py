"""The layer that Strassen's scheme does, and the sums of inputs that its products take: S1 to S4 (`strassen_tile`) of pairs of pixels."""

from __future__ import annotations

from dataclasses import dataclass

from cortado.compiler.builder import KernelBuilder, Number, Val
from cortado.compiler.kernels.geometry import UNIT, Axis, Geometry
from cortado.compiler.kernels.strassen_tile import PRODUCTS, SUMS
from cortado.compiler.lang import INDEX, Kernel, Type
from cortado.compiler.target import Target

SCALAR = "f32"
LINE = 16  # elements of a cache line: pairs are kept from falling on the same cache sets
SUM_TASKS = 8  # of an image, at most


@dataclass(frozen=True)
class Tensor:
    """Distances in elements: of images, and of pixels."""

    image: int
    pixel: int


@dataclass(frozen=True)
class Pairing:
    """The layer out[image, pixel, o] = sum over c of a[image, pixel, c] * w[o, c], whose neighbouring pixels 2 i and 2 i + 1 are paired.

    lanes: of the vectors that sums of inputs are stored in.
    """

    images: int
    pixels: int
    channels: int
    outputs: int
    a: Tensor
    residual: Tensor | None
    out: Tensor
    lanes: int

    @property
    def pairs(self) -> int:
        """Of an image; the last one is a pixel alone where their number is odd."""
        return (self.pixels + 1) // 2

    @property
    def run(self) -> int:
        """Terms of each product."""
        return self.channels // 2

    @property
    def half(self) -> int:
        """Outputs of the left or the right half."""
        return self.outputs // 2

    @property
    def part(self) -> int:
        """Elements from one sum of a pair to the next."""
        return -(-self.run // self.lanes) * self.lanes

    @property
    def pitch(self) -> int:
        """Elements from the sums of a pair to those of the next."""
        return SUMS * self.part + LINE

    @property
    def geometry(self) -> Geometry:
        """One image's products as a contraction of pairs, whose channels are the terms of all products."""
        width = Axis(self.pairs, self.pairs, 1, 1, 1, 0, PRODUCTS * self.run, 2 * self.out.pixel, 0, 0)
        return Geometry(UNIT, UNIT, UNIT, width, PRODUCTS * self.run, 0)

    @property
    def sum_tasks(self) -> int:
        """Of one image, where sums are made by a kernel of their own."""
        return min(SUM_TASKS, self.pairs)


def sums_driver(pairing: Pairing, target: Target) -> Kernel:
    """(a, s, begin, end): the sums of all pairs, [image][pair][sum]; a task is one of `sum_tasks` parts of an image's pairs."""
    k = KernelBuilder("strassen_sums", target)
    a, s = k.param("a"), k.param("s")
    begin, end = k.param("begin", INDEX), k.param("end", INDEX)

    def task(number: Val) -> None:
        image, part = number // pairing.sum_tasks, number % pairing.sum_tasks
        first, stop = (p * pairing.pairs // pairing.sum_tasks for p in (part, part + 1))
        to = k.offset(s, (image * pairing.pairs + first) * pairing.pitch, SCALAR)
        sum_pairs(k, pairing, k.offset(a, image * pairing.a.image, SCALAR), to, first, stop)

    k.loop(begin, end, 1, task)
    return k.finish()


def sum_pairs(k: KernelBuilder, pairing: Pairing, a: Val, s: Val, first: Val, stop: Val) -> None:
    """The sums of an image's pairs from `first` on, to s. a: the image."""
    lanes, run = pairing.lanes, pairing.run
    vector = Type(SCALAR, lanes)
    second = pairing.a.pixel

    def position(upper: Val, to: Val, at: Number, count: int, paired: bool) -> None:
        def load(moved: int) -> Val:
            return k.load_lanes(upper, vector, count, at + moved)

        a11, a12 = load(0), load(run)
        a21, a22 = (load(second), load(second + run)) if paired else [k.zero(vector)] * 2
        s1 = a21 + a22
        s2 = s1 - a11
        for part, value in enumerate((s1, s2, a11 - a21, a12 - s2)):
            k.store(to, value, at + part * pairing.part)

    def pair(number: Val, paired: bool) -> None:
        upper = k.offset(a, number * (2 * pairing.a.pixel), SCALAR)
        to = k.offset(s, (number - first) * pairing.pitch, SCALAR)
        whole = run - run % lanes
        if whole:
            k.loop(0, whole, lanes, lambda at: position(upper, to, at, lanes, paired))
        if whole < run:
            position(upper, to, k.index(whole), run - whole, paired)

    full = pairing.pixels // 2
    if full == pairing.pairs:
        k.loop(first, stop, 1, lambda i: pair(i, True))
    else:
        k.loop(first, k.min(stop, full), 1, lambda i: pair(i, True))
        k.if_(k.compare("eq", stop, pairing.pairs), lambda: pair(k.index(full), False))
