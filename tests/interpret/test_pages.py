"""The pages as people meet them: in a browser, by mouse and keyboard, light and dark, narrow and wide."""

import json

import numpy as np
import pytest

from flaxllm.interpret import pages
from interpret.chromium import chromium

TEXT = "</script><b id=broken>猫が</b> <!-- مرحبا\n{{style}}"
WORDS = ["</script><b id=broken>", "猫が", " مرحبا", "שלום", " 👩‍👧", "constructor\n", "an" + "other" * 12]
BYTES = [("E7", "猫", False), ("8C", "猫", True), (" AB", " AB", False)]
LAYERS, HEADS = 3, 4


def pieces(words=WORDS) -> list[dict]:
    return [dict(text=word, whole=None, joined=False) for word in words] + [
        dict(text=text, whole=whole, joined=joined) for text, whole, joined in BYTES
    ]


SOURCE, TARGET = pieces(), pieces(["<pad>", " das", " Haus"])
SIDES = {"encoder": (SOURCE, SOURCE), "decoder": (TARGET, TARGET), "cross": (TARGET, SOURCE)}


def random_weights(queries: int, keys: int) -> np.ndarray:
    weights = np.random.default_rng(queries).random((LAYERS, HEADS, queries, keys)) ** 4
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


WEIGHTS = {name: random_weights(len(queries), len(keys)) for name, (queries, keys) in SIDES.items()}


def attention_data() -> dict:
    numbers = [[0.125 * layer + head for head in range(HEADS)] for layer in range(LAYERS)]
    own = dict(entropy=numbers, distance=numbers, previous_token=[[None] * HEADS] * LAYERS, induction=None)
    parts = [
        dict(name=name, queries=queries, keys=keys, summaries={} if name == "cross" else own) | pages.pack(WEIGHTS[name])
        for name, (queries, keys) in SIDES.items()
    ]
    return dict(model="a/b <i>", texts={"Source": TEXT, "Target": "das Haus"}, parts=parts)


DEPTHS = ["embedding", "layer 0", "output"]
RANKED = np.random.default_rng(0).permuted(np.tile(np.arange(len(SOURCE)), (len(DEPTHS), len(SOURCE), 1)), axis=-1)[..., :5]
PROBABILITIES = np.sort(np.random.default_rng(1).random((len(DEPTHS), len(SOURCE), 5)), axis=-1)[..., ::-1].round(4)
ACTUAL = [*range(1, len(SOURCE)), -1]


def lens_data() -> dict:
    depths = [
        dict(name=name, tokens=tokens.tolist(), probabilities=probabilities.tolist(), entropy=[2.5] * len(SOURCE))
        for name, tokens, probabilities in zip(DEPTHS, RANKED, PROBABILITIES)
    ]
    vocabulary = {index: piece for index, piece in enumerate(SOURCE)}
    return dict(
        model="c", texts={"Text": TEXT}, read=SOURCE, depths=depths, actual=ACTUAL, what="comes next", vocabulary=vocabulary
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    made = {"attention": attention_data(), "lens": lens_data()}
    for name, data in made.items():
        (folder / f"{name}.html").write_text(pages.render(name, "</title><i>", data), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in made}


def complaints(page) -> list[dict]:
    kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    return [event for event in page.events if event["method"] in kinds]


def find(selector: str, number: int = 0) -> str:
    return f"document.querySelectorAll({json.dumps(selector)})[{number}]"


def text_of(selector: str) -> str:
    return f"{find(selector)}.textContent"


def texts_of(selector: str) -> str:
    return f"[...document.querySelectorAll({json.dumps(selector)})].map((element) => element.textContent)"


def focused(page) -> str:
    return page.value("document.activeElement.closest('[id]').id")


@pytest.mark.parametrize("name", ["attention", "lens"])
def test_a_page_asks_for_nothing_and_complains_of_nothing(page, files, name):
    page.open(files[name])
    for key in ("Tab", "Tab", "Tab", "ArrowDown"):
        page.press(key)
    page.value("dispatchEvent(new Event('beforeprint')), dispatchEvent(new Event('afterprint'))")
    assert complaints(page) == []
    asked = [event["params"]["request"]["url"] for event in page.events if event["method"] == "Network.requestWillBeSent"]
    assert {url.partition("#")[0] for url in asked} <= {"about:blank", files[name].as_uri()}


@pytest.mark.parametrize("name", ["attention", "lens"])
def test_its_policy_lets_nothing_in(page, files, name):
    page.open(files[name])
    assert page.value("fetch('data:,x').then(() => 'fetched', () => 'refused')") == "refused"
    page.value("const s = document.createElement('script'); s.textContent = 'window.ran = true'; document.body.append(s)")
    page.value("document.body.insertAdjacentHTML('beforeend', '<img src=\"data:,\" onerror=\"window.ran = true\">')")
    assert page.value("window.ran === undefined")


@pytest.mark.parametrize("name", ["attention", "lens"])
def test_a_text_is_only_text(page, files, name):
    page.open(files[name])
    assert page.value("document.title") == "</title><i>"
    assert page.value(text_of("#texts dd")) == TEXT
    assert page.value("document.querySelector('#broken, i:not([class])') === null")
    words = page.value(texts_of("#queries .word" if name == "attention" else "thead .word"))
    assert words == [piece["text"] for piece in SOURCE]


def test_each_word_has_its_own_direction_and_its_spaces_are_seen(page, files):
    page.open(files["attention"])
    direction = [page.value(f"getComputedStyle({find('#queries .word', n)}).direction") for n in range(4)]
    assert direction == ["ltr", "ltr", "rtl", "rtl"]
    signs = page.value(
        "[...document.querySelectorAll('#queries .sign')].map((sign) => getComputedStyle(sign, '::before').content)"
    )
    assert signs == ['"·"', '"·"', '"·"', '"↵"', '"·"']


def test_pieces_of_a_character_are_shown_as_one(page, files):
    page.open(files["attention"])
    before = [
        page.value(f"getComputedStyle({find('#queries .word[data-whole]', n)}, '::before').content") for n in range(len(BYTES))
    ]
    assert before == ['"猫 "', "none", "none"]
    first, second, other = (
        page.value(f"{find('#queries button', len(WORDS) + n)}.getBoundingClientRect().toJSON()") for n in range(3)
    )
    assert first["bottom"] == second["top"] and second["bottom"] < other["top"]


def test_every_head_has_a_map_of_its_weights(page, files):
    page.open(files["attention"])
    assert page.value("document.querySelectorAll('#grid [role=gridcell] canvas').length") == LAYERS * HEADS
    weights = WEIGHTS["encoder"][1, 2]
    script = f"{find('#grid canvas', HEADS + 2)}.getContext('2d').getImageData(0, 0, {weights.shape[1]}, {weights.shape[0]}).data"
    shades = np.array(page.value(f"[...{script}]")).reshape(*weights.shape, 4)[..., 3] / 255
    np.testing.assert_allclose(shades, np.sqrt(weights), atol=1 / 255)


def test_arrow_keys_move_over_the_heads(page, files):
    page.open(files["attention"], "#encoder-1-1")
    page.value(f"{find('[aria-selected=true]')}.focus()")
    places = {"ArrowDown": "2-1", "ArrowRight": "2-2", "ArrowUp": "1-2", "Home": "1-0", "ArrowLeft": "1-0", "End": "1-3"}
    for key, place in places.items():
        page.press(key)
        layer, head = place.split("-")
        assert page.value("location.hash") == f"#encoder-{place}"
        assert page.value(text_of("#head")) == f"Layer {layer}, head {head}"
        assert page.value("document.activeElement.getAttribute('aria-label')") == f"layer {layer}, head {head}"
        assert page.value("document.querySelectorAll('[aria-selected=true]').length") == 1
    assert page.value(text_of("#summary")).startswith("Entropy 3.125 nats · mean distance 3.125 tokens")
    page.open(files["attention"], page.value("location.hash"))
    assert page.value(text_of("#head")) == "Layer 1, head 3"


@pytest.mark.parametrize(
    ("place", "part", "head"),
    [
        ("#cross-2-3", "cross", "Layer 2, head 3"),
        ("#decoder-9-1", "decoder", "Layer 0, head 1"),
        ("#elsewhere", "encoder", "Layer 0, head 0"),
        ("#%E0-1-x", "encoder", "Layer 1, head 0"),
    ],
)
def test_an_address_opens_its_head_as_far_as_there_is_one(page, files, place, part, head):
    page.open(files["attention"], place)
    assert complaints(page) == []
    assert page.value(texts_of("#parts [aria-checked=true]")) == [part]
    assert page.value(text_of("#head")) == head


def test_every_part_has_its_own_maps_and_words(page, files):
    page.open(files["attention"])
    for number, (name, (queries, keys)) in enumerate(SIDES.items()):
        page.value(f"{find('#parts button', number)}.click()")
        page.hover(find("#queries button", 1))
        assert page.value(f"[{find('#map')}.height, {find('#map')}.width]") == [len(queries), len(keys)]
        assert page.value(texts_of("#keys .word")) == [piece["text"] for piece in keys]
        shown = np.array(page.value(texts_of("#keys .number")), float)
        np.testing.assert_allclose(shown, WEIGHTS[name][0, 0, 1], atol=0.00051)
        assert page.value(texts_of("#parts [aria-checked=true]")) == [name]
        page.hover(find("h1"))


def test_the_mouse_shows_numbers(page, files):
    page.open(files["attention"], "#cross-2-1")
    weights = WEIGHTS["cross"][2, 1]
    page.hover(find("#keys button", 3))
    np.testing.assert_allclose(np.array(page.value(texts_of("#queries .number")), float), weights[:, 3], atol=0.00051)
    best = np.argsort(-weights[:, 3])[:3]
    said = ", ".join(f"{TARGET[i]['text']} {weights[i, 3]:.3f}" for i in best)
    assert page.value(text_of("#readout")) == f"To {SOURCE[3]['text']} (3) from {said}"
    page.hover(find("h1"))
    assert page.value(texts_of(".number")) == [""] * (len(SOURCE) + len(TARGET))
    page.hover(find("#map"))
    query, key = len(TARGET) // 2, len(SOURCE) // 2
    number = f"From {TARGET[query]['text']} ({query}) to {SOURCE[key]['text']} ({key}): {weights[query, key]:.3f}"
    assert page.value(text_of("#readout")) == number


def test_the_keyboard_reaches_everything(page, files):
    page.open(files["attention"])
    reached = []
    for _ in range(6):
        page.press("Tab")
        reached.append(focused(page))
        assert page.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert reached == ["parts", "theme", "grid", "queries", "keys", "matrix"]
    for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
        page.press(key)
    weight = WEIGHTS["encoder"][0, 0, 1, 2]
    assert page.value(text_of("#readout")) == f"From {SOURCE[1]['text']} (1) to {SOURCE[2]['text']} (2): {weight:.3f}"
    page.open(files["lens"])
    for _ in range(2):
        page.press("Tab")
    assert focused(page) == "table"


BACKGROUND = "getComputedStyle(document.body).backgroundColor"
INK = "[...document.querySelector('#grid canvas').getContext('2d').getImageData(0, 0, 1, 1).data].slice(0, 3)"


def test_light_and_dark_follow_the_system_and_the_button(page, files):
    page.open(files["attention"], scheme="light")
    light, light_ink = page.value(BACKGROUND), page.value(INK)
    page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    page.wait(f"`${{{INK}}}` !== `${{{light_ink}}}`")
    dark, dark_ink = page.value(BACKGROUND), page.value(INK)
    assert light != dark
    page.value(f"{find('#theme')}.click()")
    assert [page.value(BACKGROUND), page.value(INK)] == [light, light_ink]
    page.value(f"{find('#theme')}.click()")
    assert [page.value(BACKGROUND), page.value(INK)] == [dark, dark_ink]


@pytest.mark.parametrize("name", ["attention", "lens"])
@pytest.mark.parametrize("width", [375, 1280])
def test_no_page_scrolls_sideways(page, files, name, width):
    page.open(files[name], width=width)
    assert page.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    page.hover(find("#queries button" if name == "attention" else "td button"))
    if name == "attention":
        columns = [page.value(f"{find(column)}.getBoundingClientRect().toJSON()") for column in ("#queries", "#keys")]
        assert columns[0]["width"] < width / 2 and columns[0]["right"] + 40 < columns[1]["left"] < width - 40
    assert page.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_the_lens_shows_the_likeliest_and_what_comes(page, files):
    page.open(files["lens"])
    expected = [SOURCE[token]["text"] for token in RANKED[..., 0].ravel()]
    assert page.value(texts_of("tbody button .word")) == expected
    marked = page.value("[...document.querySelectorAll('tbody button')].map((cell) => cell.className.includes('actual'))")
    assert marked == (RANKED[..., 0] == ACTUAL).ravel().tolist() and any(marked)
    assert page.value(texts_of("tfoot td")) == [*(SOURCE[token]["text"] for token in ACTUAL[:-1]), ""]
    shade = "getComputedStyle(document.querySelector('tbody button')).getPropertyValue('--weight')"
    assert float(page.value(shade).rstrip("%")) == pytest.approx(100 * PROBABILITIES[0, 0, 0])


def test_the_lens_shows_all_of_a_place(page, files):
    page.open(files["lens"], "#1-2")

    def check(depth: int, position: int) -> None:
        assert page.value(text_of("#place")) == f"{DEPTHS[depth]}, position {position}: {SOURCE[position]['text']}"
        assert page.value(texts_of("#best .word")) == [SOURCE[token]["text"] for token in RANKED[depth, position]]
        assert page.value(texts_of("#best .number")) == [f"{number:.3f}" for number in PROBABILITIES[depth, position]]
        actual = page.value("[...document.querySelectorAll('#best li')].map((item) => item.className === 'actual')")
        assert actual == (RANKED[depth, position] == ACTUAL[position]).tolist()
        missing = ACTUAL[position] >= 0 and ACTUAL[position] not in RANKED[depth, position]
        assert page.value(text_of("#summary")).endswith("comes next, and is not among these") == missing

    check(1, 2)
    page.hover(find("td button", 4))
    check(0, 4)
    page.hover(find("h1"))
    check(1, 2)
    page.value(f"{find('[aria-selected=true] button')}.focus()")
    for key in ("ArrowDown", "ArrowRight"):
        page.press(key)
    check(2, 3)
    page.open(files["lens"], page.value("location.hash"))
    check(2, 3)
    page.open(files["lens"])
    check(len(DEPTHS) - 1, len(SOURCE) - 1)
