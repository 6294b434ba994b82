#!/bin/sh
# Split MNIST, 5 tasks of 2 digits, as van de Ven & Tolias 2019 (arXiv:1904.07734): MLP 400-400, Adam 1e-3, batch 128,
# 2,000 steps a task; strengths and memories as in their code. Replay of 100 examples a class is of van de Ven et al.
# 2022; iCaRL remembers 2,000 in all. The two slowest have 3 seeds.
# Usage: sh reports/split-mnist/run.sh [STORE [OPTIONS OF lifelong run]]
set -eu
store=${1:-reports/split-mnist/runs}
[ $# -eq 0 ] || shift
protocol() {
    lifelong run split-mnist "$@" --store "$store"
}
setting="--steps 2000 --batch-size 128 --seeds 5"
protocol finetune joint "er(capacity=1000, memory='class-balanced', combine='tasks')" --scenario class $setting "$@"
protocol icarl dgr --scenario class --steps 2000 --batch-size 128 --seeds 3 "$@"
protocol lwf "ewc(strength=100000.0)" --scenario task $setting "$@"
protocol lwf "lwf(strength=0.25)" finetune --scenario domain $setting "$@"
lifelong report --store "$store" --out "$store/.."
