"""The vectors of docs/format.md, from fixed inputs.

``python tests/golden/make_vectors.py`` writes ``vectors.json`` where there is none.  It never replaces
one: published vectors stay, since archives that were written by them do.  HPKE draws its own
randomness, so envelopes are vectors for opening only and are not among what ``computed`` gives.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from pitr.layout import ArchiveId
from pitr.pipeline import headed, keys, seal, sign
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

VECTORS = Path(__file__).with_name("vectors.json")
REPOSITORY = "000102030405060708090a0b0c0d0e0f"
ARCHIVE = ArchiveId(7431589122340811337, 3)
DATA_KEY = keys.DataKey(bytes(range(32)))
FILE_ID = bytes(range(64, 96))
IDENTITY = keys.Identity(bytes(range(128, 160)))
HOST = sign.Signer(bytes(range(160, 192)))
CREATED_AT = datetime(2026, 11, 23, 13, 5, 0, 250, UTC)
CONTENT = b"committed data " * 3
# zstd frames are given, not made: another release of zstd may compress otherwise.  These are one
# raw block each, by RFC 8878 §3.1.1: magic, single segment with a size of one byte, last raw block.
FRAMES = [
    b"\x28\xb5\x2f\xfd\x20" + bytes([len(part)]) + (len(part) << 3 | 1).to_bytes(3, "little") + part
    for part in (CONTENT, b"", b"the end")
]
CONTEXTS = {
    "wal-piece": seal.Context(
        REPOSITORY, ARCHIVE, "wal-piece", "17", TimelineId(10), LSN(0x16_B374D848), LSN(0x16_B3800000)
    ),
    "wal-segment": seal.Context(
        REPOSITORY,
        ARCHIVE,
        "wal-segment",
        "0000000A00000016000000B3",
        TimelineId(10),
        LSN(0x16_B3000000),
        LSN(0x16_B4000000),
    ),
    "pack": seal.Context(REPOSITORY, ARCHIVE, "pack", "20261123T130500Z-full-0123abcd/0001/000002"),
    "index": seal.Context(REPOSITORY, ARCHIVE, "index", "20261123T130500Z-full-0123abcd/0001/000000"),
}
RECORD: dict[str, object] = {
    "kind": "head",
    "repository": REPOSITORY,
    "system_identifier": str(ARCHIVE.system_identifier),
    "epoch": ARCHIVE.epoch,
    "nothing": None,
    "flags": [True, False],
    "text": 'grün "\\\n',
    "nested": {"b": -1, "a": 2**64 - 1},
}


def computed() -> dict[str, object]:
    """Return every vector that has no randomness in it, made by our own code."""
    signed_piece = headed.encode_headed({"kind": "wal-piece", "sequence": 17}, b"body", HOST)
    return {
        "data_key": {"secret": DATA_KEY.secret.hex(), "key_id": DATA_KEY.key_id.hex()},
        "contexts": {kind: context.encode().hex() for kind, context in CONTEXTS.items()},
        "frames": [frame.hex() for frame in FRAMES],
        "containers": {kind: _container(context).hex() for kind, context in CONTEXTS.items()},
        "identity": {
            "secret": IDENTITY.secret.hex(),
            "text": IDENTITY.text(),
            "recipients": [str(IDENTITY.recipient(suite)) for suite in (1, 2)],
            "fingerprints": [IDENTITY.recipient(suite).fingerprint for suite in (1, 2)],
            "root": str(IDENTITY.root_signer().public),
        },
        "signer": {"text": HOST.text(), "public": str(HOST.public), "key_id": HOST.public.key_id},
        "record": sign.sign_record(RECORD, HOST).decode("ascii"),
        "record_payload_sha256": sign.payload_sha256(sign.sign_record(RECORD, HOST)).hex(),
        "headed": signed_piece.hex(),
        "content_key": keys.content_key(HOST, REPOSITORY).hex(),
        "content_hmac": keys.content_hmac(keys.content_key(HOST, REPOSITORY), CONTENT).hex(),
    }


def _container(context: seal.Context) -> bytes:
    sealer = seal.Sealer(DATA_KEY, context, file_id=FILE_ID)
    sealed = [sealer.seal_frame(frame, last=frame is FRAMES[-1]) for frame in FRAMES]
    return sealer.header + b"".join(sealed)


def main() -> None:
    """Write the file once."""
    envelope = keys.seal_envelope(
        DATA_KEY,
        [IDENTITY.recipient(1), IDENTITY.recipient(2)],
        repository=REPOSITORY,
        archive=ARCHIVE,
        purpose="wal",
        created_at=CREATED_AT,
    )
    vectors = {
        "version": 1,
        "computed": computed(),
        "envelope": sign.sign_record(envelope.to_payload(), HOST).decode("ascii"),
    }
    with VECTORS.open("x", encoding="ascii") as file:
        json.dump(vectors, file, indent=1, sort_keys=True)
        file.write("\n")


if __name__ == "__main__":
    main()
