"""`flexpipe` on a disk that is in no hurry: the decision of a live change is written once somebody opens a named pipe to it.

    python slow_disk_server.py PIPE serve MODEL …

All else is the real server: the journal's own thread waits, as it would for the disk.
"""

import sys
from pathlib import Path

from flexpipe import cli, replica_factory
from flexpipe.actors.route import STRATEGIES
from flexpipe.actors.sqlite_journal import SqliteJournal

PROGRAM = __file__


class SlowDiskJournal(SqliteJournal):
    """The real journal; starts and recoveries do not wait."""

    pipe = Path()

    def _write(self, record):
        plan = self._state.undecided
        if record.kind == "commit" and plan is not None and plan.strategy in STRATEGIES:
            self.pipe.read_bytes()  # returns once it was opened for writing, and closed again
        super()._write(record)


if __name__ == "__main__":
    SlowDiskJournal.pipe = Path(sys.argv.pop(1))
    replica_factory.SqliteJournal = SlowDiskJournal
    cli.main()
