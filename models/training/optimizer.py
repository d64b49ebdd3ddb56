"""AdamW that goes through every parameter in the order in which it lies in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class DenseAdamW(torch.optim.AdamW):
    """``torch.optim.AdamW`` without copies of parameters whose axes are permuted in memory.

    The fused kernel on a CPU takes contiguous tensors and copies any other, with its gradient and both moments, there
    and back. The update of an element knows only that element, so permuted axes may as well be permuted back first,
    which is a view. States, checkpoints and results are those of ``torch.optim.AdamW``.
    """

    def _init_group(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        exp_avgs: list[Tensor],
        exp_avg_sqs: list[Tensor],
        max_exp_avg_sqs: list[Tensor],
        state_steps: list[Tensor],
    ) -> bool:
        has_complex: bool = super()._init_group(
            group, params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, state_steps
        )
        for index, parameter in enumerate(params):
            order = sorted(range(parameter.dim()), key=parameter.stride, reverse=True)
            for tensors in (params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs):
                if tensors:
                    tensors[index] = tensors[index].permute(order)
        return has_complex
