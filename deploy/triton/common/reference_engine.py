"""Decoder of the reference tiers: OPT forward passes over a slot cache, a few kernels per layer.

A lean twin of ``OPTForCausalLM`` for CPU serving. It reads the same weights; ``tests`` compare the
logits of both. Sequences sit in the first rows of one preallocated key/value cache, so that a
decode step over all of them works on plain slices, whatever their lengths.

Shape letters: B sequences in a batch, T tokens, L layers, H heads, D head size, C channels, S
slots, V vocabulary.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence

import torch
from safetensors.torch import load_file
from torch.nn import functional

POSITION_OFFSET = 2
"""OPT's position embedding keeps its first two rows for padding."""


class EngineError(ValueError):
    """Weights that this decoder cannot run, or a call that breaks its limits."""


class _Layer:
    """Weights of one decoder layer; query, key and value share a matrix, the query is scaled in."""

    def __init__(self, weights: dict[str, torch.Tensor], prefix: str, head_size: int) -> None:
        def pair(name: str) -> tuple[torch.Tensor, torch.Tensor]:
            return weights[f"{prefix}.{name}.weight"], weights[f"{prefix}.{name}.bias"]

        scale = head_size**-0.5
        projections = [pair(f"self_attn.{which}_proj") for which in "qkv"]
        query_weight, query_bias = projections[0]
        projections[0] = (query_weight * scale, query_bias * scale)
        self.qkv = tuple(torch.cat(parts).contiguous() for parts in zip(*projections, strict=True))
        self.out = pair("self_attn.out_proj")
        self.attention_norm = pair("self_attn_layer_norm")
        self.fc1 = pair("fc1")
        self.fc2 = pair("fc2")
        self.final_norm = pair("final_layer_norm")


class SlotDecoder:
    """Prefills and decodes up to ``slot_count`` sequences at a time.

    Sequences are addressed by their row, 0 to ``active_count - 1``. ``release`` moves the last row
    into the freed one; the caller mirrors that move in its own bookkeeping.
    """

    def __init__(self, folder: pathlib.Path, slot_count: int) -> None:
        """Loads ``config.json`` and ``model.safetensors``; computes in float32.

        Args:
            folder: Where both files lie.
            slot_count: Most sequences at a time, at least 1.

        Raises:
            EngineError: The configuration is not an OPT this decoder supports.
        """
        config = json.loads((folder / "config.json").read_text())
        _check(config, folder)
        weights = {
            name.removeprefix("model.decoder."): tensor.float()
            for name, tensor in load_file(folder / "model.safetensors").items()
        }
        self.max_length: int = config["max_position_embeddings"]
        self.slot_count = slot_count
        self._heads: int = config["num_attention_heads"]
        channels: int = config["hidden_size"]
        self._head_size = channels // self._heads
        self._channels = channels
        self._tokens_VC = weights["embed_tokens.weight"]
        self._positions_TC = weights["embed_positions.weight"][POSITION_OFFSET:].contiguous()
        self._final_norm = weights["final_layer_norm.weight"], weights["final_layer_norm.bias"]
        self._layers = [
            _Layer(weights, f"layers.{index}", self._head_size)
            for index in range(config["num_hidden_layers"])
        ]
        shape = (slot_count, 2, self._heads, self.max_length, self._head_size)
        self._cache_S2HTD = [torch.zeros(shape) for _ in self._layers]
        self._lengths: list[int] = []
        self._rows_S = torch.arange(slot_count)
        self._columns_T = torch.arange(self.max_length)

    @property
    def active_count(self) -> int:
        """Sequences in the cache."""
        return len(self._lengths)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Reads new prompts into the next free rows.

        Args:
            prompts: Token ids, each at least one and fewer than ``max_length``.

        Returns:
            Logits after the last token of each prompt, shape (B, V).

        Raises:
            EngineError: Not enough free slots, or a prompt of impossible length.
        """
        first, count = self.active_count, len(prompts)
        lengths = [len(prompt) for prompt in prompts]
        if first + count > self.slot_count:
            raise EngineError(f"prompts: {count} given, {self.slot_count - first} slots are free")
        if not lengths or min(lengths) < 1 or max(lengths) >= self.max_length:
            raise EngineError(f"prompts: lengths {lengths} must be in 1..{self.max_length - 1}")
        longest = max(lengths)
        ids_BT = torch.zeros((count, longest), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids_BT[row, : lengths[row]] = torch.tensor(prompt)
        x_BTC = functional.embedding(ids_BT, self._tokens_VC) + self._positions_TC[:longest]
        for layer, cache_S2HTD in zip(self._layers, self._cache_S2HTD, strict=True):
            normed = functional.layer_norm(x_BTC, (self._channels,), *layer.attention_norm)
            qkv = functional.linear(normed, *layer.qkv).view(
                count, longest, 3, self._heads, self._head_size
            )
            qkv_B3HTD = qkv.permute(0, 2, 3, 1, 4)
            cache_S2HTD[first : first + count, :, :, :longest] = qkv_B3HTD[:, 1:]
            query, key, value = qkv_B3HTD.unbind(1)
            mixed = functional.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=1.0
            )
            x_BTC = x_BTC + functional.linear(mixed.transpose(1, 2).flatten(2), *layer.out)
            x_BTC = x_BTC + self._feed_forward(layer, x_BTC)
        last_BC = x_BTC[torch.arange(count), torch.tensor(lengths) - 1]
        self._lengths.extend(lengths)
        return self._logits(last_BC)

    @torch.inference_mode()
    def step(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Appends one token to every sequence.

        Args:
            token_ids: One id per active row.

        Returns:
            Logits for the token that follows, shape (B, V).

        Raises:
            EngineError: The count of ids differs from ``active_count``, or a sequence is full.
        """
        count = self.active_count
        if len(token_ids) != count or not count:
            raise EngineError(f"token_ids: {len(token_ids)} given for {count} active sequences")
        longest = max(self._lengths) + 1
        if longest > self.max_length:
            raise EngineError(f"token_ids: a sequence holds {self.max_length} tokens, its limit")
        rows_B, positions_B = self._rows_S[:count], torch.tensor(self._lengths)
        mask_B11T = torch.where(
            self._columns_T[:longest] <= positions_B[:, None], 0.0, float("-inf")
        ).view(count, 1, 1, longest)
        x_BC = (
            functional.embedding(torch.tensor(token_ids), self._tokens_VC)
            + self._positions_TC[positions_B]
        )
        for layer, cache_S2HTD in zip(self._layers, self._cache_S2HTD, strict=True):
            normed = functional.layer_norm(x_BC, (self._channels,), *layer.attention_norm)
            qkv_B3HD = functional.linear(normed, *layer.qkv).view(
                count, 3, self._heads, self._head_size
            )
            cache_S2HTD[rows_B, :, :, positions_B] = qkv_B3HD[:, 1:]
            past_B2HTD = cache_S2HTD[:count, :, :, :longest]
            mixed = functional.scaled_dot_product_attention(
                qkv_B3HD[:, 0].unsqueeze(2),
                past_B2HTD[:, 0],
                past_B2HTD[:, 1],
                mask_B11T,
                scale=1.0,
            )
            x_BC = x_BC + functional.linear(mixed.view(count, self._channels), *layer.out)
            x_BC = x_BC + self._feed_forward(layer, x_BC)
        self._lengths = [length + 1 for length in self._lengths]
        return self._logits(x_BC)

    def release(self, row: int) -> None:
        """Frees a row; the last row moves into its place."""
        last = self.active_count - 1
        if not 0 <= row <= last:
            raise EngineError(f"row: {row} is not in 0..{last}")
        if row != last:
            length = self._lengths[last]
            for cache_S2HTD in self._cache_S2HTD:
                cache_S2HTD[row, :, :, :length] = cache_S2HTD[last, :, :, :length]
            self._lengths[row] = length
        self._lengths.pop()

    def clear(self) -> None:
        """Frees all rows."""
        self._lengths.clear()

    def _feed_forward(self, layer: _Layer, x: torch.Tensor) -> torch.Tensor:
        normed = functional.layer_norm(x, (self._channels,), *layer.final_norm)
        return functional.linear(functional.relu(functional.linear(normed, *layer.fc1)), *layer.fc2)

    def _logits(self, x_BC: torch.Tensor) -> torch.Tensor:
        return functional.linear(
            functional.layer_norm(x_BC, (self._channels,), *self._final_norm), self._tokens_VC
        )


def _check(config: dict[str, object], folder: pathlib.Path) -> None:
    """Refuses OPT variants that the forward pass above does not compute."""
    expected = {
        "model_type": "opt",
        "do_layer_norm_before": True,
        "activation_function": "relu",
        "word_embed_proj_dim": config.get("hidden_size"),
        "tie_word_embeddings": True,
        "_remove_final_layer_norm": False,
    }
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise EngineError(
                f"{folder / 'config.json'}: {key} is {config[key]!r}, must be {value!r}"
            )
