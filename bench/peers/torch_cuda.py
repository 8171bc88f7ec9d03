"""Peer baseline on one GPU: PyTorch's bfloat16 products, copies and flash attention.

usage: python torch_cuda.py cuda[:N] REQUESTS, a JSON list of ["product", m, n, k] | ["copy", bytes] |
  ["attention", tokens, heads, heads_kv, d]
Prints a JSON list of the median seconds: of one product, of one copy, of attention's [forward, backward]. As ours are measured:
calls one behind the other for at least 20 ms, the median of nine such runs.
"""
import json, math, statistics, sys, time
import torch
import torch.nn.functional as F

DEVICE = sys.argv[1]
torch.cuda.set_device(torch.device(DEVICE if ':' in DEVICE else DEVICE + ':0'))


def seconds(f):
    def run(count):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            f()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / count

    run(3)
    count = max(3, math.ceil(0.02 / run(3)))
    return statistics.median(run(count) for _ in range(9))


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
print(json.dumps([kinds[name](*args) for name, *args in json.loads(sys.argv[2])]))
