#!/bin/sh
# Six sums against their parts, 10 seeds: rotated MNIST as in GEM (20 angles of 1,000 digits, one pass, batch 10,
# tested on 1,000 digits each) and class-incremental split MNIST (300 steps of 10 a task). Every part has its default
# hyper-parameters: none was chosen on these streams. Usage: sh reports/sums/run.sh [STORE [OPTIONS OF lifelong run]]
set -eu
store=${1:-reports/sums/runs}
[ $# -eq 0 ] || shift
measured() {
    stream=$1
    shift
    # A diverged run ends with 1; the table says so.
    lifelong run "$stream" finetune er ewc lwf derpp agem si mas dgr "er + ewc" "er + lwf" "derpp + ewc" "agem + si" \
        "er + mas" "dgr + ewc" --batch-size 10 --model "mlp(hidden=(100, 100))" --optimizer "sgd(lr=0.05)" --seeds 10 \
        --store "$store" "$@" || [ $? -eq 1 ]
}
measured "rotated-mnist-gem(test_examples=1000)" "$@"
measured split-mnist --steps 300 "$@"
python3 reports/sums/compare.py "$store" | tee "$store/../report.md"
