"""Observing, ranges and the calibration record."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from graphs import Net

from cortado.compiler.graph import Graph
from cortado.compiler.quantize.calibrate import CalibrationWarning, Observer, observe
from cortado.compiler.quantize.histogram import BINS, Histogram
from cortado.compiler.quantize.plan import make_plan
from cortado.compiler.quantize.quantize import calibrate
from cortado.compiler.quantize.ranges import LEVELS, METHODS, quant_of
from cortado.compiler.quantize.record import CalibrationRecord, TensorStatistics, is_record, load_record
from cortado.errors import CalibrationError
from cortado.execute import ReferenceExecutor

Feeds = dict[str, np.ndarray]


def network() -> Graph:
    net = Net()
    x = net.input(1, 6, 6, 3)
    a = net.op("relu", net.conv(x, 8, 3, pad=1, name="a"), name="bent")
    return net.graph(net.conv(net.op("sigmoid", a, name="curve"), 4, name="b"))


def samples(count: int, seed: int = 0) -> list[Feeds]:
    rng = np.random.default_rng(seed)
    return [{"x0": rng.standard_normal((1, 6, 6, 3)).astype(np.float32)} for _ in range(count)]


def record_of(feeds: list[Feeds], graph: Graph | None = None) -> CalibrationRecord:
    return observe(Observer(make_plan(graph or network()), ReferenceExecutor), feeds)[0]


@pytest.mark.parametrize("scale", [1e-12, 1.0, 3e7])
def test_a_histogram_counts_every_value_in_its_bin(scale: float) -> None:
    values = (np.random.default_rng(0).standard_normal(5000) * scale).astype(np.float32)
    histogram = Histogram.of(values, float(values.min()), float(values.max()))
    assert histogram.counts.sum() == 5000 and BINS / 2 <= len(histogram.counts) <= BINS
    expected, _ = np.histogram(values.astype(np.float64), histogram.edges)
    np.testing.assert_array_equal(histogram.counts, expected)


def test_histograms_grow_without_regard_to_order() -> None:
    rng = np.random.default_rng(1)
    parts = [(rng.standard_normal(300) * 10.0**k).astype(np.float32) for k in (-3, 2, 0, 1)]
    whole = TensorStatistics.of(np.concatenate(parts))
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        total = TensorStatistics.of(parts[order[0]])
        for at in order[1:]:
            total = total.followed_by(TensorStatistics.of(parts[at]))
        assert (total.histogram.exponent, total.histogram.first) == (whole.histogram.exponent, whole.histogram.first)
        np.testing.assert_array_equal(total.histogram.counts, whole.histogram.counts)


@pytest.mark.parametrize("value", [0.0, 5.5, -1e-20, 1e30])
def test_constant_tensors_have_a_histogram_and_a_scale(value: float) -> None:
    seen = TensorStatistics.of(np.full((2, 3), value, np.float32))
    assert seen.histogram.counts.sum() == 6
    for name, method in METHODS.items():
        low, high = method(seen)
        quant = quant_of(low, high)
        real = (
            float(np.clip(np.rint(value / quant.scales[0]) + quant.zero_points[0], -128, 127) - quant.zero_points[0])
            * quant.scales[0]
        )
        assert real == pytest.approx(value, rel=0.02, abs=1e-20), name


def test_quant_covers_the_range_and_holds_zero_exactly() -> None:
    for low, high in ((0.0, 6.0), (-1.0, 3.0), (2.0, 5.0), (-4.0, -1.0), (-1e-3, 1e3)):
        quant = quant_of(low, high)
        scale, zero = quant.scales[0], quant.zero_points[0]
        assert (-128 - zero) * scale <= min(low, 0) + scale / 2 and (127 - zero) * scale >= max(high, 0) - scale / 2
        assert scale == float(np.float32(scale)) and -128 <= zero <= 127
    assert quant_of(0.0, 6.0).zero_points == (-128,)


def outliers() -> TensorStatistics:
    values = np.random.default_rng(2).standard_normal(100_000).astype(np.float32)
    values[0] = 100
    return TensorStatistics.of(values)


def test_methods_differ_as_they_should_about_an_outlier() -> None:
    seen = outliers()
    assert METHODS["min_max"](seen) == (seen.low, 100.0)
    for name in ("percentile", "entropy"):
        low, high = METHODS[name](seen)
        assert high < 20 and low < -2, name
    assert 20 < METHODS["mean_square_error"](seen)[1] < 95  # one clipped value may cost as much as wider steps for all others


def test_mean_square_error_is_the_least_there_is() -> None:
    values = np.random.default_rng(3).laplace(size=20_000).astype(np.float32)
    low, high = METHODS["mean_square_error"](TensorStatistics.of(values))

    def error(low: float, high: float) -> float:
        step = (high - low) / LEVELS
        return float(np.mean((np.clip(np.rint(values / step) * step, low, high) - values) ** 2))

    assert error(low, high) <= 1.1 * min(error(values.min() * part, values.max() * part) for part in np.linspace(0.1, 1, 40))


def test_moving_average_follows_later_samples() -> None:
    total = TensorStatistics.of(np.array([0, 10], np.float32))
    for _ in range(50):
        total = total.followed_by(TensorStatistics.of(np.array([0, 1], np.float32)))
    assert total.high == 10 and 1.0 < METHODS["moving_average"](total)[1] < 1.1


def test_the_extended_range_leaves_room_where_samples_differ() -> None:
    same = TensorStatistics.of(np.array([0, 2], np.float32))
    assert METHODS["extended"](same.followed_by(same)) == (0, 2)
    higher = same.followed_by(TensorStatistics.of(np.array([-1, 3], np.float32)))
    low, high = METHODS["extended"](higher)
    assert 4 < high < 4.5 and -2.5 < low < -2


def test_channels_have_extremes_and_means() -> None:
    feeds = samples(5)
    seen = record_of(feeds).tensors["x0"]
    whole = np.concatenate([feed["x0"] for feed in feeds]).reshape(-1, 3)
    np.testing.assert_array_equal(seen.channel_low, whole.min(axis=0))
    np.testing.assert_allclose(seen.channel_mean, whole.mean(axis=0, dtype=np.float64), rtol=1e-12)


def test_a_record_is_saved_and_loaded_whole(tmp_path: Path) -> None:
    record = calibrate(network(), samples(4), ReferenceExecutor)
    record.save(tmp_path / "kept.npz")
    again = load_record(tmp_path / "kept.npz")
    assert again.sha256 == record.sha256 and again.decision == record.decision and is_record(tmp_path / "kept.npz")
    record.save(tmp_path / "twice.npz")
    assert (tmp_path / "twice.npz").read_bytes() == (tmp_path / "kept.npz").read_bytes()
    assert record_of(samples(4)).sha256 != record_of(samples(5)).sha256


def test_resumed_and_merged_records_are_those_of_one_run() -> None:
    feeds = samples(6)
    whole, first, second = record_of(feeds), record_of(feeds[:2]), record_of(feeds[2:])
    merged = first.merged(second)
    for name, seen in whole.tensors.items():
        got = merged.tensors[name]
        assert (got.low, got.high, got.samples, got.elements) == (seen.low, seen.high, seen.samples, seen.elements)
        np.testing.assert_array_equal(got.histogram.counts, seen.histogram.counts)
        np.testing.assert_allclose(got.channel_sum, seen.channel_sum)
    resumed = calibrate(network(), feeds[2:], ReferenceExecutor, before=first)
    assert resumed.samples == 6 and resumed.decision is not None
    assert resumed.tensors["x0"].histogram.counts.sum() == whole.tensors["x0"].histogram.counts.sum()


def test_records_of_different_networks_do_not_mix() -> None:
    net = Net()
    other = net.graph(net.conv(net.input(1, 6, 6, 3), 4, name="other"))
    with pytest.raises(CalibrationError, match="different networks"):
        record_of(samples(1)).merged(record_of(samples(1), other))
    with pytest.raises(CalibrationError, match="another network"):
        calibrate(other, samples(1), ReferenceExecutor, before=record_of(samples(1)))


@pytest.mark.parametrize("content", [b"", b"PK nonsense", b"\x00" * 100])
def test_damaged_records_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "record.npz"
    path.write_bytes(content)
    assert not is_record(path)
    with pytest.raises(CalibrationError, match=r"record\.npz"):
        load_record(path)
    with pytest.raises(CalibrationError, match="no such file"):
        load_record(tmp_path / "missing.npz")


def test_a_cut_record_is_refused(tmp_path: Path) -> None:
    record_of(samples(2)).save(tmp_path / "whole.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-400])
    with pytest.raises(CalibrationError, match=r"cut\.npz is not a calibration record"):
        load_record(tmp_path / "cut.npz")


def bad(value: float) -> Feeds:
    feeds = samples(1)[0]
    feeds["x0"][0, 1, 2, 0] = value
    return feeds


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ([], "no calibration samples"),
        ([{"x0": np.zeros((1, 6, 7, 3), np.float32)}], r"sample 1: input 'x0' is float32\[1, 6, 7, 3\], but the network takes .*\[1, 6, 6, 3\]"),
        ([{"x0": np.zeros((1, 6, 6, 3))}], "float64"),
        ([{"y": np.zeros((1, 6, 6, 3), np.float32)}], "no input 'y'.*'x0' is missing"),
        ([np.zeros(3)], "ndarray, not arrays by input name"),
        ([{"x0": [1, 2]}], "list, not an array"),
        ([*samples(1), bad(np.nan)], "sample 2: input 'x0' is NaN in 1 of 108 places"),
        ([bad(np.inf)], "sample 1: input 'x0' is infinite"),
    ],
)  # fmt: skip
def test_unusable_samples_are_refused_in_words(feeds: list[Feeds], words: str) -> None:
    with pytest.raises(CalibrationError, match=words):
        record_of(feeds)


def test_an_overflow_inside_is_named() -> None:
    net = Net()
    x = net.input(1, 2, 2, 3)
    graph = net.graph(net.conv(net.conv(net.op("exp", x, name="grown"), 4, name="a"), 4, name="b"))
    with pytest.raises(CalibrationError, match="sample 1 makes tensor 'grown' infinite"):
        record_of([{"x0": np.full((1, 2, 2, 3), 200, np.float32)}], graph)


def test_networks_without_layers_are_refused() -> None:
    net = Net()
    graph = net.graph(net.op("relu", net.input(1, 6, 6, 3)))
    with pytest.raises(CalibrationError, match="no float32 convolution or fully connected layer"):
        calibrate(graph, samples(1), ReferenceExecutor)


def test_poor_samples_warn() -> None:
    with pytest.warns(CalibrationWarning, match="single sample"):
        calibrate(network(), samples(1), ReferenceExecutor)
    dull = [{"x0": np.full((1, 6, 6, 3), 0.5, np.float32)}] * 3
    with pytest.warns(CalibrationWarning, match="one value only.*x0"):
        calibrate(network(), dull, ReferenceExecutor)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrate(network(), samples(3), ReferenceExecutor)


def test_samples_are_read_once_and_let_go() -> None:
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def stream() -> Iterator[Feeds]:
        nonlocal most
        for feed in samples(8):
            array = feed["x0"].copy()
            alive.append(weakref.ref(array))
            feed = {"x0": array}
            del array
            yield feed
            del feed
            gc.collect()
            most = max(most, sum(reference() is not None for reference in alive))

    seen: list[tuple[str, int]] = []
    graph = network()
    record, kept = observe(
        Observer(make_plan(graph), ReferenceExecutor), stream(), 4, lambda stage, count: seen.append((stage, count))
    )
    assert record.samples == 8 and len(kept) == 4 and most <= 2
    assert seen == [("observing", count) for count in range(1, 9)]
