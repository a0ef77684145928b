"""A digest that proves itself: for the object that was hashed, and for no other."""

from __future__ import annotations

import hashlib

import pytest

from storage.checks import RequestRefused, prove_digest
from storage.digest import BodyDigest

BODY = b"the body of an object"


def test_it_is_the_sha256_and_equal_to_a_plain_one() -> None:
    assert BodyDigest.of(BODY) == hashlib.sha256(BODY).digest()


def test_it_is_a_proof_for_the_object_that_was_hashed_only() -> None:
    equal = bytes(bytearray(BODY))
    assert BodyDigest.of(BODY).is_proof_for(BODY)
    assert not BodyDigest.of(BODY).is_proof_for(equal)


def test_one_that_nobody_computed_proves_nothing() -> None:
    assert not BodyDigest(hashlib.sha256(BODY).digest()).is_proof_for(BODY)


@pytest.mark.parametrize("body", [bytearray(BODY), memoryview(BODY)])
def test_what_can_change_after_it_was_hashed_is_not_hashed(body: bytes) -> None:
    with pytest.raises(TypeError, match="can change"):
        BodyDigest.of(body)


def test_a_plain_copy_does_not_hold_the_body() -> None:
    assert type(bytes(BodyDigest.of(BODY))) is bytes


def test_a_proof_is_handed_on_and_what_is_none_is_computed_anew() -> None:
    proof = BodyDigest.of(BODY)
    assert prove_digest("k", BODY, proof) is proof
    assert prove_digest("k", BODY, None).is_proof_for(BODY)
    assert prove_digest("k", BODY, bytes(proof)).is_proof_for(BODY)


def test_a_proof_for_another_body_is_refused() -> None:
    other = BODY.upper()
    for wrong in (BodyDigest.of(other), BodyDigest(bytes(32)), hashlib.sha256(other).digest()):
        with pytest.raises(RequestRefused, match="does not have the SHA-256"):
            prove_digest("k", BODY, wrong)
