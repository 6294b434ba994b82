#!/bin/sh
# Permuted MNIST, 20 tasks of 60,000 digits, in the protocol of DER (Buzzega et al. 2020, arXiv:2004.07211): MLP 100-100,
# SGD, batch 128, one epoch, a memory of 500; rates and weights as in their code. Their online EWC adds 2 * 0.7 F (theta -
# theta*) to the gradient, and our strength s adds s F (theta - theta*).
# Usage: sh reports/permuted-mnist/run.sh [STORE [OPTIONS OF lifelong run]]
set -eu
store=${1:-reports/permuted-mnist/runs}
[ $# -eq 0 ] || shift
protocol() {
    lifelong run permuted-mnist --tasks 20 --batch-size 128 --seeds 5 --store "$store" "$@"
}
protocol finetune "er(capacity=500, combine='mean')" "derpp(capacity=500, alpha=1.0, beta=0.5)" \
    --optimizer "sgd(lr=0.2)" "$@"
protocol "ewc(strength=1.4, mode='online')" --optimizer "sgd(lr=0.1)" "$@"
lifelong report --store "$store" --out "$store/.."
