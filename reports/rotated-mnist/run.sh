#!/bin/sh
# Rotated MNIST, 20 tasks of 60,000 digits, in the protocol of DER (Buzzega et al. 2020, arXiv:2004.07211): MLP 100-100,
# SGD, batch 128, one epoch, a memory of 500; rates and weights as in their code. Their online EWC adds 2 * 0.7 F (theta -
# theta*) to the gradient, and our strength s adds s F (theta - theta*).
# Usage: sh reports/rotated-mnist/run.sh [STORE [OPTIONS OF lifelong run]]
set -eu
store=${1:-reports/rotated-mnist/runs}
[ $# -eq 0 ] || shift
protocol() {
    lifelong run rotated-mnist-der --seeds 5 --store "$store" "$@"
}
protocol finetune "er(capacity=500)" "er(capacity=500, combine='mean')" "der(capacity=500, alpha=0.5)" \
    "derpp(capacity=500, alpha=0.5, beta=1.0)" --optimizer "sgd(lr=0.2)" "$@"
protocol "ewc(strength=1.4, mode='online')" --optimizer "sgd(lr=0.1)" "$@"
lifelong report --store "$store" --out "$store/.."
