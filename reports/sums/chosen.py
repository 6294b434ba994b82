"""Prints the strategies to run on a stream, each penalty with the strength that `lifelong tune` chose for it:
`chosen.py STORE STREAM`."""

import json
import sys
from pathlib import Path

PLAIN = ("finetune", "er", "derpp", "agem", "dgr")
SUMS = (("er", "ewc"), ("er", "lwf"), ("derpp", "ewc"), ("agem", "si"), ("er", "mas"), ("dgr", "ewc"))


def strategies(store: Path, stream: str) -> list[str]:
    """The parts and the sums."""
    records = [json.loads(file.read_text()) for file in (store / "tuning").glob(f"{stream}-v*.json")]
    choices = max(records, key=lambda record: record["finished"])["choices"]
    chosen = {choice["asked"].partition("(")[0]: choice["chosen"]["strategy"] for choice in choices}
    return [*PLAIN, *chosen.values(), *(" + ".join(chosen.get(part, part) for part in parts) for parts in SUMS)]


if __name__ == "__main__":
    print("\n".join(strategies(Path(sys.argv[1]), sys.argv[2])))
