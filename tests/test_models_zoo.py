"""Every classification network of the zoo, with seeded weights, compiled for this machine, against what real Caffe2 computed."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from test_models_detection import golden, loaded
from test_models_reference import CLASSIFIERS, LIMIT

import cortado


@pytest.mark.slow
@pytest.mark.parametrize("model", CLASSIFIERS)
def test_compiled_classifier(shared: Path, model: str) -> None:
    """One at a time: vgg19 alone has 575 MB of weights, which the graph, the program and the library each hold for a while."""
    want = {name.partition(".")[2]: array for name, array in golden(shared, model).items() if name.startswith("out.")}
    graph, feeds = loaded(shared, model)
    assert [name for name, _ in graph.outputs] == list(want)
    compiled = cortado.compile(graph, separate_weights=True)
    del graph
    gc.collect()
    for threads in (1, 2):
        got = compiled.run(feeds, threads=threads)
        for name, array in want.items():
            assert got[name].shape == array.shape and got[name].dtype == array.dtype
            assert np.abs(got[name] - array).max() <= LIMIT * np.abs(array).max(), f"{name} on {threads} threads"
