"""A compiled model: run it, save it, ask what it costs."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from cortado.compiler.types import NUMPY_DTYPE, TensorInfo, cut_rows
from cortado.errors import CortadoError, InputError, OptionError, TargetError
from cortado.preprocess import Preprocess
from cortado.report import Report
from cortado.runtime.bundle import Bundle, write_bundle

if TYPE_CHECKING:
    from cortado.profile import Profile
    from cortado.runtime.memory import LoadedCode


class Runner(Protocol):
    """Runs a bundle's library: checked input arrays in, new output arrays out, both in the manifest's order."""

    def run(self, inputs: Sequence[np.ndarray], threads: int = 1) -> list[np.ndarray]: ...


class Model:
    """What `cortado.compile` and `cortado.open` give.

    name: the C identifier that library, header and functions carry.
    inputs, outputs: TensorInfo by the source's names, in the source's order. An output with a `count` has that shape at most: `run` gives
    as many rows as there are.
    preprocess: how pictures become the input, where `compile` was told.
    quantization: for int8, the calibration's hash, what was chosen, and range, scale and error of every tensor; else None.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._runner: Runner | None = None
        self._code: LoadedCode | None = None
        self._lock = threading.Lock()
        manifest = bundle.manifest
        self.name = manifest.name
        self.inputs: dict[str, TensorInfo] = dict(manifest.inputs)
        self._expected = [(name, NUMPY_DTYPE[info.dtype], info.shape) for name, info in manifest.inputs]
        self._output_names = [(number, name) for number, (name, _) in enumerate(manifest.outputs)]
        self._counts = {name: info.count for name, info in manifest.outputs if info.count is not None}
        self.outputs: dict[str, TensorInfo] = {n: info for n, info in manifest.outputs if n not in self._counts.values()}
        self.quantization = manifest.quantization
        self.preprocess = None if manifest.preprocess is None else Preprocess.from_dict(manifest.preprocess)

    def run(self, feeds: Mapping[str, np.ndarray], threads: int = 1) -> dict[str, np.ndarray]:
        """The outputs, as new arrays by the source's names. Safe for use by several threads.

        feeds: one array per input, of exactly its dtype and shape; nothing is cast. threads: how many work on this call; the result
        does not depend on it. A library for another machine runs in an emulator, on one thread.
        Raises InputError for other names, dtypes or shapes, TargetError where the library cannot run here.
        """
        if threads != 1:
            _check_threads(threads)
        runner = self._runner or self._get_runner()
        arrays = runner.run(self._checked(feeds), threads)
        results = {}
        for number, name in self._output_names:
            results[name] = arrays[number]
        return cut_rows(results, self._counts) if self._counts else results

    def profile(self, feeds: Mapping[str, np.ndarray], runs: int | None = None, threads: int = 1) -> Profile:
        """Measured times of every step and of whole runs on this machine. str() of it is a table.

        feeds: as for `run`. runs: how often; None for what about two seconds allow. threads: how many work on a run.
        Raises InputError and OptionError as `run`, TargetError where the library is not for this machine: emulators have no time.
        """
        from cortado.profile import profile_of
        from cortado.runtime.loader import HostRunner

        _check_threads(threads)
        if runs is not None and (not isinstance(runs, int) or runs < 1):
            raise OptionError(f"runs={runs}: must be a number of at least 1")
        arrays = self._checked(feeds)
        runner, manifest = self._get_runner(), self._bundle.manifest
        if not isinstance(runner, HostRunner):
            raise TargetError(
                f"{self.name} is compiled for {manifest.target.name}, which is not this machine: an emulator tells nothing of the time. "
                "Compile for target 'host' to profile here"
            )
        return profile_of(self.name, manifest.target.name, threads, runner.steps, runner.profile(arrays, runs, threads))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write libNAME.a, NAME.h, NAME.weights (when it is separate) and manifest.json; replaces a bundle that is there."""
        write_bundle(self._bundle, folder)

    def report(self) -> Report:
        """Bytes of code, weights, arena and stack; multiply-adds per step. str() of it is a table."""
        manifest = self._bundle.manifest
        return Report(
            self.name,
            manifest.target.name,
            self.inputs,
            self.outputs,
            manifest.sizes,
            manifest.steps,
            manifest.quantization,
            manifest.levels,
        )

    def __repr__(self) -> str:
        return f"<cortado.Model {self.name} for {self._bundle.manifest.target.name}>"

    def _checked(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The arrays in the order of the inputs. Everything that is wrong is in one InputError."""
        # What follows this is for messages, which right inputs need not wait for.
        if type(feeds) is dict and len(feeds) == len(self._expected):
            found = []
            for name, dtype, shape in self._expected:
                array = feeds.get(name)
                if type(array) is not np.ndarray or array.dtype != dtype or array.shape != shape:
                    break
                found.append(array)
            else:
                return found
        if not isinstance(feeds, Mapping):
            raise InputError(
                f"run takes a mapping of arrays by input name ({', '.join(self.inputs)}), not {type(feeds).__name__}"
            )
        wrong = [f"no input is called {name!r}" for name in feeds if name not in self.inputs]
        arrays = []
        for name, info in self.inputs.items():
            if name not in feeds:
                wrong.append(f"input {name!r} is missing; it takes {info.dtype}{list(info.shape)}")
                continue
            array = np.asarray(feeds[name])
            if array.dtype != NUMPY_DTYPE[info.dtype] or array.shape != info.shape:
                wrong.append(f"input {name!r} takes {_describe(info)}, got {array.dtype}{list(array.shape)}")
            arrays.append(array)
        if wrong:
            known = "" if all(name in self.inputs for name in feeds) else f"; the inputs are {', '.join(self.inputs) or 'none'}"
            raise InputError(f"{self.name}: {'; '.join(wrong)}{known}")
        return arrays

    def _get_runner(self) -> Runner:
        with self._lock:
            if self._runner is None:
                self._runner = _new_runner(self._bundle, self._code)
            return self._runner

    def link(self) -> None:
        """Do now what `run` would do first, as far as no code is run. For `open`, whose other thread checks the files meanwhile.

        What cannot be linked here may still be reported on or saved: `run` says why it cannot be run.
        """
        from cortado.runtime.loader import linked_code, runs_in_process

        if runs_in_process(self._bundle.manifest):
            with contextlib.suppress(CortadoError):
                self._code = linked_code(self._bundle)


def _check_threads(threads: int) -> None:
    if not isinstance(threads, int) or not 1 <= threads <= 1024:
        raise OptionError(f"threads={threads}: must be a number between 1 and 1024")


def _new_runner(bundle: Bundle, code: LoadedCode | None) -> Runner:
    """In this process where the machine can, else in an emulator."""
    from cortado.runtime.loader import HostRunner, LacksInstructions, runs_in_process

    if runs_in_process(bundle.manifest):
        with contextlib.suppress(LacksInstructions):
            return HostRunner(bundle, code=code)
    from cortado.runtime.emulate import EmulatedRunner

    return EmulatedRunner(bundle)


def _describe(info: TensorInfo) -> str:
    held = " held as uint16" if info.dtype == "bfloat16" else ""
    layout = f" ({info.layout})" if info.layout else ""
    return f"{info.dtype}{list(info.shape)}{layout}{held}"
