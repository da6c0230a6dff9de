"""Files sent into a dataset: what is taken, what it is called then, and what is refused without a trace."""

from __future__ import annotations

import io
import json
import os
import stat
import struct
import zipfile

import pytest
from PIL import Image

from testing.web.dataset_kit import make_dataset, picture, send, tree, zip_of
from web.datasets import archives, uploads


@pytest.fixture
def pets(settings):
    """A dataset with one picture."""
    return make_dataset(settings.datasets_root, cat="a cat")


def reasons(response):
    return {each["name"]: each["reason"] for each in response.json()["skipped"]}


def names(response):
    return {each["name"]: each["rel"] for each in response.json()["saved"]}


def nothing_is_left(settings):
    place = settings.datasets_root / ".uploads"
    return not place.exists() or not any(place.iterdir())


def test_pictures_and_captions_are_put_in_place(client, pets, settings):
    response = send(
        client,
        "pets",
        ("bird.png", picture("blue")),
        ("bird.txt", b"\xef\xbb\xbf a bird \r\n"),
        ("fox.jpg", picture("orange", kind="JPEG")),
        ("owl.webp", picture("brown", kind="WEBP")),
        ("owl.json", b'{"caption": "an owl", "tags": []}'),
    )
    assert response.status_code == 201 and response.json()["skipped"] == []
    assert {"bird.png", "bird.txt", "fox.jpg", "owl.webp", "owl.json"} < set(tree(pets))
    assert (pets / "bird.txt").read_bytes() == b"a bird\n"
    assert json.loads((pets / "owl.json").read_text()) == {"caption": "an owl", "tags": []}
    items = client.get("/api/datasets/pets/items").json()["items"]
    assert [item["caption"] for item in items] == ["a bird", "a cat", "", "an owl"]
    assert nothing_is_left(settings) and stat.S_IMODE((pets / "bird.png").stat().st_mode) & 0o444


def test_a_name_that_is_taken_gives_another_and_the_caption_goes_along(client, pets):
    before = tree(pets)
    response = send(client, "pets", ("CAT.png", picture("blue")), ("cat.txt", b"a blue cat"))
    assert names(response) == {"CAT.png": "CAT-2.png", "cat.txt": "CAT-2.txt"}
    again = send(client, "pets", ("cat.jpg", picture("green", kind="JPEG")))
    assert names(again) == {"cat.jpg": "cat-3.jpg"}  # a stem has one caption
    assert {key: value for key, value in tree(pets).items() if key in before} == before


def test_two_files_of_one_name_are_both_kept(client, pets):
    response = send(
        client, "pets", ("a/x.png", picture("blue")), ("b/x.png", picture("green")), ("x.txt", b"both")
    )
    assert [each["rel"] for each in response.json()["saved"]] == ["x.png", "x-2.png", "x.txt", "x-2.txt"]


def test_names_are_cleaned_and_stay_apart(client, pets):
    sent = [
        "../../evil.png",
        "C:\\dir\\evil.png",
        "a<b>.png",
        "a b.png",
        "ünï.png",
        "\u202egnp.png",
        "CON.png",
        ".hidden.png",
        "x" * 300 + ".png",
        "evil.php.png",
        "-rf.png",
        "🐈.png",
    ]
    colours = [(number * 20, 0, 0) for number in range(len(sent))]
    response = send(
        client, "pets", *[(name, picture(colour)) for name, colour in zip(sent, colours, strict=True)]
    )
    assert response.json()["skipped"] == []
    found = [each["rel"] for each in response.json()["saved"]]
    assert len(set(found)) == len(sent)
    assert found[:5] == ["evil.png", "evil-2.png", "a_b_.png", "a b.png", "ünï.png"]
    assert found[6:8] == ["_CON.png", "hidden.png"] and found[9:11] == ["evil.php.png", "-rf.png"]
    for rel in found:
        shown = client.get(f"/api/img/datasets/pets/{rel}")
        assert (shown.status_code, shown.headers["content-type"]) == (200, "image/png"), rel
    assert sorted(path.name for path in pets.parent.iterdir()) == [".uploads", "pets"]


def test_the_same_picture_is_not_kept_twice(client, pets):
    content = (pets / "cat.png").read_bytes()
    response = send(client, "pets", ("other.png", content), ("other.txt", b"another cat"))
    assert reasons(response)["other.png"] == "is the same picture as cat.png"
    assert "another caption" in reasons(response)["other.txt"] and (pets / "cat.txt").read_text() == "a cat\n"


def test_captions_alone_find_their_picture(client, settings):
    folder = make_dataset(settings.datasets_root, cat="a cat", dog=None)
    response = send(client, "pets", ("dog.txt", b"a dog"), ("cat.txt", b"a tiger"), ("cow.txt", b"a cow"))
    assert names(response) == {"dog.txt": "dog.txt"}
    assert "replace" in reasons(response)["cat.txt"] and "no picture" in reasons(response)["cow.txt"]
    response = send(client, "pets", ("cat.txt", b"a tiger"), replace="1")
    assert names(response) == {"cat.txt": "cat.txt"} and (folder / "cat.txt").read_text() == "a tiger\n"
    (old,) = client.get("/api/trash").json()["deleted"]
    assert old["files"] == ["cat.txt"]  # nothing is lost


HTML = b"<!doctype html><script>alert(1)</script>"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("page.html", HTML),
        ("page.png", HTML),
        ("image.svg", SVG),
        ("image.jpg", SVG),
        ("image.png.svg", SVG),
        ("image.png.html", picture()),
        ("model.ckpt", b"\x80\x04."),
        ("x.gif", picture(kind="GIF")),
        ("x.png", picture(kind="GIF") + b"/*<script>*/"),
        ("x.png", b"GIF89a/*"),
        ("noext", picture()),
        ("x.py", b"1"),
        ("x.png", picture()[:40]),
        ("x.jpg", picture(kind="JPEG", size=(64, 64))[:-400]),
        ("x.png", b""),
        ("x.tar", b""),
        ("x.exe", b"MZ"),
        ("x.png", b"%!PS-Adobe-3.0 EPSF-3.0"),
    ],
)
def test_what_is_no_picture_is_refused(client, pets, settings, name, content):
    before = tree(pets)
    response = send(client, "pets", (name, content))
    assert response.status_code == 201 and response.json()["saved"] == [] and len(reasons(response)) == 1
    assert tree(pets) == before and nothing_is_left(settings)


def test_a_picture_gets_the_suffix_of_what_it_is(client, pets):
    assert names(send(client, "pets", ("x.jpg", picture("blue")))) == {"x.jpg": "x.png"}
    assert names(send(client, "pets", ("y.jpeg", picture("blue", kind="JPEG")))) == {"y.jpeg": "y.jpeg"}


@pytest.mark.parametrize("content", [b"\xff\xfeb\0i\0", b"a\0b", b"x" * 70_000])
def test_captions_that_are_no_text_are_refused(client, pets, content):
    assert (
        reasons(send(client, "pets", ("cat.txt", content), replace="1"))
        and (pets / "cat.txt").read_text() == "a cat\n"
    )
    assert reasons(send(client, "pets", ("cat.json", b'{"caption": 3}'), replace="1"))


def enormous_png(side: int) -> bytes:
    """A small file that says it is a very large picture."""
    buffer = io.BytesIO()
    Image.new("1", (side, side)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("side", [8000, 14_000])
def test_pictures_of_too_many_pixels_are_refused(client, pets, side):
    assert "million pixels" in reasons(send(client, "pets", ("x.png", enormous_png(side))))["x.png"]


def test_sizes_are_limited(client, pets, settings, monkeypatch):
    monkeypatch.setattr(uploads, "MOST_PICTURE_BYTES", 50)
    assert "larger" in reasons(send(client, "pets", ("x.png", picture())))["x.png"]
    monkeypatch.setattr("web.routes.dataset_items.MOST_TOTAL_BYTES", 10)
    assert send(client, "pets", ("x.png", picture())).status_code == 413
    assert nothing_is_left(settings)


def test_a_full_disk_is_told_before_anything_is_written(client, pets, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(uploads.shutil, "disk_usage", lambda _path: usage)
    response = send(client, "pets", ("x.png", picture()))
    assert response.status_code == 507 and response.json()["code"] == "web.disk_full"


def test_requests_that_are_no_upload_are_refused(client, pets):
    url = "/api/datasets/pets/items"
    assert client.post(url).status_code == 422
    assert client.post(url, data={"files": "text"}).status_code == 422
    assert client.post(url, content=b"x", headers={"Content-Type": "multipart/form-data"}).status_code == 400
    broken = {"Content-Type": "multipart/form-data; boundary=b"}
    # Nothing whole arrived, so there is no file in it.
    assert client.post(url, content=b"--b\r\nnonsense", headers=broken).status_code == 422
    assert send(client, "none", ("x.png", picture())).status_code == 404
    many = [(f"{number}.txt", b"") for number in range(uploads.MOST_FILES + 1)]
    assert send(client, "pets", *many).status_code == 400


def test_what_a_killed_server_left_is_cleared(client, pets, settings):
    old = settings.datasets_root / ".uploads" / "in-old"
    old.mkdir(parents=True)
    os.utime(old, (1, 1))
    send(client, "pets", ("x.png", picture("blue")))
    assert nothing_is_left(settings)


# -- zips --------------------------------------------------------------------------------------------------


def test_a_zip_is_unpacked_flat_with_its_captions(client, pets):
    content = zip_of(
        {
            "set/cat.png": picture("blue"),
            "set/cat.txt": b"a blue cat",
            "set/sub/cat.png": picture("green"),
            "set/sub/cat.txt": b"a green cat",
            "__MACOSX/set/._cat.png": b"x",
            "set/.DS_Store": b"x",
            "Thumbs.db": b"x",
            "readme.md": b"x",
        }
    )
    response = send(client, "pets", ("set.zip", content))
    assert response.status_code == 201 and list(reasons(response)) == ["readme.md"]
    assert (pets / "cat-2.txt").read_text() == "a blue cat\n" and (
        pets / "cat-3.txt"
    ).read_text() == "a green cat\n"
    assert (pets / "cat.txt").read_text() == "a cat\n"


LINK = (stat.S_IFLNK | 0o777) << 16


@pytest.mark.parametrize(
    ("entries", "attributes"),
    [
        ({"../../x.png": picture()}, {}),
        ({"/x.png": picture()}, {}),
        ({"..\\x.png": picture()}, {}),
        ({"a/../../x.png": picture()}, {}),
        ({"C:/x.png": picture()}, {}),
        ({"\\x.png": picture()}, {}),
        ({"x.png": b"/etc/passwd"}, {"x.png": LINK}),
        ({"fine.png": picture(), "in.zip": zip_of({"x.png": picture()})}, {}),
        ({"x.png": b"\0" * 30_000_000}, {}),
        ({f"{n}.txt": b"" for n in range(archives.MOST_ENTRIES + 1)}, {}),
        ({"fifo.png": b""}, {"fifo.png": (stat.S_IFIFO | 0o666) << 16}),
        ({"x.tar.gz": b""}, {}),
    ],
)
def test_a_zip_that_tries_something_is_refused_whole(client, pets, settings, entries, attributes):
    before, outside = tree(pets), sorted(settings.datasets_root.parent.iterdir())
    response = send(client, "pets", ("bad.zip", zip_of(entries, **attributes)))
    assert 400 <= response.status_code < 500 and response.json()["error"], response.text
    assert tree(pets) == before and nothing_is_left(settings)
    assert sorted(settings.datasets_root.parent.iterdir()) == outside


def lying_zip() -> bytes:
    """A zip whose entry says it is smaller than it is."""
    content = zip_of({"x.txt": b"a" * 5000})
    size = struct.pack("<I", 5000)
    assert content.count(size) == 2
    return content.replace(size, struct.pack("<I", 10))


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 nothing", zip_of({"x.png": picture()})[:-30], lying_zip()]
)
def test_a_damaged_zip_is_told(client, pets, settings, content):
    before = tree(pets)
    response = send(client, "pets", ("bad.zip", content))
    assert response.status_code in (413, 415), response.text
    assert tree(pets) == before and nothing_is_left(settings)


def test_an_encrypted_zip_is_told(client, pets):
    content = bytearray(zip_of({"x.txt": b"text"}))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + offset] |= 1
    response = send(client, "pets", ("secret.zip", bytes(content)))
    assert response.status_code == 415 and "encrypted" in response.json()["error"]


def test_bytes_are_counted_whatever_the_zip_says(tmp_path, monkeypatch):
    """An entry that goes on for longer than it says."""
    source = tmp_path / "x.zip"
    source.write_bytes(zip_of({"a.txt": b"x" * 100, "b.txt": b"y" * 100}))
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda self, entry: io.BytesIO(b"z" * 500))
    with pytest.raises(Exception, match="larger"):
        archives.unpack(source, "x.zip", place, uploads.Outcome())
    with pytest.raises(Exception, match="larger"):
        archives.unpack(source, "x.zip", tmp_path, uploads.Outcome(), budget=10)


# -- without scripts ---------------------------------------------------------------------------------------


def test_a_browser_without_scripts_gets_a_page(client, pets):
    files = [
        ("files", ("<b>bird</b>.png", picture("blue"), "image/png")),
        ("files", ("<i>.html", HTML, "text/html")),
    ]
    response = client.post("/api/datasets/pets/items", files=files, headers={"Accept": "text/html"})
    assert response.status_code == 201 and "1 file added" in response.text
    assert "<b>" not in response.text and "<i>" not in response.text and "is of a kind" in response.text
    bad = [("files", ("bad.zip", b"x", "application/zip"))]
    told = client.post("/api/datasets/pets/items", files=bad, headers={"Accept": "text/html"})
    assert told.status_code == 415 and told.headers["content-type"].startswith("text/html")
