"""The activations of a forward pass, with TransformerLens's helpers where they hold for this network.

| helper | holds |
|---|---|
| ``cache["q", 0]``, ``stack_activation``, ``apply_slice_to_batch_dim``, ``remove_batch_dim``, ``to`` | always |
| ``accumulated_resid`` | always; with ``apply_ln``, ``mlp_input``: pre-norm |
| ``stack_head_results``, ``stack_neuron_results``, ``get_neuron_results`` | always; less the biases b_O, b_out |
| ``decompose_resid``, ``get_full_resid_decomposition``, ``apply_ln_to_stack`` | pre-norm, or without norms |
| ``logit_attrs`` | pre-norm, or without norms: logits of tokens that are reconstructed, less their bias |
| ``logit_lens``, ``compute_ssm_...`` | no |
| ``transformer_lens.patching`` | the functions over layers, positions and heads; metrics take the label logits |

With post-norm the residual stream is normalised after each sum, so that it is not a sum of the sublayers' outputs:
what rests on that sum raises `UsageError`. As in TransformerLens, ``apply_ln`` divides by the scale of the norm and
leaves out its gain and bias; ``logit_attrs`` includes the gain.
"""

from typing import Any

from transformer_lens import ActivationCache

from attnprobe.errors import UsageError


class Cache(ActivationCache):
    """TransformerLens's cache, which refuses by name what does not hold for its network."""

    def decompose_resid(self, *args: Any, **named: Any) -> Any:
        """Return what each sublayer adds to the residual stream."""
        self._refuse_post_norm("decompose_resid")
        return super().decompose_resid(*args, **named)

    def get_full_resid_decomposition(self, *args: Any, **named: Any) -> Any:
        """Return what each head, neuron, embedding and bias adds to the residual stream."""
        self._refuse_post_norm("get_full_resid_decomposition")
        return super().get_full_resid_decomposition(*args, **named)

    def apply_ln_to_stack(self, *args: Any, **named: Any) -> Any:
        """Return components of the residual stream over the scale of the norm that reads it."""
        self._refuse_post_norm("apply_ln_to_stack")
        return super().apply_ln_to_stack(*args, **named)

    def logit_attrs(self, *args: Any, **named: Any) -> Any:
        """Return what components of the residual stream add to the logits of tokens."""
        self._refuse_post_norm("logit_attrs")
        return super().logit_attrs(*args, **named)

    def logit_lens(self, **named: Any) -> Any:
        """Refuse: this lens needs a tokeniser and one unembedding."""
        raise UsageError("logit_lens needs a tokeniser; use model.unembed(model.ln_final(cache.accumulated_resid()))")

    def _refuse_post_norm(self, name: str) -> None:
        config: Any = self.model.cfg
        if config.norm_placement == "post" and config.norm != "none":
            raise UsageError(
                f"{name}: with post-norm the residual stream is not the sum of its components; use norm_placement='pre'"
            )
