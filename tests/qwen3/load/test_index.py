"""The weight files of a model folder."""

import json
import os

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


def test_an_index_may_name_files_with_spaces(index):
    folder = make(index(weight_map={"x": "my model (1).safetensors"}), "my model (1).safetensors")
    assert names(folder) == ["my model (1).safetensors"]


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


def test_a_total_that_is_no_size_is_not_believed(index):
    names = {"x": "a.safetensors", "y": "b.safetensors"}
    for metadata in (
        [1],
        "x",
        None,
        5,
        {"total_size": -5},
        {"total_size": True},
        {"total_size": 10**30},
        {"total_size": 1.5},
    ):
        assert weight_bytes(index(metadata=metadata, weight_map=names)) == 7
    assert weight_bytes(index(metadata={"total_size": 5}, weight_map=names)) == 5


def test_bytes_are_unknown_without_weights(tmp_path):
    assert weight_bytes(tmp_path) is None


def make(folder, *names):
    for name in names:
        (folder / name).write_bytes(b"12")
    return folder


def names(folder):
    return [file.name for file in weight_files(folder)]


def test_shards_without_an_index_are_all_read(tmp_path):
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    make(tmp_path, *shards, "adapter_model.safetensors", "consolidated.safetensors", "README.md", f"._{shards[0]}")
    assert names(tmp_path) == shards and weight_bytes(tmp_path) == 6
    (tmp_path / shards[1]).unlink()
    with pytest.raises(Qwen3Error, match=r"model-00002-of-00003.safetensors is missing, 1 of 3"):
        weight_files(tmp_path)


def test_numbers_of_shards_need_no_zeros(tmp_path):
    assert names(make(tmp_path, *(f"x-{i}-of-12.safetensors" for i in range(1, 13))))[1] == "x-2-of-12.safetensors"
    (tmp_path / "x-7-of-12.safetensors").unlink()
    with pytest.raises(Qwen3Error, match="x-07-of-12.safetensors is missing, 1 of 12"):
        weight_files(tmp_path)


def test_other_names_without_an_index_are_all_read(tmp_path):
    assert names(make(tmp_path, "weights.safetensors", "more.safetensors")) == [
        "more.safetensors",
        "weights.safetensors",
    ]


@pytest.mark.parametrize(
    "shards, words",
    [
        (["model-00001-of-00001.safetensors", "model-00001-of-00002.safetensors"], "shards of two checkpoints"),
        (["model-00001-of-00001.safetensors", "other-00001-of-00001.safetensors"], "shards of two checkpoints"),
        (["model-00001-of-99999.safetensors"], "one of 99999 shards, which no"),
        (["model-00000-of-00000.safetensors"], "one of 0 shards, which no"),
        (["model-00003-of-00002.safetensors"], "model-00001-of-00002.safetensors is missing"),
    ],
)
def test_shards_that_do_not_belong_together(tmp_path, shards, words):
    with pytest.raises(Qwen3Error, match=words):
        weight_files(make(tmp_path, *shards))


def test_one_file_is_read_before_the_shards_of_an_index_as_in_transformers(index, caplog):
    folder = index(weight_map={"x": "a.safetensors"})
    assert names(folder) == ["a.safetensors"]
    make(folder, WEIGHTS)
    assert names(folder) == [WEIGHTS] and "an index that names other files" in caplog.text
    caplog.clear()
    assert names(index(weight_map={"x": WEIGHTS, "y": "b.safetensors"})) == ["b.safetensors", WEIGHTS]
    assert names(index(weight_map={"x": WEIGHTS})) == [WEIGHTS] and not caplog.records


def test_an_index_is_read_before_shards_that_it_does_not_name(index):
    folder = make(index(weight_map={"x": "a.safetensors"}), "model-00001-of-00001.safetensors")
    assert names(folder) == ["a.safetensors"]


def stand_ins(path):
    """Puts a folder, a pipe, a device or a broken link in a file's place, one after the other."""
    for put in (
        lambda: path.symlink_to("nowhere"),
        lambda: path.symlink_to(path),
        path.mkdir,
        lambda: os.mkfifo(path),
        lambda: path.symlink_to("/dev/zero"),
    ):
        put()
        yield
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def test_what_is_no_plain_file_is_not_read(tmp_path):
    for _ in stand_ins(tmp_path / WEIGHTS):
        with pytest.raises(Qwen3Error, match=f"{WEIGHTS}: is not a file, or a link"):
            weight_files(tmp_path)
    make(tmp_path, WEIGHTS)
    for _ in stand_ins(tmp_path / INDEX):
        with pytest.raises(Qwen3Error, match=INDEX):
            weight_files(tmp_path)
        with pytest.raises(Qwen3Error, match=INDEX):
            weight_bytes(tmp_path)


@pytest.mark.parametrize(
    "name",
    [3, True, None, [], {}, "", "a\x1b[31m.safetensors", "a\n.safetensors", "..", "a\\b.safetensors", ".safetensors\0"],
)
def test_names_of_shards_are_checked_each(index, name):
    folder = index(weight_map={"x": "a.safetensors", "y": name})
    with pytest.raises(Qwen3Error, match="must name safetensors files beside it") as caught:
        weight_files(folder)
    assert str(caught.value).isprintable()
