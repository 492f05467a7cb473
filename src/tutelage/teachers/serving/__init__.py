"""`tutelage serve`: a model behind HTTP, asked about exact token ids and answering in numbers."""

from tutelage.teachers.serving.app import MOST_BYTES, make_app, refuse_open_door, run_app
from tutelage.teachers.serving.worker import Worker

__all__ = ["MOST_BYTES", "Worker", "make_app", "refuse_open_door", "run_app"]
