"""parallel_for for runs inside this process: its inner loops are native code, its threads are Python's.

During one run the helping threads sit in `work`, which releases the interpreter lock, and take parts of whatever job is open. Every
thread has a run of the parts of its own, the same share of every job, so that a layer's rows are where the thread's core made their input;
who is done with his own takes what is left of the others'. So nothing waits for a helper that has not come yet. `state` counts the helpers
inside a job, with a bit for "open"; the caller closes the job when no part is left and waits for the count to reach zero, so no helper ever
sees a job change under it. After some spinning both sides yield the processor. Helpers that a run leaves behind spin for about a millisecond,
where the next run finds them, and then go: waking a thread takes longer than many a layer.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from cortado.backends.codegen import compile_modules
from cortado.compiler.target import Target
from cortado.runtime.memory import LoadedCode

# The job, in bytes; what helpers write has cache lines of its own. From _NEXT: a line per thread with the next part of its own.
_TASK, _ARG, _YIELD, _PARTS, _BUSY, _THREADS, _COME, _GONE, _SERIAL, _STATE, _NEXT, _LINE = (
    0,
    8,
    16,
    24,
    28,
    32,
    64,
    68,
    128,
    132,
    192,
    64,
)
_OPEN = 1 << 30
_SPINS = 2000  # pauses, some 25 us, before the processor is offered to others
_LINGER = 40  # times that it is, after the last run
_PAUSE = {"x86_64": "call void @llvm.x86.sse2.pause()", "aarch64": "call void @llvm.aarch64.hint(i32 1)"}

_TEXT = """target triple = "{triple}"

define internal void @claim(ptr %job, i32 %self) nounwind {{
entry:
  %task_at = getelementptr i8, ptr %job, i32 {task}
  %task = load ptr, ptr %task_at, align 8
  %arg_at = getelementptr i8, ptr %job, i32 {arg}
  %arg = load ptr, ptr %arg_at, align 8
  %parts_at = getelementptr i8, ptr %job, i32 {parts}
  %parts = load i32, ptr %parts_at, align 4
  %threads_at = getelementptr i8, ptr %job, i32 {threads}
  %threads = load i32, ptr %threads_at, align 4
  br label %range
range:
  %turn = phi i32 [ 0, %entry ], [ %next_turn, %none ]
  %sum = add i32 %self, %turn
  %owner = urem i32 %sum, %threads
  %line = mul i32 %owner, {line}
  %line_at = add i32 %line, {next}
  %next_at = getelementptr i8, ptr %job, i32 %line_at
  %after = add i32 %owner, 1
  %scaled = mul i32 %after, %parts
  %stop = udiv i32 %scaled, %threads
  br label %again
again:
  %part = atomicrmw add ptr %next_at, i32 1 monotonic
  %some = icmp slt i32 %part, %stop
  br i1 %some, label %do, label %none
do:
  call void %task(ptr %arg, i32 %part)
  br label %again
none:
  %next_turn = add i32 %turn, 1
  %more = icmp slt i32 %next_turn, %threads
  br i1 %more, label %range, label %done
done:
  ret void
}}

define internal i32 @rest(ptr %job, i32 %spins) nounwind {{
entry:
  {pause}
  %more = add i32 %spins, 1
  %long = icmp sgt i32 %more, {max_spins}
  br i1 %long, label %give_way, label %done
give_way:
  %yield_at = getelementptr i8, ptr %job, i32 {yield_}
  %yield = load ptr, ptr %yield_at, align 8
  %ignored = call i32 %yield()
  ret i32 0
done:
  ret i32 %more
}}

define void @pool_for(ptr %job, ptr %task, ptr %arg, i32 %parts) nounwind {{
entry:
  %task_at = getelementptr i8, ptr %job, i32 {task}
  store ptr %task, ptr %task_at, align 8
  %arg_at = getelementptr i8, ptr %job, i32 {arg}
  store ptr %arg, ptr %arg_at, align 8
  %parts_at = getelementptr i8, ptr %job, i32 {parts}
  store i32 %parts, ptr %parts_at, align 4
  %threads_at = getelementptr i8, ptr %job, i32 {threads}
  %threads = load i32, ptr %threads_at, align 4
  br label %share
share:
  %owner = phi i32 [ 0, %entry ], [ %after, %share ]
  %line = mul i32 %owner, {line}
  %line_at = add i32 %line, {next}
  %next_at = getelementptr i8, ptr %job, i32 %line_at
  %scaled = mul i32 %owner, %parts
  %first = udiv i32 %scaled, %threads
  store atomic i32 %first, ptr %next_at monotonic, align 4
  %after = add i32 %owner, 1
  %more = icmp slt i32 %after, %threads
  br i1 %more, label %share, label %shared
shared:
  %serial_at = getelementptr i8, ptr %job, i32 {serial}
  %old = load atomic i32, ptr %serial_at monotonic, align 4
  %serial = add i32 %old, 1
  store atomic i32 %serial, ptr %serial_at monotonic, align 4
  %state_at = getelementptr i8, ptr %job, i32 {state}
  store atomic i32 {open}, ptr %state_at release, align 4
  call void @claim(ptr %job, i32 0)
  %closed = atomicrmw sub ptr %state_at, i32 {open} acq_rel
  br label %wait
wait:
  %spins = phi i32 [ 0, %shared ], [ %spun, %busy ]
  %inside = load atomic i32, ptr %state_at acquire, align 4
  %empty = icmp eq i32 %inside, 0
  br i1 %empty, label %done, label %busy
busy:
  %spun = call i32 @rest(ptr %job, i32 %spins)
  br label %wait
done:
  ret void
}}

define void @pool_work(ptr %job) nounwind {{
entry:
  %busy_at = getelementptr i8, ptr %job, i32 {busy}
  %serial_at = getelementptr i8, ptr %job, i32 {serial}
  %state_at = getelementptr i8, ptr %job, i32 {state}
  %come_at = getelementptr i8, ptr %job, i32 {come}
  %threads_at = getelementptr i8, ptr %job, i32 {threads}
  %threads = load i32, ptr %threads_at, align 4
  %helpers = sub i32 %threads, 1
  %come = atomicrmw add ptr %come_at, i32 1 monotonic
  %number = urem i32 %come, %helpers
  %self = add i32 %number, 1
  br label %look
look:
  %spins = phi i32 [ 0, %entry ], [ %spun, %idle ], [ 0, %enter ], [ 0, %help ]
  %waits = phi i32 [ 0, %entry ], [ %waited, %idle ], [ 0, %enter ], [ 0, %help ]
  %seen = phi i32 [ 0, %entry ], [ %seen, %idle ], [ %seen, %enter ], [ %serial, %help ]
  %busy = load atomic i32, ptr %busy_at monotonic, align 4
  %over = icmp eq i32 %busy, 0
  %long = icmp sgt i32 %waits, {linger}
  %leave = and i1 %over, %long
  br i1 %leave, label %done, label %going
going:
  %state = load atomic i32, ptr %state_at acquire, align 4
  %is_open = icmp sge i32 %state, {open}
  %now = load atomic i32, ptr %serial_at monotonic, align 4
  %is_new = icmp ne i32 %now, %seen
  %useful = and i1 %is_open, %is_new
  br i1 %useful, label %enter, label %idle
idle:
  %spun = call i32 @rest(ptr %job, i32 %spins)
  %gave_way = icmp eq i32 %spun, 0
  %wait = zext i1 %gave_way to i32
  %more_waits = add i32 %waits, %wait
  %waited = select i1 %over, i32 %more_waits, i32 0
  br label %look
enter:
  %one_more = add i32 %state, 1
  %pair = cmpxchg ptr %state_at, i32 %state, i32 %one_more acquire monotonic
  %entered = extractvalue {{ i32, i1 }} %pair, 1
  br i1 %entered, label %help, label %look
help:
  %serial = load atomic i32, ptr %serial_at monotonic, align 4
  call void @claim(ptr %job, i32 %self)
  %left = atomicrmw sub ptr %state_at, i32 1 release
  br label %look
done:
  %gone_at = getelementptr i8, ptr %job, i32 {gone}
  %gone = atomicrmw add ptr %gone_at, i32 1 release
  ret void
}}
"""


class _Crew:
    """A job and the threads that help with it, or have gone meanwhile."""

    def __init__(self, helpers: int) -> None:
        self.helpers = helpers
        self._memory = ctypes.create_string_buffer(_NEXT + (helpers + 1) * _LINE + _LINE - 1)
        self.job = -(-ctypes.addressof(self._memory) // _LINE) * _LINE
        self._word(_THREADS).value = helpers + 1
        ctypes.c_void_p.from_address(self.job + _YIELD).value = ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value
        self._sent = 0

    def _word(self, at: int) -> ctypes.c_int32:
        return ctypes.c_int32.from_address(self.job + at)

    def begin(self) -> int:
        """From now on nobody goes. Returns how many are missing, who then must be sent."""
        self._word(_BUSY).value = 1
        missing = self.helpers - (self._sent - self._word(_GONE).value)
        self._sent += missing
        return missing

    def end(self) -> None:
        self._word(_BUSY).value = 0


class ThreadPool:
    """Helping threads, kept between runs. Safe for use by several threads; each run gets helpers of its own."""

    def __init__(self, target: Target) -> None:
        self._code = _pool_code(target)
        self._work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._code.address("pool_work"))
        self.parallel_for = self._code.address("pool_for")
        self._threads = ThreadPoolExecutor(max_workers=1024, thread_name_prefix="cortado")
        self._lock = threading.Lock()
        self._resting: dict[int, list[_Crew]] = {}

    @contextmanager
    def helpers(self, count: int) -> Iterator[int]:
        """Have `count` threads help, one at least; gives the address of the job, which is parallel_for's ctx."""
        with self._lock:
            crews = self._resting.setdefault(count, [])
            crew = crews.pop() if crews else _Crew(count)
        for _ in range(crew.begin()):
            self._threads.submit(self._help, crew)
        try:
            yield crew.job
        finally:
            crew.end()
            with self._lock:
                crews.append(crew)

    def _help(self, crew: _Crew) -> None:
        """Keeps the job's memory for as long as its helper needs it."""
        self._work(crew.job)


@functools.cache
def _pool_code(target: Target) -> LoadedCode:
    machine = target.triple.partition("-")[0]
    text = _TEXT.format(
        triple=target.triple, pause=_PAUSE[machine], task=_TASK, arg=_ARG, yield_=_YIELD, parts=_PARTS, busy=_BUSY, threads=_THREADS,
        come=_COME, gone=_GONE, linger=_LINGER, serial=_SERIAL, state=_STATE, next=_NEXT, line=_LINE, open=_OPEN, max_spins=_SPINS,
    )  # fmt: skip
    return LoadedCode([item.data for item in compile_modules([("pool", text)], target)])
