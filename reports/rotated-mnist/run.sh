#!/bin/sh
# Rotated MNIST, 20 tasks of 60,000 digits, in the protocol of DER (Buzzega et al. 2020, arXiv:2004.07211): MLP 100-100,
# SGD 0.2, batch 128, one epoch. Usage: sh reports/rotated-mnist/run.sh [STORE [OPTIONS OF lifelong run]]
set -eu
store=${1:-reports/rotated-mnist/runs}
[ $# -eq 0 ] || shift
lifelong run rotated-mnist-der finetune "er(capacity=500)" --seeds 5 --store "$store" "$@"
lifelong report --store "$store" --out "$store/.."
