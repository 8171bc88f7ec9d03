"""Peer baseline: PyTorch's float32 products x [m, k] times W [n, k] transposed, dy W and dy transposed times x.

usage: python torch_products.py m n k threads
Prints the best seconds of each.
"""
import json, sys, time
import torch

m, n, k, threads = map(int, sys.argv[1:])
torch.set_num_threads(threads)
x, w, dy = torch.randn(m, k), torch.randn(n, k), torch.randn(m, n)


def seconds(f):
    def run(count):
        start = time.perf_counter()
        for _ in range(count):
            f()
        return (time.perf_counter() - start) / count
    run(1)
    count = max(1, round(0.03 / run(2)))
    return min(run(count) for _ in range(10))


with torch.no_grad():
    print(json.dumps({'xw': seconds(lambda: x @ w.t()), 'dyw': seconds(lambda: dy @ w), 'dytx': seconds(lambda: dy.t() @ x)}))
