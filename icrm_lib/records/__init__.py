"""Results and artefacts on disk: a file or folder under its final name is always a whole one."""

from icrm_lib.records.files import (
    checksum,
    explained,
    file_checksum,
    fingerprint,
    read_json,
    write_bytes,
    write_json,
)
from icrm_lib.records.folders import MANIFEST, claim, is_sealed, key_of, locked, seal, sealed_folder
from icrm_lib.records.runs import environment, write_record

__all__ = [
    "MANIFEST",
    "checksum",
    "claim",
    "environment",
    "explained",
    "file_checksum",
    "fingerprint",
    "is_sealed",
    "key_of",
    "locked",
    "read_json",
    "seal",
    "sealed_folder",
    "write_bytes",
    "write_json",
    "write_record",
]
