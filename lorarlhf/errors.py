"""The one exception for mistakes the user can mend, and how other exceptions are read."""

import errno
import os


class UserError(Exception):
    """The input is at fault, not the program.

    The message is one line, or one line a fault: what is wrong, where (file, line or key), and what to do. The command
    line prints it without a traceback and exits with 2.
    """


class Stopped(Exception):  # noqa: N818  # nothing has failed
    """Training was asked to stop by a signal, and did so after its step; its checkpoint is written.

    Args:
        what: stage and checkpoint, for people.
        number: of the signal.
    """

    def __init__(self, what: str, number: int) -> None:
        super().__init__(what)
        self.number = number


def check_matplotlib(asker: str) -> None:
    """Raise UserError if figures cannot be drawn.

    Args:
        asker: the command or option that wants them.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{asker}: a figure needs {error.name}; install it with: pip install 'lorarlhf[plots]'"
        ) from None


def first_line(error: BaseException) -> str:
    """What an exception says, in one line; its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_disk_full(error: BaseException) -> bool:
    """Whether an exception says that the disk, or one's quota, is full. By its text: libraries have own classes."""
    said = str(error)
    return any(os.strerror(number) in said for number in (errno.ENOSPC, errno.EDQUOT))


# What libraries say when memory runs out and their exception is of no class of its own. By its text alone, so that the
# command line knows it without torch.
_NO_MEMORY = (
    "out of memory",  # CUDA and HIP, by torch.AcceleratorError or RuntimeError; MPS; NCCL
    "STATUS_ALLOC_FAILED",  # cuBLAS, cuDNN, cuSOLVER, hipBLAS: their workspaces
    "OUT_OF_DEVICE_MEMORY",  # XPU, by SYCL and Level Zero
    "OUT_OF_HOST_MEMORY",
    "can't allocate memory",  # torch's CPU allocator on Linux and macOS
    "not enough memory",  # and on Windows
    "Cannot allocate memory",  # the operating system
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception says that the accelerator, or the machine, has no memory left.

    torch.OutOfMemoryError is one form. A kernel library that finds no room for its workspace raises a RuntimeError, the
    driver a torch.AcceleratorError, C++ code a MemoryError.
    """
    if isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    return isinstance(error, (RuntimeError, OSError)) and any(words in str(error) for words in _NO_MEMORY)
