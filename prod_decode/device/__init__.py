"""The same matching for vLLM's V2 model runner, whose tokens never leave the GPU. Public: `DeviceMatcher`."""

from __future__ import annotations

from prod_decode.device.bans import DeviceMatcher

__all__ = ["DeviceMatcher"]
