"""A decoder of OPT's shape with random weights, and one iteration of it: what a profile times.

Architecture of OPT (Zhang et al., arXiv 2205.01068) at the sizes measured here: learned positions,
layer norm before each block, ReLU, feed-forward width of four times the hidden width, output
weights tied to the embedding. Latency does not depend on what the weights say, so nothing is
downloaded and no text comes out.

An iteration is that of a serving engine with continuous batching: sequences that run get one token
each, prompts that join are worked off whole, and all their tokens go through the linear layers
together (Orca, OSDI 2022). Keys and values lie in a static cache, so that every shape can be
captured as a CUDA graph.

Shape letters: N tokens of an iteration, H hidden width, B sequences, S cached tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

WEIGHT_DEVIATION = 0.02
"""Standard deviation of the random weights; keeps activations finite in bf16."""
POSITION_OFFSET = 2
"""OPT's position table has two rows before that of the first token."""


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """Size of a decoder.

    Attributes:
        layer_count: decoder layers.
        hidden_size: width of the residual stream; the feed-forward width is four times that.
        head_count: attention heads; divides `hidden_size`.
        vocabulary_size: tokens of the embedding and of the tied output.
        position_count: longest context, tokens.
    """

    layer_count: int
    hidden_size: int
    head_count: int
    vocabulary_size: int = 50_272
    position_count: int = 2_048

    @property
    def parameter_count(self) -> int:
        """Number of weights, the output's counted once with the embedding."""
        hidden = self.hidden_size
        # Query, key, value and output; two feed-forward matrices of 4 x hidden; two norms.
        layer = 12 * hidden * hidden + (4 + 4 + 1 + 2 * 2) * hidden
        rows = self.vocabulary_size + self.position_count + POSITION_OFFSET
        return self.layer_count * layer + rows * hidden + 2 * hidden

    def kv_bytes_per_token(self, bytes_per_value: int) -> int:
        """Returns the room one cached token takes, bytes."""
        return 2 * self.layer_count * self.hidden_size * bytes_per_value


OPT_SHAPES = {
    "small": DecoderShape(12, 768, 12),  # OPT-125M
    "medium": DecoderShape(24, 2048, 32),  # OPT-1.3B
    "large": DecoderShape(32, 4096, 32),  # OPT-6.7B
}
"""The three tiers of `profiles/opt-a100.toml`; layers, widths and heads from OPT's table 1."""
TINY_SHAPES = {
    "small": DecoderShape(1, 32, 2, vocabulary_size=64, position_count=256),
    "medium": DecoderShape(2, 64, 2, vocabulary_size=64, position_count=256),
    "large": DecoderShape(3, 128, 4, vocabulary_size=64, position_count=256),
}
"""Shapes that a processor times in seconds: they check the script and describe no card."""


@dataclass(frozen=True, slots=True)
class Iteration:
    """Work of one iteration.

    Attributes:
        running: sequences that get their next token.
        context_tokens: tokens each of them has in the cache before.
        admitted: prompts that join.
        prompt_tokens: tokens of each.
    """

    running: int
    context_tokens: int
    admitted: int = 0
    prompt_tokens: int = 0

    @property
    def batch(self) -> int:
        """Sequences that get a token."""
        return self.running + self.admitted

    @property
    def admitted_tokens(self) -> int:
        """Prompt tokens worked off."""
        return self.admitted * self.prompt_tokens

    @property
    def cached_tokens(self) -> int:
        """Longest sequence in the cache at the end of the iteration, tokens."""
        return max(self.context_tokens + 1 if self.running else 0, self.prompt_tokens)


class Layer(NamedTuple):
    """Weights of one decoder layer."""

    norm_1_H: Tensor
    norm_1_bias_H: Tensor
    qkv: Tensor
    qkv_bias: Tensor
    out: Tensor
    out_bias_H: Tensor
    norm_2_H: Tensor
    norm_2_bias_H: Tensor
    up: Tensor
    up_bias: Tensor
    down: Tensor
    down_bias_H: Tensor


class Decoder:
    """Random weights of one shape on one device."""

    def __init__(
        self, shape: DecoderShape, *, device: torch.device, dtype: torch.dtype, seed: int = 0
    ) -> None:
        """Draws the weights on the device itself.

        Raises:
            torch.OutOfMemoryError: they do not fit.
        """
        self.shape = shape
        self.device = device
        self.dtype = dtype
        generator = torch.Generator(device=device).manual_seed(seed)

        def drawn(*size: int) -> Tensor:
            tensor = torch.empty(size, device=device, dtype=dtype)
            return tensor.normal_(0.0, WEIGHT_DEVIATION, generator=generator)

        def constant(size: int, value: float) -> Tensor:
            return torch.full((size,), value, device=device, dtype=dtype)

        hidden = shape.hidden_size
        self.embedding = drawn(shape.vocabulary_size, hidden)
        self.positions = drawn(shape.position_count + POSITION_OFFSET, hidden)
        self.layers = [
            Layer(
                norm_1_H=constant(hidden, 1.0),
                norm_1_bias_H=constant(hidden, 0.0),
                qkv=drawn(3 * hidden, hidden),
                qkv_bias=constant(3 * hidden, 0.0),
                out=drawn(hidden, hidden),
                out_bias_H=constant(hidden, 0.0),
                norm_2_H=constant(hidden, 1.0),
                norm_2_bias_H=constant(hidden, 0.0),
                up=drawn(4 * hidden, hidden),
                up_bias=constant(4 * hidden, 0.0),
                down=drawn(hidden, 4 * hidden),
                down_bias_H=constant(hidden, 0.0),
            )
            for _ in range(shape.layer_count)
        ]
        self.norm_H = constant(hidden, 1.0)
        self.norm_bias_H = constant(hidden, 0.0)

    def parameter_count(self) -> int:
        """Returns the number of weights it holds."""
        tensors = [self.embedding, self.positions, self.norm_H, self.norm_bias_H]
        tensors += [tensor for layer in self.layers for tensor in layer]
        return sum(tensor.numel() for tensor in tensors)

    def new_cache(self, sequences: int, tokens: int) -> Tensor:
        """Returns a cache [layer, key or value, B, head, S, head width].

        Raises:
            torch.OutOfMemoryError: it does not fit.
        """
        shape = self.shape
        width = shape.hidden_size // shape.head_count
        size = (shape.layer_count, 2, sequences, shape.head_count, tokens, width)
        return torch.zeros(size, device=self.device, dtype=self.dtype)

    def positions_of(self, work: Iteration) -> Tensor:
        """Returns each token's place in its sequence [N]: prompts first, then those that run."""
        prompt = torch.arange(work.prompt_tokens, device=self.device).repeat(work.admitted)
        running = torch.full((work.running,), work.context_tokens, device=self.device)
        return torch.cat([prompt, running])

    def step(self, work: Iteration, tokens_N: Tensor, positions_N: Tensor, cache: Tensor) -> Tensor:
        """Runs one iteration and returns the logits of each sequence [B, vocabulary].

        Sequences that run hold the first rows of the cache, admitted ones the rows after them;
        results come admitted first.

        Args:
            work: the iteration.
            tokens_N: prompts one after the other, then the last token of each running sequence.
            positions_N: from `positions_of`.
            cache: from `new_cache`, of at least `work.batch` sequences.
        """
        hidden = self.shape.hidden_size
        x_NH = self.embedding[tokens_N] + self.positions[positions_N + POSITION_OFFSET]
        for index, layer in enumerate(self.layers):
            h_NH = functional.layer_norm(x_NH, (hidden,), layer.norm_1_H, layer.norm_1_bias_H)
            qkv_N = functional.linear(h_NH, layer.qkv, layer.qkv_bias)
            a_NH = self._attention(work, qkv_N, cache[index])
            x_NH = x_NH + functional.linear(a_NH, layer.out, layer.out_bias_H)
            h_NH = functional.layer_norm(x_NH, (hidden,), layer.norm_2_H, layer.norm_2_bias_H)
            up_N = functional.relu(functional.linear(h_NH, layer.up, layer.up_bias))
            x_NH = x_NH + functional.linear(up_N, layer.down, layer.down_bias_H)
        last_BH = x_NH
        if work.admitted:  # only the last token of a prompt is asked what comes next
            ends = x_NH[work.prompt_tokens - 1 : work.admitted_tokens : work.prompt_tokens]
            last_BH = torch.cat([ends, x_NH[work.admitted_tokens :]])
        last_BH = functional.layer_norm(last_BH, (hidden,), self.norm_H, self.norm_bias_H)
        return functional.linear(last_BH, self.embedding)

    def _attention(self, work: Iteration, qkv_N: Tensor, cache: Tensor) -> Tensor:
        """Writes keys and values to the layer's cache and attends; returns [N, H]."""
        heads = self.shape.head_count
        split = work.admitted_tokens
        parts = []
        if work.admitted:
            # [admitted, token, 3, head, width] -> 3 of [admitted, head, token, width]
            prompt = qkv_N[:split].view(work.admitted, work.prompt_tokens, 3, heads, -1)
            q, k, v = prompt.permute(2, 0, 3, 1, 4)
            rows = slice(work.running, work.batch)
            cache[0, rows, :, : work.prompt_tokens] = k
            cache[1, rows, :, : work.prompt_tokens] = v
            attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            parts.append(attended.transpose(1, 2).reshape(split, -1))
        if work.running:
            running = qkv_N[split:].view(work.running, 1, 3, heads, -1)
            q, k, v = running.permute(2, 0, 3, 1, 4)
            here, end = work.context_tokens, work.context_tokens + 1
            cache[0, : work.running, :, here:end] = k
            cache[1, : work.running, :, here:end] = v
            keys, values = cache[:, : work.running, :, :end]
            attended = functional.scaled_dot_product_attention(q, keys, values)
            parts.append(attended.transpose(1, 2).reshape(work.running, -1))
        return torch.cat(parts) if len(parts) > 1 else parts[0]
