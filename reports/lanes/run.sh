#!/bin/sh
# Five strengths of EWC beside replay, 5 seeds: 25 lanes in one stack, then the same five runs one after another.
# Usage: sh reports/lanes/run.sh [STORE [OPTIONS OF lifelong run]]
set -eu
store=${1:-reports/lanes/runs}
[ $# -eq 0 ] || shift
lifelong run rotated-digits "er(capacity=200) + ewc(strength=[0,1,10,100,1000])" --seeds 5 --store "$store/stack" "$@"
for strength in 0 1 10 100 1000; do
    lifelong run rotated-digits "er(capacity=200) + ewc(strength=$strength)" --seeds 5 --store "$store/alone" "$@"
done
python3 reports/lanes/compare.py "$store/stack" "$store/alone"
