"""The tiny models of the comparison with peers: a sample of the sweep's, saved so that all environments load the same.

Three families: decoder language models (what rotations and SmoothQuant are made for), encoders, and image classifiers
(what dependency graphs and Git Re-Basin are made for). Those that peers name in their documents come first, then the
sweep's own order, which is a sample.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

COUNTS = {"decoder": 30, "encoder": 12, "vision": 14}
# named in the documents and registries of the peers
NAMED = (
    "Llama", "Mistral", "Mixtral", "Qwen2", "Qwen3", "Qwen2Moe", "Gemma2", "Gemma3", "Phi3", "Granite", "Bloom",
    "Cohere", "DeepseekV2", "DeepseekV3", "SeedOss", "OPT", "GPTNeoX", "Falcon",
    "Bert", "Roberta", "DistilBert",
    "ResNet", "RegNet", "MobileNetV2", "ConvNext", "ViT", "Swin",
)  # fmt: skip
ENDS = {"decoder": "ForCausalLM", "encoder": "ForMaskedLM", "vision": "ForImageClassification"}


def wanted() -> list[tuple[str, str]]:
    """(family, class) of all candidates, the named ones first.

    A type with a masked head is an encoder, whatever other heads it has.
    """
    from transformers.models.auto import modeling_auto as auto

    tables = {
        "decoder": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "encoder": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "vision": auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    }
    found: dict[str, str] = {}
    for family, table in tables.items():
        for kind, name in table.items():
            names = [name] if isinstance(name, str) else list(name)
            if family == "decoder" and kind in tables["encoder"]:
                continue
            for one in names[:1]:
                if one.endswith(ENDS[family]):
                    found.setdefault(one, family)
    ordered = sorted(found, key=lambda n: hashlib.sha256(n.encode()).hexdigest())
    named = {name + end: i for i, name in enumerate(NAMED) for end in ENDS.values()}
    ordered.sort(key=lambda n: named.get(n, len(named)))
    return [(found[name], name) for name in ordered]


def save(folder: Path, counts: dict[str, int]) -> dict[str, str]:
    """Saves tiny models at generic weights until there are enough of each family; returns class → family.

    A file holds the class, the configuration, weights and buffers, inputs, and the first output in float64.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tried = folder / "tried.json"
    known: dict[str, str] = json.loads(tried.read_text()) if tried.exists() else {}
    made = {family: sum(1 for v in known.values() if v == family) for family in counts}
    for family, name in wanted():
        if name in known or made[family] >= counts[family]:
            continue
        try:
            _save(name, family, folder / f"{name}.pt")
            known[name] = family
            made[family] += 1
        except (Exception, SystemExit) as error:  # whatever a constructor says; NotBuilt among it
            known[name] = f"not built: {type(error).__name__}: {str(error)[:120]}"
        print(f"{family:8} {name}: {known[name]}", file=sys.stderr, flush=True)
        tried.write_text(json.dumps(known, indent=1))
    return {name: family for name, family in known.items() if family in counts}


def _save(name: str, family: str, path: Path) -> None:
    import torch
    import transformers
    from peers_worker import load, observe
    from tiny_models import tiny

    from torchgauge.numerics import randomise

    torch.manual_seed(0)
    transformers.utils.logging.set_verbosity(50)
    model_class: Any = getattr(transformers, name)
    built = tiny(model_class, model_class.config_class)
    state = randomise(built.model, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for key, value in [*built.model.named_parameters(), *built.model.named_buffers()]:
            if key in state and value.is_floating_point():
                value.copy_(state[key])
    saved = {
        "class": name,
        "family": family,
        "config_class": type(built.model.config).__name__,
        "config": built.model.config.to_json_string(use_diff=False),
        "state": built.model.state_dict(),
        "inputs": dict(built.inputs[0]),
    }
    torch.save(saved, path)
    try:
        model, inputs = load(path)
        torch.save(saved | {"output": observe(model, inputs)}, path)
    except Exception:
        path.unlink()
        raise
