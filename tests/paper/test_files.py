"""MNIST's and CIFAR-10's files: read exactly, or refused with one DataError that names the file."""

from __future__ import annotations

import gzip
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from lth_sparse.errors import DataError
from lth_sparse.paper import files, load_dataset

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def replaced(path: Path, at: int, new: bytes) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:at] + new + data[at + len(new) :])


def gzipped(directory: Path) -> None:
    for path in list(directory.iterdir()):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()


def refusal(name: str, directory: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_dataset(name, directory)
    return str(caught.value)


def test_mnist_pixels_and_labels_are_those_of_the_files(mnist: Path) -> None:
    (x, y), (x_test, y_test) = files.read_mnist(mnist)
    assert x.shape == (120, 1, 28, 28)
    assert x.numpy().tobytes() == (mnist / IMAGES).read_bytes()[16:]
    assert y.tolist() == [i % 10 for i in range(120)]
    assert (x_test.shape, y_test.shape, y_test.dtype) == ((40, 1, 28, 28), (40,), torch.int64)


def test_mnist_gzipped_is_the_same(mnist: Path) -> None:
    plain = files.read_mnist(mnist)
    gzipped(mnist)
    packed = files.read_mnist(mnist)
    assert all(torch.equal(a, b) for p, q in zip(plain, packed, strict=True) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("folder", ["MNIST/raw", "raw"])
def test_mnist_is_found_where_torchvision_puts_it(mnist: Path, tmp_path_factory: Any, folder: str) -> None:
    root = tmp_path_factory.mktemp("root")
    shutil.copytree(mnist, root / folder)
    assert files.read_mnist(root)[0][0].shape == (120, 1, 28, 28)


def test_mnist_is_found_under_the_spelling_with_a_dot(mnist: Path) -> None:
    (mnist / IMAGES).rename(mnist / "train-images.idx3-ubyte")
    assert files.read_mnist(mnist)[0][0].shape == (120, 1, 28, 28)


def test_cifar10_pixels_and_labels_are_those_of_the_files(cifar10: Path) -> None:
    (x, y), (x_test, _) = files.read_cifar10(cifar10)
    assert (x.shape, x_test.shape) == ((150, 3, 32, 32), (30, 3, 32, 32))
    assert x[0].numpy().tobytes() == (cifar10 / "data_batch_1.bin").read_bytes()[1:3073]
    assert x[-1].numpy().tobytes() == (cifar10 / "data_batch_5.bin").read_bytes()[-3072:]
    assert y.tolist() == [i % 10 for i in range(30)] * 5


def test_cifar10_is_found_in_the_folder_of_its_archive(cifar10: Path, tmp_path_factory: Any) -> None:
    root = tmp_path_factory.mktemp("root")
    shutil.copytree(cifar10, root / "cifar-10-batches-bin")
    assert files.read_cifar10(root)[0][0].shape == (150, 3, 32, 32)


def test_sizes_are_the_papers() -> None:
    assert files.MNIST_TRAIN - files.HELD_OUT == 55_000
    assert files.CIFAR10_BATCHES * files.CIFAR10_BATCH - files.HELD_OUT == 45_000
    assert files.HELD_OUT == 5_000
    assert files.MNIST_TEST == files.CIFAR10_BATCH == 10_000


@pytest.mark.parametrize(
    ("file", "at", "new", "message"),
    [
        (IMAGES, 0, b"\x00\x00\x08\x01", "expected the IDX magic number 0x00000803, found 0x00000801"),
        (LABELS, 0, b"PK\x03\x04", "expected the IDX magic number 0x00000801, found 0x504b0304"),
        (IMAGES, 4, struct.pack(">I", 119), "expected dimensions 120x28x28, found 119x28x28"),
        (IMAGES, 8, struct.pack(">I", 32), "expected dimensions 120x28x28, found 120x32x28"),
        (IMAGES, 4, b"\xff\xff\xff\xff", "expected dimensions 120x28x28, found 4,294,967,295x28x28"),
        (LABELS, 8 + 17, b"\x0a", "expected labels from 0 to 9, found 10 as label 17"),
    ],
)
def test_foreign_bytes_in_mnist_are_named(mnist: Path, file: str, at: int, new: bytes, message: str) -> None:
    replaced(mnist / file, at, new)
    refused = refusal("mnist", mnist)
    assert refused.startswith(f"{mnist / file}: {message}. MNIST is four IDX files")


@pytest.mark.parametrize(
    ("length", "found"), [(0, "0 bytes"), (15, "15 bytes"), (16, "16"), (94_095, "94,095"), (94_097, "more")]
)
def test_a_file_of_another_length_is_refused(mnist: Path, length: int, found: str) -> None:
    whole = (mnist / IMAGES).read_bytes()
    assert len(whole) == 94_096
    (mnist / IMAGES).write_bytes((whole + b"\x00")[:length])
    assert f"{IMAGES}: expected " in refusal("mnist", mnist)
    assert f", found {found}. " in refusal("mnist", mnist)


@pytest.mark.parametrize("damage", ["truncated", "corrupt", "not gzip", "empty"])
def test_a_damaged_gzip_file_is_refused(mnist: Path, damage: str) -> None:
    gzipped(mnist)
    path = mnist / f"{IMAGES}.gz"
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "truncated": whole[:middle],
            "corrupt": whole[:middle] + bytes(b ^ 0xFF for b in whole[middle : middle + 64]) + whole[middle + 64 :],
            "not gzip": b"<html>not found</html>",
            "empty": b"",
        }[damage]
    )
    assert f"{path}: expected " in refusal("mnist", mnist)


def test_a_gzip_file_that_unpacks_to_far_too_much_is_refused_unread(mnist: Path) -> None:
    gzipped(mnist)
    path = mnist / f"{IMAGES}.gz"
    header = struct.pack(">4I", 0x803, 120, 28, 28)
    path.write_bytes(gzip.compress(header + bytes(50_000_000), compresslevel=1))
    assert f"{path}: expected 94,096 bytes, found more" in refusal("mnist", mnist)


@pytest.mark.parametrize("part", ["train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"])
def test_a_missing_mnist_file_is_named(mnist: Path, part: str) -> None:
    (mnist / f"{part}-ubyte").unlink()
    refused = refusal("mnist", mnist)
    assert refused.startswith(f"{mnist}: expected the file {part}-ubyte or {part}-ubyte.gz, found neither. MNIST is")


@pytest.mark.parametrize("file", ["data_batch_3.bin", "test_batch.bin"])
def test_a_missing_cifar10_file_is_named(cifar10: Path, file: str) -> None:
    (cifar10 / file).unlink()
    refused = refusal("cifar10", cifar10)
    assert refused.startswith(f"{cifar10}: expected the file {file}, found no such file. CIFAR-10 is wanted")


@pytest.mark.parametrize(("length", "found"), [(0, "0"), (92_189, "92,189"), (92_191, "more")])
def test_a_cifar10_file_of_another_length_is_refused(cifar10: Path, length: int, found: str) -> None:
    path = cifar10 / "data_batch_2.bin"
    path.write_bytes((path.read_bytes() + b"\x00")[:length])
    assert f"{path}: expected 92,190 bytes (30 records of 3,073), found {found}. " in refusal("cifar10", cifar10)


def test_a_label_out_of_range_in_cifar10_is_named(cifar10: Path) -> None:
    replaced(cifar10 / "test_batch.bin", 3073 * 4, b"\xff")
    refused = refusal("cifar10", cifar10)
    assert refused.startswith(f"{cifar10 / 'test_batch.bin'}: expected labels from 0 to 9, found 255 as label 4. ")


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("folder", ["", "cifar-10-batches-py"])
def test_the_pickled_cifar10_is_refused_with_the_reason_and_never_opened(tmp_path: Path, folder: str) -> None:
    target = tmp_path / folder
    target.mkdir(exist_ok=True)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        (target / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    refused = refusal("cifar10", tmp_path)
    assert "python version, a pickle; unpickling runs code" in refused
    assert str(target / "data_batch_1") in refused
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_no_directory_given_says_where_the_files_come_from(name: str) -> None:
    with pytest.raises(
        DataError, match=f"{name}: expected the directory that holds its files, got none. .* version|IDX"
    ):
        load_dataset(name)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_directory_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    file = tmp_path / "file"
    file.touch()
    assert f"{tmp_path / 'absent'}: expected a directory, found nothing" in refusal(name, tmp_path / "absent")
    assert f"{file}: expected a directory, found a file" in refusal(name, file)
    assert "expected a readable directory" in refusal(name, Path("nul\0byte"))


def test_an_unreadable_directory_is_refused(mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(self: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", forbidden)
    assert f"{mnist}: expected a readable directory, found Permission denied. " in refusal("mnist", mnist)


def test_an_unreadable_file_is_refused(cifar10: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: Path, *args: Any, **kwargs: Any) -> Any:
        raise OSError(5, "Input/output error", str(self))

    monkeypatch.setattr(Path, "open", failing)
    path = cifar10 / "data_batch_1.bin"
    assert f"{path}: expected a readable file, found Input/output error. " in refusal("cifar10", cifar10)


@pytest.mark.parametrize("packed", [False, True])
def test_a_directory_in_the_place_of_a_file_is_refused(mnist: Path, packed: bool) -> None:
    (mnist / IMAGES).unlink()
    path = mnist / (f"{IMAGES}.gz" if packed else IMAGES)
    path.mkdir()
    assert f"{path}: expected a readable file, found Is a directory. " in refusal("mnist", mnist)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_refusal_is_one_line_without_an_address(name: str, tmp_path: Path) -> None:
    refused = refusal(name, tmp_path)
    assert "\n" not in refused
    assert "://" not in refused


def test_constant_images_are_refused(mnist: Path) -> None:
    size = (mnist / IMAGES).stat().st_size
    replaced(mnist / IMAGES, 16, bytes(size - 16))
    assert "mnist: expected training images that differ" in refusal("mnist", mnist)


def test_reading_needs_no_pickle(cifar10: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("unpickled")

    monkeypatch.setattr(pickle, "load", never)
    monkeypatch.setattr(pickle, "loads", never)
    assert len(load_dataset("cifar10", cifar10).train) == 130
