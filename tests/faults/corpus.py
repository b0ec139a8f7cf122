"""Hostile and malformed files: `CORPUS` maps names to functions that write a file into a folder and return its path.

The name begins with the kind: ``npz/...``. `OPEN` has what a user's command calls for each kind.
"""

import functools
import gzip
import io
import json
import pickle
import struct
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np

ESCAPE = "\x1b[2Jx\u202ey"
DEEP = 20_000
DATA = ("n", 8, "train_size", 8, "test_size", 8)
"""Options of tiny data of the task pairs."""


class Trap:
    """An object whose pickle would make a file named ``trapped``."""

    def __reduce__(self):
        return open, ("trapped", "w")


def written(name, content, folder):
    path = folder / name
    content = content() if callable(content) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    return path


def damaged(content):
    """Return damaged versions of a valid file: empty, cut, with bytes changed, and followed by others."""
    cuts = {f"cut at {part} of 8": content[: len(content) * part // 8] for part in range(8)}
    changed = {}
    for part in range(6):
        at = len(content) * part // 6
        changed[f"changed at {part} of 6"] = (
            content[:at] + bytes(x ^ 0xFF for x in content[at : at + 3]) + content[at + 3 :]
        )
    return {**cuts, **changed, "followed by zeros": content + bytes(100), "not at all": b"\x00\xff" * 20}


def files(kind, name, contents):
    return {f"{kind}/{key}": partial(written, name, content) for key, content in contents.items()}


# --- arrays


def header(shape, descr="<i8", version=(1, 0)):
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H", len(text) + 1) + text + b"\n"


def npy(array):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(array), allow_pickle=True)
    return stream.getvalue()


def packed(held, compression=zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in held.items():
            archive.writestr(name, content)
    return stream.getvalue()


TOKENS = np.arange(24).reshape(8, 3) % 4
VALID = {"tokens.npy": npy(TOKENS), "labels.npy": npy(np.arange(8) % 2)}


def arrays(**changed):
    return packed(VALID | {f"{name}.npy": x if isinstance(x, bytes) else npy(x) for name, x in changed.items()})


def zeros(count):
    return npy(np.zeros(count, np.int8))


def npz():
    claims = {
        f"{name} claims {shape} of {descr}": arrays(**{name: header(shape, descr) + bytes(64)})
        for name in ("tokens", "labels")
        for shape, descr in (
            ((10**12,), "<i8"),
            ((2**32, 2**32), "<i8"),
            ((-1, 8), "<i8"),
            ((10**9,), "<U0"),
            ((10**400,), "<i8"),
            ((8, 1), "|O"),
            ((1,) * 64, "<i8"),
            ((8,), [("a", "<i8")]),
            ((1,), "<U1000000000"),
        )
    }
    numbers = {
        f"{name} of {value}": arrays(**{name: np.array(value)})
        for name in ("vocabulary", "classes", "levels", "predicted_levels", "patch", "shuffled")
        for value in (10**7, 2**62, -1, 0.5)
    }
    texts = {
        f"{name} {what}": arrays(**{name: value})
        for name in ("class_names", "symbols", "notes", "split")
        for what, value in (("with commands", [ESCAPE] * 4), ("bytes", [b"\xff"] * 4), ("U0", header((10**9,), "<U0")))
    }
    return files(
        "npz",
        "a.npz",
        {
            "valid": packed(VALID),
            **damaged(packed(VALID)),
            **claims,
            **numbers,
            **texts,
            "bomb": arrays(tokens=zeros(2**28)),
            "objects": arrays(tokens=np.array([Trap(), None], object)),
            "a pickle": pickle.dumps(Trap()),
            "a pickle as array": arrays(tokens=pickle.dumps(Trap())),
            "torch pickle": packed({"a/data.pkl": pickle.dumps(Trap()), "a/version": b"3"}),
            "one array": npy(TOKENS),
            "10^6 members": partial(zip_directory, 10**6, name=b"tokens.npy"),
            "2000 arrays": packed({f"{i}.npy": b"" for i in range(2000)}),
            "long unknown name": packed({**VALID, "x" * 5000 + ".npy": b""}),
            "name with commands": packed({**VALID, ESCAPE + ".npy": b""}),
            "outside": packed({**VALID, "../../tokens.npy": npy(TOKENS)}),
            "nested header": arrays(tokens=header((1,), "<i8").replace(b"(1,)", b"(" * 5000)),
            "same name twice": packed(
                {"tokens.npy": npy(TOKENS), "tokens": npy(TOKENS), "labels.npy": npy([0, 1] * 4)}
            ),
            "floats as tokens": arrays(tokens=np.full((8, 3), np.nan)),
            "huge ids": arrays(tokens=np.full((8, 3), 2**63, np.uint64)),
        },
    )


# --- archives


def member(name, size=0, kind=tarfile.REGTYPE, target="", content=b"", pax=None):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, target
    info.pax_headers = pax or {}
    return info.tobuf(tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT) + content


def archives():
    end = bytes(1024)
    pax = member("p", 512, tarfile.XHDTYPE, content=b"11 size=-99\n".ljust(512, b"\0"))
    plain = {
        "valid": member("data/a", 1, content=b"1".ljust(512, b"\0")) + end,
        "skipped claims 10^13": member("other", 10**13),
        "skipped claims 2^62": member("other", 2**62),
        "wanted claims 10^13": member("data/a", 10**13),
        "pax claims 10^13": member("x", 10**13, tarfile.XHDTYPE),
        "long name claims 10^13": member("x", 10**13, tarfile.GNUTYPE_LONGNAME),
        "negative size": pax + member("other") + end,
        "outside": member("../data/a", 1, content=b"1".ljust(512, b"\0")) + end,
        "absolute": member("/data/a", 1, content=b"1".ljust(512, b"\0")) + end,
        "link": member("data/a", 0, tarfile.SYMTYPE, "/etc/passwd") + end,
        "hard link": member("data/a", 0, tarfile.LNKTYPE, "/etc/passwd") + end,
        "device": member("data/a", 0, tarfile.CHRTYPE) + end,
        "fifo": member("data/a", 0, tarfile.FIFOTYPE) + end,
        "twice": 2 * member("data/a", 1, content=b"1".ljust(512, b"\0")) + end,
        "commands in the name": member("../" + ESCAPE, 1, content=bytes(512)) + end,
        "chain of pax": 5000 * member("p", 0, tarfile.XHDTYPE),
        "bomb": member("other", 2**27 - 512) + bytes(2**27),
    }
    content = {name: gzip.compress(x) for name, x in plain.items()}
    return files("tar.gz", "a.tar.gz", {**content, **damaged(content["valid"])})


# --- tables, series


def tables():
    csv = "text,label\na,x\nb,y\nc,x\nd,y\n"
    rows = [{"text": "ab", "label": "x"}, {"text": "c", "label": "y"}] * 3
    jsonl = "".join(json.dumps(row) + "\n" for row in rows)
    nested = "[" * DEEP + "]" * DEEP
    series = "@classLabel true a b\n@data\n1,2:a\n3,4:b\n5,6:a\n7,8:b\n"
    separated = {
        "valid": csv,
        **damaged(csv.encode()),
        "10^6 columns": "," * 10**6 + "\n",
        "columns with commands": f"{ESCAPE},label\na,b\n",
        "long column": "x" * 10**6 + ",label\na,b\n",
        "nested lists": f'text,label\n"{nested}",a\n"[1]",b\n',
        "long digits": "text,label\n" + f"a,{'1' * 10**5}x\n" * 2,
        "huge number": "text,label\na,1e999\nb,2\n",
        "labels with commands": "text,label\n" + f"a,{ESCAPE}\nb,c\n" * 4,
        "label column only": "label\na\n",
        "open quote": 'text,label\n"' + "a" * 10**6,
        "zeros": "\0" * 1000,
        "carriage returns": "text,label\ra,b\rc,d\r",
    }
    lines = {
        "valid": jsonl,
        **damaged(jsonl.encode()),
        "nested": nested + "\n",
        "nested cell": json.dumps({"text": [[1]], "label": 1}).replace("[[1]]", "[" * 900 + "]" * 900) + "\n",
        "other names in each line": "".join(
            json.dumps({f"k{i}_{j}": 0 for j in range(20)}) + "\n" for i in range(3000)
        ),
        "surrogate": '{"text": "\\ud800", "label": 1}\n' * 4,
        "surrogate labels": "".join(f'{{"text": "a", "label": "\\ud800{i % 2}"}}\n' for i in range(20)),
        "long number": '{"text": [' + "9" * 10**4 + '], "label": 1}\n',
        "huge ids": '{"text": [18446744073709551615], "label": 1}\n' * 4,
        "link": json.dumps({"text": {"bytes": None, "path": "/etc/passwd"}, "label": 1}) + "\n",
        "list": "[1]\n",
        "nothing but NaN": "NaN\n",
        "text is a dict": '{"text": {"a": 1}, "label": 1}\n',
        "label is a list": '{"text": "a", "label": [1]}\n' * 4,
    }
    times = {
        "valid": series,
        **damaged(series.encode()),
        "long value": f"@data\n{'x' * 10**6}:a\n",
        "10^5 channels": "@data\n" + "1:" * 10**5 + "a\n",
        "value with commands": f"@data\n{ESCAPE}:a\n",
        "header with commands": f"@classLabel {ESCAPE}\n@data\n1:a\n",
        "uneven": "@data\n" + ":".join("1," * i + "1" for i in range(300)) + ":a\n",
    }
    return {
        **files("csv", "a.csv", separated),
        **files("tsv", "a.tsv", {"valid": csv.replace(",", "\t"), "10^6 columns": "\t" * 10**6 + "\n"}),
        **files("jsonl", "a.jsonl", lines),
        **files("ts", "a.ts", times),
    }


def parquet():
    import pyarrow as pa
    import pyarrow.parquet as pq

    def of(columns, **options):
        stream = io.BytesIO()
        pq.write_table(pa.table(columns), stream, **options)
        return stream.getvalue()

    long = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array(["x" * 10**6]))
    valid = of({"text": ["a", "b", "c", "d"], "label": [0, 1, 0, 1]})
    repeated = pa.array(np.zeros(2 * 10**6, np.int8))
    return files(
        "parquet",
        "a.parquet",
        {
            "valid": valid,
            **damaged(valid),
            "one value repeated": of({"text": repeated, "label": repeated}),
            "one long text repeated": of({"text": long, "label": pa.array([0] * 2000)}),
            "zeros": of({"text": [bytes(2**24)] * 9, "label": [0] * 9}, compression="gzip", use_dictionary=False),
            "link": of({"text": [{"bytes": None, "path": "/etc/passwd"}], "label": [1]}),
            "column with commands": of({ESCAPE: [1], "label": [1]}),
        },
    )


# --- settings


def settings():
    laughs = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    merged = "a: &a {k0: 1}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        laughs += f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n"
        merged += f"{name}: &{name} {{<<: [{', '.join(['*' + before] * 9)}]}}\n"
    toml = {
        "valid": "n_layers = 2\n",
        **damaged(b"n_layers = 2\nposition = 'rotary'\n[section]\nsteps = 3\n"),
        "nested": "a = " + "[" * DEEP,
        "nested and closed": "a = " + "[" * DEEP + "]" * DEEP,
        "nested tables": "a = " + "{a = " * 5000,
        "dotted key": ".".join(["a"] * 30_000) + " = 1\n",
        "short dotted key": ".".join(["a"] * 100) + " = 1\n",
        "10^7 layers": "n_layers = 10000000\n",
        "hexadecimal": "steps = 0x" + "f" * 10**4,
        "decimal": "steps = " + "9" * 10**4,
        "10^300 steps": "steps = " + "9" * 300,
        "wide": "d_model = 1073741824\nn_heads = 1\n",
        "long": "a = 1 # " + "x" * 10**6,
        "long text": f"recipe = '{'x' * 10**5}'\n",
        "commands": 'recipe = "\\u001b[2J\\u202e"\n',
        "key with commands": '"\\u001b[2J\\u202e" = 1\n',
        "dates": "steps = 1979-05-27\n",
        "infinite": "learning_rate = inf\n",
        "NaN": "learning_rate = nan\n",
    }
    yaml = {
        "valid": "n_layers: 2\n",
        **damaged(b"n_layers: 2\nposition: rotary\nsection:\n  steps: 3\n"),
        "nested": "a: " + "[" * DEEP,
        "nested blocks": "".join(" " * i + "a:\n" for i in range(400)),
        "laughs": laughs,
        "merged laughs": merged,
        "alias of itself": "a: &a [*a]\n",
        "runs code": "a: !!python/object/apply:builtins.open [trapped, w]\n",
        "names code": "a: !!python/name:os.system\n",
        "hexadecimal": "steps: 0x" + "f" * 10**4,
        "base 60": "steps: 1" + ":59" * 10**4,
        "date": "steps: 9999-99-99\n",
        "list as key": "? [1]\n: 2\n",
        "number as key": "1: 2\n",
        "commands": 'recipe: "\\e[2J"\n',
        "documents": "--- 1\n--- 2\n",
        "set": "steps: !!set {1, 2}\n",
        "binary": "steps: !!binary aGk=\n",
    }
    lists = "".join(f"{name} = [{', '.join(map(str, range(1, 41)))}]\n" for name in ("seed", "steps", "n_layers"))
    sweep = {
        "40^5 cells": "[grid]\n"
        + lists
        + lists.replace("seed", "init_seed").split("n_layers")[0].replace("steps", "d_model"),
        "2^5000 cells": "[grid]\n" + "".join(f"a{i} = [1, 2]\n" for i in range(5000)),
        "not lists": "[grid]\nseed = 3\n",
        "commands": '[grid]\n"\\u001b[2J" = [1]\n',
        "long cell": f"[grid]\nrecipe = ['{'x' * 10**4}']\n",
        "unknown": f"{'x' * 10**4} = 1\n",
        "number as base": "base = 1\n",
        "equal cells": "[grid]\nseed = [1, 1]\n",
    }
    return {
        **files("toml", "a.toml", toml),
        **files("yaml", "a.yaml", yaml),
        **files("sweep", "a.toml", sweep),
    }


# --- images


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width=2, height=2, content=None):
    content = zlib.compress(bytes((width + 1) * height)) if content is None else content
    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def class_folders(content, folder, name="0.png"):
    for label in "ab":
        for i in range(3):
            written(f"images/{label}/{i}{name}", content, folder)
    return folder / "images"


def images():
    contents = {
        "valid": png(),
        **damaged(png()),
        "10^5 x 10^5": png(10**5, 10**5, b""),
        "10^4 x 10^4": png(10**4, 10**4, b""),
        "6000 x 6000": png(6000, 6000),
        "0 x 0": png(0, 0),
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "SVG": b"<svg/>",
        "text": b"P5 9999999 9999999 255\n",
    }
    return {f"images/{name}": partial(class_folders, content) for name, content in contents.items()}


# --- Hugging Face folders, checkpoints, results


def model(config, weights, folder, more=None):
    written("model/config.json", config if isinstance(config, str | bytes) else json.dumps(config), folder)
    written("model/model.safetensors", weights, folder)
    for name, content in (more or {}).items():
        written(f"model/{name}", content, folder)
    return folder / "model"


def hugging_face():
    bert = {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 8, "num_attention_heads": 2}
    bert |= {"num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 10}
    code = {"code.py": "open('trapped', 'w')\nclass C: pass\nclass M: pass\n"}
    mapped = {**bert, "model_type": "mine", "auto_map": {"AutoConfig": "code.C", "AutoModel": "code.M"}}
    header = struct.pack("<Q", 2) + b"{}"
    lying = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    contents = {
        "code": (mapped, header, code),
        "lying length": (bert, struct.pack("<Q", 2**62) + b"{}", {}),
        "lying shape": (bert, struct.pack("<Q", len(lying)) + lying, {}),
        "pickle as weights": (bert, pickle.dumps(Trap()), {}),
        "10^7 layers": ({**bert, "num_hidden_layers": 10**7}, header, {}),
        "10^9 ids": ({**bert, "vocab_size": 10**9}, header, {}),
        "10^9 wide": ({**bert, "hidden_size": 10**9}, header, {}),
        "downloaded attention": ({**bert, "attn_implementation": "owner/code"}, header, {}),
        "names another class": ({**bert, "architectures": ["Trainer"]}, header[:4], {}),
        "names a module": ({**bert, "architectures": ["utils"]}, header[:4], {}),
        "architecture is a number": ({**bert, "architectures": [1]}, header[:4], {}),
        "nested": ("[" * DEEP, header, {}),
        "not JSON": (b"\xff\x00", header, {}),
        "a list": ("[]", header, {}),
        "text as size": ({**bert, "hidden_size": ESCAPE}, header, {}),
        "no heads": ({**bert, "num_attention_heads": 0}, header, {}),
        "unknown type": ({"model_type": ESCAPE}, header, {}),
    }
    return {f"hf/{name}": partial(model, *given[:2], more=given[2]) for name, given in contents.items()}


@functools.cache
def intact():
    """Return the bytes of an intact checkpoint of a run of one step."""
    import attnprobe as ap

    options = dict(zip(DATA[::2], DATA[1::2], strict=True))
    config = ap.configure("pairs", steps=1, d_model=4, recipe="supervised", task_options=options)
    with tempfile.TemporaryDirectory() as folder:
        return ap.train(config, Path(folder) / "run", progress=False).checkpoints[-1].path.read_bytes()


def fields_of(content):
    import torch

    return torch.load(io.BytesIO(content), weights_only=True)


def checkpoint(edit, version=1):
    """Return the bytes of a checkpoint whose entries a function has changed; format 2 has the digest of the result."""
    import torch

    from attnprobe.training.checkpoint import _digest

    fields = fields_of(intact())
    del fields["digest"]
    fields["format"] = version
    edit(fields)
    if version == 2:
        fields["digest"] = _digest(fields)
    stream = io.BytesIO()
    torch.save(fields, stream)
    return stream.getvalue()


def entry(name, value):
    """Return a function that replaces an entry, at a dotted place, by a value or a function of it."""

    def edit(fields):
        *outer, last = name.split(".")
        for key in outer:
            fields = fields[key]
        fields[last] = value(fields[last]) if callable(value) else value

    return edit


def row(**entries):
    return entry("metrics", [{"step": 1, "objective": "labels", **entries}])


def repeated(depth):
    """Return a list of 10^depth values that takes a few bytes in a pickle."""
    value = ["x"] * 10
    for _ in range(depth - 1):
        value = [value] * 10
    return value


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def rezipped(content, added=(), left_out=(), compression=zipfile.ZIP_STORED):
    """Return a zip archive with other members."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist() if not name.endswith(tuple(left_out))]
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two members with one name
        for name, member in [*members, *added]:
            archive.writestr(name, member)
    return stream.getvalue()


def zip_directory(count, size=0, name=b"archive/data/0"):
    """Return a zip archive of ``count`` members that share one place and claim ``size`` bytes each."""
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, size, size, len(name), 0) + name + bytes(size)
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, size, size, len(name), 0, 0, 0, 0, 0, 0) + name
    place, length = len(local), len(entry) * count
    record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, place)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, place + length, 1)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)
    return local + entry * count + record + locator + end


def checkpoints():
    import torch

    stream = io.BytesIO()
    torch.save({"format": 1, "config": {}, "weights": {"a": torch.zeros(2)}}, stream)
    large = torch.zeros(1, device="meta").expand(10**12)
    edits = {
        "no metrics": entry("metrics", []),
        "text as accuracy": row(test_accuracy="x"),
        "huge accuracy": row(test_accuracy=10**400),
        "huge number in metrics": row(other=10**6000),
        "tensor in metrics": row(other=torch.zeros(3)),
        "pair as a name in metrics": entry("metrics", [{"step": 1, "objective": "labels", (1, 2): 3}]),
        "commands in metrics": row(**{ESCAPE: ESCAPE}),
        "step of a row is a text": entry("metrics", [{"step": "1", "objective": "labels"}]),
        "unknown objective": entry("objective", "alchemy"),
        "commands as objective": entry("objective", ESCAPE),
        "objective of a row is unhashable": entry("metrics", [{"step": 1, "objective": ["labels"]}]),
        "step 10^40": entry("step", 10**40),
        "10^9 tokens": entry("data.n", 10**9),
        "10^7 layers": entry("config.model.n_layers", 10**7),
        "10^9 sequences": entry("config.task_options", {"n": 8, "train_size": 10**9}),
        "task is a folder": entry("config.task", "/"),
        "task is a device": entry("config.task", "/dev/zero"),
        "task has commands": entry("config.task", ESCAPE + "/x.csv"),
        "options nested": entry("config.task_options", {"n": {"n": 8}}),
        "unknown device": entry("config.device", ESCAPE),
        "infinite rate": entry("config.learning_rate", float("inf")),
        "class names with commands": entry("data.class_names", [ESCAPE] * 4),
        "class names are numbers": entry("data.class_names", [1, 2, 3, 4]),
        "10^9 class names": entry("data.class_names", repeated(9)),
        "fingerprint with commands": entry("fingerprint", ESCAPE),
        "provenance with commands": entry("provenance", {ESCAPE: ESCAPE}),
        "numbers as names in provenance": entry("provenance", {1: {(1, 2): 3}}),
        "10^9 values in provenance": entry("provenance", {"a": repeated(9)}),
        "10^9 values in metrics": row(other=repeated(9)),
        "10^9 values in the optimiser": entry("optimiser.param_groups", [{"params": repeated(9)}]),
        "nested provenance": entry("provenance", {"a": nested(200)}),
        "nested optimiser": entry("optimiser.param_groups", [{"params": nested(200)}]),
        "huge number in provenance": entry("provenance", {"a": 10**6000}),
        "name of weights that is no text": entry("weights", lambda x: {**x, 3: torch.zeros(1)}),
        "half of the precision": entry("weights", lambda x: {name: value.half() for name, value in x.items()}),
        "8 bits": entry("weights", lambda x: {name: value.to(torch.float8_e5m2) for name, value in x.items()}),
        "integers": entry("weights", lambda x: {name: value.long() for name, value in x.items()}),
        "other shapes": entry("weights", lambda x: {name: value[:1] for name, value in x.items()}),
        "without storage": entry("weights", lambda x: {name: value.to("meta") for name, value in x.items()}),
        "10^12 values without storage": entry("weights", lambda x: {**x, "embed.weight": large}),
        "sets": entry("provenance", {"a": {1, 2}}),
    }
    deep = b"\x80\x02}X\x06\x00\x00\x00format" + b"]" * 10**5 + b"a" * (10**5 - 1) + b"s."
    members = {
        "more members": rezipped(intact(), added=[("archive/code.py", b"open('trapped', 'w')")]),
        "another pickle": rezipped(intact(), [("archive/data.pkl", pickle.dumps(Trap()))], ["data.pkl"]),
        "two pickles": rezipped(intact(), added=[("archive/data.pkl", pickle.dumps(Trap()))]),
        "two roots": rezipped(intact(), added=[("other/data.pkl", pickle.dumps(Trap()))]),
        "outside": rezipped(intact(), added=[("../../x", b"x")]),
        "name with commands": rezipped(intact(), added=[(ESCAPE, b"x")]),
        "missing members": rezipped(intact(), left_out=["data/0"]),
        "no pickle": rezipped(intact(), left_out=["data.pkl"]),
        "bomb": rezipped(intact(), [("archive/data/zeros", bytes(2**26))], compression=zipfile.ZIP_DEFLATED),
        "10^6 members": partial(zip_directory, 10**6),
        "members that share their bytes": partial(zip_directory, 10**4, 2**22),
        "TorchScript": rezipped(intact(), added=[("archive/constants.pkl", pickle.dumps(Trap()))]),
        "other byte order": rezipped(intact(), [("archive/byteorder", b"big")], ["byteorder"]),
        "10^5 levels": rezipped(intact(), [("archive/data.pkl", deep)], ["data.pkl"]),
        "no digest": checkpoint(entry("format", 2)),
        "another digest": checkpoint(entry("digest", ESCAPE)),
        "format 10^6000": checkpoint(entry("format", 10**6000)),
        "text as format": checkpoint(entry("format", ESCAPE)),
        "list as format": checkpoint(entry("format", [1])),
    }
    return files(
        "checkpoint",
        "a.pt",
        {
            "valid": intact(),
            **damaged(intact()),
            "a pickle": pickle.dumps(Trap()),
            "too little": stream.getvalue(),
            **members,
            **{name: partial(checkpoint, edit) for name, edit in edits.items()},
            "commands, with digest": partial(checkpoint, entry("provenance", {ESCAPE: ESCAPE}), 2),
        },
    )


@functools.cache
def measured():
    """Return the bytes of an intact result, without its checksum, as if another program had written it."""
    import attnprobe as ap
    from attnprobe.results import _end, save

    with tempfile.TemporaryDirectory() as folder:
        path = written("a.pt", intact(), Path(folder))
        save(ap.proximity(ap.load(path), sequences=4, nulls=1), path)
        content = path.read_bytes()
        return content[: _end(content)]


def edited(edit):
    """Return the bytes of a result whose HDF5 file a function has changed."""
    import h5py

    stream = io.BytesIO(measured())
    with h5py.File(stream, "r+") as file:
        edit(file)
    return stream.getvalue()


def replaced(name, **options):
    """Return a function that replaces a variable of a result by another HDF5 dataset."""

    def edit(file):
        attributes = {key: file[name].attrs[key] for key in ("units", "long_name")}
        del file[name]
        made = file.create_dataset(name, **options)
        made.attrs.update(attributes)

    return edit


def linked(file, *targets):
    for name, target in targets:
        file[name] = target


def with_attribute(name, value):
    return lambda file: file.attrs.__setitem__(name, value)


def results():
    import h5py

    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file["x"] = np.arange(4)
    chunked = {"shape": (2**40,), "dtype": "f8", "chunks": (2**20,)}
    layout = h5py.VirtualLayout((4,), "f8")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4,))
    numbers = {"shape": (1, 2), "dtype": "f8"}
    edits = {
        "wrong axis order": lambda file: file["pattern_by_offset"].attrs.__delitem__("DIMENSION_LIST"),
        "no coordinates": lambda file: file.__delitem__("offset"),
        "group": lambda file: file.create_group("group").create_dataset("x", data=[1]),
        "group in place of a variable": lambda file: (file.__delitem__("entropy"), file.create_group("entropy")),
        "2^40 values": replaced("entropy", **chunked),
        "2^40 values of one byte": replaced("entropy", shape=(2**40,), dtype="i1", chunks=(2**31 - 1,)),
        "10^9 values, compressed": lambda file: file.create_dataset(
            "x", (10**9,), "f8", chunks=(10**6,), compression="gzip"
        ),
        "external link": lambda file: linked(file, ("x", h5py.ExternalLink("/etc/passwd", "/x"))),
        "external link to itself": lambda file: linked(file, ("x", h5py.ExternalLink("a.nc", "/x"))),
        "external storage": lambda file: file.create_dataset("x", (4,), "i1", external=[("/etc/passwd", 0, 4)]),
        "virtual": lambda file: file.create_virtual_dataset("x", layout),
        "soft links in a circle": lambda file: linked(file, ("x", h5py.SoftLink("/y")), ("y", h5py.SoftLink("/x"))),
        "hard link to the root": lambda file: linked(file, ("x", file["/"])),
        "unknown filter": lambda file: _with_filter(file),
        "attributes of other types": lambda file: file.attrs.update(
            {"measure": 3, "title": [1, 2], "config": np.zeros((2, 2)), "step": "x", "ci_prob": "x"}
        ),
        "object references": lambda file: file.attrs.__setitem__("title", file.ref),
        "config is not JSON": with_attribute("config", "[" * DEEP),
        "config is a number": with_attribute("config", 3),
        "config is a list": with_attribute("config", "[1]"),
        "left_out is a list": with_attribute("left_out", "[1]"),
        "provenance is a list": with_attribute("provenance", "[1]"),
        "provenance is not JSON": with_attribute("provenance", ESCAPE),
        "no attributes": lambda file: [file.attrs.__delitem__(name) for name in list(file.attrs)],
        "measure with commands": with_attribute("measure", ESCAPE),
        "title with commands": with_attribute("title", ESCAPE),
        "name with commands": lambda file: file.create_dataset(ESCAPE, data=[1]),
        "attribute with commands": with_attribute(ESCAPE, ESCAPE),
        "text as values": replaced("entropy", data=np.array([[b"x", b"y"]])),
        "objects as values": replaced("entropy", data=["x", "y"], dtype=h5py.string_dtype()),
        "compound values": replaced("entropy", data=np.zeros((1, 2), [("a", "f8"), ("b", "i4")])),
        "units are a number": lambda file: file["entropy"].attrs.__setitem__("units", 3),
        "dates": lambda file: file["entropy"].attrs.__setitem__("units", "days since 0000-00-00"),
        "scale factor": lambda file: file["entropy"].attrs.__setitem__("scale_factor", "x"),
        "encoded coordinates": lambda file: file["entropy"].attrs.__setitem__("coordinates", ESCAPE + " y"),
        "no values": replaced("entropy", **{**numbers, "shape": (0, 2)}),
        "other sizes": replaced("entropy", **{**numbers, "shape": (3, 5)}),
    }
    return files(
        "nc",
        "a.nc",
        {
            "valid": measured(),
            **damaged(measured()),
            "another file": stream.getvalue(),
            "a pickle": pickle.dumps(Trap()),
            "10^12 bytes claimed": measured()[:28] + struct.pack("<Q", 10**12) + measured()[36:],
            **{name: partial(edited, edit) for name, edit in edits.items()},
        },
    )


def _with_filter(file):
    """Create a dataset whose values need a filter plugin that does not exist."""
    import h5py

    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((4,))
    properties.set_filter(h5py.h5z.FILTER_DEFLATE, h5py.h5z.FLAG_OPTIONAL, (1,))
    h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_DOUBLE, h5py.h5s.create_simple((4,)), properties)
    file["x"][:] = 1.0


# --- files of runs


def run_with(name, content, folder):
    """Write a run whose file of this name is replaced."""
    run = folder / "run"
    written("checkpoints/step-000001.pt", intact(), run)
    written("config.json", json.dumps({"config": fields_of(intact())["config"]}), run)
    written("metrics.jsonl", '{"step": 1, "objective": "labels"}\n', run)
    written("finished.json", '{"step": 1, "why": "all steps", "best_step": null}', run)
    written("sweep.json", '{"cells": []}', run)
    written(name, content, run)
    return run


def runs():
    contents = {
        "nested": "[" * DEEP + "]" * DEEP,
        "not JSON": b"\xff\x00",
        "list": "[1]",
        "number": "9" * 10**4,
        "text": json.dumps(ESCAPE),
        "empty": "",
    }
    texts = {
        "config.json": {
            "unknown setting": json.dumps({"config": {ESCAPE: 1}}),
            "commands": json.dumps({"config": {"recipe": ESCAPE}}),
            "list as config": json.dumps({"config": [1]}),
            "nested config": json.dumps({"config": {"model": nested(200)}}),
            "list as settings": json.dumps({"config": {"steps": [1]}}),
            "infinite": '{"config": {"learning_rate": Infinity}}',
        },
        "metrics.jsonl": {
            "text as step": '{"step": "1", "objective": "labels"}\n',
            "list as objective": '{"step": 1, "objective": ["labels"]}\n',
            "commands": json.dumps({"step": 1, "objective": "labels", ESCAPE: ESCAPE}) + "\n",
            "texts as losses": '{"step": 1, "objective": "labels", "validation_loss": "x"}\n' * 2,
            "long number": '{"step": 1, "objective": "labels", "test_accuracy": ' + "9" * 400 + "}\n",
            "nested rows": "[" * DEEP + "\n",
        },
        "finished.json": {
            "step 10^40": json.dumps({"step": 10**40}),
            "text as step": json.dumps({"step": "1"}),
            "list as rows": json.dumps({"step": 1, "rows": [1]}),
            "nothing else": json.dumps({"step": 1}),
        },
        "sweep.json": {
            "number as cells": json.dumps({"cells": 3}),
            "numbers as cells": json.dumps({"cells": [3]}),
            "outside": json.dumps({"cells": [{"folder": "../../etc", "settings": {}, "steps": 1}]}),
            "list as folder": json.dumps({"cells": [{"folder": [1], "settings": {}, "steps": 1}]}),
            "list as settings": json.dumps({"cells": [{"folder": "a", "settings": [1], "steps": 1}]}),
            "text as steps": json.dumps({"cells": [{"folder": "a", "settings": {}, "steps": ESCAPE}]}),
        },
    }
    return {
        f"run/{file} {name}": partial(run_with, file, content)
        for file, more in texts.items()
        for name, content in {**contents, **more}.items()
    }


def open_run(path):
    """Read every file of a run, as programs do."""
    import attnprobe as ap
    from attnprobe.errors import UsageError
    from attnprobe.sweeps.cells import look, planned_steps

    look(path), planned_steps(path, 1)
    refusals = []
    run = ap.Run.open(path)
    for read in (lambda: run.config, lambda: run.metrics, lambda: run.finished, lambda: ap.open_sweep(path)):
        try:
            read()
        except UsageError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]


def open_settings(path):
    from attnprobe.config import from_flat, read_settings

    return from_flat(read_settings(path))


def open_sweep(path):
    from attnprobe.sweeps.plan import read_sweep

    return read_sweep(path)


def open_task(path):
    from attnprobe.tasks import source

    return source(str(path)).build(0)


def open_archive(path):
    from attnprobe.tasks.archives import members

    return list(members(path, lambda name: range(1, 9) if name.startswith("data/") else None))


def open_model(path):
    from attnprobe.networks.hugging_face import load

    np.savez(path / "inputs.npz", input_ids=np.ones((4, 4), np.int64))
    return load(str(path), 2, tokens=path / "inputs.npz")


def open_checkpoint(path):
    from attnprobe.training.checkpoint import load

    return load(path)


def open_result(path):
    from attnprobe.results import open_result

    return open_result(path)


OPEN = {
    **dict.fromkeys(["npz", "csv", "tsv", "jsonl", "ts", "parquet", "images"], open_task),
    **dict.fromkeys(["toml", "yaml"], open_settings),
    "sweep": open_sweep,
    "tar.gz": open_archive,
    "hf": open_model,
    "checkpoint": open_checkpoint,
    "nc": open_result,
    "run": open_run,
}
PARTS = (npz, archives, tables, parquet, settings, images, hugging_face, checkpoints, results, runs)


# --- commands

MEASURES = ("proximity", "positions", "gradients", "interventions", "flow")
WRITING = ("train", "sweep", "report", *MEASURES)
"""Commands with an output folder."""
SLOW = ("report", *MEASURES)
"""Commands that are only given files that their reader refuses."""
SMALL = ["--steps", 1, "--recipe", "supervised", "--evaluations", 1, "--checkpoints", 1, "--d-model", 4, "--quiet"]
TINY = ["--task", "pairs", "--quiet", "--task-options", *DATA]
GOOD = Path("good.pt")
"""An intact checkpoint in the working directory."""


def archive_commands(path):
    path = path.rename(path.with_name("aclImdb_v1.tar.gz"))
    return [["tasks", "text", "--data", path.parent]]


def checkpoint_commands(path):
    """The file by itself, as the only checkpoint of a run, and as the state of one."""
    run, state = path.parent / "run", path.parent / "state"
    written("checkpoints/step-000000.pt", path.read_bytes(), run)
    written("latest.pt", path.read_bytes(), state)
    written("config.json", "{}", state)
    few = ["--sequences", 2, "--nulls", 1]
    return [
        ["show", path],
        ["show", path, "--json"],
        ["show", run],
        *([name, given, *few] for name in MEASURES for given in (path, run)),
        ["report", path],
        ["report", run],
        ["interventions", GOOD, "--patch-from", path, *few],
        ["train", "--init-from", path, *TINY, *SMALL],
        ["train", "--resume", state, "--quiet"],
    ]


COMMANDS = {
    **dict.fromkeys(
        ["npz", "csv", "tsv", "jsonl", "ts", "parquet", "images"],
        lambda path: [["tasks", path], ["train", "--task", path, *SMALL]],
    ),
    **dict.fromkeys(["toml", "yaml"], lambda path: [["train", "--config", path, "--minutes", 0, *TINY]]),
    "sweep": lambda path: [["sweep", path]],
    "tar.gz": archive_commands,
    "hf": lambda path: [[name, f"hf:{path}", "--tokens", path / "inputs.npz"] for name in MEASURES],
    "checkpoint": checkpoint_commands,
    "nc": lambda path: [["show", path], ["proximity", path]],
    "run": lambda path: [["show", path], ["train", "--resume", path, "--quiet"]],
}
"""Arguments of the commands that read a file of each kind, without their output folder."""


def prepare():
    """Write an intact checkpoint to the working directory."""
    GOOD.write_bytes(intact())
