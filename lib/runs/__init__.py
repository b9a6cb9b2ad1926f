"""What any long run needs."""

from lib.runs import checkpoints, processes, records
from lib.runs.checkpoints import CheckpointError
from lib.runs.processes import ProcessLost

__all__ = [
    "CheckpointError",
    "ProcessLost",
    "checkpoints",
    "processes",
    "records",
]
