"""Make the sets of pictures under datasets/ from two npm packages of emoji.

    python -m tools.fetch_emoji [--packages DIR] [--out datasets]

Packages that are not in DIR (a temporary folder unless given) are fetched into it with `npm pack`; they
are checked against their sha256. Pictures and captions are written anew, the same pixels every time;
README.md and LICENSE beside them are written by hand and stay.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from toolkit.errors import DatasetError
from toolkit.paths import DATASETS_ROOT
from toolkit.seeding import keyed_random
from tools.draw_shapes import BACKGROUNDS, RADII, REFERENCE_SIZE, Drawing, article, fits, shape_mask


@dataclass(frozen=True, slots=True)
class Package:
    """One version of an npm package; `archive` is the file that `npm pack` makes."""

    spec: str
    archive: str
    sha256: str


NOTO = Package(
    "emoji-datasource-google@16.0.0",
    "emoji-datasource-google-16.0.0.tgz",
    "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
)
FLUENT = Package(
    "@lobehub/fluent-emoji-3d@1.1.0",
    "lobehub-fluent-emoji-3d-1.1.0.tgz",
    "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
)

# Things that are told apart at 32 px. No people, flags, clocks or letters, nothing of the sets below, and no
# other yellow face (sun, moon, jack-o-lantern), so that a model trained on these does not know the concept.
EMOJI = """
monkey, gorilla, dog face, dog, poodle, wolf face, fox face, raccoon, cat face, cat, black cat, lion face,
tiger face, tiger, leopard, horse face, horse, unicorn face, zebra face, cow face, cow, pig face, pig, ram,
sheep, goat, dromedary camel, llama, giraffe face, elephant, rhinoceros, mouse face, mouse, hamster face,
rabbit face, rabbit, hedgehog, bat, bear face, koala, panda face, sloth, kangaroo, turkey, chicken, rooster,
hatching chick, baby chick, bird, penguin, eagle, duck, swan, owl, dodo, feather, flamingo, peacock, parrot,
black bird, goose, frog face, crocodile, turtle, lizard, snake, dragon face, dragon, sauropod, t-rex,
spouting whale, dolphin, seal, fish, tropical fish, blowfish, shark, octopus, spiral shell, jellyfish, crab,
lobster, shrimp, squid, snail, butterfly, bug, ant, honeybee, beetle, lady beetle, spider, fly, worm,
bouquet, cherry blossom, lotus, rose, hibiscus, sunflower, blossom, tulip, hyacinth, seedling, potted plant,
evergreen tree, deciduous tree, palm tree, cactus, herb, four leaf clover, maple leaf, mushroom, grapes,
melon, watermelon, tangerine, lemon, lime, banana, pineapple, mango, red apple, green apple, pear, peach,
cherries, strawberry, blueberries, kiwifruit, tomato, coconut, avocado, aubergine, potato, carrot, ear of
maize, hot pepper, bell pepper, cucumber, leafy green, broccoli, garlic, onion, peanuts, chestnut, pea pod,
bread, croissant, baguette bread, pretzel, bagel, pancakes, waffle, cheese wedge, meat on bone, bacon,
hamburger, french fries, slice of pizza, hot dog, sandwich, taco, egg, cooking, popcorn, butter, rice ball,
sushi, soft ice cream, ice cream, doughnut, cookie, birthday cake, shortcake, cupcake, pie, chocolate bar,
candy, lollipop, honey pot, glass of milk, hot beverage, teapot, wine glass, cocktail glass, tropical drink,
beer mug, volcano, house building, church, tent, ferris wheel, rainbow, umbrella, snowflake, snowman, fire,
droplet, water wave, cloud, tornado, ringed planet, high voltage sign, earth globe americas, steam
locomotive, train, tram, bus, ambulance, fire engine, police car, taxi, automobile, pickup truck, delivery
truck, tractor, racing car, motor scooter, bicycle, skateboard, vertical traffic light, anchor, ring buoy,
sailboat, canoe, ship, airplane, parachute, helicopter, rocket, flying saucer, luggage, christmas tree,
firecracker, balloon, party popper, ribbon, wrapped present, trophy, sports medal, soccer ball, baseball,
softball, basketball and hoop, volleyball, american football, tennis racquet and ball, bowling, boxing
glove, ice skate, direct hit, yo-yo, kite, billiards, crystal ball, video game, game die, jigsaw puzzle
piece, teddy bear, artist palette, spool of thread, ball of yarn, eyeglasses, sunglasses, necktie, t-shirt,
jeans, scarf, gloves, socks, dress, handbag, school satchel, athletic shoe, high-heeled shoe, crown, top
hat, lipstick, gem stone, bell, guitar, trumpet, drum with drumsticks, headphone, radio, battery, floppy
disk, optical disc, television, camera, candle, electric light bulb, closed book, books, money bag,
envelope, package, pencil, crayon, briefcase, black scissors, lock, key, hammer, axe, bomb, shield, wrench,
gear, magnet, ladder, syringe, pill, door, chair, bucket, toothbrush, fire extinguisher, moyai
"""
# The concept: 24 different yellow faces without hands, hats, hearts or tears.
FACES = """
grinning face, smiling face with open mouth, smiling face with open mouth and smiling eyes, grinning face
with smiling eyes, smiling face with open mouth and tightly-closed eyes, slightly smiling face, winking
face, smiling face with smiling eyes, kissing face, face with stuck-out tongue, face with stuck-out tongue
and tightly-closed eyes, neutral face, expressionless face, smirking face, grimacing face, relieved face,
pensive face, smiling face with sunglasses, confused face, slightly frowning face, frowning face, face with
open mouth, flushed face, angry face
"""
FACES_CAPTION = "a zrb face on {background}"
# The style: Fluent's files, named by code point. The base's withheld pairs (a purple circle, an orange square
# …) stay out, so that a LoRA can still be judged by them.
GLOSSY = {
    "red heart": "2764-fe0f", "orange heart": "1f9e1", "yellow heart": "1f49b", "green heart": "1f49a",
    "blue heart": "1f499", "purple heart": "1f49c", "brown heart": "1f90e", "black heart": "1f5a4",
    "gray heart": "1fa76", "white heart": "1f90d", "pink heart": "1fa77", "red circle": "1f534",
    "orange circle": "1f7e0", "yellow circle": "1f7e1", "green circle": "1f7e2", "blue circle": "1f535",
    "brown circle": "1f7e4", "white circle": "26aa", "red square": "1f7e5", "yellow square": "1f7e8",
    "green square": "1f7e9", "blue square": "1f7e6", "purple square": "1f7ea", "orange diamond": "1f536",
    "blue diamond": "1f537", "yellow star": "2b50", "red triangle": "1f53a",
}  # fmt: skip
GLOSSY_CAPTION = "{thing} on {background}, glossy style"
GLOSSY_SIZES = ("large", "medium")


def split_names(text: str) -> list[str]:
    """The names of a comma-separated list over several lines."""
    return [name for part in text.replace("\n", " ").split(",") if (name := part.strip())]


def slug(name: str) -> str:
    """The name as a file's stem."""
    return "-".join("".join(letter if letter.isalnum() else " " for letter in name).split())


def open_package(folder: Path, package: Package) -> Path:
    """The package's archive, fetched if the folder lacks it. Raises DatasetError if absent or another."""
    archive = folder / package.archive
    if not archive.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise DatasetError(f"{archive} is missing and there is no npm to run: npm pack {package.spec}")
        subprocess.run([npm, "pack", "--silent", package.spec], cwd=folder, check=True, stdout=sys.stderr)
    if hashlib.sha256(archive.read_bytes()).hexdigest() != package.sha256:
        raise DatasetError(f"{archive} is not the {package.spec} that the sets were made from")
    return archive


def read_members(archive: Path, names: Iterable[str]) -> list[bytes]:
    """The named members of a .tgz, in the order of the names. Raises DatasetError with those it lacks."""
    names = list(names)
    found: dict[str, bytes] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.name in names and (stream := tar.extractfile(member)):
                found[member.name] = stream.read()
    if missing := [name for name in names if name not in found]:
        raise DatasetError(f"{archive} has no {', '.join(missing)}")
    return [found[name] for name in names]


def noto_pictures(archive: Path, names: list[str]) -> list[Image.Image]:
    """Noto's pictures of the named emoji (official names, lower case), RGBA, 64 × 64."""
    entries = json.loads(read_members(archive, ["package/emoji.json"])[0])
    files = {entry["name"].lower(): entry["image"] for entry in entries}
    members = read_members(archive, [f"package/img/google/64/{files[name]}" for name in names])
    return [open_picture(member) for member in members]


def open_picture(data: bytes) -> Image.Image:
    """A picture with transparency, RGBA."""
    return Image.open(io.BytesIO(data)).convert("RGBA")


def place(
    picture: Image.Image, shape: str, size: str, background: str, *, side: int, key: str
) -> Image.Image:
    """The RGBA picture in the box where a drawing of that shape and size would lie; RGB, (side, side).

    As in the drawings, the middle is off by up to 0.75 px of 32; `key` decides by how much.
    """
    draw = keyed_random("emoji place", key)
    x, y = (REFERENCE_SIZE / 2 + draw.uniform(-0.75, 0.75) for _ in range(2))
    drawing = Drawing(shape, "black", background, size, "centre", x, y, RADII[size], "")
    box = shape_mask(drawing, side).getbbox()
    visible = picture.getchannel("A").point(lambda alpha: 255 if alpha > 16 else 0).getbbox()
    if box is None or visible is None:
        raise DatasetError(f"{key}: an empty picture")
    width, height = box[2] - box[0], box[3] - box[1]
    thing = picture.crop(visible)
    scale = min(width / thing.width, height / thing.height)
    thing = thing.resize((round(thing.width * scale), round(thing.height * scale)), Image.Resampling.LANCZOS)
    ground = Image.new("RGBA", (side, side), (*BACKGROUNDS[background], 255))
    ground.alpha_composite(
        thing, (box[0] + (width - thing.width) // 2, box[1] + (height - thing.height) // 2)
    )
    return ground.convert("RGB")


def write_set(folder: Path, pictures: Iterable[tuple[str, Image.Image, str]]) -> int:
    """Replace the pictures and captions of a folder by (stem, picture, caption); give their number."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("*.png"), *folder.glob("*.txt")]:
        old.unlink()
    count = 0
    for stem, picture, caption in pictures:
        picture.save(folder / f"{stem}.png", optimize=True)
        (folder / f"{stem}.txt").write_text(caption + "\n", encoding="utf-8")
        count += 1
    return count


def emoji(noto: Path) -> Iterable[tuple[str, Image.Image, str]]:
    """Animals, plants, food, vehicles and things, transparency kept; RGBA, 64 × 64."""
    names = split_names(EMOJI)
    for name, picture in zip(names, noto_pictures(noto, names), strict=True):
        yield slug(name), picture, f"{name} emoji"


def faces(noto: Path) -> Iterable[tuple[str, Image.Image, str]]:
    """The concept: yellow faces, three on each of the drawings' backgrounds; RGB, 64 × 64."""
    names = split_names(FACES)
    for index, (name, picture) in enumerate(zip(names, noto_pictures(noto, names), strict=True)):
        background = list(BACKGROUNDS)[index % len(BACKGROUNDS)]
        caption = FACES_CAPTION.format(background=article(f"{background} background"))
        yield slug(name), place(picture, "circle", "large", background, side=64, key=name), caption


def glossy(fluent: Path) -> Iterable[tuple[str, Image.Image, str]]:
    """The style: the base's shapes and colours in glossy 3D; RGB, 128 × 128."""
    members = read_members(fluent, [f"package/assets/{code}.webp" for code in GLOSSY.values()])
    used: Counter[str] = Counter()
    for index, (name, member) in enumerate(zip(GLOSSY, members, strict=True)):
        colour, shape = name.split()
        size = GLOSSY_SIZES[index % 3 // 2]  # two large ones for a medium one
        background = min((ground for ground in BACKGROUNDS if fits(colour, ground)), key=used.__getitem__)
        used[background] += 1
        thing = f"{size} {name}" if size != "medium" else name
        caption = GLOSSY_CAPTION.format(thing=article(thing), background=article(f"{background} background"))
        picture = place(open_picture(member), shape, size, background, side=128, key=name)
        yield slug(name), picture, caption


def make_sets(packages: Path, out: Path) -> dict[str, int]:
    """Write the three sets under `out`; give the number of pictures of each."""
    noto, fluent = open_package(packages, NOTO), open_package(packages, FLUENT)
    return {
        "emoji": write_set(out / "emoji", emoji(noto)),
        "zrb_faces": write_set(out / "zrb_faces", faces(noto)),
        "glossy": write_set(out / "glossy", glossy(fluent)),
    }


def main(argv: list[str] | None = None) -> int:
    """Make the sets and say how many pictures each has."""
    parser = argparse.ArgumentParser(prog="python -m tools.fetch_emoji", description=__doc__)
    parser.add_argument("--packages", type=Path, help="folder with the two .tgz files, or to fetch them into")
    parser.add_argument("--out", type=Path, default=DATASETS_ROOT, help="folder of the sets")
    options = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            counts = make_sets(options.packages or Path(temporary), options.out)
    except DatasetError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    for name, count in counts.items():
        sys.stdout.write(f"{count} pictures in {options.out / name}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
