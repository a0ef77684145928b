"""One object of each key: our code still gives them, and the document alone opens and links them.

Below the first two tests nothing of ours is used but the published file and the secrets of its inputs.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from pathlib import Path
from typing import Any

import google_crc32c
import pytest
import zstandard
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from golden import make_archive_vectors, make_vectors
from golden.test_vectors import hkdf_sha512

OBJECTS: dict[str, bytes] = {
    key: bytes.fromhex(body)
    for key, body in json.loads(make_archive_vectors.VECTORS.read_text("ascii"))["objects"].items()
}
ARCHIVE = "7431589122340811337/00000003"
REPOSITORY = make_vectors.REPOSITORY
DATA_KEY = make_vectors.DATA_KEY.secret
BACKUP = make_archive_vectors.BACKUP
ROOT_KEYS = ("repository", f"epochs/{ARCHIVE}", f"expired/{ARCHIVE}/")


def test_our_code_gives_the_published_objects() -> None:
    computed = make_archive_vectors.computed()
    assert computed.keys() == OBJECTS.keys()
    for key, body in computed.items():
        assert body == OBJECTS[key], key


def test_every_key_of_the_document_has_an_object() -> None:
    page = (Path(__file__).parents[2] / "docs" / "format.md").read_text("utf-8")
    table = page.partition("## 1 Objects")[2].partition("## 2 ")[0]
    named = {
        re.split("[A-Z]", key)[0].rstrip("/") for key in re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)
    }
    # Envelopes are in vectors.json, what verifiers put in reports-v1; a probe is no part of an archive.
    elsewhere = {"envelopes", "fingerprints", "log", "reports", "probe"}
    assert {name.split("/")[0] for name in named} - elsewhere == {key.split("/")[0] for key in OBJECTS}


def only(prefix: str) -> bytes:
    """Return the one object whose key begins so."""
    (key,) = [key for key in OBJECTS if key.startswith(prefix)]
    return OBJECTS[key]


def public(seed: bytes) -> bytes:
    return ed25519.Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def opened(record: bytes, signer: bytes) -> tuple[dict[str, Any], bytes]:
    """Verify a record by §4; return its payload, and H of it."""
    envelope = json.loads(record)
    assert record == json.dumps(envelope, sort_keys=True, separators=(",", ":")).encode("ascii")
    payload, kind = base64.b64decode(envelope["payload"], validate=True), envelope["payloadType"]
    message = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
    (signature,) = envelope["signatures"]
    assert signature["keyid"] == hashlib.sha256(signer).hexdigest()[:16]
    ed25519.Ed25519PublicKey.from_public_bytes(signer).verify(base64.b64decode(signature["sig"]), message)
    fields = json.loads(payload)
    assert payload == json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")
    assert kind == f"application/vnd.pitr.{fields['kind']}.v1+json"
    assert fields["repository"] == REPOSITORY
    return dict(fields), hashlib.sha256(payload).digest()


def by_host(record: bytes) -> tuple[dict[str, Any], bytes]:
    return opened(record, public(make_vectors.HOST.seed))


def headed(body: bytes) -> tuple[dict[str, Any], bytes, bytes]:
    """Take apart an object with a signed header; return header, H of its payload, and the container."""
    assert body[:8] == b"PITRH1\0\0"
    end = 12 + int.from_bytes(body[8:12], "big")
    fields, digest = by_host(body[12:end])
    container = body[end:]
    assert fields["body_bytes"] == len(container)
    assert fields["body_sha256"] == hashlib.sha256(container).hexdigest()
    return fields, digest, container


def content_of(container: bytes, kind: str, name: str, *span: str) -> list[bytes]:
    """Open a container by §3 in the context of §3.1; return the content of each frame."""
    texts = ["pitr/v1/context", REPOSITORY, "7431589122340811337", "3", kind, name, *(span or ("", "", ""))]
    context = b"".join(len(text).to_bytes(4, "big") + text.encode() for text in texts)
    info = b"pitr/v1/container\0" + hashlib.sha256(context).digest()
    okm = hkdf_sha512(DATA_KEY, container[8:40], info, 64)
    assert container[40:72] == okm[32:], "another context or key"
    assert container[72:88] == hkdf_sha512(DATA_KEY, b"", b"pitr/v1/key-id", 16)
    offset, contents = 88, []
    while offset < len(container):
        end = offset + 4 + int.from_bytes(container[offset : offset + 4], "big")
        nonce = bytes(3) + len(contents).to_bytes(8, "big") + bytes([end == len(container)])
        aad = hashlib.sha256(container[:88]).digest()
        frame = AESGCM(okm[:32]).decrypt(nonce, container[offset + 4 : end], aad)
        contents.append(zstandard.ZstdDecompressor().decompress(frame))
        offset = end
    return contents


def lsn_hex(text: str) -> str:
    high, low = text.split("/")
    return f"{int(high, 16):08X}{int(low, 16):08X}"


def mac(content: bytes) -> bytes:
    """The digest of §5, by which a host compares what it cannot read."""
    info = b"pitr/v1/content-digest\0" + REPOSITORY.encode()
    return hmac.digest(hkdf_sha512(make_vectors.HOST.seed, b"", info, 32), content, "sha256")


def pieces() -> list[tuple[dict[str, Any], bytes, bytes]]:
    return [headed(OBJECTS[key]) for key in sorted(OBJECTS) if "/p-" in key]


def test_the_anchors_are_signed_by_the_root() -> None:
    identity = hkdf_sha512(make_vectors.IDENTITY.secret, b"", b"pitr/v1/identity", 128)
    root = public(identity[96:])
    for prefix in ROOT_KEYS:
        opened(only(prefix), root)
    epoch, _ = opened(only(f"epochs/{ARCHIVE}"), root)
    host = base64.urlsafe_b64encode(public(make_vectors.HOST.seed)).decode().rstrip("=")
    assert epoch["signer"] == f"ed25519:{host}"
    assert epoch["parent"] == {"epoch": 2, "timeline": "00000009", "lsn": "16/B3700000"}
    history, _ = by_host(only("history/"))
    assert base64.b64decode(history["content"]).startswith(b"9\t16/B3700000\t")


def test_pieces_chain_and_hold_the_wal_that_their_headers_say() -> None:
    previous = None
    for number, (header, digest, container) in enumerate(pieces(), start=1):
        assert (header["kind"], header["sequence"], header["previous"]) == ("wal-piece", number, previous)
        span = (header["timeline"], lsn_hex(header["start"]), lsn_hex(header["end"]))
        (content,) = content_of(container, "wal-piece", str(number), *span)
        assert content == bytes([number]) * (1 << 19)
        assert header["content_hmac"] == mac(content).hex()
        key = f"wal/{ARCHIVE}/{span[0]}/0000000A0000001600000B37/p-{span[1]}-{span[2]}-{number:016d}-0123abcd"
        assert key in OBJECTS
        previous = digest.hex()


def test_a_segment_stands_for_its_pieces() -> None:
    (key,) = [key for key in OBJECTS if "/s-" in key]
    header, digest, container = headed(OBJECTS[key])
    assert header["pieces"] == [1, 2]
    assert header["pieces_sha256"] == hashlib.sha256(b"".join(one[1] for one in pieces())).hexdigest()
    macs = b"".join(bytes.fromhex(one[0]["content_hmac"]) for one in pieces())
    assert header["content_hmac"] == mac(macs).hex()
    span = (header["timeline"], lsn_hex(header["start"]), lsn_hex(header["end"]))
    contents = content_of(container, "wal-segment", header["segment"], *span)
    assert b"".join(contents) == bytes([1]) * (1 << 19) + bytes([2]) * (1 << 19)
    times = [one[0]["transactions"] for one in pieces()]
    assert header["transactions"] == {
        "min_at": times[0]["min_at"],
        "max_at": times[1]["max_at"],
        "is_exact": False,
    }
    index, _ = by_host(only("walindex/"))
    assert (index["first"], index["last"], index["previous"]) == (1, 2, None)
    (entry,) = index["segments"]
    assert (entry["key"], entry["header_sha256"]) == (key, digest.hex())
    for entry, (piece, piece_digest, _) in zip(index["pieces"], pieces(), strict=True):
        left_out = {"points", "body_bytes", "body_sha256"}
        assert entry["header"] == {name: value for name, value in piece.items() if name not in left_out}
        assert entry["header_sha256"] == piece_digest.hex()
        assert entry["key"] in OBJECTS


def test_a_backup_is_read_from_its_manifest_on() -> None:
    manifest, _ = by_host(only("manifests/"))
    ((pack,), (index,)) = manifest["packs"], manifest["indexes"]
    for stored in (pack, index):
        body = OBJECTS[stored["key"]]
        assert (stored["bytes"], stored["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())
    frames = content_of(OBJECTS[pack["key"]], "pack", f"{BACKUP}/0000/000000")
    (text,) = content_of(OBJECTS[index["key"]], "index", f"{BACKUP}/0000/000000")
    directory, link, *files, last = [json.loads(line) for line in text.splitlines()]
    assert text.endswith(b"\n")
    assert directory == {"directory": "base/5", "mode": 0o700}
    assert link == {"link": "pg_tblspc/16400", "to": 16400}
    body = OBJECTS[pack["key"]]
    assert last == {"pack": 0, "frames": [[88, int.from_bytes(body[88:92], "big")]]}
    read = {}
    for file in files:
        ((offset, length, number, frame, place, crc),) = file["extents"]
        assert (offset, length, number) == (0, file["size"], 0)
        content = frames[frame][place : place + length]
        assert file["crc32c"] == crc == f"{google_crc32c.value(content):08x}"
        read[file["path"].encode()] = content
    assert read == make_archive_vectors.FILES
    assert (manifest["files"], manifest["bytes"]) == (len(read), sum(map(len, read.values())))


def test_heads_chain_and_count_what_is_there() -> None:
    first, digest = by_host(only(f"heads/{ARCHIVE}/{2**63 - 2:016x}"))
    second, _ = by_host(only(f"heads/{ARCHIVE}/{2**63 - 3:016x}"))
    assert (first["previous"], second["previous"]) == (None, digest.hex())
    assert first["backups"] == {"count": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    manifest = hashlib.sha256(only("manifests/")).hexdigest()
    line = f"{BACKUP} {manifest}\n".encode("ascii")
    assert second["backups"] == {"count": 1, "sha256": hashlib.sha256(line).hexdigest()}
    last = pieces()[-1]
    assert (second["piece_sequence"], second["piece_sha256"]) == (2, last[1].hex())
    assert (second["wal_start"], second["wal_end"]) == ("16/B3700000", last[0]["end"])
    assert second["quorum"] == {"regions": 3, "acknowledged_by": 2}
    assert (first["piece_sequence"], first["piece_sha256"], first["wal_end"]) == (0, None, None)


def test_what_expired_is_named_as_it_was_signed() -> None:
    root = public(hkdf_sha512(make_vectors.IDENTITY.secret, b"", b"pitr/v1/identity", 128)[96:])
    expired, _ = opened(only("expired/"), root)
    (backup,) = expired["backups"]
    assert backup["manifest_sha256"] == hashlib.sha256(only("manifests/")).hexdigest()
    assert (expired["sequence"], expired["previous"]) == (1, None)


@pytest.mark.parametrize(
    ("prefix", "kind"), [("leases/backup/", "lease"), ("events/", "event"), ("derived/", "redis-snapshot")]
)
def test_other_records_are_the_hosts(prefix: str, kind: str) -> None:
    key = next(key for key in OBJECTS if key.startswith(prefix) and "/parts/" not in key)
    fields, _ = by_host(OBJECTS[key])
    assert fields["kind"] == kind


def test_fences_and_pairs_open_in_contexts_of_their_own() -> None:
    header, _, container = headed(only("fences/"))
    (text,) = content_of(container, "fences", "1")
    fence = json.loads(text)
    assert (header["count"], header["first"]["number"]) == (1, fence["number"])
    assert fence["topics"][0]["partitions"][0][:4] == [0, 3, 11, 12]
    header, _, container = headed(only("syncs/"))
    (text,) = content_of(container, "syncs", "1")
    source, pairs = map(json.loads, text.split(b"\n"))
    assert source == {"source": "east"}
    assert pairs["pairs"] == [10, 5, 90, 88]
    assert header["whole"] == header["sequence"] == 1


def test_a_snapshot_of_redis_opens_to_its_file() -> None:
    snapshot = make_archive_vectors.SNAPSHOT
    record, _ = by_host(OBJECTS[f"derived/{ARCHIVE}/snapshots/{snapshot}"])
    part = OBJECTS[f"derived/{ARCHIVE}/parts/{snapshot}/0000-000000"]
    (node,) = record["nodes"]
    assert node["parts"] == [{"bytes": len(part), "sha256": hashlib.sha256(part).hexdigest()}]
    content = b"".join(content_of(part, "derived", f"{snapshot}/0000/000000"))
    assert (node["bytes"], node["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
