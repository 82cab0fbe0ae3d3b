"""Prompt travel: prompts at keyframes, and for every frame the embedding between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .curves import LINEAR, PROMPT_INTERPOLATIONS, SLERP, between, check_interpolation
from .keyframe_text import parse_prompts
from .keyframes import on_frames

Conditioning = list[list[Any]]  # the host's: [embedding [rows, tokens, dim], {"pooled_output": [rows, dim], ...}] each
POOLED = "pooled_output"


@dataclass(frozen=True)
class Travel:
    """prompts: whole, and each once. frames: for each, two prompts by their numbers and the share of the second."""

    prompts: tuple[str, ...]
    frames: tuple[tuple[int, int, float], ...]
    interpolation: str = LINEAR


def plan_travel(text: str, frames: int, prefix: str = "", suffix: str = "", interpolation: str = LINEAR) -> Travel:
    """The travel of a text in the syntax of keyframe_text.py over so many frames.

    A prompt is prefix, the text's head, what stands at the keyframe, the text's tail and suffix, with a space between.
    Raises ValueError, with line and column, for what cannot be understood or what such a clip does not have.
    """
    check_interpolation(interpolation, PROMPT_INTERPOLATIONS)
    parsed = parse_prompts(text)
    spans = on_frames(parsed.keyframes, frames)
    whole = [_joined(prefix, parsed.head, span.value, parsed.tail, suffix) for span in spans]
    prompts = tuple(dict.fromkeys(whole))
    numbers = [prompts.index(prompt) for prompt in whole]
    rows: list[tuple[int, int, float]] = []
    for frame in range(frames):
        first, second, share = between(spans, frame, interpolation)
        first, second = numbers[first], numbers[second]
        rows.append((first, second, 0.0 if first == second else share))
    return Travel(prompts, tuple(rows), interpolation)


def encode_travel(clip: Any, travel: Travel) -> Conditioning:
    """A conditioning with a row for each frame, from the host's CLIP; each prompt is encoded once.

    Where hooks on the CLIP are scheduled there are several parts, as from CLIP Text Encode, and all of them travel. Raises
    ValueError where there is no CLIP.
    """
    if clip is None:
        raise ValueError("clip: expected a text encoder, found none: the checkpoint has none. Load one with Load CLIP.")
    encoded = [clip.encode_from_tokens_scheduled(clip.tokenize(prompt)) for prompt in travel.prompts]
    result: Conditioning = []
    for parts in zip(*encoded, strict=True):
        options = dict(parts[0][1])
        pooled = [part[1].get(POOLED) for part in parts]
        if all(one is not None for one in pooled):
            options[POOLED] = _rows(pooled, travel)
        result.append([_rows(same_length([part[0] for part in parts]), travel), options])
    return result


def same_length(embeddings: Sequence[Tensor]) -> list[Tensor]:
    """Embeddings [1, tokens, dim] repeated to their least common number of tokens.

    Attention to every token twice is attention to every token once: a frame at a keyframe sees its prompt exactly as if it were
    alone. The host joins conditionings of different lengths so, too. Zeros behind the shorter one would take a share of the
    attention and weaken its prompt.
    """
    tokens = math.lcm(*(embedding.shape[1] for embedding in embeddings))
    return [embedding.repeat(1, tokens // embedding.shape[1], 1) for embedding in embeddings]


def slerp(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Vectors (the last dimension) turned from first to second, their lengths changing evenly. Parallel ones go straight.

    Ken Shoemake, Animating rotation with quaternion curves, 1985; the angle by Kahan's formula, which is exact for small ones.
    """
    lengths = first.norm(dim=-1, keepdim=True), second.norm(dim=-1, keepdim=True)
    straight = torch.lerp(first, second, share)
    one, other = (vector / length for vector, length in zip((first, second), lengths, strict=True))
    angle = 2 * torch.atan2((one - other).norm(dim=-1, keepdim=True), (one + other).norm(dim=-1, keepdim=True))
    sine = torch.sin(angle)
    direction = (torch.sin((1 - share) * angle) * one + torch.sin(share * angle) * other) / sine
    return torch.where(sine > 1e-4, direction * torch.lerp(*lengths, share), straight)


def _rows(embeddings: Sequence[Tensor], travel: Travel) -> Tensor:
    """embeddings: [1, ...] of each prompt -> [frames, ...]."""
    mix = slerp if travel.interpolation == SLERP else torch.lerp
    return torch.cat(
        [
            mix(embeddings[first], embeddings[second], share) if share else embeddings[first]
            for first, second, share in travel.frames
        ]
    )


def _joined(*parts: str) -> str:
    return " ".join(part.strip() for part in parts if part.strip())
