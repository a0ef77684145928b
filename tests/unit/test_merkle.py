"""Merkle trees against the vectors of RFC 6962's first implementation, and all trees of up to 65 leaves."""

from __future__ import annotations

import hashlib

import pytest

from pitr.errors import NotAuthentic
from verifiers.merkle import (
    EMPTY_ROOT,
    GrowingTree,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)

# The leaves and roots of the test vectors in certificate-transparency (merkletree/merkle_tree_test.cc).
VECTOR_LEAVES = [
    "",
    "00",
    "10",
    "2021",
    "3031",
    "40414243",
    "5051525354555657",
    "606162636465666768696a6b6c6d6e6f",
]
VECTOR_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
SIZES = range(1, 66)
LEAVES = [leaf_hash(f"entry {number}".encode()) for number in range(65)]


def plain_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 §2.1 as it is written: the greatest power of two below n goes left."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\x01" + plain_root(leaves[:split]) + plain_root(leaves[split:])).digest()


def test_the_roots_are_those_of_the_published_vectors() -> None:
    leaves = [leaf_hash(bytes.fromhex(text)) for text in VECTOR_LEAVES]
    assert [root_of(leaves[:size]).hex() for size in range(1, 9)] == VECTOR_ROOTS
    assert (
        root_of([])
        == EMPTY_ROOT
        == bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
    )


def test_the_proofs_are_those_of_the_published_vectors() -> None:
    leaves = [leaf_hash(bytes.fromhex(text)) for text in VECTOR_LEAVES]
    assert [node.hex() for node in inclusion_proof(5, leaves)] == [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]
    assert [node.hex() for node in consistency_proof(6, leaves)] == [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]


def test_a_growing_tree_has_the_root_of_each_size() -> None:
    tree = GrowingTree()
    for size in SIZES:
        tree.append(LEAVES[size - 1])
        assert tree.size == size
        assert tree.root() == plain_root(LEAVES[:size]) == root_of(LEAVES[:size])


@pytest.mark.parametrize("size", SIZES)
def test_every_leaf_of_every_tree_proves_that_it_is_in(size: int) -> None:
    leaves, root = LEAVES[:size], root_of(LEAVES[:size])
    for index in range(size):
        proof = inclusion_proof(index, leaves)
        verify_inclusion(index, size, leaves[index], proof, root)
        wrong = [
            (index, size, leaf_hash(b"another"), proof, root),
            (index, size, leaves[index], proof, leaf_hash(b"another")),
            (index, size, leaves[index], [*proof, root], root),
            (size, size, leaves[index], proof, root),
            (-1, size, leaves[index], proof, root),
            (index ^ 1, size, leaves[index], proof, root),
            *((index, size, leaves[index], proof[:at] + proof[at + 1 :], root) for at in range(len(proof))),
            *(
                (index, size, leaves[index], [*proof[:at], root, *proof[at + 1 :]], root)
                for at in range(len(proof))
            ),
        ]
        for arguments in wrong:
            if size == 1 and arguments[0] == index ^ 1:
                continue
            with pytest.raises(NotAuthentic):
                verify_inclusion(*arguments)
    with pytest.raises(IndexError):
        inclusion_proof(size, leaves)


@pytest.mark.parametrize("size", SIZES)
def test_every_tree_proves_that_it_goes_on_from_each_smaller_one(size: int) -> None:
    leaves, root = LEAVES[:size], root_of(LEAVES[:size])
    forged = [leaf_hash(b"rewritten"), *leaves[1:]]
    for first in range(1, size + 1):
        old = root_of(leaves[:first])
        proof = consistency_proof(first, leaves)
        verify_consistency(first, size, old, root, proof)
        wrong = [
            (first, size, old, root_of(forged), consistency_proof(first, forged)),
            (first, size, root_of(forged[:first]), root, proof),
            (first, size, old, root, [*proof, root]),
            (0, size, old, root, proof),
            (size + 1, size, old, root, proof),
            *((first, size, old, root, proof[:at] + proof[at + 1 :]) for at in range(len(proof))),
        ]
        for arguments in wrong:
            with pytest.raises(NotAuthentic):
                verify_consistency(*arguments)
    with pytest.raises(IndexError):
        consistency_proof(0, leaves)


def test_a_leaf_is_never_taken_for_a_node() -> None:
    left, right = LEAVES[:2]
    assert leaf_hash(left + right) != node_hash(left, right)
