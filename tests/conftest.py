"""One thread, as on the pages, so that tests do not wait for each other's threads."""

import torch

torch.set_num_threads(1)
