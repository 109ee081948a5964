"""Stage-1: the bokeh adapter, which makes a FLUX.1-Kontext transformer obey a scalar bokeh strength K.

It touches no diffusers class: the adapter owns one attention processor for each adapted block, lends them to the
transformer with `attach`, takes them back with `detach`, and is saved without the base. A Hub repository carries the
file with those of ours that it imports joined in front of it. Equation numbers are those of arXiv 2512.12425.

Shape letters: `B` batch (photos x frames), `T` context tokens, `N` sequence tokens, `C` context width, `D` hidden
width.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from .modeling_bokeh_attachment import ATTACHING, BokehAttachment, attachment_of, sample_of
from .weights_bokehdepth import CheckedLoading


class LowRankProjection(nn.Module):
    """`up(down(x)) * alpha / rank`, without bias; zero until trained, since `up` starts at zero.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        rank: inner width.
        alpha: scale numerator.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.down = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, out_features, bias=False)
        self.scaling = alpha / rank
        nn.init.normal_(self.down.weight, std=1 / rank)
        nn.init.zeros_(self.up.weight)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Maps (..., in_features) to (..., out_features), calculated in the weights' precision."""
        dtype = self.down.weight.dtype
        # Weights of one byte are only stored so: who stores them brings them to the input's precision for a call.
        wide = hidden_states.to(dtype) if dtype.itemsize > 1 else hidden_states
        return (self.up(self.down(wide)) * self.scaling).to(hidden_states.dtype)


class BokehAttnProcessor(nn.Module):
    """Flux attention (Eq. 2) with the bokeh branch (Eq. 3) and the low-rank change of queries and keys.

    Without `bokeh_embeds` it computes exactly what the stock processor computes, so a transformer that carries an
    adapter still serves plain pipelines. Nothing about a call is kept: the condition is an argument.

    Args:
        hidden_size: D, width of the attention.
        head_dim: width of one head.
        context_dim: C, width of a context token.
        rank: rank of every low-rank projection.
        alpha: their scale numerator.
        attention_branch: whether the block has the bokeh branch.
        query_key_lora: whether queries and keys are changed.
        null_token: whether a learned key with value zero stands beside the context tokens.
        rotary_query: whether the branch asks with the rotated query, as Eq. 3 writes it.
        index: position among the adapter's blocks, L of them, in arguments that hold something for each block.
    """

    _attention_backend = None
    _parallel_config = None

    def __init__(
        self,
        hidden_size: int,
        head_dim: int,
        context_dim: int,
        rank: int,
        alpha: float,
        attention_branch: bool = True,
        query_key_lora: bool = True,
        null_token: bool = False,
        rotary_query: bool = True,
        index: int = 0,
    ) -> None:
        super().__init__()
        self.rotary_query = rotary_query
        self.index = index
        self.merged = False
        self.to_k_bokeh = self.to_v_bokeh = self.to_q_lora = self.to_k_lora = None
        if attention_branch:
            self.to_k_bokeh = LowRankProjection(context_dim, hidden_size, rank, alpha)
            self.to_v_bokeh = LowRankProjection(context_dim, hidden_size, rank, alpha)
            # The key's product with the query needs a start that is not zero, or a null token never gets a gradient.
            nn.init.normal_(self.to_k_bokeh.up.weight, std=1 / math.sqrt(rank))
        if query_key_lora:
            self.to_q_lora = LowRankProjection(hidden_size, hidden_size, rank, alpha)
            self.to_k_lora = LowRankProjection(hidden_size, hidden_size, rank, alpha)
        use_null = attention_branch and null_token
        self.null_key = nn.Parameter(torch.zeros(hidden_size // head_dim, head_dim)) if use_null else None

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        bokeh_embeds: torch.Tensor | None = None,
        bokeh_scale: float = 1.0,
        reference_tokens: int = 0,
        pivot_rows: torch.Tensor | None = None,
        bokeh_values: torch.Tensor | None = None,
        reference_keys: torch.Tensor | None = None,
        reference_values: torch.Tensor | None = None,
        record: Any = None,
        record_tokens: int = 0,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Attends over text, noisy and reference tokens.

        Args:
            attn: the `FluxAttention` that holds the base weights.
            hidden_states: (B, N, D) image tokens of a double block, all tokens of a single block.
            encoder_hidden_states: (B, N_text, D) text tokens, double blocks only.
            attention_mask: as in diffusers.
            image_rotary_emb: cosines and sines, each (N_text + N, head_dim).
            bokeh_embeds: (B, T, C) context tokens; None leaves the base as it is.
            bokeh_scale: lambda, the weight of the branch.
            reference_tokens: that many last tokens attend only among themselves and do not see K; all the others
                attend to everything. 0 masks nothing.
            pivot_rows: (B,) index of the sample whose keys and values a sample attends to beside its own (grounded
                generation, Sec. 8.2), single blocks only; a sample that names itself attends as ever.
            bokeh_values: (L, B, 1, D) from `constant_branch`, in place of what a constant branch would compute.
            reference_keys: (L, B or 1, N_ref, heads, head_dim) keys of a photo's tokens, rotated, that all tokens
                attend to beside their own.
            reference_values: their values.
            record: has `append`, which gets the rotated keys and the values (B, record_tokens, heads, head_dim) of
                this block; the low-rank change then applies without a K too. No list, which offloading hooks copy.
            record_tokens: that many last tokens are recorded.

        Returns:
            (B, N, D), and for a double block also the text part (B, N_text, D).
        """
        conditioned = bokeh_embeds is not None or bokeh_values is not None
        text_projections: tuple[torch.Tensor, ...] | None = None
        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
            if encoder_hidden_states is not None and attn.added_kv_proj_dim is not None:
                text_projections = attn.to_added_qkv(encoder_hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
            if encoder_hidden_states is not None and attn.added_kv_proj_dim is not None:
                text_projections = (
                    attn.add_q_proj(encoder_hidden_states),
                    attn.add_k_proj(encoder_hidden_states),
                    attn.add_v_proj(encoder_hidden_states),
                )
        if (conditioned or record is not None) and self.to_q_lora is not None and not self.merged:
            query = query + self.to_q_lora(query)
            key = key + self.to_k_lora(key)

        query, key, value = (x.unflatten(-1, (-1, attn.head_dim)) for x in (query, key, value))
        query, key = attn.norm_q(query), attn.norm_k(key)
        if text_projections is not None:
            text_query, text_key, text_value = (x.unflatten(-1, (-1, attn.head_dim)) for x in text_projections)
            query = torch.cat([attn.norm_added_q(text_query), query], dim=1)
            key = torch.cat([attn.norm_added_k(text_key), key], dim=1)
            value = torch.cat([text_value, value], dim=1)

        branch_query = query
        if image_rotary_emb is not None:
            query = apply_rotary_emb(query, image_rotary_emb, sequence_dim=1)
            key = apply_rotary_emb(key, image_rotary_emb, sequence_dim=1)
        if self.rotary_query:
            branch_query = query
        if record is not None:
            record.append((key[:, -record_tokens:], value[:, -record_tokens:]))
        if reference_keys is not None:
            kept = (x[self.index].expand(key.shape[0], -1, -1, -1) for x in (reference_keys, reference_values))
            key, value = (torch.cat([own, other], dim=1) for own, other in zip((key, value), kept, strict=True))

        if pivot_rows is not None and encoder_hidden_states is None:
            attended = self._grounded(query, key, value, attention_mask, pivot_rows)
        elif reference_tokens:
            attended = self._causal(query, key, value, attention_mask, reference_tokens)
        else:
            attended = self._attend(query, key, value, attention_mask)
        attended = attended.flatten(2, 3).to(query.dtype)  # (B, N_text + N, D)
        if conditioned and self.to_v_bokeh is not None:
            branch = self._branch(branch_query, bokeh_embeds) if bokeh_values is None else bokeh_values[self.index]
            branch = bokeh_scale * branch.to(attended.dtype)
            if reference_tokens:
                branch = branch.expand_as(attended).clone()
                branch[:, -reference_tokens:] = 0
            attended = attended + branch

        if encoder_hidden_states is None:
            return attended
        text_length = encoder_hidden_states.shape[1]
        text, image = attended.split_with_sizes([text_length, attended.shape[1] - text_length], dim=1)
        image = attn.to_out[1](attn.to_out[0](image.contiguous()))
        return image, attn.to_add_out(text.contiguous())

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Softmax attention, all (B, N, heads, head_dim)."""
        return dispatch_attention_fn(
            query, key, value, attn_mask=mask, backend=self._attention_backend, parallel_config=self._parallel_config
        )

    def _causal(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        reference_tokens: int,
    ) -> torch.Tensor:
        """Attention under the reference mask, as two calls without one, which every fast kernel takes."""
        if mask is not None:
            raise ValueError("attention_mask is given with reference_tokens; wanted one of them.")
        if not 0 < reference_tokens < query.shape[1]:
            raise ValueError(f"reference_tokens is {reference_tokens}; wanted 1 to {query.shape[1] - 1}.")
        own = self._attend(query[:, :-reference_tokens], key, value, None)
        reference = self._attend(*(x[:, -reference_tokens:] for x in (query, key, value)), None)
        return torch.cat([own, reference], dim=1)

    def _grounded(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        pivot_rows: torch.Tensor,
    ) -> torch.Tensor:
        """Attention over a sample's own tokens and its pivot's; pivots attend to themselves alone."""
        if mask is not None:
            raise ValueError("attention_mask is given with pivot_rows; wanted one of them.")
        batch = query.shape[0]
        if tuple(pivot_rows.shape) != (batch,):
            raise ValueError(f"pivot_rows has shape {tuple(pivot_rows.shape)}; wanted one index for each of {batch}.")
        # All keys of a pivot stand twice here, which leaves its softmax as it was.
        key, value = (torch.cat([x, x[pivot_rows]], dim=1) for x in (key, value))
        return self._attend(query, key, value, None)

    def _branch(self, query: torch.Tensor, bokeh_embeds: torch.Tensor) -> torch.Tensor:
        """Eq. 3: (B, N, heads, head_dim) queries over (B, T, C) context tokens, to (B, N or 1, D)."""
        value = self.to_v_bokeh(bokeh_embeds)
        if self.null_key is None and value.shape[1] == 1:
            return value  # a softmax over one key is exactly 1 for every query
        key = self.to_k_bokeh(bokeh_embeds)
        key, value = (x.unflatten(-1, (-1, query.shape[-1])) for x in (key, value))
        # A handful of keys: plain products beat a fused kernel, whose tiles would be all but empty.
        logits = torch.einsum("bnhd,bthd->bnht", query, key)
        if self.null_key is not None:
            null = torch.einsum("bnhd,hd->bnh", query, self.null_key.to(query.dtype))
            logits = torch.cat([logits, null[..., None]], dim=-1)
        weights = (logits.float() / math.sqrt(query.shape[-1])).softmax(-1).to(value.dtype)
        weights = weights[..., : value.shape[1]]  # the null token's value is zero
        return torch.einsum("bnht,bthd->bnhd", weights, value).flatten(2, 3)


class BokehAdapter(CheckedLoading, ModelMixin, ConfigMixin):
    """Everything that Stage-1 adds to a FLUX.1-Kontext transformer, with the prompt embeddings that it was trained on.

    K reaches the transformer by two ways, each of which can be switched off: context tokens that every adapted block
    attends to (Eq. 3), and a shift of the pooled projection, from which AdaLN computes its scales, shifts and gates.
    The low-rank change of queries and keys is independent of K. A fresh adapter leaves the transformer's output
    unchanged, to the last bit.

    Args:
        num_double_blocks: `transformer_blocks` of the base.
        num_single_blocks: `single_transformer_blocks` of the base.
        num_attention_heads: heads of the base.
        attention_head_dim: width of a head of the base.
        block_indices: indices of adapted blocks, double blocks first; None adapts all.
        num_tokens: T, context tokens for one K.
        null_token: adds a learned key with value zero, which makes even a one-token branch depend on the image.
        context_dim: C, width of a context token.
        embedding_dim: hidden width of the K embedding.
        rank: rank of every low-rank projection.
        alpha: their scale numerator.
        query_key_lora: change queries and keys, as the released adapter does.
        attention_conditioning: use the branch of Eq. 3.
        modulation_conditioning: use the shift of the pooled projection.
        rotary_query: ask with the rotated query, as Eq. 3 writes it.
        bokeh_scale: lambda, the weight of the branch.
        max_bokeh_strength: K that is divided out; the trained range is [0, max_bokeh_strength].
        joint_attention_dim: width of the prompt embeddings.
        pooled_projection_dim: width of the pooled prompt embedding.
        prompt_length: tokens of the shipped prompt embedding; 0 where none is shipped.
        reference_attention: "full", as the base was pretrained, or "causal": reference tokens attend only among
            themselves and do not see K through the branch, so they are the same for every K.
        reference_timestep: noise level in [0, 1] that AdaLN tells causal reference tokens, with the prompt unshifted
            by K: keys and values of the photo are then the same at every step and for every K, so they are
            computed once. None tells them what it tells the noisy tokens.
        num_inference_steps: denoising steps that suit the weights, as do the next two.
        guidance_scale: distilled guidance.
        max_area: pixels at work.
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        num_double_blocks: int = 19,
        num_single_blocks: int = 38,
        num_attention_heads: int = 24,
        attention_head_dim: int = 128,
        block_indices: list[int] | None = None,
        num_tokens: int = 1,
        null_token: bool = False,
        context_dim: int = 768,
        embedding_dim: int = 64,
        rank: int = 128,
        alpha: float = 128.0,
        query_key_lora: bool = True,
        attention_conditioning: bool = True,
        modulation_conditioning: bool = False,
        rotary_query: bool = True,
        bokeh_scale: float = 1.0,
        max_bokeh_strength: float = 30.0,
        joint_attention_dim: int = 4096,
        pooled_projection_dim: int = 768,
        prompt_length: int = 0,
        reference_attention: str = "full",
        reference_timestep: float | None = None,
        num_inference_steps: int = 10,
        guidance_scale: float = 3.5,
        max_area: int = 512 * 512,
    ) -> None:
        super().__init__()
        total = num_double_blocks + num_single_blocks
        indices = list(range(total)) if block_indices is None else list(block_indices)
        if not indices or sorted(set(indices)) != sorted(indices) or min(indices) < 0 or max(indices) >= total:
            raise ValueError(f"block_indices is {block_indices}; wanted distinct indices from 0 to {total - 1}.")
        counts = {"num_tokens": num_tokens, "rank": rank, "num_inference_steps": num_inference_steps}
        for name, value in {**counts, "max_area": max_area}.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; wanted a whole number from 1.")
        if reference_attention not in ("full", "causal"):
            raise ValueError(f"reference_attention is {reference_attention!r}; wanted 'full' or 'causal'.")
        if reference_attention == "causal" and len(indices) != total:
            # Blocks without our processor would go on mixing K into the reference tokens.
            raise ValueError(f"block_indices is {block_indices}; wanted all blocks with causal reference_attention.")
        if reference_timestep is not None and not (reference_attention == "causal" and 0 <= reference_timestep <= 1):
            raise ValueError(
                f"reference_timestep is {reference_timestep} with {reference_attention} reference_attention; wanted "
                "None, or 0 to 1 with causal reference_attention."
            )
        if not (attention_conditioning or modulation_conditioning):
            raise ValueError("attention_conditioning and modulation_conditioning are both off; wanted at least one.")

        self.k_embedding = nn.Sequential(
            nn.Linear(1, embedding_dim), nn.ReLU(), nn.Linear(embedding_dim, context_dim * num_tokens)
        )
        self.k_modulation = None
        if modulation_conditioning:
            self.k_modulation = nn.Sequential(
                nn.Linear(1, embedding_dim), nn.ReLU(), nn.Linear(embedding_dim, pooled_projection_dim)
            )
            nn.init.zeros_(self.k_modulation[-1].weight)
            nn.init.zeros_(self.k_modulation[-1].bias)
        self.blocks = nn.ModuleDict(
            {
                str(index): BokehAttnProcessor(
                    num_attention_heads * attention_head_dim,
                    attention_head_dim,
                    context_dim,
                    rank,
                    alpha,
                    attention_branch=attention_conditioning,
                    query_key_lora=query_key_lora,
                    null_token=null_token,
                    rotary_query=rotary_query,
                    index=position,
                )
                for position, index in enumerate(sorted(indices))
            }
        )
        prompt = torch.zeros(prompt_length, joint_attention_dim) if prompt_length else None
        pooled = torch.zeros(pooled_projection_dim) if prompt_length else None
        self.register_buffer("prompt_embeds", prompt)
        self.register_buffer("pooled_prompt_embeds", pooled)

        self._transformer: weakref.ref | None = None

    # ------------------------------------------------------------------ conditioning

    def check_strengths(self, bokeh_strengths: Sequence[float] | torch.Tensor) -> torch.Tensor:
        """Returns K as a float32 tensor (B,); ValueError unless each is a number in [0, max_bokeh_strength]."""
        strengths = torch.as_tensor(bokeh_strengths, dtype=torch.float32)
        limit = self.config.max_bokeh_strength
        if strengths.ndim != 1 or strengths.numel() == 0:
            raise ValueError(f"bokeh_strengths has shape {tuple(strengths.shape)}; wanted one number for each frame.")
        if not bool(torch.isfinite(strengths).all()) or bool((strengths < 0).any()) or bool((strengths > limit).any()):
            raise ValueError(f"bokeh_strengths is {strengths.tolist()}; wanted finite values from 0 to {limit:g}.")
        return strengths

    def attention_kwargs(
        self,
        bokeh_strengths: Sequence[float] | torch.Tensor,
        bokeh_scale: float | None = None,
        reference_tokens: int | None = None,
    ) -> dict[str, Any]:
        """The condition for `joint_attention_kwargs`.

        Args:
            bokeh_strengths: (B,) K at the 512 px reference width.
            bokeh_scale: lambda; None takes the configured one.
            reference_tokens: number of reference tokens at the end of the sequence, which causal reference attention
                needs to be told.

        Returns:
            `bokeh_embeds` (B, T, C) = MLP(K / max_bokeh_strength), `bokeh_scale`, and of an adapter with causal
            reference attention `reference_tokens`, unless these were encoded apart.

        Raises:
            ValueError: where K is not a finite number within the trained range, or causal reference attention is not
                told the number of reference tokens.
        """
        relative = self._relative(bokeh_strengths)
        embeds = self.k_embedding(relative).unflatten(-1, (self.config.num_tokens, self.config.context_dim))
        condition = {
            "bokeh_embeds": embeds,
            "bokeh_scale": self.config.bokeh_scale if bokeh_scale is None else bokeh_scale,
        }
        if self.config.reference_timestep is not None:
            if reference_tokens:
                raise ValueError(f"reference_tokens is {reference_tokens}; wanted 0, since they have their own pass.")
        elif self.config.reference_attention == "causal":
            if reference_tokens is None:
                raise ValueError("reference_tokens is None; wanted their number, since reference_attention is causal.")
            condition["reference_tokens"] = reference_tokens
        return condition

    def fingerprint(self, *modules: nn.Module) -> torch.Tensor:
        """Some of the weights of modules (n,), which tells whether others came into them."""
        return sample_of(weight for module in modules for weight in [*module.parameters(), *module.buffers()])

    def constant_branch(self, condition: dict[str, Any]) -> dict[str, Any]:
        """The condition with `bokeh_values` of all blocks, where the branch depends on K alone, so computed once."""
        processors = list(self.blocks.values())
        if self.config.num_tokens != 1 or processors[0].to_v_bokeh is None or processors[0].null_key is not None:
            return condition
        embeds = condition["bokeh_embeds"]
        layers = [processor.to_v_bokeh for processor in processors]  # of an offloaded base on another device
        values = torch.stack([to_v(embeds.to(to_v.down.weight.device)).to(embeds.device) for to_v in layers])
        return {key: value for key, value in condition.items() if key != "bokeh_embeds"} | {"bokeh_values": values}

    def modulate(
        self, pooled_projections: torch.Tensor, bokeh_strengths: Sequence[float] | torch.Tensor
    ) -> torch.Tensor:
        """Shifts the pooled projection (B, pooled_projection_dim) by K; unchanged where the way is switched off."""
        if self.k_modulation is None:
            return pooled_projections
        return pooled_projections + self.k_modulation(self._relative(bokeh_strengths)).to(pooled_projections.dtype)

    def _relative(self, bokeh_strengths: Sequence[float] | torch.Tensor) -> torch.Tensor:
        strengths = self.check_strengths(bokeh_strengths)
        weight = self.k_embedding[0].weight
        return (strengths / self.config.max_bokeh_strength).to(weight.device, weight.dtype)[:, None]

    # ------------------------------------------------------------------ attaching

    @property
    def transformer(self) -> nn.Module | None:
        """The transformer that carries the adapter now, or None."""
        transformer = self._transformer() if self._transformer is not None else None
        return transformer if transformer is not None and self._attachment(transformer) is not None else None

    def _attachment(self, transformer: nn.Module | None) -> BokehAttachment | None:
        found = None if transformer is None else attachment_of(transformer)
        return found if found is not None and found.belongs_to(self) else None

    def attach(self, transformer: nn.Module) -> None:
        """Puts the adapter's processors into the transformer, also where others were set since the last time.

        Raises:
            ValueError: the transformer's sizes differ from the configuration, it carries another bokeh adapter or
                processors that are not diffusers' own, or this adapter is attached elsewhere; nothing is changed then.
        """
        with ATTACHING:
            if self.transformer not in (None, transformer):
                raise ValueError("The adapter is attached to another transformer; call detach() first.")
            wanted = {
                "num_layers": self.config.num_double_blocks,
                "num_single_layers": self.config.num_single_blocks,
                "num_attention_heads": self.config.num_attention_heads,
                "attention_head_dim": self.config.attention_head_dim,
            }
            for name, value in wanted.items():
                if transformer.config[name] != value:
                    raise ValueError(f"transformer has {name}={transformer.config[name]}; the adapter wants {value}.")
            found = attachment_of(transformer)
            if found is not None and not found.belongs_to(self):
                if found.belongs_to(found.owner()):
                    raise ValueError("transformer already carries a bokeh adapter; call detach() on that one first.")
                found.remove()  # of an adapter that is gone, or of the transformer that this one is a copy of
                found = None
            fresh = found is None
            found = BokehAttachment(self, transformer) if fresh else found
            try:
                found.put()
            except ValueError:
                if fresh:
                    found.remove()
                raise
            found.owner, self._transformer = weakref.ref(self), weakref.ref(transformer)

    def detach(self) -> None:
        """Gives the transformer back the processors and weights that it had before."""
        with ATTACHING:
            attachment = self._attachment(self.transformer)
            if attachment is not None:
                attachment.remove()
            self._transformer = None

    @contextmanager
    def lent_back(self) -> Iterator[None]:
        """The transformer without the adapter's processors, but folded if it was: for hooks on the base alone."""
        attachment = self._attachment(self.transformer)
        if attachment is not None:
            attachment.lend()
        try:
            yield
        finally:
            if attachment is not None:
                attachment.put()

    # ------------------------------------------------------------------ folding

    @property
    def is_folded(self) -> bool:
        """Whether the low-rank change of queries and keys is merged into the transformer's weights."""
        attachment = self._attachment(self.transformer)
        return attachment is not None and bool(attachment.merges)

    def prepare(self, transformer: nn.Module) -> None:
        """Makes a transformer ready for a stack: attached, and folded where nothing stands in the way.

        What changed since the last time is noticed: LoRAs, other processors, another precision, trained weights.

        Raises:
            ValueError: as `attach` and `unfold`.
        """
        with ATTACHING:
            self.attach(transformer)
            attachment = attachment_of(transformer)
            attachment.refresh()
            if self.config.query_key_lora and not attachment.merges and attachment.obstacle() is None:
                attachment.merge()

    def fold(self) -> None:
        """Merges the q/k change into the base: `W <- (I + s U D) W`, `b <- (I + s U D) b`, in float32 or wider.

        With one context token and no null token the branch is a constant vector for each K, so a folded adapter costs
        one addition for each block. A pass without a condition, of another pipeline on the same transformer say, finds
        the base's own weights; the next stack folds again.

        Raises:
            ValueError: the adapter is not attached, or a projection is not a plain linear layer (unload LoRAs, unfuse
                projections, and fold before quantising and offloading).
        """
        transformer = self.transformer
        if transformer is None:
            raise ValueError("The adapter is not attached; call attach(transformer) before fold().")
        obstacle = None if self.is_folded or not self.config.query_key_lora else attachment_of(transformer).obstacle()
        if obstacle is not None:
            raise ValueError(obstacle)
        self.prepare(transformer)

    def unfold(self) -> None:
        """Undoes `fold`: the base gets back its own weights, to the last bit.

        Raises:
            ValueError: the base was quantised, offloaded or changed since.
        """
        with ATTACHING:
            attachment = self._attachment(self.transformer)
            if attachment is not None:
                attachment.unmerge()

    @property
    def sealed(self) -> str | None:
        """What the folded base was quantised to, after which it cannot be unfolded or saved; None otherwise."""
        attachment = self._attachment(self.transformer)
        return None if attachment is None else attachment.sealed

    def seal(self, kind: str) -> None:
        """Notes that the attached base is quantised from now on."""
        attachment_of(self.transformer).sealed = kind
