"""Reports: one file with everything in it, true numbers, and pages that a real browser shows without complaint."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import torch
from command import chipnet_

import chipnet
from chipnet.lab.cli import runs
from chipnet.lab.runs import charts, report
from chipnet.lab.runs.folder import Run

CHROMIUM = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
)
in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")


class Parsed(HTMLParser):
    """Every tag with its attributes, and the text of the page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def attributes(self, name):
        return [attrs[name] for _, attrs in self.tags if name in attrs]


@pytest.fixture(scope="module")
def folders(run_folder, tmp_path_factory):
    """Three runs: one that was made, and two with other numbers in their results."""
    base = tmp_path_factory.mktemp("reports")
    for name, accuracy, macs, method in (
        ("one", 60.0, None, "chipnet"),
        ("two", 50.0, 600_000, "uniform"),
        ("three", 99.0, 700_000, "chipnet"),
    ):
        shutil.copytree(run_folder, base / name)
        result = json.loads((base / name / "result.json").read_text())
        result["method"] = method
        result["compact"] |= {"accuracy": accuracy, "macs": macs or result["compact"]["macs"]}
        (base / name / "result.json").write_text(json.dumps(result))
    return [base / name for name in ("one", "two", "three")]


def test_doubts_are_red(folders, tmp_path):
    shutil.copytree(folders[0], tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    result["dense"]["accuracy"], result["warnings"] = 66.0, ["<it> has 3 steps"]
    (tmp_path / "run" / "result.json").write_text(json.dumps(result))
    text = report.report(tmp_path / "run").read_text()
    assert '<p class="bad">Warning: &lt;it&gt; has 3 steps</p>' in text
    assert '<b class="bad">60.00 %</b><span>-6.00 points' in text
    del result["warnings"]  # of an older run
    (tmp_path / "run" / "result.json").write_text(json.dumps(result))
    assert "Warning:" not in report.report(tmp_path / "run").read_text()


@pytest.fixture(scope="module")
def page(folders):
    return report.report(folders[0])


@pytest.fixture(scope="module")
def comparison(folders, page):
    return report.report(*folders)


def test_the_page_has_the_numbers_of_the_run(folders, page):
    run, seen = Run.open(folders[0]), Parsed(page.read_text())
    assert page == folders[0] / "report.html"
    for state in report.STATES:
        values = run.result[state]
        assert f"{values['accuracy']:.2f} %" in seen.text
        for kind in ("macs", "params", "volume", "channels"):
            assert (
                f"{round(values[kind]):,} ({100 * values[kind] / run.result['dense'][kind]:.2f} %)"
                in seen.text
            )
    for site in run.plan().sites:
        assert site.name in seen.text
    assert "an output of the network" in seen.text  # why fc is whole
    assert run.result["command"] in seen.text
    assert f"torch{run.result['environment']['torch']}" in seen.text.replace("environment: ", "").replace(
        "\n", ""
    )


@pytest.mark.parametrize("name", ["page", "comparison"])
def test_pages_hold_everything_and_say_what_pictures_show(name, request):
    text = request.getfixturevalue(name).read_text()
    seen = Parsed(text)
    assert not seen.attributes("src")
    links = {h for h in seen.attributes("href") + seen.attributes("xlink:href") if not h.startswith("#")}
    assert links <= {"data:,", "one/report.html"}
    assert not re.findall(r"url\((?!#)", text)
    ids = seen.attributes("id")
    assert len(ids) == len(set(ids))
    assert {h[1:] for h in seen.attributes("xlink:href") if h.startswith("#")} <= set(ids)
    charts = [attrs for tag, attrs in seen.tags if tag == "svg"]
    assert len(charts) == text.count("<figure") > 0
    assert all(c["role"] == "img" and len(c["aria-label"]) > 40 for c in charts)
    assert not re.findall(r"#0102[0-9a-f]{2}", text)  # every colour of a chart follows the page


def test_a_comparison_shows_the_front_and_links_to_reports(folders, comparison):
    seen = Parsed(comparison.read_text())
    assert comparison == folders[0].parent / "comparison.html"
    assert "No other run has more accuracy for as little: one, three." in seen.text
    assert "one/report.html" in seen.attributes("href")


def test_runs_with_nothing_but_a_latency_budget(folders, tmp_path):
    took = {"asked": 3_500_000, "dense": 6e6, "compact": 3e6, "median": 0.5, "low": 0.4, "high": 0.6}
    took |= {"spread": 0.1, "threads": 1, "device": "cpu", "networks": 2}
    for name in ("a", "b"):
        shutil.copytree(folders[0], tmp_path / name)
        result = json.loads((tmp_path / name / "result.json").read_text())
        result |= {"budget": {"latency": 3_500_000}, "limits": {"latency": 3_400_000}, "latency": took}
        (tmp_path / name / "result.json").write_text(json.dumps(result))
    text = Parsed(report.report(tmp_path / "a").read_text()).text
    assert "to a budget of latency 3.5 ms" in text
    assert "latency left50.00 %shortest 3 of 6 ms" in text
    assert "Accuracy against MACs left" in report.report(tmp_path / "a", tmp_path / "b").read_text()


def test_runs_of_one_name_are_told_apart(folders, tmp_path):
    for parent in "ab":
        shutil.copytree(folders[0], tmp_path / parent / "run")
    out = report.report(tmp_path / "a" / "run", tmp_path / "b" / "run", path=tmp_path / "c.html")
    assert "a/run, b/run" in out.read_text()
    (tmp_path / "a").rename(tmp_path / "<b>$\\x$")
    out = report.report(tmp_path / "<b>$\\x$" / "run", tmp_path / "b" / "run", path=tmp_path / "c.html")
    assert "<b>$" not in out.read_text()


def test_what_the_user_typed_is_text(folders, tmp_path):
    typed = '<script>alert(1)< & [/b] $\\x$ :smile: "'
    names = [typed.replace("/", "") + str(i) for i in range(2)]
    for name in names:
        shutil.copytree(folders[0], tmp_path / name)
        result = json.loads((tmp_path / name / "result.json").read_text())
        result |= dict.fromkeys(("data", "model", "method", "command", "realisation"), typed)
        result["environment"] |= {"device": typed, "date": typed, typed: typed}
        (tmp_path / name / "result.json").write_text(json.dumps(result))
    for page in (report.report(tmp_path / names[0]), report.report(*(tmp_path / n for n in names))):
        seen = Parsed(text := page.read_text())
        assert "<script>alert" not in text and "$\\x$" in text
        assert names[0] in seen.text and f"{typed}{typed}" in seen.text.replace("\n", "")


def test_charts_show_names_as_they_are():
    names = ["<b>&", "$x$", "$\\y", "a_{1}"]
    drawn = [
        charts.bars([3] * 4, [1] * 4, names, title=names[0], alt=names[0], y=names[1]),
        charts.front({n: [(1, 2, n)] for n in names}, [], title=names[0], alt=names[0], x="x", y="y"),
        charts.lines({n: ([1], [2]) for n in names}, title=names[0], alt=names[0], x="x", y="y"),
    ]
    for svg in drawn:
        assert "<b>" not in svg
        assert set(names) <= set(Parsed(svg).text.split())


def test_networks_that_cannot_be_built_leave_their_section_out(folders, tmp_path):
    shutil.copytree(folders[0], tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    for name, why in {
        "nowhere": "There is no network &#39;nowhere&#39;",
        "nowhere:net": "a network of its maker&#39;s own, &#39;nowhere:net&#39;, and code is not run",
    }.items():
        (tmp_path / "run" / "result.json").write_text(json.dumps({**result, "model": name}))
        page = report.report(tmp_path / "run").read_text()
        assert "layers are not shown: " in page and why in page


@pytest.mark.parametrize("method", ["chipnet", "chipnet-2026a"])
def test_masks_become_crisp_and_that_is_recorded(run_folder, run_quarter, method):
    folder = run_folder if method == "chipnet" else run_quarter(method=method)
    rows = [r for r in Run.open(folder).metrics() if r["phase"] == "prune"]
    counts = [[int(n) for n in row["gates"].split()] for row in rows]
    assert [len(c) for c in counts] == [10, 10]
    assert sum(counts[0]) == sum(counts[1]) == 224
    ends = [c[0] + c[-1] for c in counts]
    if method == "chipnet":  # its forward is hard at all times, and nothing soft is learnt
        assert ends == [224, 224]
    else:
        assert ends[1] > ends[0]
    network = torch.nn.Sequential(torch.nn.Linear(3, 20), torch.nn.ReLU(), torch.nn.Linear(20, 2))
    pruner = chipnet.Pruner(network, torch.ones(1, 3), "macs=0.5", steps=5, method="uniform")
    assert pruner.histogram(4) == [0, 0, 0, 20]  # methods that learn no values: those of the forward


@pytest.mark.usefixtures("reports")
def test_the_command_writes_and_a_broken_report_harms_no_run(folders, tmp_path, monkeypatch, capsys):
    done = chipnet_("report", *folders, "--output", tmp_path / "page.html")
    assert (done.exit_code, done.stdout.strip()) == (0, str(tmp_path / "page.html"))
    whole = chipnet_("report", folders[0].parent)
    assert whole.exit_code == 0, whole.output
    page = (folders[0].parent / "comparison.html").read_text()
    assert "Comparison of 3 runs" in page
    assert chipnet_("report", tmp_path).exit_code == 2
    refused = chipnet_("report", folders[0], "--output", tmp_path / "nowhere" / "page.html")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)

    def broken(folder):
        raise OSError("disk full")

    monkeypatch.setattr(report, "report", broken)
    runs.report_after(tmp_path)
    assert "no report: OSError: disk full. Later: chipnet report" in capsys.readouterr().err


# -- in a browser -----------------------------------------------------------------------------------------


def browse(path, tmp_path, script="", *flags, width=1100):
    """The page after its scripts and ``script`` ran, and what the browser complained about."""
    copy = tmp_path / "page.html"
    copy.write_text(path.read_text().replace("</body>", f"<script>{script}</script></body>"))
    command = [
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    command += ["--enable-logging=stderr", f"--window-size={width},900", *flags, copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@in_chromium
@pytest.mark.parametrize("name", ["page", "comparison"])
def test_chromium_shows_the_page_without_complaint(name, request, tmp_path):
    """Charts have a size, nothing is wider than a phone, no error is logged; and a logged one would be seen."""
    script = """
      const svgs = [...document.querySelectorAll("figure svg")].map((s) => s.getBoundingClientRect());
      document.body.dataset.charts = svgs.filter((b) => b.width > 200 && b.height > 100).length;
      document.body.dataset.overflow = document.documentElement.scrollWidth - innerWidth;
      console.error("seen");
    """
    path = request.getfixturevalue(name)
    dom, complaints = browse(path, tmp_path, script, "--dump-dom", width=500)
    body = next(attrs for tag, attrs in Parsed(dom).tags if tag == "body")
    assert int(body["data-charts"]) == path.read_text().count("<figure")
    assert int(body["data-overflow"]) <= 0
    assert [line for line in complaints if "seen" not in line] == []
    assert len(complaints) == 1


@in_chromium
def test_chromium_sorts_tables_by_number_both_ways(comparison, tmp_path):
    script = """
      const button = [...document.querySelectorAll("th button")].find((b) => b.textContent === "compact");
      const column = () => [...button.closest("table").tBodies[0].rows].map((r) => r.cells[0].textContent).join();
      button.click(); const up = column(); button.click();
      document.body.dataset.order = up + " " + column();
    """
    dom, complaints = browse(comparison, tmp_path, script, "--dump-dom")
    body = next(attrs for tag, attrs in Parsed(dom).tags if tag == "body")
    up, down = (order.split(",") for order in body["data-order"].split())
    assert sorted(up) == ["one", "three", "two"]
    assert down == up[::-1]
    assert up.index("two") < up.index("three")  # 50 before 99
    assert not complaints


@in_chromium
def test_chromium_draws_light_and_dark(page, tmp_path):
    from PIL import Image

    means = []
    for scheme in (1, 0):  # light, dark
        picture = tmp_path / f"{scheme}.png"
        flags = (f"--screenshot={picture}", f"--blink-settings=preferredColorScheme={scheme}")
        browse(page, tmp_path, "", *flags)
        grey = Image.open(picture).convert("L")
        means.append(sum(grey.resize((64, 64)).tobytes()) / 64**2)
        low, high = grey.getextrema()
        assert high - low > 150, "text and page have no contrast"
    assert means[0] > 200
    assert means[1] < 60
