"""What `gpu.py` has found, in words."""

# Minutes on an H100 with the sixteen cores beside it. Nothing was measured: a step of each network
# is some hundredths of a second there, compiling a network takes about a minute, and three are
# compiled; the training takes what it is given.
EXPECTED = {"tests": 0.5, "tables": 5.5, "training": 3.0}

COLUMNS = {
    "images/s": "{:,.0f}",
    "share": "{:.0%}",
    "peak, GiB": "{:.1f}",
    "idle": "{:.0%}",
    "host, ms": "{:.1f}",
    "kernels": "{:,}",
    "first step, s": "{:.1f}",
}


def report(found):
    """The whole of report.md."""
    on = found["machine"]
    lines = ["# What this machine does", "", ", ".join(f"{k} {v}" for k, v in on.items()), ""]
    if on["device"] == "no CUDA device":
        minutes = ", ".join(f"the {name} {m:g}" for name, m in EXPECTED.items())
        lines += [
            "There is no GPU here, so the tables are empty, and the training is a stand-in of "
            "seconds on drawn creatures. What stands here shows that every part runs to its end. "
            f"Expected on an H100, in minutes: {minutes}. These are estimates; nothing was "
            "measured.", ""]  # fmt: skip
    lines += ["## Tests on this device", "", tests_in_words(found["tests"]), ""]
    for name, measured in found["tables"].items():
        lines += [f"## {name}", "", *table_in_words(measured), ""]
    lines += ["## The aims", "", *aims_in_words(found["tables"]), ""]
    lines += ["## A short training", "", *training_in_words(found["training"])]
    return "\n".join(lines) + "\n"


def tests_in_words(tests):
    if tests.get("passed"):
        return f"All passed: {tests['last'][-1].strip('= ')}."
    last = tests.get("last") or [tests["failed"]]
    return "\n".join(["**They failed.** The last lines:", "", *(f"    {line}" for line in last)])


def table_in_words(measured):
    head = ["| step of | " + " | ".join(COLUMNS) + " |", "| --- |" + " --- |" * len(COLUMNS)]
    if measured is None:
        return [*head, "| (no GPU) |" + " |" * len(COLUMNS)]
    if "failed" in measured:
        return [f"Not measured: {measured['failed']}"]
    failed = [f"{name}: not measured ({row['failed']})."
              for name, row in measured["rows"].items() if "failed" in row]  # fmt: skip
    rows = [line(name, row) for name, row in measured["rows"].items() if "failed" not in row]
    return [
        f"Batches of {measured['batch']} images. *share*: of the {measured['rate'] / 1e12:.0f} "
        f"TFLOP/s that a large {measured['precision']} product reaches here; an image takes "
        f"{measured['flops'] / 1e9:.1f} GFLOP. *peak*: what a contestant's tensors take at most. "
        "*idle*: the share of a step in which no kernel runs. *host*: until a step's call returns "
        "on an idle card, with what it waits for.", "", *head, *rows, "", *failed]  # fmt: skip


def line(name, row):
    cells = [form.format(row[key]) if row.get(key) is not None else ""
             for key, form in COLUMNS.items()]  # fmt: skip
    return f"| {name} | " + " | ".join(cells) + " |"


def aims_in_words(tables):
    """Each aim, and whether it is met; of the compiled and the plain step the faster counts."""
    paper, gpu, colab = (best_of(measured) for measured in tables.values())
    found = []
    for name, best in zip(tables, (paper, gpu, colab), strict=True):
        found.append((f"{name}: times the official recipe's images/s, at least 4",
                      best and best.get("times"), "{:.1f}", lambda x: x >= 4))  # fmt: skip
    first = next(iter(tables))
    found += [
        (f"{first}: share of the matrix rate, at least 45 %", paper and paper["share"], "{:.0%}",
         lambda x: x >= 0.45),
        (f"{first}: idle, at most 5 %", paper and paper["idle"], "{:.0%}", lambda x: x <= 0.05),
        ("preset gpu, views and update: an epoch of 100,000 images at 96 px, at most 30 s",
         gpu and gpu.get("views") and 1e5 / gpu["views"], "{:.0f} s", lambda x: x <= 30),
    ]  # fmt: skip
    rows = ["| aim | here | |", "| --- | --- | --- |"]
    for what, value, form, met in found:
        here = "" if value is None else form.format(value)
        verdict = "" if value is None else "met" if met(value) else "missed"
        rows.append(f"| {what} | {here} | {verdict} |")
    return rows


def best_of(measured):
    """The faster of the library's two steps, with "times" the official one's images a second and
    "views", images a second with its views; None where nothing was measured."""
    rows = {} if measured is None else measured.get("rows", {})
    mine = [rows[n] for n in ("here", "here, compiled") if "images/s" in rows.get(n, {})]
    if not mine:
        return None
    best = dict(max(mine, key=lambda row: row["images/s"]))
    official = rows.get("official recipe", {})
    if "images/s" in official:
        best["times"] = best["images/s"] / official["images/s"]
    best["views"] = rows.get("here, with its views", {}).get("images/s")
    return best


def training_in_words(t):
    if "failed" in t:
        return [f"It failed: {t['failed']}"]
    what = {
        "colab": "The preset colab on photographs",
        "demo": "No photographs could be had, so the preset demo trained on drawn creatures "
                f"({t.get('why')}). For photographs: --dataset FOLDER, or --data-root with "
                "imagenette2-160 in it",
        "smoke": "The stand-in: the preset smoke on 64 drawn creatures",
    }[t["preset"]]  # fmt: skip
    end = "to its end" if t["finished"] else "then it was cut off; the same command goes on with it"
    scores = t["knn"].items()
    first, last = (next(iter(scores)), [*scores][-1]) if scores else (None, None)
    lines = [f"{what}: {t['updates']} updates in {t['seconds']:.0f} s with the start, {end}."]
    if t["images/s"]:
        lines.append(f"At the median {t['images/s']:,.0f} images/s.")
    if scores:
        lines.append(f"20-NN accuracy of the teacher: {float(first[1]):.1%} untrained, "
                     f"{float(last[1]):.1%} after update {last[0]}.")  # fmt: skip
    if t["preset"] == "smoke":
        lines.append("So short a run shows nothing but that it runs.")
    return [" ".join(lines), "", "![The curves](curve.png)"]
