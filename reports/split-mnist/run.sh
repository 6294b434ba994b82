#!/bin/sh
# Split MNIST, 5 tasks of 2 digits, as van de Ven & Tolias 2019 (arXiv:1904.07734): MLP 400-400, Adam 1e-3, batch 128,
# 2,000 steps a task. Usage: sh reports/split-mnist/run.sh [STORE [OPTIONS OF lifelong run]]
set -eu
store=${1:-reports/split-mnist/runs}
[ $# -eq 0 ] || shift
protocol() {
    lifelong run split-mnist "$@" --store "$store"
}
protocol finetune joint --scenario class --steps 2000 --batch-size 128 --model "mlp(hidden=(400, 400))" \
    --optimizer "adam(lr=0.001)" --seeds 5 "$@"
protocol lwf --scenario task --steps 2000 --batch-size 128 --model "mlp(hidden=(400, 400))" \
    --optimizer "adam(lr=0.001)" --seeds 5 "$@"
lifelong report --store "$store" --out "$store/.."
