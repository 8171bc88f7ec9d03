"""Peer baseline on one GPU: PyTorch's bfloat16 products, copies and flash attention.

usage: python torch_cuda.py REQUESTS, a JSON list of ["product", m, n, k] | ["copy", bytes] | ["attention", tokens, heads, heads_kv, d]
Prints a JSON list of the median seconds: of one product, of one copy, of attention's [forward, backward].
"""
import json, statistics, sys
import torch
import torch.nn.functional as F

FLUSH = torch.empty(256 << 20, dtype=torch.uint8, device='cuda')  # larger than the second-level cache


def seconds(f, repeat=20):
    for _ in range(3):
        f()
    times = []
    for _ in range(repeat):
        FLUSH.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        f()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def normal(*shape):
    return torch.randn(*shape, device='cuda', dtype=torch.bfloat16)


def product(m, n, k):
    x, w = normal(m, k), normal(n, k)
    return seconds(lambda: x @ w.t())


def copy(size):
    a = torch.empty(size, dtype=torch.uint8, device='cuda')
    b = torch.empty_like(a)
    return seconds(lambda: b.copy_(a))


def attention(tokens, heads, heads_kv, d):
    q = normal(1, heads, tokens, d).requires_grad_()
    k, v = (normal(1, heads_kv, tokens, d).requires_grad_() for _ in range(2))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        run = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != heads_kv)
        o = run()
        do = torch.randn_like(o)
        with torch.no_grad():
            forward = seconds(run)
        backward = seconds(lambda: torch.autograd.grad(o, (q, k, v), do, retain_graph=True))
    return [forward, backward]


kinds = {'product': product, 'copy': copy, 'attention': attention}
print(json.dumps([kinds[name](*args) for name, *args in json.loads(sys.argv[1])]))
