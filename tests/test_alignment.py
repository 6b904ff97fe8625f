"""Alignment: InsightFace's numbers, closed forms, readers and the detector's rule."""

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")

from hyperface_jax.data import alignment as al  # noqa: E402

T = al.template(112, 112)


def turned(points, *, scale=1.0, degrees=0.0, shift=(0, 0)):
    a = math.radians(degrees)
    rotation = scale * np.array(
        [[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]]
    )
    return points @ rotation.T + shift


def apply(matrix, points):
    return points @ matrix[:, :2].T + matrix[:, 2]


# --- against scikit-image and InsightFace ---------------------------------------------


@pytest.mark.core
def test_matrices_and_crops_equal_insightface(shared):
    oracle = np.load(shared("oracles/alignment.npz"))
    np.testing.assert_array_equal(T, oracle["template"])
    matrices = al.similarity_transform(oracle["landmarks"], T)
    assert matrices.dtype == np.float64
    np.testing.assert_allclose(matrices, oracle["matrices"], rtol=0, atol=1e-12)
    exact = al.similarity_transform(oracle["landmarks"].astype(np.float64), T)
    np.testing.assert_allclose(exact, oracle["matrices"], rtol=0, atol=2e-5)
    for image, points, crop in zip(
        oracle["images"], oracle["landmarks"], oracle["aligned"], strict=True
    ):
        # Other versions of OpenCV interpolate with other fixed-point tables.
        difference = np.abs(al.align(image, points).astype(int) - crop)
        assert difference.max() <= (0 if cv2.__version__.startswith("5.") else 1)


def test_against_umeyama_by_svd(rng):
    """The general formula with its sign of the determinant, for any plane points."""
    for _ in range(50):
        source, aim = rng.normal(size=(2, 5, 2))
        x, y = source - source.mean(0), aim - aim.mean(0)
        u, s, vt = np.linalg.svd(y.T @ x / 5)
        sign = np.array([1, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
        linear = (s * sign).sum() / x.var(axis=0).sum() * (u * sign) @ vt
        expected = np.c_[linear, aim.mean(0) - linear @ source.mean(0)]
        np.testing.assert_allclose(
            al.similarity_transform(source, aim), expected, atol=1e-10
        )


# --- closed forms ---------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [0, 17, -90, 180, 250])
@pytest.mark.parametrize("scale", [0.1, 1, 30])
def test_known_transform_is_recovered(scale, degrees):
    points = turned(T, scale=scale, degrees=degrees, shift=(300, -40))
    matrix = al.similarity_transform(points, T)
    np.testing.assert_allclose(apply(matrix, points), T, atol=1e-9)
    assert np.linalg.det(matrix[:, :2]) == pytest.approx(scale**-2)
    assert al.face_fit(points, T) == pytest.approx(1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_batch_equals_one_by_one(rng, dtype):
    points = (T + rng.normal(size=(3, 4, 5, 2)) * 5).astype(dtype)
    matrices = al.similarity_transform(points, T)
    assert matrices.shape == (3, 4, 2, 3)
    np.testing.assert_array_equal(
        matrices[2, 1], al.similarity_transform(points[2, 1], T)
    )


def test_templates_of_other_sizes():
    np.testing.assert_allclose(al.template(224, 224), 2 * T)
    np.testing.assert_allclose(al.template(112, 96), T - [8, 0])
    np.testing.assert_allclose(al.template(336, 288), 3 * (T - [8, 0]))
    np.testing.assert_allclose(al.template(128, 128), T + np.array([8, 0]))
    np.testing.assert_allclose(al.template(256, 256), 2 * T + np.array([16, 0]))
    np.testing.assert_allclose(al.template(896, 896), 8 * T)  # 112's rule comes first
    for size in ((0, 0), (112, 128), (96, 112), (100, 100), (-112, -112)):
        with pytest.raises(ValueError, match=f"{size[0]} x {size[1]}, expected"):
            al.template(*size)


def test_five_of_68_points():
    points = np.stack([np.arange(68.0), -np.arange(68.0)], axis=1)
    five = al.five_of_68(np.stack([points, points + 1]))
    np.testing.assert_array_equal(five[0, :, 0], [37.5, 43.5, 30, 48, 54])
    np.testing.assert_array_equal(five[0, :, 1], -five[0, :, 0])
    np.testing.assert_array_equal(five[1], five[0] + 1)
    with pytest.raises(al.BadLandmarksError, match=r"expected \[68, 2\]"):
        al.five_of_68(points[:5])


# --- bad points -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (np.zeros((5, 2)), "coincide"),
        (np.full((5, 2), 77.7, np.float32), "coincide"),
        (np.full((5, 2), 77.7) + 1e-9 * T, "coincide"),
        (np.where(np.eye(5, 2) > 0, np.nan, T), "NaN"),
        (np.where(np.eye(5, 2) > 0, np.inf, T), "NaN or beyond"),
        (np.full((5, 2), 1e300), "beyond"),
        (T[:4], r"shape \[4, 2\], expected \[5, 2\]"),
        (T.ravel(), "shape"),
    ],
)
def test_degenerate_points_are_refused(points, reason):
    with pytest.raises(al.BadLandmarksError, match=reason):
        al.similarity_transform(points, T)
    with pytest.raises(al.BadLandmarksError, match=reason):
        al.align(np.zeros((50, 50, 3), np.uint8), points)


def test_a_point_cloud_without_direction_is_refused():
    square = np.array([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    reflected = square * [1, -1]
    with pytest.raises(al.BadLandmarksError, match="no direction"):
        al.similarity_transform(reflected, square)


def test_swapped_sides_are_noticed_and_profiles_are_not():
    image = np.zeros((112, 112, 3), np.uint8)
    swapped = T[[1, 0, 2, 4, 3]]
    with pytest.raises(al.BadLandmarksError, match="may be swapped"):
        al.align(image, swapped)
    assert al.align(image, swapped, min_fit=0).shape == (112, 112, 3)
    for squeeze in ((0.05, 1), (1, 0.3)):
        al.align(image, T * squeeze)


def test_other_images_are_refused():
    with pytest.raises(ValueError, match="float32"):
        al.align(np.zeros((9, 9, 3), np.float32), T)
    with pytest.raises(ValueError, match=r"uint8 \[9, 9\], expected"):
        al.align(np.zeros((9, 9), np.uint8), T)
    with pytest.raises(ValueError, match="32767"):
        al.align(np.zeros((1, 32768, 3), np.uint8), T)
    with pytest.raises(ValueError, match="32767"):
        al.align(np.zeros((0, 5, 3), np.uint8), T)
    with pytest.raises(al.BadLandmarksError, match="expected one"):
        al.align(np.zeros((9, 9, 3), np.uint8), T[None])


def test_without_opencv_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"pip install 'hyperface_jax\[align\]'"):
        al.align(np.zeros((9, 9, 3), np.uint8), T)


# --- images ---------------------------------------------------------------------------

COLOURS = np.array(
    [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255]], np.uint8
)


def drawn(points, *, height, width, radius):
    """A dot of its own colour at each point, on black."""
    y, x = np.mgrid[:height, :width]
    image = np.zeros((height, width, 3), np.uint8)
    for (px, py), colour in zip(points, COLOURS, strict=True):
        image[(x - px) ** 2 + (y - py) ** 2 <= radius**2] = colour
    return image


def dots(image):
    """Centre of mass of each colour."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    centres = []
    for colour in COLOURS:
        weight = (np.abs(image.astype(int) - colour).max(axis=2) < 60).astype(float)
        centres.append([(weight * x).sum(), (weight * y).sum()] / weight.sum())
    return np.array(centres)


@pytest.mark.parametrize("size", [(112, 112), (112, 96), (128, 128), (224, 224)])
@pytest.mark.parametrize("degrees", [0, 35, 180])
def test_drawn_face_comes_to_the_template(size, degrees):
    points = turned(T - 56, scale=2.3, degrees=degrees, shift=(190, 170))
    image = drawn(points, height=340, width=400, radius=11)
    crop = al.align(image, points, size)
    assert crop.shape == (*size, 3)
    np.testing.assert_allclose(dots(crop), al.template(*size), atol=0.3)


def test_beyond_the_image_is_black_and_views_are_taken():
    image = np.full((112, 224, 3), 200, np.uint8)[:, ::-2]
    crop = al.align(image, T - [-56, 0])
    assert (crop[:, :55] == 200).all()
    assert (crop[:, 57:] == 0).all()
    np.testing.assert_array_equal(al.align(image, T), image)


# --- files ----------------------------------------------------------------------------


def number_text(points, separator):
    return separator.join(f"{value:.4f}" for value in points.ravel())


@pytest.mark.parametrize("separator", [" ", "\t", ",", ", ", "  "])
@pytest.mark.parametrize("score", ["", "0.875"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_readers_forms(tmp_path, separator, score, end):
    lines = []
    for k in range(3):
        line = f"img/{k}.jpg{separator}{number_text(T + k, separator)}"
        lines.append(line + (separator + score if score else ""))
    path = tmp_path / "points.txt"
    path.write_text(end.join(["", *lines, ""]), newline="")
    found = al.read_landmarks(path)
    assert list(found) == ["img/0.jpg", "img/1.jpg", "img/2.jpg"]
    assert found["img/2.jpg"].dtype == np.float32
    np.testing.assert_allclose(found["img/2.jpg"], T + 2, atol=1e-4)


def test_reader_takes_celeba_headers_and_names_with_blanks(tmp_path):
    path = tmp_path / "points.txt"
    path.write_text(
        f"2\nlefteye_x lefteye_y righteye_x righteye_y\n1.jpg {number_text(T, ' ')}\n"
    )
    assert list(al.read_landmarks(path)) == ["1.jpg"]
    path.write_text(f"name,x1,y1,x2,y2\na b.jpg,{number_text(T, ',')}\n")
    assert list(al.read_landmarks(path)) == ["a b.jpg"]
    path.write_text(f"\ufeffa b.jpg\t{number_text(T, chr(9))}\n", encoding="utf-8")
    assert list(al.read_landmarks(path)) == ["a b.jpg"]


def test_reader_takes_old_insightface_lists(tmp_path):
    path = tmp_path / "old.lst"
    points = "\t".join([number_text(T[:, 0], "\t"), number_text(T[:, 1], "\t")])
    path.write_text(
        f"0\ta/1.jpg\t7\t10\t20\t30\t40\t{points}\n"
        "1\ta/2.jpg\t7\n0\ta/3.jpg\t8\t1\t2\t3\t4\n"
    )
    found = al.read_landmarks(path)
    assert list(found) == ["a/1.jpg"]
    np.testing.assert_allclose(found["a/1.jpg"], T, atol=1e-4)


GOOD = f"a.jpg {number_text(T, ' ')} 0.9\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no line with landmarks"),
        ("17\n", "no line with landmarks"),
        (GOOD + "b.jpg 1 2 3\n", "line 2: 4 fields found, expected a name and 10"),
        (GOOD + GOOD, "line 2: a.jpg occurs a second time"),
        (GOOD + "\n" + GOOD.replace("a.jpg 38", "b.jpg x38"), "line 3: found 'x38"),
        (GOOD.replace("38.2946", "nan"), "line 1: found 'nan'"),
        (GOOD.replace("38.2946", "1e300"), "line 1: found '1e300'"),
        ("," + number_text(T, ","), "line 1: the name is empty"),
    ],
)
def test_reader_names_the_line(tmp_path, text, reason):
    path = tmp_path / "points.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=reason) as error:
        al.read_landmarks(path)
    assert "\n" not in str(error.value)


def test_reader_of_no_file_or_no_text(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        al.read_landmarks(tmp_path / "absent.txt")
    path = tmp_path / "points.txt"
    path.write_bytes(GOOD.encode() + b"\xff\xfe 1 2\n")
    with pytest.raises(ValueError, match="line 2: not UTF-8"):
        al.read_landmarks(path)


VALID = "".join(f"im{k}.jpg {number_text(T + k, ' ')} 0.9\n" for k in range(3)).encode()


@settings(max_examples=300, deadline=None)
@given(
    cut=st.integers(0, len(VALID)),
    changes=st.lists(
        st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=6
    ),
    inserted=st.binary(max_size=4),
)
def test_mutated_file_reads_or_is_a_value_error(
    tmp_path_factory, cut, changes, inserted
):
    data = bytearray(VALID)
    for at, value in changes:
        data[at] = value
    path = tmp_path_factory.mktemp("mutated") / "points.txt"
    path.write_bytes(bytes(data[:cut]) + inserted + bytes(data[cut + 3 :]))
    try:
        found = al.read_landmarks(path)
    except ValueError:
        return
    for points in found.values():
        assert points.shape == (5, 2)
        assert np.isfinite(points).all()


# --- detector -------------------------------------------------------------------------


class FakeYuNet:
    """Finds the coloured dots of `drawn`, as YuNet lays out its answer."""

    def __init__(self, boxes=None):
        self.boxes = boxes
        self.size = None

    def create(self, model, config, size, min_score):
        self.model, self.min_score = model, min_score
        return SimpleNamespace(setInputSize=self.set_size, detect=self.detect)

    def set_size(self, size):
        self.size = size

    def detect(self, bgr):
        assert bgr.shape == (self.size[1], self.size[0], 3)
        if self.boxes is not None:
            return 1, self.boxes
        # The person's right eye is red and comes first; it is left in the image.
        points = dots(bgr[..., ::-1])
        low, high = points.min(axis=0), points.max(axis=0)
        face = np.concatenate([low, high - low, points.ravel(), [0.99]])
        return 1, face[None].astype(np.float32)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "yunet.onnx"
    path.write_bytes(b"not a model")
    return path


@pytest.mark.parametrize("max_side", [1000, 200])
def test_detected_points_align_the_face(model, max_side):
    points = turned(T, scale=2.3, degrees=10, shift=(90, 30))
    image = drawn(points, height=340, width=400, radius=13)
    fake = FakeYuNet()
    detector = al.YuNetDetector(
        model, create=fake.create, min_score=0.7, max_side=max_side
    )
    found = detector(image)
    assert (fake.model, fake.min_score) == (str(model), 0.7)
    assert fake.size == ((400, 340) if max_side == 1000 else (200, 170))
    np.testing.assert_allclose(found, points, atol=0.6)
    np.testing.assert_allclose(dots(al.align(image, found)), T, atol=0.6)


def box(x, y, side):
    return [x, y, side, side, *(T - [-x, -y]).ravel(), 0.9]


@pytest.mark.parametrize(
    ("boxes", "main"),
    [
        ([box(0, 0, 40), box(80, 80, 40)], 1),  # of one size, the central one
        ([box(80, 80, 20), box(60, 60, 80)], 1),  # both central: the larger
        ([box(0, 0, 60), box(85, 85, 30)], 1),  # larger, but in the corner
        ([box(40, 40, 80), box(95, 95, 10)], 0),  # much larger, a little off
        ([box(80, 80, 40), box(80, 80, 40)], 0),  # equals: the first
    ],
)
def test_the_main_face_is_large_and_central(model, boxes, main):
    boxes = np.array(boxes, np.float32)
    boxes[:, 4] += np.arange(len(boxes))
    detector = al.YuNetDetector(model, create=FakeYuNet(boxes).create)
    found = detector(np.zeros((200, 200, 3), np.uint8))
    np.testing.assert_allclose(found.ravel(), boxes[main, 4:14], atol=1e-4)


@pytest.mark.parametrize("boxes", [None, np.zeros((0, 15), np.float32)])
def test_no_face_is_none(model, boxes):
    detector = al.YuNetDetector(
        model,
        create=lambda *_: SimpleNamespace(
            setInputSize=lambda _: None, detect=lambda _: (0, boxes)
        ),
    )
    assert detector(np.zeros((20, 30, 3), np.uint8)) is None
    with pytest.raises(ValueError, match="expected uint8"):
        detector(np.zeros((20, 30), np.uint8))


def test_no_model_is_one_line(model, tmp_path):
    with pytest.raises(ValueError, match=r"absent\.onnx: not found, expected face_det"):
        al.YuNetDetector(tmp_path / "absent.onnx")
    with pytest.raises(ValueError, match=r"yunet\.onnx: ") as error:
        al.YuNetDetector(model)
    assert "\n" not in str(error.value)
