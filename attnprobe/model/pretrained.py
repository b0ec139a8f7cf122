"""Hugging Face model of attnprobe's Transformer.

Importing this module registers the model with ``transformers.AutoConfig`` and ``transformers.AutoModel``, which then
load a folder written by ``Checkpoint.save_pretrained`` without running code from it.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput, SequenceClassifierOutput

from attnprobe.config import DataSpec, ModelConfig, Settings, from_plain
from attnprobe.errors import UsageError, listed
from attnprobe.files import incomplete_folder
from attnprobe.model.transformer import Transformer


class AttnprobeConfig(PreTrainedConfig):
    """Configuration of an `AttnprobeModel`."""

    model_type = "attnprobe"

    def __init__(
        self,
        network: dict[str, Any] | None = None,
        data: dict[str, Any] | None = None,
        checkpoint: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Store plain values, which become ``config.json``.

        Args:
            network: Fields of `ModelConfig`.
            data: Fields of `DataSpec`.
            checkpoint: Origin of the weights: step, objective, training settings, fingerprint of the data, provenance.
            kwargs: Attributes of every ``transformers.PreTrainedConfig``.
        """
        self.network, self.data, self.checkpoint = network, data, checkpoint
        super().__init__(**kwargs)

    @property
    def settings(self) -> ModelConfig:
        """Architecture of the network; raises `UsageError` if the fields are missing or not valid."""
        return self._read(ModelConfig, "network")

    @property
    def data_spec(self) -> DataSpec:
        """Data format of the network; raises `UsageError` if the fields are missing or not valid."""
        return self._read(DataSpec, "data")

    def _read(self, kind: type[Settings], name: str) -> Settings:
        where = self.name_or_path or type(self).__name__
        if (fields := getattr(self, name)) is None:
            raise UsageError(f"{where}: not an attnprobe model (its configuration has no {name!r})")
        return from_plain(kind, fields, f"{where}: {name}")

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns if the sequence is an image in row-major order."""
        return self.data_spec.grid

    @property
    def n_prefix(self) -> int:
        """Number of tokens that the network prepends to its inputs ([CLS])."""
        return int(self.settings.pooling == "cls")


class AttnprobeModel(PreTrainedModel):
    """A `Transformer` as a Hugging Face model; initial weights are drawn from torch's default generator.

    ``model.network`` is the `Transformer` itself, with its hook points. ``attn_implementation`` has no effect.

    >>> from attnprobe.config import DataSpec, ModelConfig
    >>> data = DataSpec(n=6, inputs="tokens", classes=3, vocabulary=5)
    >>> model = AttnprobeModel(configuration(ModelConfig(d_model=8), data)).eval()
    >>> model(input_ids=torch.tensor([[0, 1, 2, 3, 4, 0]])).logits.shape
    torch.Size([1, 3])
    """

    config: AttnprobeConfig
    config_class = AttnprobeConfig
    _supports_sdpa = True

    def __init__(self, config: AttnprobeConfig) -> None:
        """Build the network of a configuration."""
        super().__init__(config)
        self.network = _network(config, seed=int(torch.randint(2**31, (), device="cpu")))
        self.main_input_name = "input_ids" if self.network.data.inputs == "tokens" else "input_values"
        self.post_init()

    def initialize_weights(self) -> None:
        """Set the fixed tables of position encodings, which are not saved and which `from_pretrained` leaves empty."""
        values = dict(_network(self.config, seed=0).named_buffers())
        for name, table in self.network.named_buffers():
            table.copy_(values[name])

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a folder written by ``Checkpoint.save_pretrained``, or a repository of the Hugging Face Hub.

        Arguments are those of ``transformers.PreTrainedModel.from_pretrained``.

        Raises:
            UsageError: If the folder does not hold an attnprobe model, or if its weights do not fit the configuration.
        """
        with_info = kwargs.pop("output_loading_info", False)
        try:
            loaded: Any = super().from_pretrained(
                pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
            )
        except UsageError:
            raise
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            reason = str(error).strip().split("\n")[0]
            raise UsageError(f"{pretrained_model_name_or_path}: cannot be loaded ({reason})") from error
        model, info = loaded
        wrong = sorted(info["missing_keys"]) + sorted(info["unexpected_keys"])
        if wrong:
            raise UsageError(
                f"{pretrained_model_name_or_path}: weights do not fit the configuration; missing or unexpected: "
                f"{listed(wrong)}"
            )
        return (model, info) if with_info else model

    def forward(
        self,
        input_ids: Int[Tensor, "batch token"] | None = None,
        input_values: Float[Tensor, "batch token *channel"] | None = None,
        attention_mask: Tensor | None = None,
        *,
        masked: Bool[Tensor, "batch token"] | None = None,
        output: Literal["labels", "tokens"] = "labels",
    ) -> SequenceClassifierOutput | MaskedLMOutput:
        """Return an output whose ``logits`` are those of `Transformer.forward`.

        Args:
            input_ids: Token ids, if the network reads tokens.
            input_values: Values, if the network reads values; [batch, token, channel] with several channels.
            attention_mask: 1 for the tokens of each sequence and 0 for padding after them, [batch, token].
            masked: Tokens whose input is replaced by the mask embedding.
            output: Output head.
        """
        inputs = input_values if input_ids is None else input_ids
        if inputs is None or (input_ids is not None and input_values is not None):
            raise UsageError(f"inputs: this network reads {self.main_input_name}, and nothing else")
        lengths = None if attention_mask is None else _lengths(attention_mask, inputs)
        logits = self.network(inputs, masked=masked, lengths=lengths, output=output)
        return (SequenceClassifierOutput if output == "labels" else MaskedLMOutput)(logits=logits)


def configuration(network: ModelConfig, data: DataSpec, checkpoint: dict[str, Any] | None = None) -> AttnprobeConfig:
    """Return the Hugging Face configuration of a network, with the origin of its weights."""
    return AttnprobeConfig(
        network={name: getattr(network, name) for name in ModelConfig.__dataclass_fields__},
        data=dataclasses.asdict(data),
        checkpoint=checkpoint,
        num_labels=data.classes,
    )


def save(model: AttnprobeModel, folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors``, each atomically; other files in the folder are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    with incomplete_folder(folder) as incomplete:
        model.save_pretrained(incomplete)
        # The configuration last: without it the folder is not a model.
        for file in sorted(incomplete.iterdir(), reverse=True):
            os.replace(file, folder / file.name)


def _network(config: AttnprobeConfig, seed: int) -> Transformer:
    # from_pretrained builds models on the meta device, where the weights of a Transformer cannot be drawn.
    with torch.device("cpu"):
        return Transformer(config.settings, config.data_spec, seed)


def _lengths(attention_mask: Tensor, inputs: Tensor) -> Int[Tensor, " batch"]:
    lengths = attention_mask.sum(-1).long()
    token = torch.arange(inputs.shape[1], device=attention_mask.device)
    if attention_mask.shape != inputs.shape[:2] or not torch.equal(attention_mask.bool(), token < lengths[:, None]):
        raise UsageError(
            f"attention_mask of shape {tuple(attention_mask.shape)}: must be {tuple(inputs.shape[:2])}, 1 for the "
            "first tokens of each sequence and 0 for padding after them"
        )
    return lengths


AutoConfig.register(AttnprobeConfig.model_type, AttnprobeConfig, exist_ok=True)
AutoModel.register(AttnprobeConfig, AttnprobeModel, exist_ok=True)
