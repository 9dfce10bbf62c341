"""The weight files of a model folder."""

import json

import pytest

from qwen3.errors import Qwen3Error
from qwen3.load.index import INDEX, WEIGHTS, weight_bytes, weight_files


@pytest.fixture
def index(tmp_path):
    """Writes an index -> the folder, which holds the shards a and b, 3 and 4 bytes long."""
    (tmp_path / "a.safetensors").write_bytes(b"123")
    (tmp_path / "b.safetensors").write_bytes(b"1234")

    def index(**values):
        (tmp_path / INDEX).write_text(json.dumps(values))
        return tmp_path

    return index


def test_shards_are_sorted_and_named_once(index):
    folder = index(weight_map={"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"})
    assert weight_files(folder) == [folder / "a.safetensors", folder / "b.safetensors"]
    assert weight_bytes(folder) == 7
    assert weight_bytes(index(metadata={"total_size": 5}, weight_map={})) == 5


def test_without_an_index_there_is_one_file(tmp_path):
    with pytest.raises(Qwen3Error, match=f"{WEIGHTS}: no such file"):
        weight_files(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"12")
    assert weight_files(tmp_path) == [tmp_path / WEIGHTS] and weight_bytes(tmp_path) == 2


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/outside.safetensors", "sub/a.safetensors", "a.bin", 7, None]
)
def test_a_shard_that_is_not_beside_the_index_is_refused(index, name):
    folder = index(weight_map={"x": name})
    with pytest.raises(Qwen3Error, match=f"{INDEX}: weight_map must name safetensors files beside it"):
        weight_files(folder)


@pytest.mark.parametrize("values", [{}, {"weight_map": {}}, {"weight_map": ["a.safetensors"]}])
def test_an_index_without_shards_is_refused(index, values):
    folder = index(**values)
    with pytest.raises(Qwen3Error, match="weight_map"):
        weight_files(folder)
