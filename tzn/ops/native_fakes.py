"""Output shapes of the compiled ops, for tracing (torch.compile, torch.export, opcheck)."""

from __future__ import annotations

import torch


def _new_size() -> torch.SymInt:
    return torch.library.get_ctx().new_dynamic_size()


@torch.library.register_fake("tzn_native::active_tokens")
def _active_tokens(gate, window, mask):  # type: ignore[no-untyped-def]
    return tuple(torch.empty(_new_size(), dtype=torch.long, device=gate.device) for _ in range(2))
