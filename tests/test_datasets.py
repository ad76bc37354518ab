"""CIFARDataset, the demo set, Tiny-ImageNet's cache and the batches, on small data in the real formats."""

import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from made import write_cifar10
from PIL import Image
from torchvision import datasets as torchvision_datasets
from torchvision import transforms

import CIFARDataset
from CIFARDataset import CIFAR10, CIFAR100
from common import UserError
from datasets import demo, folders, read_images, tiny_imagenet
from engine import EvalBatches, TrainBatches
from faults import NO_FAULT, image_bits
from repairs import fault_of, with_fault

BASELINE = NO_FAULT, None
CPU = torch.device("cpu")


@pytest.mark.parametrize("protocol", (2, 4, 5))
def test_items_equal_torchvision(tmp_path, monkeypatch, protocol):
    write_cifar10(tmp_path, protocol=protocol)
    monkeypatch.setattr(torchvision_datasets.cifar, "check_integrity", lambda path, md5=None: True)
    for train in (True, False):
        own = CIFAR10(tmp_path, train=train)
        theirs = torchvision_datasets.CIFAR10(tmp_path, train=train, transform=transforms.ToTensor())
        assert len(own) == len(theirs) == (30 if train else 6)
        assert own.classes == theirs.classes and own.class_to_idx == theirs.class_to_idx
        for (image, label), (other, other_label) in zip(own, theirs):
            assert image.dtype == torch.float32 and torch.equal(image, other)
            assert type(label) is int and label == other_label


def test_cifar100(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    data = np.random.RandomState(0).randint(0, 256, (5, 3072), dtype=np.uint8)
    for name in ("train", "test"):
        entry = {"data": data, "fine_labels": [0, 99, 5, 6, 7], "coarse_labels": [0] * 5}
        (folder / name).write_bytes(pickle.dumps(entry, protocol=2))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [str(i) for i in range(100)]}, protocol=2))
    dataset = CIFAR100(tmp_path, train=False)
    assert [label for _, label in dataset] == [0, 99, 5, 6, 7]
    assert np.array_equal(dataset[1][0].mul(255).round().byte().flatten().numpy(), data[1])


@pytest.mark.parametrize(
    "transform", (None, transforms.ToTensor(), transforms.PILToTensor(), transforms.RandomCrop(32, 4))
)
def test_fault_comes_after_the_transform_on_the_8_bit_image(tmp_path, transform):
    write_cifar10(tmp_path)
    items = {}
    for mem_fault in ("baseline", "faulty", "reparied_n", "repaired_s"):
        torch.manual_seed(0)  # the same crops
        dataset = CIFAR10(
            tmp_path, mem_fault, train=False, transform=transform, faulty_bit=5, neighbor_offset=1, seed=9
        )
        items[mem_fault] = (torch.stack([image for image, _ in dataset]).double() * 255).round().int().numpy()
    clean = items["baseline"]
    broken = image_bits(9, range(6), (3, 32, 32)).int().numpy()
    assert np.array_equal(items["faulty"], clean - clean // 32 % 2 * 32 + broken * 32)
    assert np.array_equal(items["reparied_n"], clean - clean // 32 % 2 * 32 + clean // 64 % 2 * 32)
    assert np.array_equal(items["repaired_s"], clean - clean // 32 % 2 * 32 + clean // 128 * 32)


def test_constants_are_read_when_used(tmp_path, monkeypatch):
    write_cifar10(tmp_path)
    monkeypatch.setattr(CIFARDataset, "FAULTY_BIT", 3)
    monkeypatch.setattr(CIFARDataset, "NEIGHBOR_OFFSET", 2)
    assert CIFAR10(tmp_path, "repaired_n").fault == fault_of("repaired_n", 3, 2)


def test_items_equal_the_loader_whatever_order_and_workers(tmp_path):
    write_cifar10(tmp_path)
    dataset = CIFAR10(tmp_path, "faulty", train=False, faulty_bit=6, seed=5)
    images, labels = read_images("cifar10", tmp_path, train=False)
    faulty = with_fault(images, fault_of("faulty", 6, -1), seed=5)
    batches = list(EvalBatches(faulty, labels, CPU, batch_size=4))
    assert [len(labels) for _, labels in batches] == [4, 2]
    expected = torch.cat([images for images, _ in batches])
    assert torch.equal(torch.stack([image for image, _ in dataset]), expected)
    assert torch.equal(dataset[-1][0], expected[5]) and torch.equal(dataset[2][0], expected[2])
    for workers in (0, 2):
        ((others, other_labels),) = torch.utils.data.DataLoader(dataset, batch_size=6, num_workers=workers)
        assert torch.equal(others, expected) and torch.equal(other_labels, labels)


def test_a_transform_that_leaves_the_8_bit_range(tmp_path):
    write_cifar10(tmp_path)
    normalize = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.2] * 3)])
    with pytest.raises(UserError, match="normalise after"):
        CIFAR10(tmp_path, "faulty", transform=normalize)[0]


def test_one_warning_for_files_of_another_origin(tmp_path, capsys):
    folder = write_cifar10(tmp_path)
    CIFAR10(tmp_path), CIFAR10(tmp_path, train=False)
    assert capsys.readouterr().err.splitlines() == [
        f"warning: {folder} is not the official release (checksums differ); used as it is"
    ]


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def damage(folder):
    """Ways to break data_batch_3, each with words of its error message."""
    path = folder / "data_batch_3"
    whole = path.read_bytes()
    entry = pickle.loads(whole)
    rows = len(entry["data"])
    return {
        "missing": lambda: path.unlink(),
        "truncated": lambda: path.write_bytes(whole[: len(whole) // 2]),
        "no CIFAR file": lambda: path.write_bytes(b"<html>not found</html>"),
        "a list instead": lambda: path.write_bytes(pickle.dumps([1])),
        "builtins.print": lambda: path.write_bytes(pickle.dumps({**entry, "extra": Evil()}, protocol=4)),
        "'data'": lambda: path.write_bytes(pickle.dumps({**entry, "data": entry["data"][:, 1:]})),
        "uint8": lambda: path.write_bytes(pickle.dumps({**entry, "data": entry["data"].astype(np.int64)})),
        f"each of {rows}": lambda: path.write_bytes(pickle.dumps({**entry, "labels": entry["labels"][1:]})),
        "from 0 to 9": lambda: path.write_bytes(pickle.dumps({**entry, "labels": [10] * rows})),
        "'labels'": lambda: path.write_bytes(pickle.dumps({"data": entry["data"]})),
    }


@pytest.mark.parametrize(
    "word",
    [
        "missing",
        "truncated",
        "no CIFAR file",
        "a list instead",
        "builtins.print",
        "'data'",
        "uint8",
        "each of 6",
        "from 0 to 9",
        "'labels'",
    ],
)
def test_damaged_files_are_named_and_execute_nothing(tmp_path, capsys, word):
    folder = write_cifar10(tmp_path)
    damage(folder)[word]()
    with pytest.raises(UserError) as error:
        CIFAR10(tmp_path)
    assert str(folder / "data_batch_3") in str(error.value) and word in str(error.value)
    assert "\n" not in str(error.value) and "executed" not in capsys.readouterr().out


def test_no_download_possible(tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision_datasets.cifar, "download_and_extract_archive", unreachable)
    with pytest.raises(UserError, match=r"put cifar-10-python\.tar\.gz into .*run\.sh demo needs no download") as error:
        CIFAR10(tmp_path, download=True)
    assert "\n" not in str(error.value)


def test_demo_set_is_deterministic_and_in_cifars_format(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "BATCHES", dict.fromkeys(demo.BATCHES, 20))
    images, labels = read_images("demo", tmp_path / "a", train=True)
    again, _ = read_images("demo", tmp_path / "b", train=True)
    assert images.shape == (100, 3, 32, 32) and images.dtype == torch.uint8 and torch.equal(images, again)
    assert set(labels.tolist()) <= set(range(10))
    for name in demo.BATCHES:
        assert (tmp_path / "a/demo-batches-py" / name).read_bytes() == (
            tmp_path / "b/demo-batches-py" / name
        ).read_bytes()
    monkeypatch.setattr(torchvision_datasets.cifar, "check_integrity", lambda path, md5=None: True)
    monkeypatch.setattr(torchvision_datasets.CIFAR10, "base_folder", "demo-batches-py")
    theirs = torchvision_datasets.CIFAR10(tmp_path / "a")  # torchvision can read it
    assert np.array_equal(theirs.data, images.permute(0, 2, 3, 1).numpy()) and theirs.targets == labels.tolist()
    monkeypatch.setattr(demo, "NOISE", 0)  # an edited constant takes effect
    assert not torch.equal(read_images("demo", tmp_path / "a", train=True)[0], images)


@pytest.fixture
def tiny(tmp_path):
    """A Tiny-ImageNet of 200 classes with 2 training images and 1 validation image each, sorted."""
    rng = np.random.RandomState(0)
    for i in range(200):
        for split, count in (("train", 2), ("val", 1)):
            place = tmp_path / split / f"n{i:08d}" / "images"
            place.mkdir(parents=True)
            for k in range(count):
                mode = "L" if i % 7 == 0 else "RGB"  # some of the real images are grey
                shape = (64, 64) if mode == "L" else (64, 64, 3)
                Image.fromarray(rng.randint(0, 256, shape, dtype=np.uint8), mode).save(place / f"{split}_{k}.JPEG")
    return tmp_path


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
@pytest.mark.parametrize("train", (True, False))
def test_tiny_imagenet_equals_image_folder(tiny, train):
    images, labels = tiny_imagenet.read(tiny, train, workers=2)
    folder = torchvision_datasets.ImageFolder(tiny / ("train" if train else "val"))
    assert np.array_equal(images, np.stack([np.asarray(image) for image, _ in folder]))
    assert labels.tolist() == folder.targets


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
def test_tiny_imagenet_cache(tiny, monkeypatch):
    images, labels = tiny_imagenet.read(tiny, False, workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(folders, "_decode", None)  # a second decoding would fail
        again, again_labels = tiny_imagenet.read(tiny, False, workers=2)
    assert np.array_equal(images, again) and np.array_equal(labels, again_labels)

    changed = tiny / "val" / "n00000003" / "images" / "val_0.JPEG"
    Image.new("RGB", (64, 64), (10, 20, 30)).save(changed)
    fresh, _ = tiny_imagenet.read(tiny, False, workers=1)
    assert (fresh[3] == np.asarray(Image.open(changed))).all() and np.array_equal(fresh[4], images[4])

    cache = tiny / "val.npz"
    cache.write_bytes(cache.read_bytes()[:1000])
    assert np.array_equal(tiny_imagenet.read(tiny, False, workers=1)[0], fresh)
    assert sorted(path.name for path in tiny.iterdir()) == ["train", "val", "val.npz"]


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
def test_tiny_imagenet_bad_input(tiny, tmp_path):
    with pytest.raises(UserError, match=r"python3 trans\.py says where"):
        tiny_imagenet.read(tmp_path / "nowhere", True, 1)
    broken = tiny / "val" / "n00000003" / "images" / "val_0.JPEG"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(UserError, match=r"n00000003/images/val_0\.JPEG is no readable image"):
        tiny_imagenet.read(tiny, False, 2)
    Image.new("RGB", (32, 64)).save(broken)
    with pytest.raises(UserError, match="32×64"):
        tiny_imagenet.read(tiny, False, 2)
    (tiny / "val" / "images").mkdir()
    with pytest.raises(UserError, match="not sorted into class folders"):
        tiny_imagenet.read(tiny, True, 1)
    (tiny / "val" / "images").rmdir()
    (tiny / "train" / "n00000000" / "images").rename(tiny / "train" / "n00000000" / "other")
    with pytest.raises(UserError, match="n00000000/images is missing"):
        tiny_imagenet.read(tiny, True, 1)


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
def test_tiny_imagenet_in_other_layouts(tiny, tmp_path, monkeypatch, capsys):
    """Images in the class folders themselves, files of macOS beside them, all in a folder of the same name."""
    expected, _ = tiny_imagenet.read(tiny, False, 1)
    assert capsys.readouterr().err.splitlines() == [
        f"warning: {tiny / 'val'} holds 200 images instead of 10,000: n00000000 has 1 of 50, "
        "and 199 more classes too few"
    ]
    for wnid in (tiny / "val").iterdir():
        (wnid / "images" / "val_0.JPEG").rename(wnid / "val_0.JPEG")
        (wnid / "images").rmdir()
        (wnid / "._val_0.JPEG").write_text("junk")
    (tiny / "val" / ".DS_Store").write_text("junk")
    outer = tmp_path / "tiny-imagenet-200"
    (outer / outer.name).mkdir(parents=True)
    for split in ("train", "val"):
        (tiny / split).rename(outer / outer.name / split)
    assert np.array_equal(tiny_imagenet.read(outer, False, 1)[0], expected)


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch, capsys):
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (32, 32), (1, 2, 3)).save(tmp_path / split / name / "0.png")

    def read_only(self, *args, **kwargs):
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(folders, "open", lambda path, mode: read_only(path), raising=False)
    monkeypatch.setattr("pathlib.Path.unlink", read_only)
    images, labels = folders.read(tmp_path, True, 1)
    assert images.shape == (2, 32, 32, 3) and labels.tolist() == [0, 1]
    assert "cannot be written (Read-only file system): the images will be decoded again" in capsys.readouterr().out


def test_a_missing_batch_is_not_downloaded_over_the_others(tmp_path, monkeypatch):
    folder = write_cifar10(tmp_path)
    (folder / "data_batch_3").unlink()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(torchvision_datasets.cifar, "download_and_extract_archive", None)  # must not be called
    with pytest.raises(UserError, match=r"data_batch_3 is missing beside other files"):
        CIFAR10(tmp_path, download=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_files_that_other_programs_write(tmp_path, monkeypatch):
    """Keys and class names as bytes, labels as a NumPy array; and a ~ in the path."""
    folder = write_cifar10(tmp_path)
    expected = CIFAR10(tmp_path)
    for path in folder.iterdir():
        entry = pickle.loads(path.read_bytes())
        if "labels" in entry:
            entry["labels"] = np.array(entry["labels"])
        else:
            entry["label_names"] = [name.encode() for name in entry["label_names"]]
        path.write_bytes(pickle.dumps({key.encode(): value for key, value in entry.items()}))
    monkeypatch.setenv("HOME", str(tmp_path))
    for found in (CIFAR10("~"), CIFAR10(tmp_path)):
        assert np.array_equal(found.data, expected.data) and found.targets == expected.targets
        assert found.classes == expected.classes and all(type(label) is int for label in found.targets)
    assert torch.equal(read_images("cifar10", "~", True)[1], torch.tensor(expected.targets))


def numbered(count, size=8):
    """Images whose channels hold image number, column and row, so that each pixel tells where it came from."""
    images = torch.zeros(count, 3, size, size, dtype=torch.uint8)
    images[:, 0] = torch.arange(count)[:, None, None]
    images[:, 1] = torch.arange(1, size + 1)  # column; 0 is padding
    images[:, 2] = torch.arange(1, size + 1)[:, None]  # row
    return images, torch.arange(count)


def to_bytes(images):
    return (images.double() * 255).round().int()


@pytest.mark.parametrize(
    "count,batch_size,world,duplicate", [(100, 16, 1, 1), (100, 8, 2, 1), (66, 16, 2, 3), (97, 32, 1, 1)]
)
def test_a_pass_hands_out_every_image_once_and_processes_share_it(count, batch_size, world, duplicate):
    images, labels = numbered(count)
    ranks = [
        list(TrainBatches(images, labels, batch_size, 0, [BASELINE], 1, CPU, duplicate, rank, world).epoch(0))
        for rank in range(world)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    seen = Counter(label for batches in ranks for _, labels, _ in batches for label in labels.tolist())
    assert seen == dict.fromkeys(range(count), duplicate)
    assert all(len(labels) >= 2 for batches in ranks for _, labels, _ in batches)
    for batches in ranks:
        for images, labels, _ in batches:
            assert (to_bytes(images)[:, 0].amax((1, 2)) == labels).all()
    alone = TrainBatches(*numbered(count), batch_size * world, 0, [BASELINE], 1, CPU, duplicate)
    for step, (_, labels, _) in enumerate(alone.epoch(0)):  # the batches of the processes together are one batch
        together = torch.cat([batches[step][1] for batches in ranks])
        assert sorted(together.tolist()) == sorted(labels.tolist())


def test_augmentation_against_numpy():
    images, labels = numbered(200)
    batches = TrainBatches(images, labels, 200, 2, [BASELINE], 3, CPU)
    cut, order, _ = next(iter(batches.epoch(0)))
    shifts, flips = Counter(), Counter()
    for image, label in zip(to_bytes(cut).numpy(), order.tolist()):
        padded = np.pad(images[label].numpy(), ((0, 0), (2, 2), (2, 2)))
        windows = {
            (top, left, flip): padded[:, top : top + 8, left : left + 8][:, :, :: -1 if flip else 1]
            for top in range(5)
            for left in range(5)
            for flip in (False, True)
        }
        (found,) = [key for key, window in windows.items() if np.array_equal(window, image)]
        shifts[found[:2]] += 1
        flips[found[2]] += 1
    assert len(shifts) == 25 and 70 < flips[True] < 130


def test_passes_differ_and_repeat():
    images, labels = numbered(50)
    batches = TrainBatches(images, labels, 16, 2, [(fault_of("faulty", 6, -1), None)], 3, CPU)
    first, second, again = (list(batches.epoch(epoch)) for epoch in (0, 1, 0))
    assert all(torch.equal(a, b) and torch.equal(c, d) for (a, c, _), (b, d, _) in zip(first, again))
    assert not torch.equal(
        torch.cat([labels for _, labels, _ in first]), torch.cat([labels for _, labels, _ in second])
    )


@pytest.mark.parametrize("mem_fault,bit,offset", [("faulty", 6, -1), ("repaired_n", 5, 2), ("repaired_s", 4, -1)])
def test_training_images_get_the_fault_after_augmentation(mem_fault, bit, offset):
    images, labels = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8), torch.arange(64)
    clean = to_bytes(next(iter(TrainBatches(images, labels, 64, 2, [BASELINE], 3, CPU).epoch(0)))[0])
    fault = fault_of(mem_fault, bit, offset)
    result = to_bytes(next(iter(TrainBatches(images, labels, 64, 2, [(fault, None)], 3, CPU).epoch(0)))[0])
    rest = clean - clean // 2**bit % 2 * 2**bit
    if mem_fault == "faulty":
        assert set((result - rest).unique().tolist()) == {0, 2**bit}
        assert abs(((result - rest) == 2**bit).double().mean() - 0.5) < 0.05
    else:
        source = bit + offset if mem_fault == "repaired_n" else 7
        assert torch.equal(result, rest + clean // 2**source % 2 * 2**bit)
