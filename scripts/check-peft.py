"""Reads what quantune wrote with PEFT and transformers and compares logits; see check-peft.ts, which starts it.

usage: check-peft.py FOLDER    FOLDER/cases.json: [{name, model, adapter?, resize?, auto?, input_ids, logits (a float32 file), columns}]
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM
from transformers.utils import logging

folder = Path(sys.argv[1])
logging.disable_progress_bar()
worst = 0.0
for case in json.loads((folder / "cases.json").read_text()):
    if case.get("auto"):
        model = AutoPeftModelForCausalLM.from_pretrained(case["adapter"], dtype=torch.float32)
    else:
        model = AutoModelForCausalLM.from_pretrained(case["model"], dtype=torch.float32)
        if case.get("resize"):
            model.resize_token_embeddings(case["resize"])
        if case.get("adapter"):
            model = PeftModel.from_pretrained(model, case["adapter"])
    ids = torch.tensor(case["input_ids"])
    with torch.no_grad():
        logits = model.eval()(ids).logits.reshape(-1, model.config.vocab_size)[:, : case["columns"]].numpy()
    ours = np.fromfile(folder / case["logits"], dtype=np.float32).reshape(logits.shape)
    deviation = float(np.max(np.abs(ours - logits) / np.maximum(1, np.abs(logits))))
    worst = max(worst, deviation)
    print(f"{'ok  ' if deviation < 2e-5 else 'MISS'} {case['name']}: largest deviation {deviation:.2e}")
sys.exit(0 if worst < 2e-5 else 1)
