import hashlib
import os
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch
from conftest import REAL_DATA
from hypothesis import given
from hypothesis import strategies as st

from kdlab.data import (
    DataError,
    ExactTeacher,
    Examples,
    KnownPosterior,
    Split,
    crop_and_flip,
    folder,
    images,
    load_cifar10,
    load_cifar100,
    load_digits,
    load_images,
)
from kdlab.data.examples import as_split
from kdlab.objectives import soften
from kdlab.training import expected_calibration_error


@pytest.fixture(scope="module")
def whole_digits():
    return load_digits()


def split_of(n, **options):
    """Images that are their own labels: image ``i`` has the value ``i`` everywhere."""
    labels = torch.arange(n)
    pixels = labels.to(torch.uint8)[:, None, None, None].expand(n, 3, 32, 32).clone()
    return Split(pixels, labels, mean=(0.0,) * 3, std=(1 / 255,) * 3, **options)


# CIFAR in its official layout, a hundredth of its size


def cifar100_rows(n, seed):
    fine = np.arange(n) % 100
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 3072))
    return np.concatenate([(fine // 5)[:, None], fine[:, None], pixels], 1).astype(np.uint8)


def content_checksum(rows):
    return hashlib.sha256(b"".join(sorted(hashlib.sha256(row.tobytes()).digest() for row in rows))).hexdigest()


@pytest.fixture
def small(monkeypatch):
    """Files with a hundredth of the official number of images are whole."""
    read = images._read_rows
    monkeypatch.setattr(images, "_read_rows", lambda path, rows, size: read(path, rows // 100, size))


@pytest.fixture
def cifar100(small, monkeypatch):
    """A folder with a small CIFAR-100 whose checksums are those of the real one."""
    where = folder() / "cifar-100-binary"
    where.mkdir(parents=True)
    train, test = cifar100_rows(500, seed=0), cifar100_rows(100, seed=1)
    (where / "train.bin").write_bytes(train.tobytes())
    (where / "test.bin").write_bytes(test.tobytes())
    (where / "fine_label_names.txt").write_text("\n".join(f"fine{c}" for c in range(100)) + "\n\n")
    (where / "coarse_label_names.txt").write_text("\n".join(f"coarse{c}" for c in range(20)) + "\n")
    monkeypatch.setattr(images, "CIFAR100_CHECKSUM", content_checksum(train))
    monkeypatch.setattr(images, "CIFAR100_TEST_CHECKSUM", content_checksum(test))
    return where


def rows_of(split):
    return {(int(label), image.numpy().tobytes()) for image, label in zip(split.images, split.labels, strict=True)}


def test_cifar100_is_read_as_its_publisher_wrote_it(cifar100):
    data = load_cifar100(validation_per_class=1)
    assert (data.name, data.num_classes, data.fallback) == ("cifar100", 100, False)
    assert (len(data.train), len(data.validation), len(data.test)) == (400, 100, 100)
    assert data.classes[7] == "fine7" and data.superclasses[1] == "coarse1" and data.superclass_of[7] == 1
    written = {(int(row[1]), row[2:].reshape(3, 32, 32).tobytes()) for row in cifar100_rows(500, seed=0)}
    assert rows_of(data.train) | rows_of(data.validation) == written
    assert data.train.flip and data.train.images.dtype == torch.uint8 and data.train.labels.dtype == torch.int64


def test_cifar100_splits_are_disjoint_and_stratified(cifar100):
    data = load_cifar100(validation_per_class=2)
    train, validation, test = rows_of(data.train), rows_of(data.validation), rows_of(data.test)
    assert not (train & validation or train & test or validation & test)
    assert torch.equal(data.validation.labels.bincount(), torch.full((100,), 2))
    assert torch.equal(data.train.labels.bincount(), torch.full((100,), 3))


def test_order_on_disk_does_not_matter(cifar100):
    first = load_cifar100(validation_per_class=1)
    for name, n, seed in (("train", 500, 0), ("test", 100, 1)):
        shuffled = np.random.default_rng(9).permutation(cifar100_rows(n, seed))
        (cifar100 / f"{name}.bin").write_bytes(shuffled.tobytes())
    second = load_cifar100(validation_per_class=1)
    assert first.checksum == second.checksum
    for name in ("train", "validation", "test"):
        a, b = getattr(first, name), getattr(second, name)
        assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and a.mean == b.mean


@pytest.mark.parametrize("name", ["train.bin", "test.bin", "fine_label_names.txt", "coarse_label_names.txt"])
def test_a_missing_file_is_named(cifar100, name):
    (cifar100 / name).unlink()
    with pytest.raises(DataError, match=f"{name} is missing; delete its folder, and it is downloaded again"):
        load_cifar100()


@pytest.mark.parametrize("change", [-1, -3074, 1])
def test_a_truncated_file_is_refused(cifar100, change):
    content = (cifar100 / "train.bin").read_bytes()
    (cifar100 / "train.bin").write_bytes(content[:change] if change < 0 else content + b"x")
    with pytest.raises(DataError, match=r"train.bin has 1,53.,... bytes instead of 1,537,000: it is truncated or not"):
        load_cifar100()


@pytest.mark.parametrize("name", ["train", "test"])
@pytest.mark.parametrize("change", ["one pixel", "one label", "one image twice"])
def test_wrong_content_is_refused(cifar100, name, change):
    rows = cifar100_rows(500 if name == "train" else 100, seed=0 if name == "train" else 1)
    if change == "one image twice":
        rows[3] = rows[4]
    else:
        rows[3, 100 if change == "one pixel" else 1] ^= 1
    (cifar100 / f"{name}.bin").write_bytes(rows.tobytes())
    with pytest.raises(DataError, match=f"{name}.bin does not hold the .* images of CIFAR-100"):
        load_cifar100()


def test_a_fake_is_refused_by_the_real_checksum(cifar100, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("KDLAB_DATA", str(cifar100.parent))
    read = images._read_rows
    monkeypatch.setattr(images, "_read_rows", lambda path, rows, size: read(path, rows // 100, size))
    with pytest.raises(DataError, match="does not hold the 50,000 images of CIFAR-100"):
        load_cifar100()


def test_images_that_are_there_but_damaged_are_not_stepped_over(cifar100):
    (cifar100 / "test.bin").unlink()
    with pytest.raises(DataError, match="test.bin is missing"):
        load_images()


def test_images_are_cifar100_where_it_is(cifar100):
    assert load_images().name == "cifar100"


@pytest.fixture
def cifar10(small, monkeypatch):
    """A folder with a small CIFAR-10 whose checksums are those of the real one."""
    where = folder() / "cifar-10-batches-bin"
    where.mkdir(parents=True)
    rows = np.random.default_rng(0).integers(0, 256, (600, 3073)).astype(np.uint8)
    rows[:, 0] = np.arange(600) % 10
    for part, name in enumerate([*(f"data_batch_{b}" for b in range(1, 6)), "test_batch"]):
        (where / f"{name}.bin").write_bytes(rows[100 * part : 100 * part + 100].tobytes())
    names = "airplane automobile bird cat deer dog frog horse ship truck".split()
    (where / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
    monkeypatch.setattr(images, "CIFAR10_CHECKSUM", content_checksum(rows[:500]))
    monkeypatch.setattr(images, "CIFAR10_TEST_CHECKSUM", content_checksum(rows[500:]))
    return where


def test_cifar10(cifar10):
    data = load_cifar10(validation_per_class=10)
    assert (len(data.train), len(data.validation), len(data.test)) == (400, 100, 100)
    vehicles = [c for c, s in zip(data.classes, data.superclass_of, strict=True) if data.superclasses[s] == "vehicles"]
    assert vehicles == ["airplane", "automobile", "ship", "truck"]
    assert torch.equal(data.train.labels.bincount(), torch.full((10,), 40))


def test_cifar10_damaged_is_refused(cifar10):
    (cifar10 / "data_batch_2.bin").write_bytes(b"")
    with pytest.raises(DataError, match="data_batch_2.bin has 0 bytes instead of 307,300"):
        load_cifar10()
    (cifar10 / "data_batch_2.bin").write_bytes(bytes([10]) * 307_300)
    with pytest.raises(DataError, match="data_batch_1.bin to data_batch_5.bin do not hold the .* images of CIFAR-10"):
        load_cifar10()


@pytest.mark.parametrize("content", ["noise", "training images"])
def test_what_is_no_cifar10_is_refused(cifar10, content):
    """Of the right size, with labels that there are."""
    rows = np.random.default_rng(1).integers(0, 10, (100, 3073)).astype(np.uint8).tobytes()
    if content == "training images":
        rows = (cifar10 / "data_batch_1.bin").read_bytes()
    (cifar10 / "test_batch.bin").write_bytes(rows)
    with pytest.raises(DataError, match="test_batch.bin does not hold the .* images of CIFAR-10"):
        load_cifar10()


@pytest.mark.skipif(
    not (REAL_DATA and (Path(REAL_DATA) / "cifar-100-binary").is_dir()),
    reason="CIFAR-100 is not in KDLAB_DATA",
)
def test_real_cifar100(monkeypatch):
    monkeypatch.setenv("KDLAB_DATA", REAL_DATA)
    data = load_cifar100()
    assert (len(data.train), len(data.validation), len(data.test)) == (45_000, 5_000, 10_000)
    assert data.train.mean == pytest.approx((0.50707516, 0.48654887, 0.44091784), abs=1e-8)
    assert torch.equal(data.test.labels.bincount(), torch.full((100,), 100))
    assert torch.equal(torch.tensor(data.superclass_of).bincount(), torch.full((20,), 5))
    assert not rows_of(data.validation) & rows_of(data.train)


# Downloading


@pytest.fixture
def online(monkeypatch):
    """Downloads are on, and what pooch does is the test's to say."""
    monkeypatch.delenv("KDLAB_OFFLINE")

    def retrieve(action):
        monkeypatch.setattr(pooch, "retrieve", lambda url, known_hash, *, fname, path, **_: action(Path(path) / fname))

    return retrieve


def no_connection(archive):
    raise ConnectionError("no route to host\nmore lines")


def half_an_archive(archive):
    archive.write_bytes(b"\x1f\x8b" + bytes(100))
    return archive


def disk_full(archive):
    archive.write_bytes(b"part")
    raise OSError(28, "No space left on device")


def another_archive(archive):
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(__file__, arcname="something-else/readme.txt")
    return archive


failures = pytest.mark.parametrize("failure", [no_connection, half_an_archive, disk_full, another_archive])


@failures
def test_a_failed_download_leaves_nothing_behind(online, failure):
    online(failure)
    with pytest.raises(DataError, match="cifar-100-binary could not be downloaded from https://www.cs.toronto.edu"):
        load_cifar100()
    assert list(folder().iterdir()) == []


@failures
def test_a_failed_download_falls_back_to_the_digits(online, failure):
    online(failure)
    data = load_images()
    assert data.name == "digits" and data.fallback


def test_a_data_folder_that_cannot_be_made_falls_back_to_the_digits(online, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("KDLAB_DATA", str(tmp_path / "file" / "data"))
    online(no_connection)
    assert load_images().fallback


def test_an_interrupted_download_leaves_nothing_behind(online):
    def interrupt(archive):
        archive.write_bytes(b"part")
        raise KeyboardInterrupt

    online(interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_cifar100()
    assert list(folder().iterdir()) == []


def test_a_download_is_unpacked_and_used_the_next_time(online, tmp_path):
    (tmp_path / "cifar-10-batches-bin").mkdir()
    (tmp_path / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(b"x")
    calls = []

    def whole(archive):
        calls.append(archive)
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(tmp_path / "cifar-10-batches-bin", arcname="cifar-10-batches-bin")
        return archive

    online(whole)
    for _ in range(2):
        with pytest.raises(DataError, match="data_batch_1.bin is missing"):
            load_cifar10()
    assert len(calls) == 1
    assert [path.name for path in folder().iterdir()] == ["cifar-10-batches-bin"]


def test_the_published_hash_is_what_a_download_is_checked_against(monkeypatch):
    monkeypatch.delenv("KDLAB_OFFLINE")
    asked = {}

    def retrieve(url, known_hash, **_):
        asked[url.rsplit("/")[-1]] = known_hash
        raise ValueError("hash of downloaded file does not match")

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    for load in (load_cifar100, load_cifar10):
        with pytest.raises(DataError, match="hash of downloaded file does not match"):
            load()
    assert asked == {
        "cifar-100-binary.tar.gz": "md5:03b5dce01913d631647c71ecec9e9cb8",
        "cifar-10-binary.tar.gz": "md5:c32a1d4ab5d03f1284b67883e8d87530",
    }


def test_downloading_can_be_turned_off(online, monkeypatch):
    online(lambda archive: pytest.fail("it asked the network"))
    with pytest.raises(DataError, match="does not exist, and downloading is turned off"):
        load_cifar100(download=False)
    assert load_images(download=False).fallback
    monkeypatch.setenv("KDLAB_OFFLINE", "1")
    with pytest.raises(DataError, match="downloading is turned off"):
        load_cifar10()


def test_missing_extras_are_named(online, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(DataError, match=r"downloading data needs pooch: pip install 'kdlab\[data\]'"):
        load_cifar100()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"the fall-back images come with scikit-learn: pip install 'kdlab\[data\]'"):
        load_digits()


def test_the_data_folder(monkeypatch, tmp_path):
    assert folder() == Path(os.environ["KDLAB_DATA"])
    monkeypatch.delenv("KDLAB_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert folder() == tmp_path / "kdlab"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert folder() == Path.home() / ".cache" / "kdlab"


def test_what_is_looked_for_is_traced(cifar100, monkeypatch, tmp_path):
    monkeypatch.setenv("KDLAB_TRACE", str(tmp_path / "trace"))
    load_cifar100(validation_per_class=1)
    traced = (tmp_path / "trace").read_text().splitlines()
    assert {str(cifar100), str(cifar100 / "train.bin"), str(cifar100 / "fine_label_names.txt")} <= set(traced)


# The digits that stand in


def test_digits_say_that_they_stand_in(whole_digits):
    assert whole_digits.fallback and whole_digits.name == "digits" and not whole_digits.train.flip
    assert whole_digits.num_classes == 10 == len(whole_digits.superclass_of)
    assert set(whole_digits.superclass_of) == set(range(len(whole_digits.superclasses)))
    assert len(whole_digits.train) + len(whole_digits.validation) + len(whole_digits.test) == 1797


def test_digits_splits_are_stratified_and_the_same_each_time(whole_digits):
    assert torch.equal(whole_digits.test.labels.bincount(), torch.full((10,), 40))
    assert torch.equal(whole_digits.validation.labels.bincount(), torch.full((10,), 20))
    again = load_digits()
    assert again.checksum == whole_digits.checksum
    assert torch.equal(again.train.images, whole_digits.train.images)


def test_normalised_training_images_have_mean_zero_and_deviation_one(whole_digits):
    both = torch.cat([whole_digits.train.images, whole_digits.validation.images])
    normalised = whole_digits.train.normalise(both)
    assert normalised.dtype == torch.float32
    assert normalised.mean((0, 2, 3)).tolist() == pytest.approx([0] * 3, abs=1e-4)
    assert normalised.std((0, 2, 3), correction=0).tolist() == pytest.approx([1] * 3, abs=1e-4)
    assert whole_digits.test.mean == whole_digits.train.mean  # the test images give no constants


def test_normalise_uses_each_channels_own_constants():
    split = replace(split_of(4), mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))
    white = split.normalise(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8))
    assert white[0, :, 0, 0].tolist() == [1.0, 1.0, 0.0]


# Batches and augmentation


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 100))
def test_a_shuffled_pass_shows_each_example_at_most_once_in_full_batches(n, size, seed):
    batches = list(split_of(n).batches(size, generator=torch.Generator().manual_seed(seed)))
    seen = torch.cat([labels for _, labels, _ in batches])
    assert len(seen.unique()) == len(seen)
    assert {len(labels) for _, labels, _ in batches} == {min(size, n)}
    assert len(batches) == max(n // size, 1)


@given(st.integers(1, 60), st.integers(1, 20))
def test_an_ordered_pass_shows_everything_in_order(n, size):
    assert torch.equal(torch.cat([labels for _, labels, _ in split_of(n).batches(size)]), torch.arange(n))


@pytest.mark.parametrize("augment", [False, True])
def test_images_and_labels_stay_together(augment):
    for inputs, labels, _ in split_of(50).batches(8, generator=torch.Generator().manual_seed(0), augment=augment):
        centre = inputs[:, :, 12:20, 12:20]
        torch.testing.assert_close(centre, labels.float().view(-1, 1, 1, 1).expand_as(centre))


def test_the_generator_fixes_order_and_augmentation(digits):
    def passes(seed):
        generator = torch.Generator().manual_seed(seed)
        return [list(digits.train.batches(16, generator=generator, augment=True)) for _ in range(2)]

    def same(a, b):
        return all(
            torch.equal(x, y) for left, right in zip(a, b, strict=True) for x, y in zip(left, right, strict=True)
        )

    first, again, other = passes(1), passes(1), passes(2)
    assert same(first[0], again[0]) and same(first[1], again[1])
    assert not same(first[0], first[1]) and not same(first[0], other[0])


def test_batches_leave_the_split_alone(digits):
    before = digits.train.images.clone()
    list(digits.train.batches(16, generator=torch.Generator(), augment=True))
    assert torch.equal(digits.train.images, before)


def test_a_split_can_be_indexed():
    split = split_of(10)
    assert len(split[:4]) == 4 and split[torch.tensor([7, 2])].labels.tolist() == [7, 2]
    assert split[:4].mean == split.mean and split.to("cpu").labels.tolist() == list(range(10))


def slow_crops(image, padding, flip):
    """All that crop_and_flip may make of one image, by its shift and whether it is mirrored."""
    channels, height, width = image.shape
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = torch.zeros_like(image)
            for row in range(height):
                for column in range(width):
                    y, x = row + top - padding, column + left - padding
                    if 0 <= y < height and 0 <= x < width:
                        crop[:, row, column] = image[:, y, x]
            yield (top, left, False), crop
            if flip:
                yield (top, left, True), crop.flip(2)


@pytest.mark.parametrize("flip", [False, True])
def test_crop_and_flip_is_what_the_slow_loop_makes(flip):
    padding, image = 2, torch.randint(1, 256, (3, 6, 5), dtype=torch.uint8)
    made = {crop.numpy().tobytes(): how for how, crop in slow_crops(image, padding, flip)}
    assert len(made) == 25 * (1 + flip)
    n = 4000
    out = crop_and_flip(image.repeat(n, 1, 1, 1), torch.Generator().manual_seed(0), padding=padding, flip=flip)
    assert out.shape == (n, 3, 6, 5) and out.dtype == torch.uint8
    drawn = [made[crop.contiguous().numpy().tobytes()] for crop in out]  # a KeyError is a crop that must not be
    counts = np.array([drawn.count(how) for how in made.values()])
    chi_squared = ((counts - n / len(made)) ** 2 / (n / len(made))).sum()
    assert chi_squared < len(made) + 4 * (2 * len(made)) ** 0.5  # all are equally likely


def test_each_image_is_moved_on_its_own():
    image = torch.randint(1, 256, (3, 32, 32), dtype=torch.uint8)
    out = crop_and_flip(image.repeat(64, 1, 1, 1), torch.Generator().manual_seed(0))
    assert len({crop.contiguous().numpy().tobytes() for crop in out}) > 40


def test_a_view_has_a_number():
    image = torch.randint(1, 256, (3, 6, 5), dtype=torch.uint8)
    split = Split(image[None], torch.zeros(1, dtype=torch.long), (0.0,) * 3, (1.0,) * 3)
    every, none = torch.tensor(split.all_views), torch.zeros(162, dtype=torch.long)
    seen = (split.seen(none, every) * 255).round().byte()
    crops = dict(slow_crops(image, 4, True))
    for number, crop in zip(every.tolist(), seen, strict=True):
        top, left = divmod(number % 81, 9)
        assert torch.equal(crop, crops[top, left, number >= 81])
    assert torch.equal(seen[images.UNMOVED], image)


def test_batches_tell_their_views():
    split, how = split_of(20), {"order": torch.arange(20).flip(0), "augment": True}
    plain = list(split.batches(6, generator=torch.Generator().manual_seed(0), **how))
    told = list(split.batches(6, generator=torch.Generator().manual_seed(0), tell_views=True, **how))
    for (x, _, index), (seen, _, _, views) in zip(plain, told, strict=True):
        assert torch.equal(x, seen) and torch.equal(seen, split.seen(index, views))
    later = split.batches(6, generator=torch.Generator().manual_seed(0), start=2, **how)
    assert torch.equal(next(later)[0], plain[2][0])
    few = split.with_views(3)
    *_, views = next(few.batches(20, generator=torch.Generator().manual_seed(0), tell_views=True, **how))
    assert set(views.tolist()) == set(few.views) and few.with_views(2).all_views == few.with_views(2, seed=0).views
    assert next(split.batches(4, tell_views=True))[3].tolist() == 4 * [images.UNMOVED]
    assert len(replace(split, flip=False).all_views) == 81
    with pytest.raises(ValueError, match="there are 162 views, of which at least one is drawn, not 163"):
        split.with_views(163)


def test_digits_are_never_mirrored(whole_digits, monkeypatch):
    flips, draw = [], images.draw_crops
    monkeypatch.setattr(images, "draw_crops", lambda n, g, *, flip: flips.append(flip) or draw(n, g, flip=flip))
    list(whole_digits.train[:8].batches(4, generator=torch.Generator(), augment=True))
    assert flips == [False, False]


# The task with a known posterior


def test_posterior_is_bayes_rule():
    task = KnownPosterior.draw(superclasses=3, classes_each=2, dimensions=4)
    task = replace(task, centres=task.centres.double())
    x = torch.randn(7, 4, dtype=torch.float64)
    sigma = torch.tensor(task.noise, dtype=torch.float64)
    density = torch.stack(
        [torch.distributions.Normal(centre, sigma).log_prob(x).sum(-1).exp() for centre in task.centres], -1
    )
    bayes = density / density.sum(-1, keepdim=True)
    torch.testing.assert_close(soften(task.posterior_logits(x)), bayes, rtol=1e-10, atol=1e-14)


def test_posterior_does_not_depend_on_the_batch():
    task = KnownPosterior.draw()
    x = task.sample(100).inputs
    alone = torch.cat([task.posterior_logits(row[None]) for row in x])
    torch.testing.assert_close(task.posterior_logits(x), alone, rtol=0, atol=1e-3)


def test_posterior_is_calibrated_on_its_samples():
    task, n = KnownPosterior.draw(), 20_000
    examples = task.sample(n, generator=torch.Generator().manual_seed(1))
    x, y = examples.inputs, examples.labels
    logits = task.posterior_logits(x)
    assert expected_calibration_error(logits, y) < 0.02
    q = soften(logits).double()
    surprise = (torch.nn.functional.one_hot(y, task.num_classes) - q).sum(0)
    deviation = (q * (1 - q)).sum(0).sqrt()
    assert (surprise.abs() < 4.5 * deviation).all()


def test_known_posterior_is_drawn_by_its_seed():
    task, again, other = KnownPosterior.draw(seed=1), KnownPosterior.draw(seed=1), KnownPosterior.draw(seed=2)
    assert torch.equal(task.centres, again.centres) and not torch.equal(task.centres, other.centres)
    assert task.num_classes == 20 and task.superclass_of.bincount().tolist() == [4] * 5
    a, b = (task.sample(9, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a.inputs, b.inputs) and torch.equal(a.labels, b.labels) and a.inputs.shape == (9, 16)


def test_classes_of_one_superclass_are_nearer():
    task = KnownPosterior.draw(superclasses=20, classes_each=4, dimensions=32)
    distance = torch.cdist(task.centres, task.centres)
    together = task.superclass_of[:, None] == task.superclass_of[None]
    within, between = distance[together & ~torch.eye(80, dtype=torch.bool)], distance[~together]
    assert within.square().mean().item() == pytest.approx(2 * 0.5**2 * 32, rel=0.1)
    assert between.square().mean().item() == pytest.approx(2 * (1 + 0.5**2) * 32, rel=0.1)


def test_the_exact_teacher_is_the_posterior_and_has_nothing_to_learn():
    task = KnownPosterior.draw()
    teacher, x = ExactTeacher(task), task.sample(10).inputs
    assert torch.equal(teacher(x), task.posterior_logits(x))
    assert not list(teacher.parameters())


def test_the_exact_teacher_moves_as_a_module_does():
    task = KnownPosterior.draw()
    x = task.sample(10).inputs
    assert ExactTeacher(task).double()(x.double()).dtype == torch.float64
    if torch.cuda.is_available():
        assert ExactTeacher(task).cuda()(x.cuda()).device.type == "cuda"


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 100))
def test_examples_make_the_same_kind_of_batches_as_images(n, size, seed):
    examples = Examples(torch.arange(n).float()[:, None], torch.arange(n))
    shuffled = list(examples.batches(size, generator=torch.Generator().manual_seed(seed), augment=True))
    seen = torch.cat([labels for _, labels, _ in shuffled])
    assert len(seen.unique()) == len(seen)
    assert [len(labels) for _, labels, _ in shuffled] == [min(size, n)] * max(n // size, 1)
    assert all(torch.equal(inputs[:, 0].long(), labels) for inputs, labels, _ in shuffled)
    assert torch.equal(torch.cat([labels for _, labels, _ in examples.batches(size)]), torch.arange(n))
    assert len(examples.to("cpu")) == n


def test_a_split_of_ones_own_stays_one_where_it_is_moved():
    class Own(Examples):
        def augmented(self, inputs, generator):
            return inputs + torch.rand(inputs.shape, generator=generator)

    own = Own(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))
    assert type(own.to("cpu")) is type(own[:1]) is Own
    assert own.augments and not Examples(own.inputs, own.labels).augments


def test_a_view_of_examples_hangs_on_the_batch_and_not_on_those_before_it():
    class Own(Examples):
        def augmented(self, inputs, generator):
            return inputs + torch.rand(inputs.shape, generator=generator)

    own, seeded = Own(torch.zeros(6, 3), torch.zeros(6)), lambda: torch.Generator().manual_seed(2**63 - 1)
    how = {"augment": True, "order": torch.arange(6)}
    whole = [x for x, *_ in own.batches(2, generator=seeded(), **how)]
    assert len({tuple(x.flatten().tolist()) for x in whole}) == 3
    later = [x for x, *_ in own.batches(2, generator=seeded(), start=2, **how)]
    assert torch.equal(later[0], whole[2])
    assert all(not x.any() for x, *_ in own.batches(2, generator=seeded(), order=torch.arange(6)))


def test_an_earlier_name_of_the_labels_warns():
    loaded = as_split(
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(4, 2), torch.arange(4)), 2), "train"
    )
    with pytest.warns(DeprecationWarning, match="is labels since"):
        assert loaded.all_labels.tolist() == [0, 1, 2, 3]
