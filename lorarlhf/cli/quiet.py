"""Keep the libraries' chatter off the screen; their errors still come through."""

from __future__ import annotations

import logging
import os
import sys
import warnings


def quiet_libraries() -> None:
    """Called by commands before they import anything that loads bitsandbytes, which warns as it is imported."""
    import datasets
    import transformers

    warnings.simplefilter("ignore")
    logging.basicConfig(format="%(message)s", level=logging.ERROR)
    is_main = os.environ.get("RANK", "0") == "0"  # of several processes; the others would say the same
    logging.getLogger("lorarlhf").setLevel(logging.INFO if is_main else logging.ERROR)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.getLogger("datasets").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
