"""Datasets over the API: made, listed, renamed, deleted and restored; captions edited by several at once."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testing.web.dataset_kit import make_dataset, picture, report, tree, write_report
from web.datasets.names import bad_dataset_name, clean_stem, folded, free_stem


@pytest.fixture
def pets(settings):
    """A dataset of two pictures."""
    return make_dataset(settings.datasets_root)


def caption_url(name="pets", item="cat.png"):
    return f"/api/datasets/{name}/items/{item}/caption"


# -- names ------------------------------------------------------------------------------------------------


@given(st.text(max_size=120) | st.from_regex(r"[A-Za-z0-9._\-/\\]{1,20}", fullmatch=True))
def test_an_accepted_name_is_a_child_of_the_root(name):
    from pathlib import Path

    if bad_dataset_name(name) is None:
        assert (Path("/root") / name).parent == Path("/root") and Path(
            os.path.normpath(f"/root/{name}")
        ).name == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../up",
        "a/b",
        "a\\b",
        ".hidden",
        "x.",
        "CON",
        "nul.txt",
        "a" * 101,
        "-rf",
        "$(touch x)",
        ";id",
        "a\0b",
        "ü",
        "a b",
        "_controls",
    ],
)
def test_bad_names_make_no_dataset(client, settings, name):
    response = client.post("/api/datasets", json={"name": name})
    assert response.status_code == 422 and response.json()["error"]
    assert not settings.datasets_root.exists() or not any(settings.datasets_root.iterdir())


@given(st.text(max_size=300))
def test_a_clean_stem_is_plain(name):
    stem = clean_stem(name)
    assert stem and stem == stem.strip(" .") and not set(stem) & set('/\\:*?"<>|\0\n\r\t')
    assert len(f"{stem}-1000.png".encode()) < 255 and clean_stem(stem + ".png") == stem


@given(st.lists(st.text(max_size=8), max_size=20))
def test_names_that_differ_stay_apart(names):
    taken: set[str] = set()
    for name in names:
        stem = free_stem(clean_stem(name), taken)
        assert folded(stem) not in taken
        taken.add(folded(stem))


# -- the datasets ------------------------------------------------------------------------------------------


def test_a_dataset_is_made_listed_and_described(client, pets):
    made = client.post("/api/datasets", json={"name": "birds"})
    assert made.status_code == 201 and made.headers["location"] == "/api/datasets/birds"
    assert client.post("/api/datasets", json={"name": "BIRDS"}).status_code == 409
    listed = client.get("/api/datasets").json()
    assert [each["name"] for each in listed["datasets"]] == ["birds", "pets"] and listed["links"] == []
    found = client.get("/api/datasets/pets").json()
    assert (found["num_pictures"], found["num_captioned"], found["last_eval"]) == (2, 2, None)
    assert found["num_bytes"] == sum(len(content) for content in tree(pets).values())
    assert client.get("/api/datasets/none").status_code == 404


def test_a_dataset_is_renamed(client, pets):
    assert client.patch("/api/datasets/pets", json={"name": "../x"}).status_code == 422
    client.post("/api/datasets", json={"name": "other"})
    assert client.patch("/api/datasets/pets", json={"name": "Other"}).status_code == 409
    assert client.patch("/api/datasets/pets", json={"name": "Pets"}).json()["num_pictures"] == 2
    assert not pets.exists() and (pets.parent / "Pets").is_dir()


def test_a_deleted_dataset_lies_in_the_trash_and_comes_back(client, pets, settings):
    before = tree(pets)
    response = client.delete("/api/datasets/pets")
    assert response.status_code == 204 and not pets.exists()
    assert client.get("/api/datasets/pets").status_code == 404
    (deleted,) = client.get("/api/trash").json()["deleted"]
    assert (
        deleted["dataset"] == "pets"
        and deleted["files"] == []
        and deleted["id"] == response.headers["trash-id"]
    )
    assert any((settings.data_root / "trash").rglob("cat.png"))
    make_dataset(settings.datasets_root)
    assert client.post(f"/api/trash/{deleted['id']}/restore").status_code == 409
    shutil.rmtree(pets)
    assert client.post(f"/api/trash/{deleted['id']}/restore").status_code == 200
    assert tree(pets) == before and client.get("/api/trash").json()["deleted"] == []


@pytest.mark.parametrize("name", ["..", ".", "%2e%2e", "..%2f..", "%2F", "x%00"])
def test_deleting_something_else_deletes_nothing(client, pets, settings, name):
    assert client.delete(f"/api/datasets/{name}").status_code in (404, 405, 422)
    assert pets.is_dir() and settings.datasets_root.is_dir() and settings.data_root.is_dir()


def test_the_trash_can_be_emptied_and_takes_no_paths(client, pets, settings):
    client.delete("/api/datasets/pets")
    identifier = client.get("/api/trash").json()["deleted"][0]["id"]
    for bad in ("..", "%2e%2e", "x", "..%2f..%2fdatasets", identifier + "0"):
        assert client.delete(f"/api/trash/{bad}").status_code in (404, 405)
        assert client.post(f"/api/trash/{bad}/restore").status_code in (404, 405)
    assert client.delete(f"/api/trash/{identifier}").status_code == 204
    assert list((settings.data_root / "trash").iterdir()) == []


def test_a_dataset_that_a_job_reads_stays(client, services, settings, pets, config):
    text = config()
    datasets = f"datasets: [{{folder_path: {pets}, resolution: [32]}}]\n"
    text = text[: text.index("datasets:")] + datasets + text[text.index("      network:") :]
    services.settings.output_root.mkdir(exist_ok=True)
    made = client.post("/api/jobs", json={"config_yaml": text}).json()
    assert client.post(f"/api/jobs/{made['id']}/enqueue").status_code == 202
    make_dataset(settings.datasets_root, "pet")  # whose name only begins like the other
    assert client.delete("/api/datasets/pet").status_code == 204
    for does in ("waits", "runs"):
        for response in (
            client.delete("/api/datasets/pets"),
            client.patch("/api/datasets/pets", json={"name": "x"}),
        ):
            assert response.status_code == 409 and f"the job small {does}" in response.json()["error"]
        if does == "waits":
            assert services.lanes.claim().id == made["id"]
    assert pets.is_dir()
    services.store.finish(services.store.get(made["id"]), "stopped", "it was")
    assert client.delete("/api/datasets/pets").status_code == 204


# -- pictures ----------------------------------------------------------------------------------------------


def test_pictures_come_with_captions_in_natural_order(client, settings):
    make_dataset(settings.datasets_root, **{"10": "ten", "2": "two", "none": None, "empty": ""})
    page = client.get("/api/datasets/pets/items").json()
    assert [item["rel"] for item in page["items"]] == ["2.png", "10.png", "empty.png", "none.png"]
    first = page["items"][0]
    assert (first["caption"], first["width"], first["height"], first["caption_file"]) == (
        "two",
        24,
        24,
        "2.txt",
    )
    assert client.get(first["thumb_url"]).headers["content-type"] == "image/webp"
    assert client.get(first["url"]).headers["content-type"] == "image/png"
    missing = client.get("/api/datasets/pets/items?caption=missing").json()
    assert [item["rel"] for item in missing["items"]] == ["empty.png", "none.png"] and missing["total"] == 2
    assert client.get("/api/datasets/pets/items?q=TW").json()["items"][0]["rel"] == "2.png"
    assert client.get("/api/datasets/pets/items?q=%25").json()["total"] == 0
    assert client.get("/api/datasets/pets/items?sort=name;drop").status_code == 422


def test_pictures_are_paged(client, settings):
    make_dataset(settings.datasets_root, **{f"p{number}": "x" for number in range(7)})
    seen, cursor = [], None
    while True:
        page = client.get(
            "/api/datasets/pets/items", params={"limit": 3} | ({"cursor": cursor} if cursor else {})
        )
        seen += [item["rel"] for item in page.json()["items"]]
        cursor = page.json()["next_cursor"]
        if cursor is None:
            break
    assert seen == [f"p{number}.png" for number in range(7)]


def test_results_of_the_newest_report_lie_on_the_pictures(client, settings, pets):
    old = write_report(settings.output_root, report(pets, {"cat.png": {"gain": 9.0}}), "old")
    os.utime(old, (1, 1))
    images = {
        "cat.png": {
            "gain": -0.5,
            "loss": 0.3,
            "flagged": True,
            "reasons": [{"code": "hurts", "message": "it hurts"}],
        },
        "dog.png": {"gain": 1.0},
    }
    write_report(settings.output_root, report(pets, images), "new")
    page = client.get("/api/datasets/pets/items?sort=worst").json()["items"]
    assert [item["rel"] for item in page] == ["cat.png", "dog.png"]
    assert (
        page[0]["values"]["log_ratio"] == -0.5
        and page[0]["reasons"] == ["it hurts"]
        and page[0]["loss"] == 0.3
    )
    assert [item["stale"] for item in page] == [False, True]  # the dog's caption was another one
    flagged = client.get("/api/datasets/pets/items?show=flagged").json()
    assert [item["rel"] for item in flagged["items"]] == ["cat.png"]
    assert client.get("/api/datasets/pets/items?sort=loss").json()["items"][0]["rel"] == "cat.png"
    assert client.get("/api/datasets/pets").json()["last_eval"]["path"] == "output/new/new_000000000.json"


def test_a_deleted_picture_takes_its_own_caption_along_and_comes_back(client, pets):
    before = tree(pets)
    response = client.delete("/api/datasets/pets/items/cat.png")
    assert response.status_code == 204 and sorted(tree(pets)) == ["dog.png", "dog.txt"]
    assert client.post(f"/api/trash/{response.headers['trash-id']}/restore").json()["files"] == [
        "cat.png",
        "cat.txt",
    ]
    assert tree(pets) == before
    (pets / "dog.webp").write_bytes(picture(kind="WEBP"))
    client.delete("/api/datasets/pets/items/dog.webp")
    assert (pets / "dog.txt").exists()  # it is also that of dog.png
    assert client.delete("/api/datasets/pets/items/dog.txt").status_code == 404
    assert client.delete("/api/datasets/pets/items/none.png").status_code == 404


def test_duplicates_are_found_by_bytes_and_by_look(client, settings):
    from PIL import Image

    folder = make_dataset(settings.datasets_root, a="one", b="two")
    shutil.copy(folder / "a.png", folder / "copy.png")
    Image.open(folder / "b.png").resize((96, 96)).save(folder / "large.jpg", quality=95)
    Image.new("RGB", (24, 24), "red").save(folder / "flat1.png")
    Image.new("RGB", (24, 24), "blue").save(folder / "flat2.png")
    (folder / "broken.png").write_bytes(b"no picture")
    for _ in range(2):  # the second time from what is remembered
        found = client.get("/api/datasets/pets/duplicates").json()
        assert found["exact"] == [["a.png", "copy.png"]] and found["unreadable"] == ["broken.png"]
        assert [sorted(group) for group in found["near"]] == [["b.png", "large.jpg"]]
        assert found["num_left"] == 0
    shown = client.get("/api/datasets/pets/items?show=duplicates").json()["items"]
    assert [item["rel"] for item in shown] == ["a.png", "copy.png", "b.png", "large.jpg"]


def test_looking_for_duplicates_ends_in_time_and_goes_on(services, settings):
    from web.datasets.looks import find_duplicates
    from web.evaluations.queueing import library_of

    make_dataset(settings.datasets_root, a="one", b="two", c="three")
    assert find_duplicates(library_of(services), "pets", budget_s=-1).num_left == 3
    assert find_duplicates(library_of(services), "pets").num_left == 0
    assert find_duplicates(library_of(services), "pets", budget_s=-1).num_left == 0


# -- captions ----------------------------------------------------------------------------------------------


def test_a_caption_is_changed_only_if_nobody_else_did(client, pets):
    read = client.get(caption_url())
    assert read.json()["caption"] == "a cat" and read.headers["etag"] == read.json()["etag"]
    first = client.put(
        caption_url(), json={"caption": " a black\r\ncat "}, headers={"If-Match": read.json()["etag"]}
    )
    assert first.status_code == 200 and (pets / "cat.txt").read_bytes() == b"a black\ncat\n"
    late = client.put(caption_url(), json={"caption": "mine"}, headers={"If-Match": read.json()["etag"]})
    assert late.status_code == 412 and late.json()["errors"][0]["detail"] == "a black\ncat"
    assert (
        late.headers["etag"] == first.json()["etag"] and (pets / "cat.txt").read_bytes() == b"a black\ncat\n"
    )
    (pets / "cat.txt").write_text("by hand")  # not by this server
    stale = client.put(caption_url(), json={"caption": "x"}, headers={"If-Match": first.json()["etag"]})
    assert stale.status_code == 412
    assert client.put(caption_url(), json={"caption": "without asking"}).status_code == 200


def test_a_missing_caption_has_a_tag_too(client, settings):
    folder = make_dataset(settings.datasets_root, cat=None)
    tag = client.get(caption_url()).json()["etag"]
    assert client.put(caption_url(), json={"caption": ""}, headers={"If-Match": tag}).json()["file"] is None
    assert (
        client.put(caption_url(), json={"caption": "new"}, headers={"If-Match": tag}).json()["file"]
        == "cat.txt"
    )
    assert client.put(caption_url(), json={"caption": "late"}, headers={"If-Match": tag}).status_code == 412
    assert (folder / "cat.txt").read_text() == "new\n"


def test_captions_in_json_keep_what_else_they_hold(client, settings):
    folder = make_dataset(settings.datasets_root, cat=None)
    (folder / "cat.json").write_text(json.dumps({"caption": "a cat", "tags": ["x"]}))
    assert client.get(caption_url()).json()["caption"] == "a cat"
    client.put(caption_url(), json={"caption": "another"})
    assert json.loads((folder / "cat.json").read_text()) == {"caption": "another", "tags": ["x"]}


@pytest.mark.parametrize("content", [b"\xff\xfea\0", b"x" * 70_000, b"\xc3\x28"])
def test_a_caption_that_cannot_be_read_is_told_and_not_changed_by_bulk(client, pets, content):
    (pets / "cat.txt").write_bytes(content)
    assert client.get(caption_url()).json()["problem"]
    client.post("/api/datasets/pets/captions/bulk", json={"prefix": "x ", "dry_run": False})
    assert (pets / "cat.txt").read_bytes() == content and (pets / "dog.txt").read_text() == "x a dog\n"


def test_captions_that_are_too_long_or_no_text_are_refused(client, pets):
    assert client.put(caption_url(), json={"caption": "x" * 70_000}).status_code == 422
    body = b'{"caption": "\\ud800"}'
    response = client.put(caption_url(), content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    assert client.put(caption_url(), json={"caption": "a\0b\x07c"}).json()["caption"] == "abc"


# -- many captions at once ---------------------------------------------------------------------------------


def bulk(client, **body):
    return client.post("/api/datasets/pets/captions/bulk", json=body)


def test_a_change_is_shown_made_and_undone(client, settings):
    folder = make_dataset(settings.datasets_root, cat="a Cat, catty", dog="a dog", bare=None)
    before = tree(folder)
    shown = bulk(client, find="cat", replace="lion").json()
    assert [(each["rel"], each["after"]) for each in shown["changes"]] == [("cat.png", "a lion, lionty")]
    assert shown["id"] is None and tree(folder) == before
    words = bulk(client, find="cat", replace="lion", whole_words=True).json()["changes"]
    assert words[0]["after"] == "a lion, catty"
    assert (
        bulk(client, find="cat", replace="\\1", match_case=True).json()["changes"][0]["after"]
        == "a Cat, \\1ty"
    )
    done = bulk(client, find="cat", replace="lion", dry_run=False, expected=shown["digest"]).json()
    assert (folder / "cat.txt").read_text() == "a lion, lionty\n"
    undo = client.post(f"/api/datasets/pets/captions/changes/{done['id']}/undo")
    assert undo.json() == {"restored": 1, "kept": []} and tree(folder) == before
    assert client.post(f"/api/datasets/pets/captions/changes/{done['id']}/undo").status_code == 409


def test_what_is_made_is_what_was_shown(client, pets):
    shown = bulk(client, prefix="photo of ").json()
    assert [each["after"] for each in shown["changes"]] == ["photo of a cat", "photo of a dog"]
    (pets / "cat.txt").write_text("a tiger")
    late = bulk(client, prefix="photo of ", dry_run=False, expected=shown["digest"])
    assert late.status_code == 412 and (pets / "dog.txt").read_text() == "a dog\n"


def test_what_was_edited_since_is_not_undone(client, pets):
    done = bulk(client, suffix=", sitting", dry_run=False).json()
    client.put(caption_url(), json={"caption": "mine"})
    undo = client.post(f"/api/datasets/pets/captions/changes/{done['id']}/undo").json()
    assert undo == {"restored": 1, "kept": ["cat.png"]}
    assert ((pets / "cat.txt").read_text(), (pets / "dog.txt").read_text()) == ("mine\n", "a dog\n")


def test_a_change_reaches_only_what_it_names(client, pets):
    assert len(bulk(client, prefix="x ", items=["dog.png", "none.png"]).json()["changes"]) == 1
    assert bulk(client, find="zebra", dry_run=False).status_code == 409
    assert bulk(client).status_code == 422 and bulk(client, replace="x").status_code == 422
    assert bulk(client, find="a", replace="x" * 2000, prefix="y" * 3000).status_code == 422
    body = b'{"find": "\\ud800", "replace": "x"}'
    url = "/api/datasets/pets/captions/bulk"
    assert client.post(url, content=body, headers={"Content-Type": "application/json"}).status_code == 422
    for bad in ("..", "%2e%2e", "x"):
        assert client.post(f"/api/datasets/pets/captions/changes/{bad}/undo").status_code in (404, 405)


def test_a_caption_of_two_pictures_is_changed_once(client, pets):
    (pets / "cat.webp").write_bytes(picture(kind="WEBP"))
    assert len(bulk(client, prefix="x ").json()["changes"]) == 2
    bulk(client, prefix="x ", dry_run=False)
    assert (pets / "cat.txt").read_text() == "x a cat\n"


def test_open_pages_are_told(client, services, pets, monkeypatch):
    rung = []
    monkeypatch.setattr(type(services.doorbell), "ring", lambda self, topics: rung.append(list(topics)))
    client.put(caption_url(), json={"caption": "new"})
    bulk(client, prefix="x ", dry_run=False)
    client.delete("/api/datasets/pets/items/cat.png")
    assert rung == [["datasets", "dataset-pets"]] * 3
