#!/bin/sh
# Split MNIST, 5 tasks of 2 digits, in the protocol of DER (Buzzega et al. 2020, arXiv:2004.07211): MLP 100-100, SGD,
# batch 10, one epoch, a memory of 500; rates and weights as in their code.
# Usage: sh reports/split-mnist-der/run.sh [STORE [OPTIONS OF lifelong run]]
set -eu
store=${1:-reports/split-mnist-der/runs}
[ $# -eq 0 ] || shift
protocol() {
    lifelong run split-mnist --batch-size 10 --model "mlp(hidden=(100, 100))" --seeds 5 --store "$store" "$@"
}
protocol finetune "der(capacity=500, alpha=1.0)" "derpp(capacity=500, alpha=1.0, beta=0.5)" \
    --optimizer "sgd(lr=0.03)" "$@"
protocol finetune "er(capacity=500, combine='mean')" "agem(capacity=500)" --optimizer "sgd(lr=0.1)" "$@"
protocol "gem(capacity=500)" --optimizer "sgd(lr=0.03)" "$@"
lifelong report --store "$store" --out "$store/.."
