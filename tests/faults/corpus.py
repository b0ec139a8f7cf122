"""Hostile and malformed files: `CORPUS` maps names to functions that write a file into a folder and return its path.

The name begins with the kind: ``npz/...``. `OPEN` has what a user's command calls for each kind.
"""

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
import zlib
from functools import partial

import numpy as np

ESCAPE = "\x1b[2Jx\u202ey"
DEEP = 20_000


class Trap:
    """An object whose pickle would make a file named ``trapped``."""

    def __reduce__(self):
        return open, ("trapped", "w")


def written(name, content, folder):
    path = folder / name
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


def checkpoints():
    import torch

    stream = io.BytesIO()
    torch.save({"format": 1, "config": {}, "weights": {"a": torch.zeros(2)}}, stream)
    contents = {**damaged(stream.getvalue()), "a pickle": pickle.dumps(Trap()), "too little": stream.getvalue()}
    return files("checkpoint", "a.pt", contents)


def results():
    import h5py

    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file["x"] = np.arange(4)
    return files("nc", "a.nc", {**damaged(stream.getvalue()), "a pickle": pickle.dumps(Trap())})


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
}
PARTS = (npz, archives, tables, parquet, settings, images, hugging_face, checkpoints, results)
