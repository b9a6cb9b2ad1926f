"""What any long run needs: a session around its steps, checkpoints, processes, records."""

from lib.runs import checkpoints, fingerprints, processes, records, session
from lib.runs.checkpoints import Checkpoint, CheckpointError
from lib.runs.processes import ProcessLost
from lib.runs.session import Session

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "ProcessLost",
    "Session",
    "checkpoints",
    "fingerprints",
    "processes",
    "records",
    "session",
]
