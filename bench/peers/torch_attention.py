"""torch's scaled_dot_product_attention, causal, forward and backward. Prints seconds of one call as JSON.

usage: torch_attention.py LENGTH HEADS KV_HEADS SIZE DEVICE DTYPE [THREADS]
On a GPU the flash kernel is asked for by name, so that nothing slower is compared with.
"""
import contextlib
import json
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

length, heads, kv_heads, size = (int(x) for x in sys.argv[1:5])
device, dtype = sys.argv[5], getattr(torch, sys.argv[6])
if len(sys.argv) > 7:
    torch.set_num_threads(int(sys.argv[7]))
torch.manual_seed(0)


def operand(count):
    return torch.randn(1, count, length, size, device=device, dtype=dtype, requires_grad=True)


q, k, v = operand(heads), operand(kv_heads), operand(kv_heads)
grad = torch.randn(1, heads, length, size, device=device, dtype=dtype)
flash = sdpa_kernel(SDPBackend.FLASH_ATTENTION) if device == "cuda" else contextlib.nullcontext()


def forward():
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != kv_heads)


def settle():
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(call):
    def run(count):
        settle()
        start = time.perf_counter()
        for _ in range(count):
            call()
        settle()
        return (time.perf_counter() - start) / count

    run(1)
    count = max(1, round(0.03 / run(2)))
    return min(run(count) for _ in range(10))


with flash:
    o = forward()
    figures = {
        "forward": seconds(forward),
        "backward": seconds(lambda: torch.autograd.grad(o, (q, k, v), grad, retain_graph=True)),
    }
print(json.dumps(figures))
