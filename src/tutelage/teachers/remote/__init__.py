"""A teacher on another machine, asked about exact token ids over HTTP."""

from tutelage.teachers.remote.api import ServerApi
from tutelage.teachers.remote.link import Link
from tutelage.teachers.remote.settings import RemoteAnswer, RemoteTeacherSettings
from tutelage.teachers.remote.teacher import RemoteTeacher
from tutelage.teachers.remote.tutelage_api import Expected, TutelageApi
from tutelage.teachers.remote.vllm_api import VllmApi
from tutelage.teachers.remote.wire import Served, Wanted

__all__ = [
    "Expected",
    "Link",
    "RemoteAnswer",
    "RemoteTeacher",
    "RemoteTeacherSettings",
    "Served",
    "ServerApi",
    "TutelageApi",
    "VllmApi",
    "Wanted",
]
