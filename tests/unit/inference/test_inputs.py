"""Everything a user may pass arrives as the same batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from toolkit.data.normalise import normalise
from toolkit.data.table import task_from_arrays, task_from_table
from toolkit.errors import ConfigError, DataError
from toolkit.explain.attribute import attribute
from toolkit.explain.gradcam import grad_cam
from toolkit.explain.targets import ClassSum
from toolkit.features.modules import dims_and_channels
from toolkit.features.provenance import provenance, weights_hash
from toolkit.inference.extract import extract
from toolkit.inference.inputs import as_batches
from toolkit.inference.memory import remember
from toolkit.inference.predict import predict
from toolkit.models.unet import unet

IMAGES = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 2, (3, 8, 8), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "inputs",
    [
        IMAGES,
        IMAGES.numpy(),
        IMAGES[:, 0],
        list(IMAGES),
        [image[0].numpy() for image in IMAGES],
        {"image": IMAGES},
        [{"image": IMAGES[:2]}, {"image": IMAGES[2]}],
        (image for image in IMAGES),
        IMAGES.double(),
    ],
)
def test_arrays_of_any_form(inputs: object) -> None:
    batches = list(as_batches(inputs, unet(1, 2, channels=(4, 8)), batch_size=2))
    torch.testing.assert_close(torch.cat([batch.image for batch in batches]), IMAGES)
    assert [len(batch) for batch in batches] == [2, 1]
    names = [name for batch in batches for name in batch.ids]
    assert len(set(names)) == 3
    assert all(batch.label is None for batch in batches)


def test_labels_travel_and_one_image_is_one_batch() -> None:
    net = unet(1, 2, channels=(4, 8))
    (batch,) = as_batches(IMAGES[0], net, label=LABELS[0])
    assert batch.ids == ["image0000"]
    assert batch.label is not None
    assert batch.label.shape == (1, 1, 8, 8)
    (batch,) = as_batches({"image": IMAGES, "label": LABELS[:, None], "case": ["a", "b", "c"], "site": "S"}, net)
    assert (batch.ids, batch.sites, batch.subjects) == (["a", "b", "c"], ["S"] * 3, ["a", "b", "c"])
    assert torch.equal(batch.label[:, 0], LABELS)


def test_cases_and_loaders_of_a_task() -> None:
    task = task_from_arrays(
        [np.random.default_rng(i).normal(size=(16, 16)).astype("f4") for i in range(6)],
        [np.eye(16, dtype="u1")] * 6,
        classes={0: "background", 1: "line"},
        spacing=(2.0, 3.0),
        sites=["A", "B"] * 3,
    )
    net = unet(1, 2, channels=(4, 8))
    cases = task.cases()
    (batch,) = as_batches(cases, net, batch_size=10)
    assert batch.ids == [case.id for case in cases]
    assert batch.sites == [case.site for case in cases]
    assert batch.spacing == [(2.0, 3.0)] * 6
    assert batch.classes == {0: "background", 1: "line"}
    assert torch.equal(batch.image[2], cases[2].image)
    (one,) = as_batches(cases[0], net)
    assert torch.equal(one.label[0, 0], torch.eye(16, dtype=torch.int64))
    loader = task.loader("train", batch_size=2)
    assert sum(len(batch) for batch in as_batches(loader, net)) == 2 * len(loader)


def test_sizes_are_not_mixed() -> None:
    net = unet(1, 2, channels=(4, 8, 16))
    images = [torch.zeros(1, 8, 8), torch.ones(1, 7, 6), torch.ones(1, 7, 6)]
    first, second = as_batches([{"image": i, "label": torch.ones(i.shape[1:])} for i in images], net)
    assert (first.size, second.size) == ((8, 8), (7, 6))
    assert second.image.shape == (2, 1, 7, 6)


def test_files(tmp_path: Path) -> None:
    import nibabel
    from PIL import Image

    volume = np.random.default_rng(0).normal(size=(12, 10, 4)).astype("f4")
    path = tmp_path / "heart.nii.gz"
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([1.5, 1.5, 8.0, 1.0])), path)
    batches = list(as_batches(path, unet(1, 2, channels=(4, 8)), batch_size=8))
    assert [name for batch in batches for name in batch.ids] == [f"heart/slice{i:02d}" for i in range(4)]
    assert batches[0].volumes == ["heart"] * 4
    assert batches[0].spacing[0] == (1.5, 1.5)
    assert batches[0].size == (12, 10)
    (whole,) = as_batches(str(path), unet(1, 2, channels=(4, 8), dims=3))
    assert whole.image.shape == (1, 1, 12, 10, 4)
    assert whole.spacing == [(1.5, 1.5, 8.0)]
    Image.fromarray((np.arange(64).reshape(8, 8) * 3).astype("u1")).save(tmp_path / "cell.png")
    np.save(tmp_path / "cell.npy", np.arange(64.0).reshape(8, 8))
    png, npy = (next(as_batches(tmp_path / f"cell.{kind}", unet(1, 2, channels=(4, 8)))) for kind in ("png", "npy"))
    torch.testing.assert_close(png.image, npy.image, rtol=1e-4, atol=1e-4)
    with pytest.raises(DataError, match="no image file that can be read"):
        list(as_batches("notes.txt", unet(1, 2)))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(2, 8, 8, 8, 8), "does not fit a 2D"),
        (torch.zeros(3, 2, 8, 8), "2 channels"),
        (torch.full((1, 8, 8), float("nan")), "NaN"),
        (3.0, "not understood"),
        ({"img": 1}, "key 'image'"),
        (np.array(["a"]), "not an image"),
        ({"image": torch.zeros(1, 8, 8), "label": torch.zeros(4, 4)}, "The label has"),
        ({"image": torch.zeros(2, 1, 8, 8), "label": torch.zeros(1, 8, 8)}, "2 images and 1 labels"),
        (np.zeros((32, 32, 3)), "channels last"),
    ],
)
def test_wrong_inputs_are_refused(inputs: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(as_batches(inputs, unet(1, 2, channels=(4, 8))))


def test_dims_come_from_the_first_convolution() -> None:
    assert dims_and_channels(nn.Sequential(nn.ReLU(), nn.Conv3d(2, 4, 3))) == (3, 2)
    assert dims_and_channels(unet(3, 2, dims=2)) == (2, 3)
    assert dims_and_channels(nn.Linear(2, 2)) == (None, None)


def test_weights_are_hashed_once_until_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    import toolkit.features.provenance as module

    net = unet(1, 2, channels=(4, 8))
    counted = []
    original = module._bytes
    monkeypatch.setattr(module, "_bytes", lambda tensor: counted.append(1) or original(tensor))
    first = weights_hash(net)
    computed = len(counted)
    assert weights_hash(net) == first
    assert len(counted) == computed > 0
    with torch.no_grad():
        net.head.bias.add_(1)
    assert weights_hash(net) != first
    for fused in (False, True):  # a fused optimizer does not raise the version counters of what it changes
        before = weights_hash(net)
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        torch.optim.AdamW(net.parameters(), 1e-6, fused=fused).step()
        assert weights_hash(net) != before
    record = provenance(net, "abc", layers=("a",), fraction=np.float32(0.5))
    assert record["data"] == "abc"
    assert record["parameters"] == {"layers": ["a"], "fraction": 0.5}
    assert record["versions"]["torch"] == torch.__version__
    assert record["threads"] == torch.get_num_threads()


def test_a_data_loader_of_pairs_gives_labels_and_not_twice_as_many_images() -> None:
    net = unet(1, 2, channels=(4, 8))
    pairs = list(zip(IMAGES, LABELS, strict=True))
    for inputs in (DataLoader(pairs, batch_size=2), pairs, (IMAGES, LABELS), (IMAGES.numpy(), LABELS.numpy())):
        batches = list(as_batches(inputs, net, batch_size=2))
        assert torch.equal(torch.cat([batch.image for batch in batches]), IMAGES)
        assert torch.equal(torch.cat([batch.label[:, 0] for batch in batches if batch.label is not None]), LABELS)
    (two_images,) = as_batches([IMAGES[0], IMAGES[1]], net)
    assert two_images.label is None
    assert len(two_images) == 2


def test_what_torchs_loader_collates_is_of_each_image_again() -> None:
    items = [
        {"image": IMAGES[n], "spacing": (1.0 + n, 2.0), "affine": np.eye(4) * n, "position": n, "site": f"site{n}"}
        for n in range(3)
    ]
    (batch,) = as_batches(DataLoader(items, batch_size=3), unet(1, 2, channels=(4, 8)))  # type: ignore[arg-type]
    assert list(map(tuple, batch.spacing)) == [(1.0, 2.0), (2.0, 2.0), (3.0, 2.0)]
    assert [affine[0, 0].item() for affine in batch.affine] == [0, 1, 2]
    assert (batch.positions, batch.sites) == ([0, 1, 2], ["site0", "site1", "site2"])


def test_labels_are_whole_numbers_and_as_many_as_images() -> None:
    net = unet(1, 2, channels=(4, 8))
    for label in (LABELS * 0.5, LABELS.float() * torch.nan):
        with pytest.raises(DataError, match="whole numbers"):
            list(as_batches({"image": IMAGES, "label": label}, net))
    (batch,) = as_batches({"image": IMAGES, "label": LABELS.float()}, net)
    assert batch.label is not None
    assert torch.equal(batch.label[:, 0], LABELS)
    for labels in (LABELS[:2], [*LABELS, LABELS[0]], (one for one in LABELS[:1])):
        with pytest.raises(DataError, match="not as many labels as inputs"):
            list(as_batches(list(IMAGES), net, label=labels))
    (batch,) = as_batches(iter(IMAGES), net, label=iter(LABELS))
    assert batch.label is not None
    assert torch.equal(batch.label[:, 0], LABELS)


def test_class_names_may_be_a_list_and_nothing_is_no_image() -> None:
    net = unet(1, 2, channels=(4, 8))
    (batch,) = as_batches({"image": IMAGES, "classes": ["background", "line"]}, net)
    assert batch.classes == {0: "background", 1: "line"}
    with pytest.raises(DataError, match="no voxel"):
        list(as_batches(IMAGES[:, :, :0], net))
    with pytest.raises(ConfigError, match="batch_size"):
        extract(net, IMAGES, "bottleneck", "global", batch_size=0)


def test_a_float_mask_of_a_loader_is_a_label_and_never_an_image() -> None:
    net, masks = unet(1, 2, channels=(4, 8)), LABELS[:, None].float()
    pairs = list(zip(IMAGES, masks, strict=True))
    for inputs in (DataLoader(pairs, batch_size=2), pairs, (IMAGES, masks), [IMAGES, masks]):
        batches = list(as_batches(inputs, net, batch_size=2))
        assert torch.equal(torch.cat([batch.image for batch in batches]), IMAGES)
        assert torch.equal(torch.cat([batch.label[:, 0] for batch in batches if batch.label is not None]), LABELS)
    with pytest.raises(DataError, match="whole numbers"):  # two images as one item are no pair, and not two items
        list(as_batches([(IMAGES[0], IMAGES[1])], net))


AFFINE = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -7], [0, 0, 3.0, 1], [0, 0, 0, 1]])


def test_geometry_of_monai_and_torchio_is_kept(tmp_path: Path) -> None:
    import torchio
    from monai.data import DataLoader as MonaiLoader
    from monai.data import MetaTensor

    net, volume, label = unet(1, 2, channels=(4, 8), dims=3), torch.rand(1, 8, 8, 4), torch.ones(1, 8, 8, 4)
    meta = MetaTensor(volume, affine=torch.from_numpy(AFFINE), meta={"filename_or_obj": "a.nii.gz"})
    pair = {"image": meta, "label": MetaTensor(label, affine=torch.from_numpy(AFFINE))}
    subject = torchio.Subject(
        t1=torchio.ScalarImage(tensor=volume, affine=AFFINE), seg=torchio.LabelMap(tensor=label, affine=AFFINE)
    )
    for inputs in (
        meta,
        pair,
        [pair, pair],
        MonaiLoader([pair, pair], batch_size=2),
        subject.t1,
        subject,
        DataLoader([{"image": subject["t1"], "label": subject["seg"]}], collate_fn=lambda items: items),
    ):
        batches = list(as_batches(inputs, net))
        for batch in batches:
            assert type(batch.image) is torch.Tensor
            assert torch.equal(batch.image[0], volume)
            assert np.array_equal(batch.affine[0], AFFINE)
            assert batch.spacing[0] == (1.5, 2.0, 3.0)
            assert batch.label is None or bool((batch.label == 1).all())
    (batch,) = as_batches(MetaTensor(volume), net)
    assert batch.affine == [None]  # an identity without a file is what MONAI puts where nothing is known


def test_maps_of_a_metatensor_are_saved_where_it_lies(tmp_path: Path) -> None:
    import nibabel
    from monai.data import MetaTensor

    net = unet(1, 2, channels=(4, 8), dims=3)
    image = MetaTensor(torch.rand(1, 8, 8, 4), affine=torch.from_numpy(AFFINE), meta={"filename_or_obj": "a.nii"})
    (path,) = grad_cam(net, image, "head:input", 1).save_nifti(tmp_path)["head:input"]
    assert np.array_equal(nibabel.load(path).affine, AFFINE)


def test_cases_without_a_label_and_files_of_arrays_are_images_too(tmp_path: Path) -> None:
    task = task_from_arrays(list(IMAGES.numpy()), None, classes=["background", "line"], splits="test", dims=2)
    (batch,) = as_batches(task.cases(), unet(1, 2, channels=(4, 8)))
    assert batch.label is None
    np.savez(tmp_path / "a.npz", image=np.arange(64.0).reshape(8, 8), label=np.eye(8, dtype="u1"))
    (batch,) = as_batches(tmp_path / "a.npz", unet(1, 2, channels=(4, 8)))
    assert (batch.ids, tuple(batch.image.shape)) == (["a"], (1, 1, 8, 8))
    assert batch.label is not None
    assert int(batch.label.sum()) == 8


def test_a_stack_in_a_file_is_predicted_whole(tmp_path: Path) -> None:
    network = unet(1, 3, channels=(4, 8))
    stack = np.random.default_rng(0).normal(size=(3, 16, 16)).astype(np.float32)
    np.save(tmp_path / "stack.npy", stack)
    np.save(tmp_path / "slice.npy", stack[1])
    assert predict(network, tmp_path / "stack.npy").shape == (3, 16, 16)
    assert predict(network, tmp_path / "slice.npy").shape == (16, 16)
    both = predict(network, normalise(stack, "zscore-clip"))
    assert torch.equal(predict(network, tmp_path / "stack.npy"), both)


def test_a_network_that_reads_files_gets_those_of_a_case(tmp_path: Path) -> None:
    class Files:
        def __init__(self) -> None:
            self.asked: list[object] = []

        def items(self, paths: object, label: object = None) -> Iterator[dict[str, object]]:
            self.asked.append((paths, label))
            yield {"image": torch.zeros(2, 8, 8, 8), "label": torch.zeros(8, 8, 8), "id": "read"}

        def predict(self, model: nn.Module, paths: object) -> np.ndarray:
            self.asked.append(paths)
            return np.full((8, 8, 8), 7)

    names = [str(tmp_path / f"heart_{channel:04d}.nii.gz") for channel in range(2)]
    for name in (*names, str(tmp_path / "label.nii.gz")):
        nibabel.save(nibabel.Nifti1Image(np.arange(512, dtype=np.int16).reshape(8, 8, 8) % 2, np.eye(4)), name)
    row = {"image": names, "label": str(tmp_path / "label.nii.gz"), "split": "test"}
    net, files = unet(2, 2, channels=(4, 8), dims=3), Files()
    remember(net, files=files)
    (batch,) = as_batches(task_from_table([row], classes=["background", "heart"]).cases(), net)
    assert batch.ids == ["read"]
    assert files.asked == [(names, str(tmp_path / "label.nii.gz"))]
    (case,) = task_from_table([row], classes=["background", "heart"]).cases()
    assert predict(net, case).tolist() == predict(net, names).tolist() == np.full((8, 8, 8), 7).tolist()
    assert files.asked[1:] == [names, names]
    slices = task_from_table([row], classes=["background", "heart"], dims=2).cases()
    with pytest.raises(DataError, match="reads and prepares volume files by itself"):
        list(as_batches(slices, net))


def test_an_image_without_a_label_takes_none_from_its_neighbours() -> None:
    """Voxels of class 1, at the place of its one voxel (2, 3), are drawn from every image that has a label."""
    label = torch.zeros(16, 16, dtype=torch.long)
    label[2, 3] = 1
    items = [{"image": torch.full((1, 16, 16), float(k)), "id": str(k), "label": label} for k in range(4)]
    items[1]["label"] = None
    network = unet(1, 2, channels=(4, 8)).eval()
    assert [batch.ids for batch in as_batches(items, network)] == [["0"], ["1"], ["2", "3"]]
    cases = extract(network, items, "head_input", pool="voxels", samples=2).cases
    assert cases[cases["class"] == 1]["case"].tolist() == ["0", "2", "3"]
    assert cases[cases["class"] == -1]["case"].tolist() == ["1", "1"]
    assert attribute(network, items, target=ClassSum(1)).label is None


def test_settings_that_a_network_of_another_framework_cannot_take_are_refused() -> None:
    class Files:
        def predict(self, model: nn.Module, paths: object) -> np.ndarray:
            model.eval()  # as nnU-Net's predictor leaves it
            return np.full((2, 2, 2), 7)

    network = unet(1, 2, channels=(4, 8), dims=3)
    remember(network, files=Files(), patch_size=(16, 16, 16))
    assert predict(network, "a.nii.gz", patch_size=None).tolist() == np.full((2, 2, 2), 7).tolist()
    assert network.training
    with pytest.raises(ConfigError, match=r"patch_size, precision has no effect"):
        predict(network, "a.nii.gz", patch_size=(8, 8, 8), precision="bf16")
