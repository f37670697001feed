"""Capturing, on stand-ins that keep CUDA's rules: what fails leaves the thread and the cache as they were."""

import contextlib

import pytest
import torch

from lorarlhf.generation.capture import CaptureError, capture


class Cuda:
    """Streams and graphs as torch.cuda's: work that is captured does not run, a question from the host ends a capture,
    and ending one that has failed raises before the stream is left."""

    def __init__(self):
        self.current = self.default = Stream("default")
        self.capturing = self.broken = False
        self.recorded = None

    def stream(self, stream):
        return self._on(stream, always=True)

    @contextlib.contextmanager
    def _on(self, stream, always):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            if always or not self.broken:
                self.current = before

    @contextlib.contextmanager
    def graph(self, graph):
        with self._on(Stream("capture"), always=False):
            self.capturing = True
            try:
                yield
            finally:
                self.capturing = False
                if self.broken:
                    raise torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture")
            graph.replay = self.recorded

    def launch(self, kernel):
        """What a kernel does, now or at each replay."""
        if self.capturing:
            self.recorded = kernel
        else:
            kernel()

    def fail(self, error):
        self.broken = self.capturing
        raise error


class Stream:
    def __init__(self, name="side"):
        self.name = name

    def wait_stream(self, other): ...


class Step:
    """Work on a state that it moves on: it writes the state into its output."""

    def __init__(self, cuda, fault=None, drift=0.0):
        self.cuda = cuda
        self.fault = fault
        self.drift = drift
        self.place = torch.zeros(())
        self.runs = 0

    def __call__(self):
        def kernel():
            self.runs += 1
            self.place.add_(1)
            output.copy_(self.place.expand(3) + self.drift * (self.runs > 1))

        output = torch.zeros(3)
        self.cuda.launch(kernel)
        if self.cuda.capturing and self.fault:
            self.cuda.fail(self.fault)
        return output

    def rewind(self):
        self.place.zero_()


@pytest.fixture
def cuda(monkeypatch):
    cuda = Cuda()
    for name, value in {
        "Stream": Stream,
        "stream": cuda.stream,
        "current_stream": lambda: cuda.current,
        "CUDAGraph": type("Graph", (), {}),
        "graph": cuda.graph,
        "synchronize": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return cuda


def test_what_is_captured_runs_at_each_replay_and_not_before(cuda):
    step = Step(cuda)
    captured = capture(step, step.rewind)
    assert (step.place.item(), cuda.current) == (0, cuda.default)
    for place in (1, 2):
        captured.graph.replay()
        assert captured.output.tolist() == [place] * 3


def test_a_question_from_the_host_leaves_the_stream_and_the_state_as_they_were(cuda):
    fault = torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing\nmore of it")
    step = Step(cuda, fault)
    with pytest.raises(CaptureError, match=r"^CUDA error: operation not permitted when stream is capturing$"):
        capture(step, step.rewind)
    assert cuda.current is cuda.default
    assert step.place == 0


@pytest.mark.parametrize(
    "fault",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_out_of_memory_is_for_the_budget_to_mend_and_no_failed_capture(cuda, fault):
    step = Step(cuda, fault)
    with pytest.raises(type(fault)) as failure:
        capture(step, step.rewind)
    assert failure.value is fault
    assert cuda.current is cuda.default
    assert step.place == 0


def test_a_replay_that_does_something_else_is_found_out(cuda):
    step = Step(cuda, drift=0.5)
    with pytest.raises(CaptureError, match="a replay differs from a plain run"):
        capture(step, step.rewind)
    assert step.place == 0
