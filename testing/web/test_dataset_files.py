"""Attacks on the files of datasets: paths that lead out, links, names and texts that want to be code."""

from __future__ import annotations

import os
import re
from urllib.parse import quote

import pytest

from testing.web.dataset_kit import make_dataset, picture, report, send, tree, write_report

SECRET = "the-secret-of-another-folder"  # noqa: S105 - of the tests


@pytest.fixture
def pets(settings):
    """A dataset beside things that must not be reached."""
    root = settings.datasets_root
    folder = make_dataset(root)
    evil = root.parent / "datasets-evil"
    evil.mkdir()
    (evil / "x.png").write_bytes(SECRET.encode())
    (evil / "x.txt").write_text(SECRET)
    (root / "loose.png").write_bytes(SECRET.encode())
    (folder / ".hidden.png").write_bytes(SECRET.encode())
    return folder


# Plain ".." is resolved by clients before they send it; a server sees it only as %2e%2e.
PATHS = [
    "%2e%2e",
    "%2e%2e/",
    "%2e%2e/loose.png",
    "..%2floose.png",
    "%2e%2e%2f%2e%2e%2fdatasets-evil%2fx.png",
    "%252e%252e%252floose.png",
    "..%5cloose.png",
    "/etc/passwd",
    "//etc/passwd",
    "%2fetc%2fpasswd",
    "C:%5Cx.png",
    "a%00b.png",
    "cat.png%00.txt",
    "%2e/cat.png",
    "x//cat.png",
    "x/%2e%2e/cat.png",
    ".hidden.png",
    "x" * 5000 + ".png",
    "cat.png/",
    "%ff%fe.png",
    "..;/loose.png",
    "sub/%2e%2e/%2e%2e/loose.png",
]


def files(settings):
    """Everything but the server's own data."""
    return {
        key: value
        for key, value in tree(settings.datasets_root.parent).items()
        if not key.startswith("data/")
    }


def test_no_path_leads_out_of_a_dataset(client, pets, settings):
    before = files(settings)
    base, html = "/api/datasets/pets/items", {"Accept": "text/html"}
    for path in PATHS:
        responses = [
            client.get(f"{base}/{path}/caption"),
            client.put(f"{base}/{path}/caption", json={"caption": "x"}),
            client.delete(f"{base}/{path}"),
            client.get(f"/datasets/pets/picture/{path}", headers=html),
            client.get(f"/api/img/datasets/pets/{path}"),
            client.get(f"/api/files/datasets/pets/{path}"),
        ]
        assert {response.status_code for response in responses} <= {400, 404, 405}, path
        assert not any(SECRET in response.text for response in responses), path
    assert files(settings) == before


def test_a_caption_file_is_no_picture(client, pets):
    for path in ("cat.txt", ".hidden.png", "cat"):
        assert client.get(f"/api/datasets/pets/items/{path}/caption").status_code == 404
        assert client.delete(f"/api/datasets/pets/items/{path}").status_code == 404
    assert (pets / "cat.txt").exists()


def test_no_path_in_a_form_leads_out_either(client, pets, settings):
    before = files(settings)
    for path in (
        "../loose.png",
        "/etc/passwd",
        "..\\loose.png",
        "a\0b.png",
        ".hidden.png",
        "cat.txt",
        "",
        "..",
        "../../datasets-evil/x.png",
        "C:\\x.png",
        "ca\nt.png",
        "./cat.png",
        "sub/../cat.png",
    ):
        for form in ("caption", "delete-picture"):
            data = {"item": path, "caption": "x"}
            response = client.post(f"/datasets/pets/{form}", data=data, follow_redirects=False)
            assert response.status_code in (404, 422), (form, path)
        response = client.get("/api/eval_dataset/file", params={"path": f"datasets/{path}"})
        assert response.status_code in (400, 404, 422) and SECRET not in response.text, path
    assert files(settings) == before


def test_only_folders_of_the_root_are_datasets(client, pets):
    names = (
        "%2e%2e",
        "..%2fdatasets-evil",
        "datasets-evil",
        "%2fetc",
        "pets%2f..",
        "%00",
        "loose.png",
        ".uploads",
        "x" * 300,
        "%ff",
        "pets%5c..",
    )
    for name in names:
        for path in (
            f"/api/datasets/{name}",
            f"/api/datasets/{name}/items",
            f"/datasets/{name}",
            f"/datasets/{name}/evaluate",
            f"/datasets/{name}/replace",
            f"/datasets/{name}/duplicates",
        ):
            assert client.get(path).status_code in (404, 405), path
    for text in (
        "..",
        "../datasets-evil",
        "/etc",
        "pets/..",
        "a\0",
        "loose.png",
        ".uploads",
        "x" * 300,
        "/",
        "~",
        str(pets / "sub"),
        str(pets.parent),
        "datasets",
    ):
        body = {"dataset_path": text, "model": "tiny-sd"}
        assert client.post("/api/eval_dataset", json=body).status_code == 404, text


def test_links_are_shown_as_such_and_never_followed(client, pets, settings):
    outside = settings.datasets_root.parent / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(picture("green"))
    (outside / "secret.txt").write_text(SECRET)
    (pets / "link.png").symlink_to(outside / "secret.png")
    (pets / "cat.caption").symlink_to(outside / "secret.txt")
    (pets / "dog.txt").unlink()
    (pets / "dog.txt").symlink_to(outside / "secret.txt")
    (pets / "sub").symlink_to(outside)
    (settings.datasets_root / "linked").symlink_to(outside)
    page = client.get("/api/datasets/pets/items").json()
    assert [item["rel"] for item in page["items"]] == ["cat.png", "dog.png"] and SECRET not in str(page)
    assert {each["name"] for each in page["refused"]} == {"link.png", "cat.caption", "dog.txt", "sub"}
    for path in ("link.png", "sub/secret.png"):
        assert client.get(f"/api/img/datasets/pets/{path}").status_code == 404
        assert client.get(f"/api/img/datasets/pets/{path}?thumb=64").status_code == 404
        assert client.get(f"/api/datasets/pets/items/{path}/caption").status_code == 404
        assert client.delete(f"/api/datasets/pets/items/{path}").status_code == 404
    assert client.get("/api/datasets/linked").status_code == 404
    assert client.get("/api/datasets").json()["links"] == ["linked"]
    # A caption that is a link is replaced, not written through.
    assert (
        client.put("/api/datasets/pets/items/dog.png/caption", json={"caption": "a dog"}).status_code == 200
    )
    assert (outside / "secret.txt").read_text() == SECRET and not (pets / "dog.txt").is_symlink()
    # Deleting moves the links, not what they lead to.
    assert client.delete("/api/datasets/pets").status_code == 204
    assert sorted(tree(outside)) == ["secret.png", "secret.txt"]
    assert client.delete("/api/datasets/linked").status_code == 404 and outside.is_dir()


def test_the_trash_restores_into_the_root_only(client, pets, settings):
    identifier = client.delete("/api/datasets/pets/items/cat.png").headers["trash-id"]
    outside = settings.datasets_root.parent / "outside"
    outside.mkdir()
    pets.rename(settings.datasets_root / "aside")
    pets.symlink_to(outside)
    assert client.post(f"/api/trash/{identifier}/restore").status_code == 409
    assert list(outside.iterdir()) == []


def test_names_that_cannot_be_served_are_told(client, pets):
    (pets / "a:b.png").write_bytes(picture())
    os.close(os.open(os.fsencode(pets) + b"/\xff.png", os.O_CREAT))
    refused = {
        each["name"]: each["reason"] for each in client.get("/api/datasets/pets/items").json()["refused"]
    }
    assert len(refused) == 2 and "rename" in refused["a:b.png"]
    assert client.get("/datasets/pets").status_code == 200
    assert client.get("/api/datasets").status_code == 200


# -- texts that want to be code ----------------------------------------------------------------------------

EVIL = [
    "<img src=x onerror=alert(1)>",
    '"><script>alert(1)</script>',
    "<div hx-get=/api/jobs hx-trigger=load>",
    "{{7*7}}",
    "</textarea><script>alert(1)</script>",
    "javascript:alert(1)",
    "' onmouseover='x",
]


@pytest.mark.parametrize("text", [" ".join(EVIL[:5]), EVIL[5], EVIL[6]])
def test_captions_names_and_reports_are_text_on_every_page(client, pets, settings, text):
    stem = text.replace("/", "").replace(":", "").strip()
    (pets / f"{stem}.png").write_bytes(picture("green"))
    (pets / f"{stem}.txt").write_text(text)
    (pets / "copy.png").write_bytes(picture("green"))
    body = report(
        pets,
        {
            "cat.png": {
                "caption": text,
                "flagged": True,
                "reasons": [{"code": "x", "message": text}],
                "hints": [{"code": "y", "message": text}],
                "suggestion": {"caption": text},
            }
        },
        model=text,
    )
    body["notes"] = [text]
    write_report(settings.output_root, body)
    client.post("/api/datasets/pets/captions/bulk", json={"suffix": text, "dry_run": False})
    client.delete("/api/datasets/pets/items/dog.png")
    item = quote(f"{stem}.png")
    pages = [
        "/datasets",
        "/datasets/pets",
        f"/datasets/pets?q={quote(text)}&report={quote(text)}",
        f"/datasets/pets/picture/{item}",
        "/datasets/pets/duplicates",
        "/trash",
        "/evaluations",
        f"/datasets/pets/replace?find={quote(text)}&replace={quote(text)}x",
        "/evaluations/report?path=output/measured/measured_000000000.json",
        "/datasets/pets/evaluate",
    ]
    html = {"Accept": "text/html"}
    answers = [client.get(page, headers=html) for page in pages]
    answers.append(
        client.post("/datasets/pets/evaluate", data={"model": text, "batch_size": text}, headers=html)
    )
    answers.append(client.post("/datasets", data={"name": text}, headers=html))
    answers.append(
        client.post(
            "/datasets/pets/caption",
            headers=html,
            data={"item": f"{stem}.png", "caption": text + "!", "etag": '"old"'},
        )
    )
    assert [answer.status_code for answer in answers] == [200] * len(pages) + [422, 422, 409]
    for answer in answers:
        shown = answer.text.replace("&lt;", "").replace("&#34;", "").replace("&#39;", "")
        assert "<img src=x" not in shown and "<script>" not in shown and "<div hx-get=/api" not in shown
        assert "49" not in re.findall(r">\s*(49)\s*<", shown) and "onmouseover='x" not in shown
        assert 'href="javascript' not in shown and "unsafe" not in answer.headers["content-security-policy"]


def test_files_are_served_as_what_they_are_and_can_do_nothing(client, pets):
    (pets / "page.html").write_text("<script>alert(1)</script>")
    (pets / "fake.png").write_text("<script>alert(1)</script>")
    (pets / "draw.svg").write_text("<svg onload='alert(1)'/>")
    for name in ("page.html", "draw.svg"):
        assert client.get(f"/api/img/datasets/pets/{name}").status_code == 415
        saved = client.get(f"/api/files/datasets/pets/{name}")
        assert saved.headers["content-disposition"].startswith("attachment")
        assert saved.headers["content-type"] == "application/octet-stream"
    shown = client.get("/api/img/datasets/pets/fake.png")
    assert (
        shown.headers["content-type"] == "image/png" and shown.headers["x-content-type-options"] == "nosniff"
    )
    assert "sandbox" in shown.headers["content-security-policy"]
    assert client.get("/api/img/datasets/pets/fake.png?thumb=64").status_code == 415
    assert send(client, "pets", ("page.html", b"<p>")).json()["saved"] == []
    items = client.get("/api/datasets/pets/items").json()["items"]
    assert next(item for item in items if item["rel"] == "fake.png")["width"] is None


def test_forms_lead_back_to_datasets_only(client, pets):
    for back in (
        "//evil.example",
        "https://evil.example",
        "/\\evil",
        "/login",
        "javascript:x",
        "/datasets/../x\n",
    ):
        data = {"item": "cat.png", "caption": "x", "back": back}
        response = client.post("/datasets/pets/caption", data=data, follow_redirects=False)
        assert response.status_code == 303 and response.headers["location"] == "/datasets/pets?done=saved", (
            back
        )


def test_a_link_cannot_put_words_into_a_page(client, pets):
    assert "hacked" not in client.get("/datasets/pets?done=hacked").text
    assert "Saved." in client.get("/datasets/pets?done=saved").text
