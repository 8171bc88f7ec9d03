"""Peer baseline: PyTorch + PEFT on SQuAD samples, padded batches of 8, a model of SmolLM2-135M's shape with random weights.

usage: python torch_peft_squad.py IDS.json [--dtype bf16|fp32] [--batch 8] [--steps 3] [--threads 2]
IDS.json holds [{"inputIds": [...], "labels": [...]}, ...], as bench/train/squad.ts --ids writes it. Prints samples/s (median of the
steps after the first) and the peak resident memory.
"""
import argparse, json, resource, statistics, time
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from peft import LoraConfig, get_peft_model

p = argparse.ArgumentParser()
p.add_argument('ids'); p.add_argument('--dtype', default='fp32'); p.add_argument('--batch', type=int, default=8)
p.add_argument('--steps', type=int, default=3); p.add_argument('--threads', type=int, default=2)
a = p.parse_args()
torch.set_num_threads(a.threads); torch.manual_seed(0)
config = LlamaConfig(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
                     vocab_size=49152, max_position_embeddings=2048, tie_word_embeddings=True)
model = LlamaForCausalLM(config).to(torch.bfloat16 if a.dtype == 'bf16' else torch.float32)
model = get_peft_model(model, LoraConfig(r=16, lora_alpha=16, lora_dropout=0.0, task_type='CAUSAL_LM', target_modules=[
    'q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj']))
optimizer = torch.optim.AdamW([q for q in model.parameters() if q.requires_grad], lr=1e-4)
samples = json.load(open(a.ids))
# Evenly spaced, so that the few batches have the lengths of the whole.
count = a.batch * (a.steps + 1)
samples = [samples[i * len(samples) // count] for i in range(count)]


def pad(rows, key, value):
    longest = max(len(row[key]) for row in rows)
    return torch.tensor([row[key] + [value] * (longest - len(row[key])) for row in rows])


seconds = []
for first in range(0, count, a.batch):
    rows = samples[first:first + a.batch]
    begin = time.perf_counter()
    ids, labels = pad(rows, 'inputIds', 0), pad(rows, 'labels', -100)
    mask = pad([{'m': [1] * len(row['inputIds'])} for row in rows], 'm', 0)
    model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
    optimizer.step(); optimizer.zero_grad()
    seconds.append(time.perf_counter() - begin)
print(json.dumps(dict(dtype=a.dtype, batch=a.batch, samples_per_s=round(a.batch / statistics.median(seconds[1:]), 3),
                      peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)))
