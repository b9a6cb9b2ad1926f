"""One thread, as on the pages, so that tests do not wait for each other's threads; no windows."""

import os
import sys
from pathlib import Path

# As in the Makefile, for the pages' kernels too: no warning where the home cannot be written to.
os.environ.setdefault("MPLCONFIGDIR", str(Path(sys.prefix) / "matplotlib"))
os.environ.setdefault("IPYTHONDIR", str(Path(sys.prefix) / "ipython"))

import matplotlib
import torch
from hypothesis import Phase, settings

matplotlib.use("agg")  # in this process: a page's kernel draws as it does for its reader
torch.set_num_threads(1)

if "MUTANT_UNDER_TEST" in os.environ:  # make mutants: that a test fails is enough, no shrinking
    settings.register_profile("mutants", phases=(Phase.explicit, Phase.generate), database=None)
    settings.load_profile("mutants")
