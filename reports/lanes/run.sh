#!/bin/sh
# Five strengths of EWC beside replay, 5 seeds: 25 lanes in one stack, then the same five runs one after another; in
# float64, where a lane must equal its run alone, and in float32, for the time. The two largest strengths diverge with
# this step size: then a lane must stop where its run alone does.
# Usage: sh reports/lanes/run.sh [STORE [OPTIONS OF lifelong run]]
set -eu
store=${1:-reports/lanes/runs}
[ $# -eq 0 ] || shift
python3 reports/lanes/compare.py "$store" "$@"
