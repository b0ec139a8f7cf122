"""Hugging Face models from a local folder or the Hub, with inputs from files."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from attnprobe.errors import UsageError, abridged, shown
from attnprobe.networks.base import Probe
from attnprobe.networks.torch_model import network
from attnprobe.tasks import Split, build, configure
from attnprobe.tasks.arrays import read_arrays
from attnprobe.tasks.labelled_files import IMAGE_FORMATS, MOST_PIXELS

PREFIX = "hf:"
"""Beginning of the name of a Hugging Face model on the command line."""
FORMATS = (*IMAGE_FORMATS, "WEBP")
"""Pillow's names of the formats of images; decoders of others (EPS) run programs."""
MOST = {"layer": 1000, "vocab_size": 2**22, "hidden_size": 2**16, "intermediate_size": 2**18, "n_embd": 2**16}
"""Largest numbers in a configuration, by parts of their names: several times those of the largest models. Weights that
a folder lacks would be made for any numbers that its configuration claims."""
TEXT = 2**26
"""Largest number of characters of a text file that is read for its first lines."""


def load(
    name: str,
    rows: int,
    *,
    text: Path | None = None,
    tokens: Path | None = None,
    images: Path | None = None,
    task: str | None = None,
    site: str | None = None,
    leave_out: Literal["special", "none"] = "special",
    step: int = 0,
) -> Probe:
    """Return a Hugging Face model with inputs from a file or folder, as the argument of a measure.

    Weights are read from safetensors or with ``weights_only=True``; code of the repository is never run.

    Args:
        name: Folder, or owner/name on the Hub; downloads respect ``HF_HUB_OFFLINE``.
        rows: Number of rows to measure; as many are reference data (see `network`).
        text: Text file; every line that is not empty is a row.
        tokens: An .npz file with the inputs of the model, such as ``input_ids`` and ``attention_mask``, and optionally
            ``labels``.
        images: Folder of images.
        task: A task of attnprobe: its test sequences are measured, its training sequences are reference data.
        site: See `network`.
        leave_out: See `network`.
        step: Training step of the model, for results over steps.
    """
    if sum(source is not None for source in (text, tokens, images, task)) != 1:
        raise UsageError(f"{PREFIX}{name} needs inputs: one of --text, --tokens, --images, --task")
    model, options = _model(name), {"site": site, "leave_out": leave_out}
    if text is not None:
        probe = network(model, _lines(text, 2 * rows), tokenizer=_tokenizer(name), **options)
    elif images is not None:
        probe = network(model, _images(images, 2 * rows), processor=_processor("AutoImageProcessor", name), **options)
    elif task is not None:
        probe = _on_task(model, task, rows, options)
    else:
        assert tokens is not None
        arrays = _arrays(tokens, 2 * rows)
        labels = arrays.pop("labels", None)
        labels = None if labels is None else labels.tolist()
        probe = network(model, arrays, labels=labels, tokenizer=_tokenizer_or_none(name), **options)
    title = f"{Path(name).name} on {(text or tokens or images or Path(task or '')).name}"
    return replace(probe, title=title, facts={**probe.facts, "step": step})


def _on_task(model: Any, name: str, rows: int, options: dict[str, Any]) -> Probe:
    """Return a model on the first test sequences of a task, with its first training sequences as reference data."""
    task = build(configure(name))
    vocabulary = getattr(model.config, "vocab_size", None)
    if model.main_input_name == "pixel_values" or (vocabulary is not None and task.data.inputs != "tokens"):
        raise UsageError(f"task {name}: the model reads {model.main_input_name}; must be a task of such inputs")
    if vocabulary is not None and task.data.vocabulary > vocabulary:
        raise UsageError(f"task {name}: has {task.data.vocabulary} token ids; must be at most the model's {vocabulary}")

    def inputs(split: Split) -> dict[str, np.ndarray]:
        arrays = {model.main_input_name: split.tensor(slice(rows)).numpy()}
        if split.lengths is not None:
            real = np.arange(split.inputs.shape[1]) < split.lengths[:rows, None]
            arrays["attention_mask"] = real.astype(np.int64)
        return arrays

    ours = model.config.model_type == "attnprobe"
    options = options if ours else {**options, "leave_out": "none"}  # ids of a task are not special ones of the model
    classifies = "Classification" in type(model).__name__ or ours
    labels = task.test.labels[:rows] if classifies else None
    return network(model, inputs(task.test), labels=labels, reference=inputs(task.train), **options)


def series(name: str) -> dict[int, str]:
    """Return the checkpoints of a local folder by step, as ``transformers.Trainer`` writes them (checkpoint-STEP)."""
    folders = Path(name).glob("checkpoint-*") if Path(name).is_dir() else []
    steps = {int(folder.name.removeprefix("checkpoint-")): str(folder) for folder in folders if _is_checkpoint(folder)}
    return dict(sorted(steps.items()))


def _is_checkpoint(folder: Path) -> bool:
    return folder.name.removeprefix("checkpoint-").isdigit() and (folder / "config.json").exists()


def _model(name: str) -> Any:
    import transformers

    if not Path(name).is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise UsageError(f"{PREFIX}{name}: cannot be loaded (no such folder)")
    import attnprobe.model.pretrained  # noqa: F401  registers the model that Checkpoint.save_pretrained writes

    try:
        transformers.utils.logging.disable_progress_bar()
        _check_configuration(transformers.PretrainedConfig.get_config_dict(name)[0])
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        return _class_of(config).from_pretrained(name, trust_remote_code=False).eval()
    except UsageError as error:
        raise UsageError(f"{PREFIX}{name}: cannot be loaded ({error})") from None
    except Exception as error:  # the many libraries that read a folder raise any exception for damaged files
        raise UsageError(f"{PREFIX}{name}: cannot be loaded ({_first_line(error)})") from error


def _class_of(config: Any) -> Any:
    """Return the class of a model by its name in the configuration, which may name anything in transformers."""
    import transformers

    named = getattr(config, "architectures", None)
    first = named[0] if isinstance(named, list) and named else None
    kind = getattr(transformers, first, None) if isinstance(first, str) else None
    is_model = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    return kind if is_model else transformers.AutoModel


def _check_configuration(config: dict[str, Any]) -> None:
    """Raise `UsageError` if the configuration claims numbers of no model, or names attention code to download."""
    pending = [config]
    while pending:
        for name, value in pending.pop().items():
            if isinstance(value, dict):
                pending.append(value)
            if isinstance(value, str) and "attn_implementation" in str(name) and "/" in value:
                raise UsageError(f"{name}={shown(value)} is code of a repository, which is never run")
            for part, most in MOST.items():
                if part in str(name) and isinstance(value, int | float) and value > most:
                    raise UsageError(f"{abridged(str(name))}={shown(value)}: must be at most {most:,}")


def _processor(kind: str, name: str) -> Any:
    import transformers

    try:
        return getattr(transformers, kind).from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # the many libraries that read a folder raise any exception for damaged files
        raise UsageError(f"{PREFIX}{name}: has no usable {kind[4:].lower()} ({_first_line(error)})") from error


def _tokenizer(name: str) -> Any:
    tokenizer = _processor("AutoTokenizer", name)
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise UsageError(f"{PREFIX}{name}: has no usable tokenizer (its vocabulary has only special tokens)")
    return tokenizer


def _tokenizer_or_none(name: str) -> Any:
    """Return the tokenizer, which knows special tokens and the mask token, or None for models without one."""
    try:
        return _tokenizer(name)
    except UsageError:
        return None


def _first_line(error: Exception) -> str:
    return abridged(str(error).strip().split("\n")[0] or type(error).__name__, 200)


def _lines(path: Path, count: int) -> list[str]:
    try:
        with path.open(encoding="utf-8") as file:
            lines = [line.strip() for line in file.read(TEXT).splitlines() if line.strip()][:count]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if len(lines) < 4:
        raise UsageError(f"{path}: has {len(lines)} lines that are not empty; must have at least 4")
    return lines


def _arrays(path: Path, count: int) -> dict[str, np.ndarray]:
    try:
        arrays = read_arrays(path)
        if scalars := [name for name, array in arrays.items() if array.ndim == 0]:
            raise UsageError(f"{abridged(scalars[0])} is a single number")
        return {name: np.array(array[:count]) for name, array in arrays.items()}
    except UsageError as error:
        raise UsageError(f"{path}: must be an .npz file of arrays ({error})") from None


def _images(folder: Path, count: int) -> list[Any]:
    from PIL import Image

    kinds = {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in kinds)[:count]
    if len(paths) < 4:
        raise UsageError(f"{folder}: holds {len(paths)} images; must hold at least 4")
    return [_image(path) for path in paths]


def _image(path: Path) -> Any:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is lower
            with Image.open(path, formats=FORMATS) as image:
                width, height = image.size
                if width * height > MOST_PIXELS:
                    raise UsageError(f"claims {width} x {height} pixels: must have at most {MOST_PIXELS:,}")
                return image.convert("RGB")
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    except Exception as error:  # decoders raise many types for damaged files
        raise UsageError(f"{path}: not an image that can be read ({type(error).__name__})") from None
