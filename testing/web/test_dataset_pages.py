"""The pages of datasets by plain links and forms, as a browser without scripts uses them."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser

import pytest

from testing.web.dataset_kit import make_dataset, report, tree, write_report

HTML = {"Accept": "text/html"}


@pytest.fixture
def pets(settings):
    """A dataset of two pictures with a report."""
    folder = make_dataset(settings.datasets_root)
    shutil.copy(folder / "cat.png", folder / "copy.png")
    write_report(settings.output_root, report(folder, {"cat.png": {"gain": -1.5}, "dog.png": {}}))
    return folder


PAGES = [
    "/datasets",
    "/datasets/pets",
    "/datasets/pets?show=duplicates&sort=worst&metric=loss",
    "/datasets/pets/picture/cat.png",
    "/datasets/pets/replace?find=cat&replace=lion",
    "/datasets/pets/duplicates",
    "/datasets/pets/delete",
    "/datasets/pets/evaluate",
    "/trash",
    "/evaluations",
    "/evaluations/report?path=output/measured/measured_000000000.json",
]


class Page(HTMLParser):
    """What matters of a page for who uses it by keyboard or by ear."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.labels: set[str] = set()
        self.fields: list[dict[str, str | None]] = []
        self.buttons: list[dict[str, str | None]] = []
        self.images: list[dict[str, str | None]] = []
        self.ids: list[str] = []
        self.headings = 0
        self.inside: list[str] = []
        self.names: dict[int, str] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if found.get("id"):
            self.ids.append(found["id"] or "")
        if tag == "label":
            self.inside.append("label")
            self.labels.add(found.get("for") or "")
        if tag in ("input", "select", "textarea") and found.get("type") != "hidden":
            self.fields.append(found | {"wrapped": "yes" if "label" in self.inside else None})
        if tag == "button":
            self.buttons.append(found)
        if tag == "img":
            self.images.append(found)
        if tag == "h1":
            self.headings += 1

    def handle_endtag(self, tag: str) -> None:
        if tag == "label":
            self.inside.remove("label")


@pytest.mark.parametrize("path", PAGES)
def test_pages_can_be_used_by_keyboard_and_ear(client, pets, path):
    client.delete("/api/datasets/pets/items/dog.png")
    response = client.get(path, headers=HTML)
    assert response.status_code == 200
    page = Page(response.text)
    assert page.headings == 1 and len(page.ids) == len(set(page.ids))
    for field in page.fields:
        named = field.get("aria-label") or field.get("wrapped") or field.get("id") in page.labels
        assert named, field
    assert all(image.get("alt") is not None for image in page.images)
    assert "tabindex" not in response.text.replace('tabindex="-1"', "")


@pytest.mark.parametrize("path", PAGES)
def test_pages_hold_no_inline_code(client, pets, path):
    text = client.get(path, headers=HTML).text
    assert "<script>" not in text and " style=" not in text and "<style" not in text
    assert re.findall(r"\son\w+=", text) == [] and "hx-on" not in text and "js:" not in text
    assert "https://" not in text and "http://" not in text


def test_every_picture_and_link_of_a_page_is_there(client, pets):
    for path in PAGES:
        text = client.get(path, headers=HTML).text
        found = set(re.findall(r'(?:href|src)="([^"#]+)', text))
        for target in found:
            url = target.replace("&amp;", "&")
            url = path.split("?")[0] + url if url.startswith("?") else url
            assert client.get(url, headers=HTML).status_code == 200, (path, target)


def test_a_proxy_may_serve_us_below_a_path(settings, pets):
    from dataclasses import replace

    from starlette.testclient import TestClient

    from web.app import create_app

    app = create_app(replace(settings, root_path="/ai"))
    with TestClient(app, base_url="http://localhost:8675", root_path="/ai") as client:
        text = client.get("/ai/datasets/pets").text
        targets = re.findall(r'(?:href|src|action|hx-get|data-url|data-delete)="(/[^"]*)', text)
        assert targets and all(target.startswith("/ai/") for target in targets)
        data = {"item": "cat.png", "caption": "x", "back": "/datasets/pets?page=2"}
        sent = client.post("/ai/datasets/pets/caption", data=data, follow_redirects=False)
        assert sent.headers["location"] == "/ai/datasets/pets?page=2&done=saved"


def test_a_dataset_is_made_renamed_deleted_and_restored_by_forms(client, settings):
    made = client.post("/datasets", data={"name": " birds "}, headers=HTML)
    assert made.url.path == "/datasets/birds" and "The dataset was made." in made.text
    taken = client.post("/datasets", data={"name": "birds"}, headers=HTML)
    assert taken.status_code == 409 and "already exists" in taken.text
    assert client.post("/datasets", data={"name": "a/b"}, headers=HTML).status_code == 422
    renamed = client.post("/datasets/birds/rename", data={"new": "owls"}, headers=HTML)
    assert renamed.url.path == "/datasets/owls" and (settings.datasets_root / "owls").is_dir()
    unsure = client.post("/datasets/owls/delete", data={"confirm": "birds"}, headers=HTML)
    assert unsure.status_code == 422 and (settings.datasets_root / "owls").is_dir()
    deleted = client.post("/datasets/owls/delete", data={"confirm": "owls"}, headers=HTML)
    assert deleted.url.path == "/datasets" and "Moved to the trash." in deleted.text
    trash = client.get("/trash").text
    assert "the whole dataset" in trash
    identifier = re.findall(r"/trash/([0-9a-f-]+)/restore", trash)[0]
    assert client.post(f"/trash/{identifier}/restore", headers=HTML).url.path == "/datasets/owls"
    client.post("/datasets/owls/delete", data={"confirm": "owls"})
    identifier = re.findall(r"/trash/([0-9a-f-]+)/erase", client.get("/trash").text)[0]
    assert "Nothing was deleted." in client.post(f"/trash/{identifier}/erase", headers=HTML).text


def hidden(text, name):
    """The value of a hidden field of a page."""
    return re.findall(rf'name="{name}" value="([^"]*)"', text)[0].replace("&#34;", '"').replace("&amp;", "&")


def test_a_caption_is_saved_by_a_form_and_a_conflict_is_shown(client, pets):
    page = client.get("/datasets/pets?q=dog").text
    data = {"item": "dog.png", "etag": hidden(page, "etag"), "back": hidden(page, "back")}
    saved = client.post("/datasets/pets/caption", data={**data, "caption": "a dog\nsitting"}, headers=HTML)
    assert saved.url.path == "/datasets/pets" and saved.url.query == b"q=dog&done=saved"
    assert (pets / "dog.txt").read_text() == "a dog\nsitting\n" and "Saved." in saved.text
    late = client.post("/datasets/pets/caption", data={**data, "caption": "<mine>"}, headers=HTML)
    assert late.status_code == 409 and (pets / "dog.txt").read_text() == "a dog\nsitting\n"
    assert "&lt;mine&gt;" in late.text and "a dog\nsitting" in late.text  # both are there
    again = {**data, "etag": hidden(late.text, "etag"), "caption": "<mine>"}
    assert client.post("/datasets/pets/caption", data=again).status_code == 200
    assert (pets / "dog.txt").read_text() == "<mine>\n"


def test_a_caption_keeps_its_first_empty_line(client, pets):
    """HTML drops the newline behind <textarea>; ours writes one, so that none of the text's is lost."""
    (pets / "dog.txt").write_text("x")
    text = client.get("/datasets/pets/picture/dog.png").text
    assert re.search(r"<textarea[^>]*>\nx</textarea>", text)


def test_captions_are_replaced_by_forms_and_put_back(client, pets):
    before = tree(pets)
    preview = client.get("/datasets/pets/replace?find=DOG&replace=wolf&suffix=, %26 more").text
    assert "2 captions would change" in preview or "3 captions would change" in preview
    assert tree(pets) == before
    data = {"find": "DOG", "replace": "wolf", "suffix": ", & more", "expected": hidden(preview, "expected")}
    done = client.post("/datasets/pets/replace", data=data, headers=HTML)
    assert done.status_code == 200 and (pets / "dog.txt").read_text() == "a wolf, & more\n"
    change = hidden(done.text, "change")
    stale = client.post("/datasets/pets/replace", data=data, headers=HTML)
    assert stale.status_code == 412 and "look at it again" in stale.text
    assert "Last bulk change" in client.get("/datasets/pets").text
    client.post("/datasets/pets/undo", data={"change": change})
    after = tree(pets)
    assert after["dog.txt"] == before["dog.txt"] and after["cat.txt"] == before["cat.txt"]


def test_a_picture_is_deleted_by_a_form(client, pets):
    data = {"item": "dog.png", "back": "/datasets/pets?q=dog"}
    deleted = client.post("/datasets/pets/delete-picture", data=data, headers=HTML)
    assert deleted.url.path == "/datasets/pets" and not (pets / "dog.png").exists()
    assert "dog.png, dog.txt" in client.get("/trash").text


def test_pages_walk_through_pictures_as_they_are_shown(client, pets):
    text = client.get("/datasets/pets/picture/cat.png?sort=worst").text
    assert "1 of 3" in text and 'id="after"' in text and 'id="before"' not in text
    assert "/datasets/pets/picture/dog.png?sort=worst" in text.replace("&amp;", "&")
    assert client.get("/datasets/pets/picture/none.png", headers=HTML).status_code == 404


def test_many_pictures_are_shown_in_pages(client, settings):
    make_dataset(settings.datasets_root, "many", **{f"p{number}": f"number {number}" for number in range(65)})
    first, second = client.get("/datasets/many").text, client.get("/datasets/many?page=2").text
    assert first.count("data-rel=") == 60 and second.count("data-rel=") == 5
    assert 'rel="next"' in first and 'rel="prev"' in second and "Page 2 of 2" in second
    assert client.get("/datasets/many?page=0").status_code == 422
    assert "No picture is like that" in client.get("/datasets/many?q=zebra").text
    assert 'loading="lazy"' in first


def test_a_report_can_be_chosen(client, pets, settings):
    other = write_report(
        settings.output_root, report(pets, {"cat.png": {"gain": 3.25}}, model="other"), "later"
    )
    assert other.exists() and "3.25" in client.get("/datasets/pets").text
    chosen = client.get("/datasets/pets", params={"report": "output/measured/measured_000000000.json"}).text
    assert "-1.5" in chosen and "3.25" not in chosen
