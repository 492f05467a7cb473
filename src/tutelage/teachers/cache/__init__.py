"""Answers of a teacher on disk: written once, found by content, exact where they can be."""

from tutelage.teachers.cache.answers import stored
from tutelage.teachers.cache.folder import (
    PARTS,
    WORDS,
    CacheFolder,
    Part,
    answers_of,
    save_head,
    writer_of,
)
from tutelage.teachers.cache.identity import (
    MANIFEST,
    AnswerSettings,
    Identity,
    StoredDtype,
    code_version,
    load_identity,
    stored_dtype,
    weights_hash,
)
from tutelage.teachers.cache.shard import Row
from tutelage.teachers.cache.store import Store, StoreWriter, locked
from tutelage.teachers.cache.teacher import CachedTeacher

__all__ = [
    "MANIFEST",
    "PARTS",
    "WORDS",
    "AnswerSettings",
    "CacheFolder",
    "CachedTeacher",
    "Identity",
    "Part",
    "Row",
    "Store",
    "StoreWriter",
    "StoredDtype",
    "answers_of",
    "code_version",
    "load_identity",
    "locked",
    "save_head",
    "stored",
    "stored_dtype",
    "weights_hash",
    "writer_of",
]
