"""The page in Debian's Chromium: what it shows, switches, sorts, chooses and copies; nothing leaves the file."""

import base64
import csv
import io
import random
import shutil

import numpy as np
import pytest
import torch
from made import TINY, save_checkpoint, trained_net, write_cifar10
from PIL import Image
from test_page import SESSION, copy_sessions, groups_of, mean_of

import sweep
from engine import checkpoints, training_digest
from models import TOPOLOGIES

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here: on Debian, apt-get install chromium")

OTHER = "cifar10_smaller_more_11111"
HOSTILE = "<img src=x onerror=alert(1)>"  # a session's name
DAMAGED = "<i>damaged"  # a folder's name
SEED = 11111
ROWS = 30  # test images
TIMEOUT = 120_000  # milliseconds; the machine may be busy


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a page of four sessions: two committed ones, one of a hostile name, a small net with pictures."""
    place = tmp_path_factory.mktemp("page")
    copy_sessions(place / "results", SESSION, OTHER)
    hostile = place / "results" / HOSTILE
    shutil.copytree(place / "results" / OTHER, hostile)
    text = (hostile / "sweep.csv").read_text()
    (hostile / "sweep.csv").write_text(text.replace("cifar10_smaller_more", HOSTILE))
    (place / "results" / DAMAGED).mkdir()
    (place / "results" / DAMAGED / "sweep.csv").write_text(text[:-30])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setitem(TOPOLOGIES, "cifar_smaller", TINY)
        training_digest.cache_clear()
        torch.manual_seed(0)
        write_cifar10(place, rows=ROWS)
        save_checkpoint(trained_net("cifar10"), "cifar10_smaller", "cifar10", False)
        patch.setattr("sys.argv", ["sweep.py", "--data", ".", "--bits", "6", "--repair", "midpoint", "--runs", "2"])
        sweep.main()
        yield place


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def open_page(folder, browser):
    """Opens the page in a window. At the end: no error on the console, no dialog, and no request but for the file."""
    wrong, contexts = [], []
    url = (folder / "results/index.html").as_uri()

    def open_page(width=1400, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        shown = context.new_page()
        shown.set_default_timeout(TIMEOUT)
        shown.on("console", lambda message: wrong.append(message.text))
        shown.on("pageerror", lambda error: wrong.append(str(error)))
        shown.on("dialog", lambda dialog: wrong.append(dialog.message))
        shown.on("request", lambda request: wrong.append(request.url) if not is_inside(request.url, url) else None)
        shown.goto(url)
        return shown

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def images_written():
    """The test images that the fixture has written, uint8 N×3×32×32."""
    rng = np.random.RandomState(0)
    for _ in range(6):  # five batches of training images, then the test images
        data = rng.randint(0, 256, (ROWS, 3072), dtype=np.uint8)
        rng.randint(0, 10, ROWS)
    return data.reshape(-1, 3, 32, 32)


def is_inside(address, url):
    return address == url or address.startswith(("data:", "blob:"))


def plotted(shown, plot):
    """{name of a line: (x, y)} of the visible lines that plotly has drawn."""
    shown.locator(f"#plot-{plot}").scroll_into_view_if_needed()
    shown.wait_for_selector(f"#plot-{plot} .drawing .main-svg")
    lines = shown.evaluate(
        "plot => document.querySelector(`#plot-${plot} .drawing`).data.filter(line => line.visible)"
        ".map(line => [line.name, [line.x, line.y]])",
        plot,
    )
    return dict(lines)


def choose(shown, plot, heading, option):
    shown.locator(f"#plot-{plot} .choices label", has_text=heading).locator("select").select_option(option)


def source(shown):
    return shown.locator("#source [role=status]").inner_text()


def test_ten_cells_drawn_at_random_are_those_of_the_csv(open_page, folder):
    shown, groups = open_page(), groups_of(folder / "results" / SESSION / "sweep.csv")
    choose(shown, "bits", "net", SESSION)
    shown.locator("#plot-bits [data-lines=all]").click()
    names = {"repaired_s": "repaired by MSB (7)", "": "faulty (random)"}
    planes = [key for key in groups if key[0] == "random" and key[4] == "1.0" and key[2] != "repaired_n"]
    lines = plotted(shown, "bits")
    for key in random.Random(7).sample(planes, 10):
        x, y = lines[names.get(key[2], key[2])]
        assert y[x.index(int(key[1]))] == pytest.approx(mean_of(groups[key]), abs=1e-4)


def test_choosing_a_share_a_memory_and_a_bit(open_page, folder):
    shown, groups = open_page(), groups_of(folder / "results" / SESSION / "sweep.csv")
    choose(shown, "bits", "net", SESSION)
    choose(shown, "bits", "share", "0.1")
    x, y = plotted(shown, "bits")["faulty (random)"]
    wanted = [mean_of(groups["random", bit, "", "", "0.1"]) for bit in "567"]
    assert x == [5, 6, 7] and y == pytest.approx(wanted, abs=1e-4)
    choose(shown, "memories", "memory", "weights, bit errors")
    x, y = plotted(shown, "memories")[SESSION]
    assert y == pytest.approx([mean_of(groups["flips", "", "", "", str(level)]) for level in x], abs=1e-4)
    choose(shown, "memories", "against", "weight signs flipped")
    assert plotted(shown, "memories")[SESSION][1] == y
    choose(shown, "ranking", "broken bit", "bit 5")
    values, names = plotted(shown, "ranking")[SESSION]
    assert values[names.index("median")] == pytest.approx(mean_of(groups["random", "5", "median", "", "1.0"]), abs=1e-4)


def test_every_figure_is_what_plotly_understands(open_page):
    shown = open_page()
    complaints = shown.evaluate(
        "() => Object.values(content.figures).flat().flatMap(figure => Plotly.validate("
        "figure.lines.map(line => traceOf(line, figure, new Set(), 1400)), layoutOf(figure, 1400)) || [])"
        ".map(complaint => complaint.msg)"
    )
    assert complaints == []


def test_switching_lines_and_nets(open_page):
    shown = open_page()
    assert HOSTILE.replace("<", "&lt;").replace(">", "&gt;") in plotted(shown, "nets")
    shown.locator(f"#plot-nets input[value='{OTHER}']").press("Space")
    assert OTHER not in plotted(shown, "nets") and SESSION in plotted(shown, "nets")
    shown.locator("#plot-nets [data-lines=none]").click()
    assert plotted(shown, "nets") == {}
    shown.locator("#plot-nets [data-lines=all]").press("Enter")
    assert len(plotted(shown, "nets")) == 4


def test_marks_can_be_read_by_keyboard_and_by_mouse(open_page, folder):
    shown = open_page()
    choose(shown, "bits", "net", SESSION)
    plotted(shown, "bits")
    drawing = shown.locator("#plot-bits .drawing")
    drawing.focus()
    drawing.press("ArrowRight")
    first = source(shown)
    assert f"{SESSION}: faulty, bit 0 random" in first and "10 runs" in first and "--bits 0 --repair --runs 10" in first
    drawing.press("ArrowRight")
    assert "bit 1 random" in source(shown)
    mark = shown.locator("#plot-bits .drawing .hoverlayer .hovertext", has_text="bit 1 random")
    mark.wait_for()  # plotly draws it a moment later
    assert "sweep.csv, lines" in mark.text_content()
    shown.keyboard.press("Escape")
    assert not shown.locator("#source").is_visible()
    cell = shown.locator("#table-nets td[title]").nth(1)
    cell.click()
    assert source(shown).strip() == cell.get_attribute("title").strip() and "sweep.csv, line 2" in source(shown)


def test_sorting_by_mouse_and_keyboard(open_page, folder):
    shown = open_page()
    heading = shown.locator("#table-nets thead button", has_text="no fault (%)")
    column = shown.locator("#table-nets tbody td:nth-child(3)")
    clean = [
        mean_of(groups_of(path)["none", "", "", "", ""])
        for path in folder.glob("results/*/sweep.csv")
        if DAMAGED not in str(path)
    ]
    wanted = [f"{value:.2f}" for value in sorted(clean, reverse=True)]
    heading.click()
    shown.wait_for_selector("#table-nets th[aria-sort=descending]")
    shown.wait_for_timeout(200)
    assert [text.split()[0] for text in column.all_inner_texts()] == wanted
    heading.press("Enter")
    shown.wait_for_selector("#table-nets th[aria-sort=ascending]")
    shown.wait_for_timeout(200)
    assert [text.split()[0] for text in column.all_inner_texts()] == wanted[::-1]


def test_copying_as_csv_markdown_and_latex(open_page):
    shown = open_page(permissions=["clipboard-read", "clipboard-write"])
    copied = {}
    for kind in ("csv", "markdown", "latex"):
        shown.locator(f"#table-nets [data-copy={kind}]").click()
        shown.wait_for_selector("#copied[open]")
        copied[kind] = shown.evaluate("navigator.clipboard.readText()")
        assert shown.locator("#copied textarea").input_value() == copied[kind]
        shown.keyboard.press("Escape")
    rows = list(csv.reader(io.StringIO(copied["csv"])))
    texts = [
        " ".join(text.split())
        for text in shown.locator("#table-nets tbody tr").first.locator("th, td").all_inner_texts()
    ]
    assert rows[1] == texts and len(rows) == 5 and len({len(row) for row in rows}) == 1
    assert HOSTILE in [row[0] for row in rows]
    lines = copied["markdown"].splitlines()
    assert [part.strip() for part in lines[2].strip("|").split("|")] == rows[1] and set(lines[1]) == set("|-:")
    latex = copied["latex"].splitlines()
    assert latex[:2] == [r"\begin{tabular}{l" + "r" * (len(rows[0]) - 1) + "}", r"\toprule"]
    assert latex[3] == r"\midrule" and latex[-2:] == [r"\bottomrule", r"\end{tabular}"]
    assert r"cifar10\_smaller" in copied["latex"] and r"no fault (\%)" in latex[2] and r"$\sigma$\_val" in latex[2]
    assert all(line.count(" & ") == len(rows[0]) - 1 and line.endswith(r" \\") for line in latex[4:-2])


def test_tables_are_there_without_javascript(open_page):
    shown = open_page(java_script_enabled=False)
    assert shown.locator("#table-nets tbody tr").count() == 4
    assert shown.locator("#table-nets").is_visible() and not shown.locator("#table-nets .tools").is_visible()
    shown.locator("summary").last.click()
    assert shown.locator("details[open] table").first.is_visible()
    assert "need JavaScript" in shown.locator("noscript").first.inner_text()


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (400, "dark"), (1400, "dark")])
def test_narrow_and_dark_windows(open_page, width, scheme):
    shown = open_page(width=width, color_scheme=scheme)
    for plot in ("bits", "nets", "memories", "ranking", "costs"):
        plotted(shown, plot)
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    page_color = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    text_color = shown.evaluate("getComputedStyle(document.querySelector('.drawing .xtick text')).fill")
    light, dark = "rgb(255, 255, 255)", "rgb(21, 24, 29)"
    assert page_color == (dark if scheme == "dark" else light)
    assert text_color == ("rgb(230, 233, 236)" if scheme == "dark" else "rgb(28, 32, 36)")


def test_printed(open_page):
    shown = open_page(color_scheme="dark")
    shown.emulate_media(media="print")
    assert not shown.locator("nav").is_visible() and not shown.locator("#table-nets .tools").is_visible()
    assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert shown.pdf().startswith(b"%PDF")
    for plot in ("bits", "costs"):  # also those that had not come into view
        assert shown.locator(f"#plot-{plot} .drawing .main-svg").count() > 0


def test_lines_can_be_told_apart_in_grey(open_page):
    shown = open_page()
    styles = shown.evaluate("content.styles")
    nets = [SESSION, OTHER, HOSTILE, "cifar10_smaller_11111"]
    for names in (nets, [name for name in styles if name not in nets]):
        assert len({(styles[name]["mark"], styles[name]["dash"]) for name in names}) == len(names)


def test_what_was_left_out_stands_at_the_top(open_page):
    shown = open_page()
    text = shown.locator("header #left-out").inner_text()
    assert f"results/{DAMAGED}/sweep.csv" in text and "damaged" in text
    assert HOSTILE in shown.locator("#table-nets").inner_text()


def test_pictures_are_the_images_and_what_the_net_says(open_page, folder):
    shown = open_page()
    images = images_written()
    number, bit = 1, 5
    shown.locator("[data-choose=image]").select_option(str(number))
    shown.locator("[data-choose=bit]").select_option(str(bit))
    shown.locator("[data-choose=repair]").select_option("midpoint")
    strip = shown.evaluate(f"content.pictures[0].images[{number}].bits[{bit}].strip")
    names = shown.evaluate(f"content.pictures[0].images[{number}].bits[{bit}].versions.map(version => version.name)")
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(strip.split(",")[1])))).reshape(-1, 32, 32, 3)
    clean = images[number]
    bits = np.unpackbits(np.frombuffer(np.random.default_rng([SEED, number]).bytes(384), np.uint8)).reshape(3, 32, 32)
    faulty = (clean & (255 - 2**bit)) | (bits << bit).astype(np.uint8)
    expected = {"clean": clean, "faulty": faulty, "constant_0": clean & (255 - 2**bit)}
    for name, image in expected.items():
        assert (pixels[names.index(name)] == image.transpose(1, 2, 0)).all()
    _, net, _ = checkpoints.load_net(folder / checkpoints.path_of("cifar10_smaller", SEED))
    for name, version in (("clean", "clean"), ("faulty", "faulty"), ("repaired", "midpoint")):
        image = torch.from_numpy(pixels[names.index(version)].transpose(2, 0, 1).copy())
        with torch.no_grad():
            logits = net(image[None].float() / 255)[0]
        said = [line.split() for line in shown.locator(f"[data-version={name}] ol li").all_inner_texts()]
        assert [float(words[1]) for words in said] == pytest.approx(sorted(logits.tolist())[:-4:-1], abs=0.006)
        assert "abcdefghij".index(said[0][0]) == int(logits.argmax())
