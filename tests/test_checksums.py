"""Mirrors clipseg3d/checksums.py."""

import hashlib

import pytest

from clipseg3d.checksums import sha256_of_file, sha256_of_values


def test_known_check_sum(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")  # the example of FIPS 180-4
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of_file(path) == expected


@pytest.mark.parametrize("size", [0, 1, 2**20 - 1, 2**20, 2**20 + 1, 5 * 2**19])
def test_every_byte_of_a_file_counts_once(tmp_path, size):
    content = bytearray(index * 7 % 256 for index in range(251)) * (size // 251 + 1)
    content = content[:size]
    path = tmp_path / "file"
    path.write_bytes(content)
    assert sha256_of_file(path) == hashlib.sha256(content).hexdigest()


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        sha256_of_file(tmp_path / "absent")


def test_values_are_written_as_json():
    expected = hashlib.sha256(b'{"a": [1, 2.5, null], "b": "\\u00e9"}').hexdigest()
    assert sha256_of_values({"b": "é", "a": [1, 2.5, None]}) == expected


def test_order_of_keys_does_not_count_but_everything_else_does():
    values = {"size": [1, 2], "nested": {"x": 1, "y": 2}}
    same = {"nested": {"y": 2, "x": 1}, "size": (1, 2)}
    assert sha256_of_values(values) == sha256_of_values(same)
    for other in (
        {**values, "size": [2, 1]},
        {**values, "nested": {"x": 1, "y": 3}},
        {**values, "more": None},
        {"size": [1, 2]},
    ):
        assert sha256_of_values(other) != sha256_of_values(values)


def test_values_that_json_cannot_hold_are_an_error(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        sha256_of_values({"path": tmp_path})
