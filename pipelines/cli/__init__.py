"""`reloop`: one verb a stage. Exit code 0: done; 1: decided no (kept, not due, drift found); 2: error."""

from pipelines.cli.entry import app, main
from pipelines.cli.stages import further

__all__ = ["app", "further", "main"]
