"""Activation cache with the TransformerLens helpers that are valid for this network.

| helper | valid |
|---|---|
| ``cache["q", 0]``, ``stack_activation``, ``apply_slice_to_batch_dim``, ``remove_batch_dim``, ``to`` | always |
| ``accumulated_resid`` | always; with ``apply_ln`` or ``mlp_input``: pre-norm only |
| ``stack_head_results``, ``stack_neuron_results``, ``get_neuron_results`` | always; without the biases b_O and b_out |
| ``decompose_resid``, ``get_full_resid_decomposition``, ``apply_ln_to_stack`` | pre-norm or no norm |
| ``logit_attrs`` | pre-norm or no norm: logits of reconstructed tokens, without their bias |
| ``logit_lens``, ``compute_ssm_...`` | never |
| ``transformer_lens.patching`` | functions over layers, positions and heads; metrics receive the label logits |

With post-norm the residual stream is normalised after each sum, so it is not the sum of the sublayers' outputs, and
helpers that rely on this sum raise `UsageError`. As in TransformerLens, ``apply_ln`` divides by the scale of the norm
and omits its gain and bias; ``logit_attrs`` includes the gain.
"""

from typing import Any

from transformer_lens import ActivationCache

from attnprobe.errors import UsageError


class Cache(ActivationCache):
    """TransformerLens's cache; helpers that are not valid for its network raise `UsageError`."""

    def decompose_resid(self, *args: Any, **kwargs: Any) -> Any:
        """Return the contribution of each sublayer to the residual stream."""
        self._refuse_post_norm("decompose_resid")
        return super().decompose_resid(*args, **kwargs)

    def get_full_resid_decomposition(self, *args: Any, **kwargs: Any) -> Any:
        """Return the contribution of each head, neuron, embedding and bias to the residual stream."""
        self._refuse_post_norm("get_full_resid_decomposition")
        return super().get_full_resid_decomposition(*args, **kwargs)

    def apply_ln_to_stack(self, *args: Any, **kwargs: Any) -> Any:
        """Divide components of the residual stream by the scale of the norm that reads it."""
        self._refuse_post_norm("apply_ln_to_stack")
        return super().apply_ln_to_stack(*args, **kwargs)

    def logit_attrs(self, *args: Any, **kwargs: Any) -> Any:
        """Return the contributions of components of the residual stream to token logits."""
        self._refuse_post_norm("logit_attrs")
        return super().logit_attrs(*args, **kwargs)

    def logit_lens(self, **kwargs: Any) -> Any:
        """Raise `UsageError`: the logit lens needs a tokeniser and a single unembedding."""
        raise UsageError("logit_lens needs a tokeniser; use model.unembed(model.ln_final(cache.accumulated_resid()))")

    def _refuse_post_norm(self, name: str) -> None:
        config: Any = self.model.cfg
        if config.norm_placement == "post" and config.norm != "none":
            raise UsageError(
                f"{name}: with post-norm the residual stream is not the sum of its components; use norm_placement='pre'"
            )
