"""One thread, as on the pages, so that tests do not wait for each other's threads; no windows."""

import matplotlib
import torch

matplotlib.use("agg")  # in this process: a page's kernel draws as it does for its reader
torch.set_num_threads(1)
