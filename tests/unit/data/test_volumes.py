"""NIfTI: geometry is kept, axes on disk do not matter, and every bad file ends in one error that helps."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest

from toolkit.data.source import FunctionSource
from toolkit.data.volumes import read_geometry, read_pair, read_volume, write_nifti
from toolkit.errors import ConfigError, DataError

AFFINE = np.array([[2.0, 0, 0, -30], [0, 3.0, 0, 12], [0, 0, 4.0, 7], [0, 0, 0, 1]])


def source(
    image: Path, label: Path | None = None, *channels: Path, label_values=None, **options: object
) -> FunctionSource:
    settings = {"classes": (0, 1), "label_values": label_values, "options": {"dims": 3, **options}}
    return FunctionSource(read=read_pair, images=(image, *channels), label=label, **settings)


def label_like(volume: np.ndarray) -> np.ndarray:
    return (volume > 100).astype(np.uint8)


def test_values_spacing_and_affine_are_kept(nifti, volume):
    array, geometry = read_volume(nifti("a.nii.gz", volume, AFFINE))
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, volume)
    np.testing.assert_allclose(geometry.affine, AFFINE)
    assert geometry.spacing == (2.0, 3.0, 4.0)


def test_header_scaling_is_applied(nifti, volume, tmp_path):
    image = nibabel.Nifti1Image(volume.astype(np.int16), AFFINE)
    image.header.set_slope_inter(0.5, -3)
    data = tmp_path / "scaled.nii"
    image.to_filename(data)
    expected = np.asarray(nibabel.load(data).dataobj, dtype=np.float32)
    np.testing.assert_allclose(read_volume(data)[0], expected)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", [(), (0,), (1, 2), (0, 1, 2)])
def test_axes_on_disk_do_not_change_what_is_read(nifti, volume, order, flips):
    plain = nibabel.Nifti1Image(volume, AFFINE)
    orientation = np.array([[order[axis], -1 if axis in flips else 1] for axis in range(3)])
    stored = plain.as_reoriented(orientation)
    path = nifti("turned.nii.gz", np.asarray(stored.dataobj), stored.affine)
    array, geometry = read_volume(path)
    np.testing.assert_array_equal(array, volume)
    np.testing.assert_allclose(geometry.affine, AFFINE, atol=1e-6)
    # and what is written back lies voxel for voxel where the file's own voxels lie
    back = write_nifti(path.with_name("back.nii.gz"), array, geometry)
    written = nibabel.load(back)
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(stored.dataobj))
    np.testing.assert_allclose(written.affine, stored.affine, atol=1e-6)


def test_oblique_landmarks_keep_their_world_coordinates(nifti, volume):
    turn = np.deg2rad(25)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([-1.1, 2.2, 3.3])
    affine[:3, 3] = (5, -6, 7)
    array, geometry = read_volume(nifti("oblique.nii.gz", volume, affine))
    for value in (17.0, 101.0, 200.0):
        stored = np.argwhere(volume == value)[0]
        read = np.argwhere(array == value)[0]
        world = affine @ [*stored, 1]
        np.testing.assert_allclose(geometry.affine @ [*read, 1], world, atol=1e-3)
    np.testing.assert_allclose(geometry.spacing, (1.1, 2.2, 3.3), rtol=1e-6)


def test_slices_of_a_2d_task_run_along_the_coarsest_axis(nifti, volume):
    affine = np.diag([1.5, 8.0, 1.5, 1.0])
    path = nifti("coronal.nii.gz", volume, affine)
    array, geometry = read_volume(path, dims=2)
    np.testing.assert_array_equal(array, np.moveaxis(volume, 1, 0))
    assert geometry.read_spacing == (8.0, 1.5, 1.5)
    written = nibabel.load(write_nifti(path.with_name("out.nii.gz"), array, geometry))
    np.testing.assert_array_equal(np.asarray(written.dataobj), volume)


def test_a_flat_nifti_is_one_slice(nifti):
    picture = np.arange(30, dtype=np.float32).reshape(5, 6)
    array, geometry = read_volume(nifti("flat.nii.gz", picture), dims=2)
    assert array.shape == (1, 5, 6)
    assert geometry.restore(array).shape == (5, 6)


def test_a_header_that_knows_nothing_gives_no_spacing(volume, tmp_path):
    image = nibabel.Nifti1Image(volume, None)
    image.header.set_xyzt_units(0)
    path = tmp_path / "unknown.nii.gz"
    nibabel.save(image, path)
    geometry = read_geometry(path)
    assert geometry.spacing is None
    assert geometry.affine is None
    again = read_geometry(write_nifti(tmp_path / "copy.nii.gz", volume, geometry))
    assert again.spacing is None


def test_units_are_turned_into_millimetres(nifti, volume):
    path = nifti("micron.nii.gz", volume, np.diag([500.0, 500.0, 2000.0, 1.0]), unit="micron")
    assert read_geometry(path).spacing == pytest.approx((0.5, 0.5, 2.0))


def test_image_and_label_give_class_indices(nifti, volume):
    pair = source(nifti("i.nii.gz", volume), nifti("l.nii.gz", label_like(volume))).read_raw()
    assert pair.image.shape == (1, 6, 7, 5)
    assert pair.label.dtype == np.uint8
    np.testing.assert_array_equal(pair.label, label_like(volume))


def test_label_values_translate_what_is_stored(nifti, volume):
    label = nifti("l.nii.gz", label_like(volume).astype(np.float32) * 255)
    reader = source(nifti("i.nii.gz", volume), label, label_values=((0.0, 0), (255.0, 1)))
    np.testing.assert_array_equal(reader.read_raw().label, label_like(volume))


def bad_missing(nifti, volume, tmp_path):
    return source(tmp_path / "nowhere.nii.gz"), "does not exist"


def bad_empty(nifti, volume, tmp_path):
    (tmp_path / "empty.nii.gz").touch()
    return source(tmp_path / "empty.nii.gz"), "0 bytes"


def bad_truncated(nifti, volume, tmp_path):
    path = nifti("cut.nii.gz", np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32))
    path.write_bytes(path.read_bytes()[:9000])
    return source(path), "not a complete NIfTI"


def bad_truncated_plain(nifti, volume, tmp_path):
    path = nifti("cut.nii", volume)
    path.write_bytes(path.read_bytes()[:500])
    return source(path), "not a complete NIfTI"


def bad_header_only(nifti, volume, tmp_path):
    path = nifti("cut.nii", volume)
    path.write_bytes(path.read_bytes()[:100])
    return source(path), "not a complete NIfTI"


def bad_foreign(nifti, volume, tmp_path):
    path = tmp_path / "text.nii.gz"
    path.write_bytes(gzip.compress(b"this is no volume " * 40))
    return source(path), "not a complete NIfTI"


def bad_not_gzip(nifti, volume, tmp_path):
    path = tmp_path / "plain.nii.gz"
    path.write_bytes(b"<html>404 not found</html>" * 40)
    return source(path), "not a complete NIfTI"


def bad_nan(nifti, volume, tmp_path):
    volume[1, 2, 3] = np.nan
    return source(nifti("nan.nii.gz", volume)), "1 NaN and 0 infinite"


def bad_infinite(nifti, volume, tmp_path):
    volume[0, 0, :2] = np.inf
    return source(nifti("inf.nii.gz", volume)), "0 NaN and 2 infinite"


def bad_overflow(nifti, volume, tmp_path):
    return source(nifti("big.nii.gz", volume.astype(np.float64) * 1e38 + 1e38)), "infinite"


def bad_constant(nifti, volume, tmp_path):
    return source(nifti("flat.nii.gz", np.full_like(volume, 7))), "Every voxel is 7"


def bad_five_axes(nifti, volume, tmp_path):
    return source(nifti("time.nii.gz", np.stack([np.stack([volume, volume], axis=-1)] * 2, axis=-1))), "5 axes"


def bad_complex(nifti, volume, tmp_path):
    return source(nifti("complex.nii.gz", volume.astype(np.complex64))), "complex64 voxels"


def bad_colour(nifti, volume, tmp_path):
    colours = np.zeros((6, 7, 5), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    return source(nifti("rgb.nii.gz", colours)), "colour voxels"


def bad_forms(nifti, volume, tmp_path):
    moved = AFFINE.copy()
    moved[0, 3] += 1.0
    return source(nifti("forms.nii.gz", volume, AFFINE, sform=moved)), "q-form and s-form disagree by up to 1 mm"


def bad_singular(nifti, volume, tmp_path):
    flat = np.diag([1.0, 1.0, 0.0, 1.0])
    return source(nifti("flat.nii.gz", volume, AFFINE, sform=flat, codes=(0, 1))), "singular"


def bad_suffix(nifti, volume, tmp_path):
    path = tmp_path / "volume.mha"
    path.write_bytes(b"x")
    return source(path), "not a NIfTI file name"


def bad_label_shape(nifti, volume, tmp_path):
    label = label_like(volume)[:-1]
    return source(nifti("i.nii.gz", volume), nifti("l.nii.gz", label)), "different shapes"


def bad_label_place(nifti, volume, tmp_path):
    moved = AFFINE.copy()
    moved[1, 3] += 2.5
    label = nifti("l.nii.gz", label_like(volume), moved)
    return source(nifti("i.nii.gz", volume, AFFINE), label), "up to 2.5 mm apart"


def bad_label_spacing(nifti, volume, tmp_path):
    label = nifti("l.nii.gz", label_like(volume), np.diag([2.0, 3.0, 4.4, 1.0]))
    return source(nifti("i.nii.gz", volume), label), "different places"


def bad_label_flipped_header(nifti, volume, tmp_path):
    label = nifti("l.nii.gz", label_like(volume), np.diag([-2.0, 3.0, 4.0, 1.0]))
    return source(nifti("i.nii.gz", volume), label), "different places"


def bad_label_unplaced(nifti, volume, tmp_path):
    label = nifti("l.nii.gz", label_like(volume), codes=(0, 0))
    return source(nifti("i.nii.gz", volume), label), "the other does not"


def bad_label_255(nifti, volume, tmp_path):
    label = nifti("l.nii.gz", label_like(volume) * 255)
    return source(nifti("i.nii.gz", volume), label), r"255 \(a 0/255 mask\)"


def bad_label_float(nifti, volume, tmp_path):
    label = nifti("l.nii.gz", label_like(volume).astype(np.float32))
    return source(nifti("i.nii.gz", volume), label), "stored as float32, although"


def bad_label_soft(nifti, volume, tmp_path):
    label = nifti("l.nii.gz", label_like(volume).astype(np.float32) * 0.4)
    return source(nifti("i.nii.gz", volume), label), "no whole numbers"


def bad_label_value(nifti, volume, tmp_path):
    label = nifti("l.nii.gz", label_like(volume) * 3)
    return source(nifti("i.nii.gz", volume), label), "no class: 3"


def bad_label_negative(nifti, volume, tmp_path):
    label = nifti("l.nii.gz", label_like(volume).astype(np.int16) * -1024)
    return source(nifti("i.nii.gz", volume), label), "no class: -1024"


def bad_label_missing(nifti, volume, tmp_path):
    return source(nifti("i.nii.gz", volume), tmp_path / "l.nii.gz"), "does not exist"


def bad_channels(nifti, volume, tmp_path):
    images = (nifti("c_0000.nii.gz", volume), nifti("c_0001.nii.gz", volume[:, :-1]))
    return source(images[0], None, images[1]), "different shapes"


BAD = {name: value for name, value in sorted(globals().items()) if name.startswith("bad_")}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_refused(name, nifti, volume, tmp_path):
    reader, message = BAD[name](nifti, volume, tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        reader.read_raw()
    error = caught.value
    culprit = reader.label if "label" in name else reader.files()[0]
    assert str(culprit) in error.where, "the file is named"
    assert len(error.fix) > 10, "a remedy is named"


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_any_truncation_is_refused_or_harmless(suffix, nifti, volume):
    path = nifti(f"whole{suffix}", np.random.default_rng(1).normal(size=(6, 7, 5)).astype(np.float32))
    whole = path.read_bytes()
    expected = read_volume(path)[0]
    for length in range(1, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:length])
        try:
            array = read_volume(path)[0]
        except DataError:
            continue
        np.testing.assert_array_equal(array, expected)


def test_writing_is_atomic_and_refuses_what_does_not_fit(nifti, volume, tmp_path):
    path = nifti("a.nii.gz", volume)
    geometry = read_geometry(path)
    before = path.read_bytes()
    with pytest.raises(DataError, match="the volume it belongs to has"):
        write_nifti(path, volume[1:], geometry)
    with pytest.raises(ConfigError, match="not a NIfTI name"):
        write_nifti(tmp_path / "a.png", volume, geometry)
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.nii.gz"]


def test_a_reader_of_the_old_file_never_sees_half_of_the_new_one(nifti, volume, tmp_path):
    path = nifti("a.nii.gz", volume)
    with path.open("rb") as reader:
        write_nifti(path, volume * 2, read_geometry(path))
        old = gzip.decompress(reader.read())
    assert np.frombuffer(old[-840:], "<f4").max() == volume.max()
    assert read_volume(path)[0].max() == 2 * volume.max()


def test_a_failing_write_leaves_the_old_file(nifti, volume, monkeypatch, tmp_path):
    path = nifti("a.nii.gz", volume)
    before = path.read_bytes()

    def failing(image: object, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(nibabel, "save", failing)
    with pytest.raises(OSError, match="disk full"):
        write_nifti(path, volume, read_geometry(path))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.nii.gz"]


def test_integer_labels_stay_integers(nifti, volume, tmp_path):
    geometry = read_geometry(nifti("a.nii.gz", volume))
    written = nibabel.load(write_nifti(tmp_path / "p.nii.gz", label_like(volume).astype(np.int64), geometry))
    assert written.get_data_dtype() == np.uint8
    assert written.header.get_zooms() == (2.0, 3.0, 4.0)
    assert int(written.header["sform_code"]) == 1
